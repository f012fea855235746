# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The documents: the site builds, links lead somewhere, commands and code run."""

import ast
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import shown_commands
from PIL import Image
from program import LIMIT, xla_flags
from shown_commands import NEEDS, OTHERS, ROOT, blocks_of

from rq import loaded_models, main
from rq.cli import program
from rq.config.schema import FIELDS

BLOCKS = list(shown_commands.blocks())
SHELL = [block for block in BLOCKS if block.is_shell]
# What a reader puts in the place of these words.
MEANT = {
    "RUN": "runs/digits",
    "runs/emoji_text": "emoji",
    "DIR": "photos",
    "PATH": "photo.png",
    "FILE_OR_FOLDER": "photo.png",
    "image.png": "photo.png",
}
spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)


def label(block):
    return f"{block.file}:{block.number}"


# The site.


def test_the_site_builds_without_a_warning(tmp_path):
    """Also checks links between pages, with the headings that they name."""
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:  # what a browser would load from another server
        loaded = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"(https?:[^\"]*)",
            page.read_text(),
        )
        assert not loaded, f"{page.name} loads {loaded}"


def test_the_equations_page_shows_the_lines_that_it_names():
    text = (ROOT / "docs/equations.md").read_text()
    found = hooks.SOURCE.findall(text)
    assert len(found) == text.count("](../rq/") > 20
    shown = hooks.with_lines(text)
    assert shown.count("```python title=") == len(found) and "](../rq/" not in shown


def test_lines_of_a_function_are_those_of_its_file():
    name, file = "rq.models.quantizer.quantize.one_depth", "rq/models/quantizer.py"
    found = hooks.lines_of(name, file, "chosen =", "residual, total =")
    lines = (ROOT / file).read_text().splitlines()[found.first - 1 : found.last]
    assert [line.strip() for line in lines] == [
        line.strip() for line in found.text.splitlines()
    ]
    assert "residual - chosen, total + chosen" in found.text
    with pytest.raises(LookupError, match="there is no rq.models.quantizer.squeeze"):
        hooks.lines_of("rq.models.quantizer.squeeze", file, None, None)
    with pytest.raises(LookupError, match="contains 'nothing like it'"):
        hooks.lines_of(name, file, "nothing like it", "x")


