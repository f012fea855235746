# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests sampling jobs, which resume after crashes, and measuring any images."""

import hashlib
import json
import pathlib
import shutil
import types
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from program import run, start
from samples import draw

from rq import config as config_lib
from rq import visualize
from rq.cli import program
from rq.config import ConfigError, SamplingConfig
from rq.data import DataError
from rq.evaluation import (
    chunks,
    extractors,
    feature_sets,
    image_files,
    references,
    report,
    sample_files,
    sample_job,
)
from rq.experiment import Experiment
from rq.metrics import distances
from rq.metrics import moments as statistics
from rq.parallel import run_lock, sharding

CLIP = pathlib.Path(__file__).parent / "clip"


@pytest.fixture(scope="module")
def experiment(with_features):
    return Experiment(with_features, sharding.make_mesh(devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def extractor(experiment):
    return extractors.of_experiment(experiment)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """Sets an empty cache folder, instead of the developer's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def reference(experiment, extractor, cache):
    """Returns the arguments of `Job.run` for a reference."""
    found, source = references.find_reference(experiment, extractor, "eval")
    return found, "eval", source


class Killed(Exception):
    """Ends a job like signal 9: nothing after it runs."""


def make_job(experiment, number, *, keep=1.0, classes=(), classifier=None, **options):
    """Returns a job; `options` are fields of `SamplingConfig`."""
    config = SamplingConfig(**experiment.config.sampling).replace(**options)
    return sample_job.Job(
        experiment,
        number,
        config,
        keep=keep,
        classes=classes,
        classifier=classifier,
        classifier_name="" if classifier is None else "other",
    )


def elsewhere(experiment, tmp_path, number=23, **options):
    """Returns a job in a new folder."""
    task = make_job(experiment, number, batch_size=4, **options)
    task.folder = tmp_path / task.folder.name
    return task


def samples(task):
    with np.load(task.folder / sample_job.SAMPLES) as file:
        return file["arr_0"], file["arr_1"]


def left_over(task):
    """Returns the files of parts."""
    return list(task.folder.glob("*_part_*"))


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(chunks, "PART", 10)


def same_metrics(a, b):
    assert a["metrics"].keys() == b["metrics"].keys()
    for name, value in a["metrics"].items():
        assert value == pytest.approx(b["metrics"][name], rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_a_killed_job_resumes_and_ends_the_same(
    experiment, extractor, reference, tmp_path, small_parts, monkeypatch, keep
):
    whole = elsewhere(experiment, tmp_path / "whole", keep=keep)
    expected = whole.run(extractor, *reference)
    interrupted = elsewhere(experiment, tmp_path / "parts", keep=keep)
    make, drawn, alive = chunks.Parts.make, [], []

    def dying(self, function):
        def one(rows):
            if self._name == "samples":
                if rows.start == 20 and not alive:
                    raise Killed
                drawn.append(rows.start)
            return function(rows)

        return make(self, one)

    monkeypatch.setattr(chunks.Parts, "make", dying)
    with pytest.raises(Killed):
        interrupted.run(extractor, *reference)
    assert drawn == [0, 10] and not list(interrupted.folder.glob("metrics_*"))
    alive.append(True)
    # One of two parts is damaged, as by a full disk.
    part = interrupted.folder / "samples_part_00000000.npz"
    part.write_bytes(part.read_bytes()[:-100])
    again = elsewhere(experiment, tmp_path / "parts", keep=keep)
    found = again.run(extractor, *reference)
    assert drawn == [0, 10, 0, 20]
    same_metrics(found, expected)
    for a, b in zip(samples(interrupted), samples(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not left_over(interrupted)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_parts_and_devices_do_not_change_the_samples(
    experiment, with_features, tmp_path, small_parts, monkeypatch, keep
):
    task = elsewhere(experiment, tmp_path / "one", keep=keep)
    task.sample()
    monkeypatch.setattr(chunks, "PART", 7)
    eight = Experiment(with_features, sharding.make_mesh(2, 2, 2))
    other = elsewhere(eight, tmp_path / "eight", keep=keep)
    other.sample()
    for a, b in zip(samples(task), samples(other), strict=True):
        np.testing.assert_array_equal(a, b)
    images, labels = samples(task)
    np.testing.assert_array_equal(labels, np.arange(23) % 10)
    assert images.dtype == np.uint8 and images.shape == (23, 16, 16, 1)


def test_parts_of_another_size_are_recomputed(
    experiment, tmp_path, small_parts, monkeypatch
):
    expected = elsewhere(experiment, tmp_path / "a")
    expected.sample()
    monkeypatch.setattr(sample_files, "npz", None)  # fails before it joins the parts
    task = elsewhere(experiment, tmp_path / "b")
    with pytest.raises(TypeError):
        task.sample()
    assert len(left_over(task)) == 3
    monkeypatch.undo()
    monkeypatch.setattr(chunks, "PART", 9)
    task.sample()
    np.testing.assert_array_equal(samples(task)[0], samples(expected)[0])
    assert not left_over(task)


def test_a_job_is_run_by_one_program_at_a_time(
    experiment, extractor, tmp_path, small_parts
):
    """The other one would remove the parts of the first."""
    task = elsewhere(experiment, tmp_path, 12)
    part = task.folder / "samples_part_00000000.npz"
    with run_lock.lock(task.folder):
        part.touch()
        for call in (task.sample, lambda: task.features(extractor)):
            with pytest.raises(ConfigError, match="in use by process"):
                call()
        assert part.exists() and not (task.folder / sample_job.SAMPLES).exists()
    task.sample()
    with run_lock.lock(task.folder):  # finished samples can be read
        assert len(next(task.sample().batches(12))) == 12
        with pytest.raises(ConfigError, match="in use by process"):
            task.features(extractor)
    task.features(extractor)
    with run_lock.lock(task.folder):
        assert task.features(extractor).gaussian.number == 12


def test_samples_of_a_job_are_those_of_the_seed(experiment, tmp_path, small_parts):
    """Sample i has class i modulo 10, and is that of the sampler."""
    task = elsewhere(experiment, tmp_path, 10, seed=3)
    task.sample()
    expected = draw(experiment, 10, seed=3).images
    np.testing.assert_array_equal(samples(task)[0], visualize.to_uint8(expected))


def test_the_best_of_a_job_are_those_of_the_seed(experiment, tmp_path, small_parts):
    """They are the best-ranked of each class over all candidates, the best first."""
    task = elsewhere(experiment, tmp_path, 20, seed=3, keep=0.4)
    task.sample()
    expected, _, labels, _ = draw(experiment, 20, seed=3, keep=0.4)
    np.testing.assert_array_equal(labels, np.repeat(np.arange(10), 2))
    order = np.argsort(np.arange(20) % 10, kind="stable")
    np.testing.assert_array_equal(samples(task)[0][order], visualize.to_uint8(expected))
    assert task.settings["judge"] == "own" and task.settings["judge_weights"]


def test_existing_results_are_not_recomputed(
    experiment, extractor, reference, tmp_path, small_parts, monkeypatch
):
    """Neither samples nor features; another reference gets another file."""
    task = elsewhere(experiment, tmp_path, 12)
    expected = task.run(extractor, *reference)
    monkeypatch.setattr(sample_job.Job, "_draw", None)
    monkeypatch.setattr(type(extractor), "__call__", None)
    again = task.run(extractor, *reference)
    same_metrics(again, expected)
    assert again["evaluation"]["reference_sha256"] == reference[2]
    found, _, source = reference
    other = found._replace(pool=found.pool + 1)
    result = task.run(extractor, other, "some/where.npz", source)
    assert result["metrics"]["recall (digits features)"] == 0
    # Also if names are equal: results are identified by hashes.
    task.run(extractor, other, "another/where.npz", "other")
    names = sorted(path.name.rpartition("_")[0] for path in task.folder.glob("metr*"))
    where = "metrics_digits-features_where"
    assert names == ["metrics_digits-features_eval", where, where]
    assert len(report.results(tmp_path)) == 3


@pytest.mark.parametrize("how, kind", [("empty", "samples"), ("a bit", "features")])
def test_damaged_files_are_recomputed(
    experiment, extractor, tmp_path, monkeypatch, small_parts, how, kind
):
    """Damaged as by a power failure."""
    task, expected = (elsewhere(experiment, tmp_path / x, 25) for x in "ab")
    with monkeypatch.context() as patch:
        patch.setattr(sample_files, "npz", None)  # fails when all parts are written
        with pytest.raises(TypeError):
            task.sample()
    if kind == "features":
        task.features(extractor)
    folder = task.folder
    path = next(folder.glob("samples_part*1*.npz" if kind == "samples" else "feat*"))
    content = bytearray(path.read_bytes() if how == "a bit" else b"")
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found, whole = task.features(extractor), expected.features(extractor)
    np.testing.assert_array_equal(found.pool, whole.pool)
    np.testing.assert_array_equal(samples(task)[0], samples(expected)[0])
    assert not left_over(task)


def test_classes_without_their_texts_are_refused():
    config = config_lib.default()
    config.transformer.condition = "class_text"
    with pytest.raises(ConfigError, match="classes go with texts"):
        sample_job.Job(SimpleNamespace(output_path="x", config=config), 4, classes=(7,))


def test_every_setting_makes_a_job_of_its_own(experiment, with_features, monkeypatch):
    def folder(experiment=experiment, number=5, **options):
        return make_job(experiment, number, **options).folder

    changes = [
        {},
        {"number": 6},
        {"seed": 1},
        {"temperature": 0.5},
        {"top_k": (3,)},
        {"top_p": (0.5,)},
        {"min_p": (0.5,)},
        {"classes": (1,)},
        {"keep": 0.5},
        {"keep": 0.5, "classifier": experiment.classifier},
        {"experiment": Experiment(with_features, experiment.mesh, dtype="bfloat16")},
    ]
    assert len({folder(**change) for change in changes}) == len(changes)
    assert folder(batch_size=2) == folder()  # it changes no sample
    assert folder(temperature=0.5) == folder(temperature=(0.5,))
    known = folder()
    for wrong in ({"top_p": (2.0,)}, {"keep": 0.0}, {"keep": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            folder(**wrong)
    # The same step of another training run.
    monkeypatch.setattr(type(experiment), "identity", lambda *_: "another")
    assert folder() != known


def test_settings_say_all_that_samples_and_metrics_come_from(
    experiment, extractor, reference, tmp_path, small_parts
):
    task = elsewhere(experiment, tmp_path, 6, classes=(3, 4), seed=9, top_k=(5,))
    found = task.run(extractor, *reference)
    settings = found["settings"]
    assert settings["checkpoints"] == {"rqvae": 4, "transformer": 4}
    assert settings["seed"] == 9 and settings["keep"] == 1
    assert settings["conditions"]["which"] == [{"class": 3}, {"class": 4}]
    assert settings["sampling"]["top_k"] == [5]
    assert settings["sampling"]["top_p"] == [0.95]  # the config's
    about = found["evaluation"]
    assert about["label"] == "digits features" and about["reference_images"] == 500
    assert about["features_sha256"] == extractor.fingerprint
    (file,) = task.folder.glob("metrics_*")
    assert json.loads(file.read_text()) == found


def test_pixels_that_are_not_finite_are_refused(experiment, tmp_path, monkeypatch):
    broken = jax.tree.map(lambda x: x * np.nan, experiment.rqvae_variables)
    monkeypatch.setattr(experiment.sampler, "_rqvae_variables", broken)
    with pytest.raises(ConfigError, match="not finite"):
        elsewhere(experiment, tmp_path, 4).sample()


def test_a_younger_option_at_its_default_leaves_jobs_as_they_were(experiment):
    """Results from before an option was added are still found."""
    known = make_job(experiment, 5).settings
    assert "seed" not in known["sampling"] and "batch_size" not in known["sampling"]
    old = {"temperature", "top_k", "top_p", "min_p", "guidance", "guidance_schedule"}
    assert set(known["sampling"]) == old
    assert make_job(experiment, 5, typical_p=0.9).settings["sampling"] == (
        known["sampling"] | {"typical_p": [0.9]}
    )


def test_the_name_of_a_job_is_that_of_earlier_versions(experiment, monkeypatch):
    """It has the hash of the settings that version 0.1 wrote."""
    monkeypatch.setattr(type(experiment), "identity", lambda *_: "i")
    monkeypatch.setattr(experiment, "fingerprint", {"rqvae": "r"})
    job = make_job(experiment, 5, seed=3, classes=(1, 2), temperature=0.5)
    cond = np.array([1, 2], np.int32).tobytes()
    settings = {
        "checkpoints": {"rqvae": 4, "transformer": 4},
        "weights": {"rqvae": "r", "transformer": "i"},
        "samples": 5,
        "seed": 3,
        "conditions": {
            "number": 2,
            "which": [{"class": 1}, {"class": 2}],
            "sha256": hashlib.sha256(cond).hexdigest(),
        },
        "dtype": "as trained",
        "keep": 1.0,
        "judge": "",
        "judge_weights": "",
        "sampling": {
            "temperature": [0.5],
            "top_k": [0],
            "top_p": [0.95],
            "min_p": [0.0],
            "guidance": [1.0],
            "guidance_schedule": "constant",
        },
    }
    assert job.settings == settings
    text = json.dumps(settings, sort_keys=True)
    name = f"4_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    assert job.folder.name == name


def test_reference_statistics_are_kept_by_what_they_are_of(
    experiment, extractor, tmp_path, monkeypatch
):
    found, source = references.find_reference(experiment, extractor, "eval", tmp_path)
    (file,) = tmp_path.iterdir()
    other, of_training = references.find_reference(
        experiment, extractor, "train", tmp_path
    )
    assert source != of_training and other.gaussian.number == 4500
    monkeypatch.setattr(references, "split_features", None)  # must not be called again
    again, _ = references.find_reference(experiment, extractor, "eval", tmp_path)
    np.testing.assert_array_equal(found.pool, again.pool)
    np.testing.assert_allclose(again.gaussian.mean, found.gaussian.mean)
    theirs = statistics.load(file)  # pytorch-fid's format
    np.testing.assert_allclose(theirs.covariance, found.gaussian.covariance)
    with pytest.raises(ConfigError, match="neither train, eval nor a file"):
        references.find_reference(experiment, extractor, "tain", tmp_path)


@pytest.mark.slow
def test_eval_mode_writes_samples_metrics_and_a_report(with_features, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(with_features, workdir)
    flags = ["--mode=eval", f"--workdir={workdir}"]
    out = tmp_path / "out.json"
    printed = run(*flags, "--num_samples=12", f"--out={out}")
    assert "FID (digits features)" in printed
    result = json.loads(out.read_text())
    assert result["settings"]["samples"] == 12
    page = (workdir / "eval" / "report.md").read_text()
    assert "digits-features, reference train" in page and "12 samples" in page
    for name in ("random", "best", "worst", "neighbours", "reconstructions"):
        assert f"pictures/{name}.png" in page
        assert min(Image.open(workdir / f"eval/pictures/{name}.png").size) > 30
    for wrong, message in (
        ("--num_samples=1", "--num_samples=2 or more"),
        ("--resize=clean", "--resize needs --inception"),
        ("--images=x", "--images cannot be combined with --num_samples"),
        ("--clip=x", "--clip=x has no"),
    ):
        printed = run(*flags, "--num_samples=12", wrong, status=1)
        assert message in printed and "Traceback" not in printed


@pytest.mark.slow
def test_a_killed_process_leaves_parts_that_the_next_one_uses(with_features, tmp_path):
    """Signal 9 comes after the first part is written."""
    workdir = tmp_path / "killed"
    shutil.copytree(with_features, workdir)
    flags = ["--mode=eval", "--num_samples=600", "--temperature=0.9"]
    process = start(*flags, f"--workdir={workdir}")
    for line in process.stdout:
        if "samples 500/600" in line:
            process.kill()
            break
    process.wait()
    assert list((workdir / "eval").glob("*/samples_part_*.npz"))
    assert not list((workdir / "eval").glob("*/metrics_*.json"))
    assert "samples 500/600" not in run(*flags, f"--workdir={workdir}")
    (found,) = (workdir / "eval").glob("*/samples.npz")
    whole = Experiment(workdir, sharding.make_mesh(devices=jax.devices()[:1]))
    expected, _, labels, _ = draw(whole, 600, temperature=(0.9,))
    order = np.argsort(np.arange(600) % 10, kind="stable")
    with np.load(found) as file:
        np.testing.assert_array_equal(file["arr_1"][order], labels)
        images = visualize.to_uint8(draw(whole, 10, temperature=(0.9,)).images)
        np.testing.assert_array_equal(file["arr_0"][:10], images)


def a_result(**metrics):
    sampling = {"temperature": [1.0], "top_k": [0]}  # of before there was more
    settings = {"samples": 1000, "seed": 0, "sampling": sampling, "keep": 1.0}
    settings |= {"dtype": "as trained", "conditions": {"which": "all"}}
    settings["checkpoints"] = {"transformer": 4}
    return {"metrics": metrics, "settings": settings}


def test_the_report_has_every_metric_but_condition_numbers():
    metrics = {"FID (x)": 3.25, "FID condition (x)": 1e9, "sFID condition": None}
    metrics |= {"class-conditional FID": 4.5, "FID conditioned": 5.0, "KID": None}
    rows = report.table([a_result(**metrics), a_result(**{"FID (x)": 2.0, "IS": 1.0})])
    names = ["FID (x)", "class-conditional FID", "FID conditioned", "KID", "IS"]
    assert rows[0] == ["step", "samples", *names]
    about = ["4", "1,000 samples; seed 0"]
    assert rows[1] == [*about, "3.25", "4.5", "5", "", ""]
    assert rows[2] == [*about, "2", "", "", "", "1"]
    lines = report.markdown([["a|b", "*c*"], ["1\n2", "<d>"]])
    assert lines == [r"| a\|b | \*c\* |", "| --- | --- |", r"| 1 2 | \<d\> |"]


def test_cached_references_of_another_version_are_not_read(tmp_path, monkeypatch):
    extractor = types.SimpleNamespace(fingerprint="network")
    pool = np.arange(12, dtype=np.float32).reshape(4, 3)
    collected = []

    def collect():
        collected.append(1)
        return feature_sets.collect([extractors.Found(pool, None, None)])

    for version, times in ((2, 1), (2, 1), (3, 2)):
        monkeypatch.setattr(feature_sets, "CACHE_VERSION", version)
        found = feature_sets.cached(extractor, "source", collect, tmp_path)
        assert len(collected) == times
        np.testing.assert_array_equal(found.pool, pool)


def test_neighbours_are_the_nearest():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(9, 3))
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    order, apart = report.nearest(a, b, 4)
    np.testing.assert_array_equal(order, np.argsort(distances, axis=1)[:, :4])
    np.testing.assert_allclose(apart, np.sort(distances, axis=1)[:, :4], atol=1e-6)


# Measuring any images.


def write_images(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{i:03d}.png")


@pytest.fixture
def some_images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (13, 16, 16, 1), dtype=np.uint8)


def test_folders_and_archives_are_the_same_images(some_images, tmp_path):
    write_images(tmp_path / "folder", some_images)
    shape = some_images.shape[1:]
    with sample_files.npz(tmp_path / "a.npz", 13, shape, labels_name="arr_1") as add:
        for rows in np.split(np.arange(13), [5, 9]):
            add(some_images[rows], rows)
    with np.load(tmp_path / "a.npz") as file:  # as other programs read it
        np.testing.assert_array_equal(file["arr_0"], some_images)
        np.testing.assert_array_equal(file["arr_1"], np.arange(13))
    np.savez(tmp_path / "b.npz", some_images)  # as other programs write it
    np.savez_compressed(tmp_path / "c.npz", arr_0=some_images)
    for name in ("folder", "a.npz", "b.npz", "c.npz"):
        found = image_files.ImageSet(tmp_path / name, 1)
        assert found.number == 13
        batches = list(found.batches(4))
        assert [len(batch) for batch in batches] == [4, 4, 4, 1]
        np.testing.assert_array_equal(np.concatenate(batches), some_images)


def test_a_set_is_identified_by_its_bytes(some_images, tmp_path):
    np.savez(tmp_path / "a.npz", some_images)
    known = image_files.ImageSet(tmp_path / "a.npz").fingerprint()
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    assert image_files.ImageSet(tmp_path / "b.npz").fingerprint() == known
    some_images[3, 2, 1] += 1
    np.savez(tmp_path / "b.npz", some_images)
    assert image_files.ImageSet(tmp_path / "b.npz").fingerprint() != known


def test_errors_for_what_is_no_set_of_images(some_images, tmp_path):
    np.savez(tmp_path / "a.npz", x=some_images)
    with pytest.raises(DataError, match="no 'arr_0'"):
        image_files.ImageSet(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", some_images.astype(np.float32))
    with pytest.raises(DataError, match="not uint8 NHWC"):
        image_files.ImageSet(tmp_path / "b.npz")
    write_images(tmp_path / "folder", some_images)
    Image.new("L", (8, 8)).save(tmp_path / "folder" / "zzz.png")
    np.savez(tmp_path / "d.npz", np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="has no images"):
        image_files.ImageSet(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", np.zeros((2, 3, 8, 8), np.uint8))
    with pytest.raises(DataError, match="one or three channels"):
        image_files.ImageSet(tmp_path / "e.npz")
    (tmp_path / "f.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="f.npz"):
        image_files.ImageSet(tmp_path / "f.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: none of 0 files"):
        image_files.ImageSet(tmp_path / "empty")
    write_images(tmp_path / "damaged", some_images[:2])
    (tmp_path / "damaged" / "001.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="001.png"):
        list(image_files.ImageSet(tmp_path / "damaged", 1).batches(2))
    for size in (64, 1):
        with pytest.raises(DataError, match="zzz.png has shape"):
            list(image_files.ImageSet(tmp_path / "folder", 1).batches(size))
    with pytest.raises(ValueError, match="12 images of 13"):
        with sample_files.npz(tmp_path / "c.npz", 13, some_images.shape[1:]) as add:
            add(some_images[1:], np.arange(12))
    assert not (tmp_path / "c.npz").exists()


def test_the_command_measures_any_images(
    with_features, extractor, some_images, tmp_path, capsys
):
    made = 255 - some_images[:9] // 2
    write_images(tmp_path / "real", some_images)
    np.savez(tmp_path / "made.npz", made)
    (tmp_path / "captions.txt").write_text("a red heart\n" + 8 * "two dogs\n")
    (tmp_path / "few.txt").write_text("a red heart\n")
    flags = [f"--workdir={with_features}", f"--cache={tmp_path}/cache"]
    sets = [f"--samples={tmp_path}/made.npz", f"--reference={tmp_path}/real"]
    clips = [f"--clip={CLIP}", f"--captions={tmp_path}/captions.txt"]
    out = tmp_path / "out.json"
    program.main(
        ["evaluate", *sets, *flags, *clips, f"--save={tmp_path}/s.npz", f"--out={out}"]
    )
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(out.read_text())
    a, b = (statistics.of(extractor(x).pool) for x in (made, some_images))
    moments = (a.mean, a.covariance, b.mean, b.covariance)
    expected = distances.frechet_distance(*moments).value
    assert found["metrics"]["FID (digits features)"] == pytest.approx(expected, 1e-5)
    assert -1 < found["metrics"]["CLIP score"] < 1
    assert found["settings"]["number"] == 9
    assert found["settings"]["reference_number"] == 13
    assert found["settings"]["clip_sha256"] and found["settings"]["captions_sha256"]
    # Statistics do not suffice for neighbourhoods.
    sets[1] = f"--reference={tmp_path}/s.npz"
    program.main(["evaluate", *sets, *flags])
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["FID (digits features)"] == pytest.approx(0, abs=1e-6)
    assert "precision (digits features)" not in found["metrics"]
    for wrong, message in (
        ([f"--samples={tmp_path}/no.npz", sets[1]], "no.npz"),
        ([*sets, f"--clip={CLIP}"], "go together"),
        ([*sets, clips[0], f"--captions={tmp_path}/few.txt"], "1 lines for 9 images"),
        ([*sets, "--batch_size=0"], "must be positive"),
        ([*sets, "--resize=clean"], "--resize needs"),
        ([*sets, f"--out={tmp_path}/none/out.json"], "no such folder"),
    ):
        with pytest.raises(SystemExit, match="1"):
            program.main(["evaluate", *wrong, *flags])
        assert message in capsys.readouterr().err


def test_features_of_another_size_are_refused(extractor):
    with pytest.raises(ConfigError, match="takes"):
        extractor(np.zeros((2, 8, 8, 1), np.uint8))


def test_streams_and_batches_have_the_same_statistics(extractor, some_images):
    """For any batch size, to 1e-6."""
    a = feature_sets.collect(map(extractor, [some_images]))
    b = feature_sets.collect(map(extractor, np.split(some_images, [4, 5, 12])))
    scale = np.abs(a.gaussian.covariance).max()
    np.testing.assert_allclose(b.gaussian.mean, a.gaussian.mean, rtol=1e-6)
    np.testing.assert_allclose(
        b.gaussian.covariance, a.gaussian.covariance, atol=1e-6 * scale
    )
    np.testing.assert_allclose(b.pool, a.pool, rtol=1e-5)
