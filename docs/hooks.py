# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the documentation site does beyond Markdown; `mkdocs.yml` names this file.

* A line that is only a link to a function, such as

      [rq.models.quantizer.quantize](../rq/models/quantizer.py "codes = … chosen =")

  shows its lines, with their numbers: from the first that contains `codes =` to the
  next that contains `chosen =`; without a title, all but signature and docstring.
* Links to notebooks lead to their pages, and links to other files of the repository
  become their text.
* Equations, in dollar signs, become MathML, which browsers show without a script.
* Notebooks become pages, with the outputs that are stored in them.
"""

from __future__ import annotations

import ast
import html
import json
import pathlib
import re
import textwrap
from base64 import b64decode
from typing import NamedTuple

DOCS = pathlib.Path(__file__).resolve().parent
ROOT = DOCS.parent
SOURCE = re.compile(
    r'^\[`?(rq\.[\w.]+)`?\]\(\.\./([\w/]+\.py)(?: "(.+) … (.+)")?\)$', re.M
)
_LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)")
_MATHS = re.compile(
    r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.DOTALL
)


class Lines(NamedTuple):
    """Some lines of a source file.

    Attributes:
      first: number of the first line, from 1.
      text: the lines, without their common indentation.
    """

    first: int
    text: str

    @property
    def last(self) -> int:
        """Number of the last line."""
        return self.first + self.text.count("\n")


def lines_of(name: str, file: str, start: str | None, end: str | None) -> Lines:
    """Returns lines of a function or class.

    Args:
      name: dotted name, as rq.models.rqvae.RQVAE.encode; of a function inside another
        one, too.
      file: its file, in the repository.
      start, end: texts in the first and last line; all of the body if None.

    Raises:
      LookupError: if there is no such file, name or text.
    """
    path = ROOT / file
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if not path.is_file() or not name.startswith(f"{module}."):
        raise LookupError(f"{name} is not in {file}")
    source = path.read_text()
    node: ast.AST = ast.parse(source)
    for part in name.removeprefix(f"{module}.").split("."):
        node = _child(node, part, name, file)
    body = node.body
    if start is None and ast.get_docstring(node) is not None and len(body) > 1:
        body = body[1:]
    first, lines = body[0].lineno, source.splitlines()[: node.end_lineno]
    numbers = range(first, len(lines) + 1)
    if start is not None:
        first = _find(start, numbers, lines, name)
        last = _find(end, range(first, len(lines) + 1), lines, name)
        lines = lines[:last]
    return Lines(first, textwrap.dedent("\n".join(lines[first - 1 :])))


def _child(node: ast.AST, part: str, name: str, file: str) -> ast.AST:
    kinds = (ast.FunctionDef, ast.ClassDef)
    for found in ast.walk(node):
        if found is not node and isinstance(found, kinds) and found.name == part:
            return found
    raise LookupError(f"there is no {name} in {file}")


def _find(text: str, numbers: range, lines: list[str], name: str) -> int:
    for number in numbers:
        if text in lines[number - 1]:
            return number
    raise LookupError(f"no line of {name} contains {text!r}")


def on_page_markdown(markdown: str, page, **_) -> str:
    """Shows lines of code, and leads links to what the site has of their targets."""
    folder = (DOCS / page.file.src_uri).parent

    def lead(match):
        text, target = match.groups()
        inside = (folder / target).resolve().is_relative_to(DOCS)
        if inside or "://" in target:
            return f"[{text}]({target.replace('.ipynb', '.md')})"
        return text  # a file of the repository

    return _LINK.sub(lead, with_lines(markdown))


def with_lines(markdown: str) -> str:
    """Returns a page with the lines of the functions linked on lines of their own."""

    def show(match):
        name, file = match[1], match[2]
        found = lines_of(*match.groups())
        numbers = f"{found.first}–{found.last}" if "\n" in found.text else found.first
        title = f'title="{file}:{numbers} ({name})" linenums="{found.first}"'
        return f"```python {title}\n{found.text}\n```"

    return SOURCE.sub(show, markdown)


def on_page_content(content: str, **_) -> str:
    """Returns a page with its equations as MathML."""
    if "arithmatex" not in content:
        return content
    from latex2mathml import converter

    def convert(match):
        display, tex = "block" if match[1] == "div" else "inline", match[2]
        found = converter.convert(html.unescape(tex), display=display)
        if unknown := re.findall(r">(\\\w+)<", found):
            raise LookupError(f"no MathML for {', '.join(unknown)} in {tex}")
        return found

    return _MATHS.sub(convert, content)


def on_files(files, config):
    """Adds a page for each notebook."""
    from mkdocs.structure.files import File

    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(notebook)
        name = notebook.src_uri.removesuffix(".ipynb")
        text, pictures = page_of(json.loads(notebook.content_string), name)
        files.append(File.generated(config, f"{name}.md", content=text))
        for picture, data in pictures.items():
            files.append(File.generated(config, picture, content=data))
    return files


def page_of(notebook: dict, name: str) -> tuple[str, dict[str, bytes]]:
    """Returns a notebook as Markdown, and its pictures by path.

    Args:
      notebook: the contents of a file `.ipynb`.
      name: of the page, without suffix.
    """
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                path = f"{name}_{len(pictures) + 1}.png"
                pictures[path] = b64decode("".join(data["image/png"]))
                parts.append(f"![output of the cell above]({path})")
            elif text := "".join(data.get("text/plain", "")).rstrip():
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts) + "\n", pictures