def anchors(text):
    """The names of a page's headings, as GitHub and the site make them."""
    for heading in re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M
    ):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize(
    "path", shown_commands.documents(), ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_lead_to_files_and_headings_that_exist(path):
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", path.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        other = path.parent / file if file else path
        assert other.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(other.read_text()), f"{target}: no such heading"


@pytest.mark.parametrize(
    "path", shown_commands.documents(), ids=lambda path: str(path.relative_to(ROOT))
)
def test_fields_of_the_config_that_are_named_exist(path):
    sections = {name.split(".")[0] for name in FIELDS if "." in name}
    pattern = rf"`(?:--(?:no)?config\.)?((?:{'|'.join(sections)})\.[a-z_0-9.]+)[=`\[]"
    for name in re.findall(pattern, path.read_text()):
        is_section = any(field.startswith(f"{name}.") for field in FIELDS)
        assert name in FIELDS or is_section or name.endswith(".py"), name


def test_metrics_that_troubleshooting_names_are_logged():
    source = "".join(path.read_text() for path in (ROOT / "rq").rglob("*.py"))
    text = (ROOT / "docs/troubleshooting.md").read_text()
    names = set(re.findall(r"`((?:[a-z_]+/)+[a-zA-Z_0-9]+)`", text))
    assert len(names) > 10
    for name in names:
        name = re.sub(r"/depth_\w$", "", name.removeprefix("eval/"))
        assert re.search(rf'"{name}["/]', source), name


# The notebook.


TOUR = ROOT / "docs/tour.ipynb"


def test_the_notebook_has_its_pictures_and_is_small():
    notebook = json.loads(TOUR.read_text())
    text, pictures = hooks.page_of(notebook, "tour")
    assert TOUR.stat().st_size < 1.5e6
    assert len(pictures) >= 5 and all(x[:4] == b"\x89PNG" for x in pictures.values())
    assert text.startswith("# A tour\n") and "](tour_1.png)" in text


@pytest.mark.slow
def test_the_notebook_runs(reader):
    nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[docs]'")
    client = pytest.importorskip("nbclient", reason="pip install -e '.[docs]'")
    require_models(["digits"])
    (reader / "runs").unlink()  # others' files: the notebook trains into this folder
    notebook = nbformat.read(TOUR, 4)
    resources = {"metadata": {"path": str(reader)}}
    client.NotebookClient(notebook, timeout=LIMIT, resources=resources).execute()


# Commands: that they parse, and that they are executed or say what they need.


def check_rq(name, args):
    # The config of a run that is not there: any other has the same fields.
    args = [re.sub("^--config=runs/.*", "--config=digits", arg) for arg in args]
    program.parse(program.module(name), args)


def check_python(args):
    """Checks `python FILE FLAGS` or `python -m MODULE FLAGS`."""
    if args[0] == "-m" and args[1].split(".")[0] == "rq":
        mode = [a.partition("=")[2] for a in args if a.startswith("--mode=")]
        args = [a for a in args if not a.startswith("--mode=")]
        names = {
            "rq.evaluation": "evaluate",
            "rq.convert": "convert",
            "rq.aot": "aot",
            "rq.main": main.COMMANDS[mode[0] if mode else "train"],
        }
        if args[1] in names:
            check_rq(names[args[1]], args[2:])
        else:
            assert args[1:] == ["rq.config"]
        return
    if args[0] == "-m" and args[1] in ("build", "venv"):
        return
    if args[0] == "-m":
        args = [args[1].replace(".", "/") + ".py", *args[2:]]
    source = (ROOT / args[0]).read_text()
    for arg in args[1:]:
        flag = arg.partition("=")[0].removeprefix("--").removeprefix("no-")
        assert not arg.startswith("-") or re.search(rf'"(--)?{flag}"', source), arg


def check_command(block, words):
    first, *args = words
    if first == "rq":
        check_rq(args[0], args[1:])
    elif first == "python":
        check_python(args)
    elif "launch/" in first:
        assert os.access(ROOT / first, os.X_OK), f"{first} is no program"
    elif first == "pip":
        setup = (ROOT / "setup.py").read_text()
        for extra in re.findall(r"\[([\w-]+)\]", " ".join(args)):
            assert f'"{extra}": ' in setup, f"no extra {extra}"
    elif first != "mkdocs":
        assert first in OTHERS, f"{first} is no command that is known here"
        assert block.needs or block.run_by, f"say what {first} needs"


@pytest.mark.parametrize("block", SHELL, ids=label)
def test_commands_parse_and_say_what_they_need(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert set(block.needs) <= set(NEEDS), f"needs one of {', '.join(NEEDS)}"
    for words in block.commands():
        check_command(block, words)
    if block.run_by:
        file, _, name = block.run_by.partition("::")
        assert f"\ndef {name}(" in (ROOT / file).read_text(), f"no {block.run_by}"
    elif not block.needs:
        for words in block.commands():
            assert "launch/" not in words[0], f"{words[0]}: no test runs it, say why"


@pytest.mark.parametrize("file, words", list(shown_commands.in_tables()))
def test_commands_in_tables_parse(file, words, monkeypatch):
    """Names of flags stand for flags, and N for a number."""
    monkeypatch.chdir(ROOT)
    args = [arg if "=" in arg or arg[0] != "-" else f"{arg}=1" for arg in words[2:]]
    check_rq(words[1], [re.sub("=N$", "=1", arg) for arg in args])


def test_comments_above_a_block_and_of_a_page_are_found():
    text = (
        "<!-- needs: tpu, time -->\n\n    rq train \\\n        --x=1\n"
        "    pip install y\n\nText.\n\n    rq check RUN\n\n"
        "<!-- run by: tests/a_test.py::test_b -->\n"
        "```\nX=1 ./launch/c.sh && rq check\n```\n"
    )
    first, second, third = blocks_of(text)
    assert first.lines[:2] == ("rq train --x=1", "pip install y")
    assert first.needs == ("tpu", "time") and not first.run_by
    assert (second.needs, second.run_by) == ((), "")
    assert third.run_by == "tests/a_test.py::test_b"
    assert list(third.commands()) == [["./launch/c.sh"], ["rq", "check"]]
    (block, *_) = blocks_of("<!-- needs on this page: gpu -->\n\nx\n\n    rq aot\n")
    assert block.needs == ("gpu",)


# Execution.


@pytest.fixture(scope="module")
def files(with_features, tmp_path_factory):
    """A folder with what the commands of a reader read; not to change."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(with_features, folder / "runs/digits")
    (folder / "configs").symlink_to(ROOT / "configs")
    noise = np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3), np.uint8)
    for number, image in enumerate(noise):
        split = "validation" if number < 4 else "train"
        photo = folder / f"photos/{split}/{'ab'[number % 2]}/{number}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(photo)
    shutil.copy(photo, folder / "photo.png")
    return folder


@pytest.fixture
def reader(files, tmp_path, monkeypatch):
    """A folder in which a reader tries a command."""
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", xla_flags(optimize=True))
    return tmp_path


def as_meant(word):
    """Replaces the words that stand for those of a reader."""
    name, equals, value = word.rpartition("=")
    return f"{name}{equals}{MEANT.get(value, value)}"


def require_models(words):
    """Skips what reads a model that comes with rq and is not there."""
    for name in {"digits", "emoji"} & set(re.findall(r"\w+", " ".join(words))):
        if name in words and name not in loaded_models.shipped():
            pytest.skip(f"rq/shipped/{name} is not there")


def execute(*words):
    done = subprocess.run(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def to_run():
    """Every command of `rq` that neither a comment nor another line excuses."""
    found = {}
    for block in SHELL:
        if not block.needs and not block.run_by:
            for words in block.commands():
                if words[0] == "rq" or words[:2] == ["python", "-m"]:
                    found.setdefault(tuple(map(as_meant, words)), label(block))
    return [pytest.param(words, id=f"{at} {words[1]}") for words, at in found.items()]


@pytest.mark.slow
@pytest.mark.parametrize("words", to_run())
def test_commands_do_what_the_documents_say(words, reader):
    require_models(words)
    if words[0] == "python":
        execute(*words[1:])
    else:
        execute("-m", "rq.main", f"--mode={words[1]}", *words[2:])


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.is_python], ids=label
)
def test_python_code_is_valid(block):
    assert ast.parse("\n".join(block.lines))


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [
        block
        for block in BLOCKS
        if block.is_python and not (block.needs or block.run_by)
    ],
    ids=label,
)
def test_python_code_runs(block, reader):
    code = "\n".join(block.lines)
    require_models(re.findall(r"\w+", code))
    execute("-c", code)
