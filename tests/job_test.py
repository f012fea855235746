# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sampling jobs outlive crashes; anybody's images are measured, and told how."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from program import run, start

from rq import sharding, visualize
from rq.config import ConfigError
from rq.data import DataError
from rq.evaluation import __main__ as command
from rq.evaluation import extractors, image_files, job, measure, report, statistics
from rq.workdir import Experiment


@pytest.fixture(scope="module")
def experiment(with_features):
    return Experiment(with_features, sharding.make_mesh(devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def extractor(experiment):
    return extractors.own(experiment)


@pytest.fixture(scope="module")
def reference(experiment, extractor, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return job.find_reference(experiment, extractor, "eval", cache)


class Killed(Exception):
    """Stands for a signal 9: nothing after it runs."""


def elsewhere(experiment, tmp_path, number=23, **options):
    """A job in a folder of its own."""
    task = job.Job(experiment, number, batch_size=4, **options)
    task.folder = tmp_path / task.folder.name
    return task


def samples(task):
    with np.load(task.folder / job.SAMPLES) as file:
        return file["arr_0"], file["arr_1"]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(job, "PART", 10)


def same_metrics(a, b):
    assert a["metrics"].keys() == b["metrics"].keys()
    for name, value in a["metrics"].items():
        assert value == pytest.approx(b["metrics"][name], rel=1e-6, abs=1e-9), name


def test_a_killed_job_resumes_and_ends_the_same(
    experiment, extractor, reference, tmp_path, small_parts, monkeypatch
):
    whole = elsewhere(experiment, tmp_path / "whole")
    expected = whole.run(extractor, reference, "eval")
    interrupted = elsewhere(experiment, tmp_path / "parts")
    draw, drawn, restarted = job.Job._draw, [], []

    def dying(self, part, extractor):
        if part.start == 20 and not restarted:
            raise Killed
        drawn.append(part.start)
        return draw(self, part, extractor)

    monkeypatch.setattr(job.Job, "_draw", dying)
    with pytest.raises(Killed):
        interrupted.run(extractor, reference, "eval")
    assert drawn == [0, 10] and not (interrupted.folder / job.RESULT).exists()
    restarted.append(True)
    found = elsewhere(experiment, tmp_path / "parts").run(extractor, reference, "eval")
    assert drawn == [0, 10, 20]
    same_metrics(found, expected)
    for a, b in zip(samples(interrupted), samples(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not list(interrupted.folder.glob("part_*"))


def test_parts_and_devices_do_not_change_the_samples(
    experiment, with_features, extractor, reference, tmp_path, small_parts, monkeypatch
):
    task = elsewhere(experiment, tmp_path / "one")
    task.run(extractor, reference, "eval")
    monkeypatch.setattr(job, "PART", 7)
    eight = Experiment(with_features, sharding.make_mesh(2, 2, 2))
    other = elsewhere(eight, tmp_path / "eight")
    other.run(extractors.own(eight), reference, "eval")
    for a, b in zip(samples(task), samples(other), strict=True):
        np.testing.assert_array_equal(a, b)
    images, labels = samples(task)
    np.testing.assert_array_equal(labels, np.arange(23) % 10)
    assert images.dtype == np.uint8 and images.shape == (23, 32, 32, 1)


def test_samples_of_a_job_are_those_of_the_seed(
    experiment, extractor, reference, tmp_path, small_parts
):
    """Sample i, of class i modulo 10, as `Experiment.sample` draws it."""
    task = elsewhere(experiment, tmp_path, 10, seed=3)
    task.run(extractor, reference, "eval")
    expected, *_ = experiment.sample(10, seed=3)
    np.testing.assert_array_equal(samples(task)[0], visualize.to_uint8(expected))


def test_what_is_measured_is_not_measured_again(
    experiment, extractor, reference, tmp_path, small_parts, monkeypatch
):
    task = elsewhere(experiment, tmp_path, 12)
    expected = task.run(extractor, reference, "eval")
    monkeypatch.setattr(job.Job, "_draw", None)
    assert task.run(extractor, reference, "eval") == expected
    # In other features the samples are not drawn anew either.
    other = task.run(extractor, reference, "another")
    same_metrics(other, expected)
    assert other["evaluation"]["reference"] == "another"


def test_every_setting_makes_a_job_of_its_own(experiment):
    def folder(**options):
        return job.Job(experiment, 5, **options).folder

    changes = [
        {},
        {"seed": 1},
        {"temperature": (0.5,)},
        {"top_k": (3,)},
        {"top_p": (0.5,)},
        {"classes": (1,)},
        {"keep": 0.5, "judge": experiment.classifier, "judge_name": "own"},
    ]
    assert len({folder(**change) for change in changes}) == len(changes)
    assert folder(batch_size=2) == folder()  # which changes no sample
    with pytest.raises(ConfigError, match="top_p"):
        folder(top_p=(2.0,))


def test_rejection_keeps_the_surest_of_each_class(
    experiment, extractor, reference, tmp_path, small_parts
):
    judge = experiment.classifier
    plain = elsewhere(experiment, tmp_path / "plain", 20)
    plain.run(extractor, reference, "eval")
    task = elsewhere(experiment, tmp_path / "best", 20, keep=0.25, judge=judge)
    task.run(extractor, reference, "eval")
    sure = []
    for found in (plain, task):
        images, labels = samples(found)
        np.testing.assert_array_equal(labels, np.arange(20) % 10)
        scores = np.asarray(judge(images.astype(np.float32) / 127.5 - 1))
        sure.append(scores[np.arange(20), labels].mean())
    assert sure[1] > sure[0]


def test_reference_statistics_are_kept_by_what_they_are_of(
    experiment, extractor, tmp_path, monkeypatch
):
    found = job.find_reference(experiment, extractor, "eval", tmp_path)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(job, "split_batches", None)  # not to be looked at again
    again = job.find_reference(experiment, extractor, "eval", tmp_path)
    np.testing.assert_array_equal(found.pool, again.pool)
    np.testing.assert_allclose(again.gaussian.mean, found.gaussian.mean)
    theirs = statistics.load(file)  # pytorch-fid's format
    np.testing.assert_allclose(theirs.covariance, found.gaussian.covariance)
    with pytest.raises(ConfigError, match="neither train, eval nor a file"):
        job.find_reference(experiment, extractor, "tain", tmp_path)


def test_eval_mode_writes_samples_metrics_and_a_page(with_features, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(with_features, workdir)
    printed = run("--mode=eval", "--num_samples=12", f"--workdir={workdir}")
    assert "FID (digits features)" in printed
    page = (workdir / "eval" / "report.html").read_text()
    assert "FID (digits features)" in page and "12 samples" in page
    for name in ("random", "best", "worst", "neighbours", "reconstructions"):
        assert f"pictures/{name}.png" in page
        assert min(Image.open(workdir / f"eval/pictures/{name}.png").size) > 30
    (result,) = (workdir / "eval").glob("*/result.json")
    settings = json.loads(result.read_text())["settings"]
    assert settings["samples"] == 12 and settings["sampling"]["top_p"] == [0.95]


def test_a_process_that_is_killed_leaves_what_the_next_one_needs(
    with_features, tmp_path
):
    """Signal 9 once the first part is there."""
    runs = [tmp_path / name for name in ("killed", "whole")]
    for workdir in runs:
        shutil.copytree(with_features, workdir)
    flags = ["--mode=eval", "--num_samples=600", "--temperature=0.9"]
    process = start(*flags, f"--workdir={runs[0]}")
    for line in process.stdout:
        if "samples 500/600" in line:
            process.kill()
            break
    process.wait()
    parts = list((runs[0] / "eval").glob("*/part_*.npz"))
    assert parts and not list((runs[0] / "eval").glob("*/result.json"))
    assert "samples 500/600" not in run(*flags, f"--workdir={runs[0]}")
    run(*flags, f"--workdir={runs[1]}")
    found, expected = (
        json.loads(next((w / "eval").glob("*/result.json")).read_text()) for w in runs
    )
    same_metrics(found, expected)
    assert found["settings"] == expected["settings"]


def test_neighbours_are_the_nearest():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(9, 3))
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    np.testing.assert_array_equal(
        report.nearest(a, b, 4), np.argsort(distances, axis=1)[:, :4]
    )


# Anybody's images.


def write_images(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{i:03d}.png")


@pytest.fixture
def some_images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (13, 32, 32, 1), dtype=np.uint8)


def test_folders_and_archives_are_the_same_images(some_images, tmp_path):
    write_images(tmp_path / "folder", some_images)
    parts = np.split(some_images, [5, 9])
    image_files.write(tmp_path / "a.npz", some_images.shape, parts, np.arange(13))
    with np.load(tmp_path / "a.npz") as file:  # as others read it
        np.testing.assert_array_equal(file["arr_0"], some_images)
        np.testing.assert_array_equal(file["arr_1"], np.arange(13))
    np.savez(tmp_path / "b.npz", some_images)  # as others write it
    np.savez_compressed(tmp_path / "c.npz", arr_0=some_images)
    for name in ("folder", "a.npz", "b.npz", "c.npz"):
        found = image_files.ImageSet(tmp_path / name, 1)
        assert found.number == 13
        batches = list(found.batches(4))
        assert [len(batch) for batch in batches] == [4, 4, 4, 1]
        np.testing.assert_array_equal(np.concatenate(batches), some_images)


def test_a_set_is_known_by_its_bytes(some_images, tmp_path):
    np.savez(tmp_path / "a.npz", some_images)
    known = image_files.ImageSet(tmp_path / "a.npz").fingerprint()
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    assert image_files.ImageSet(tmp_path / "b.npz").fingerprint() == known
    some_images[3, 2, 1] += 1
    np.savez(tmp_path / "b.npz", some_images)
    assert image_files.ImageSet(tmp_path / "b.npz").fingerprint() != known


def test_what_is_no_set_of_images_is_told(some_images, tmp_path):
    np.savez(tmp_path / "a.npz", x=some_images)
    with pytest.raises(DataError, match="no 'arr_0'"):
        image_files.ImageSet(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", some_images.astype(np.float32))
    with pytest.raises(DataError, match="not uint8 NHWC"):
        image_files.ImageSet(tmp_path / "b.npz")
    write_images(tmp_path / "folder", some_images)
    Image.new("L", (16, 16)).save(tmp_path / "folder" / "zzz.png")
    with pytest.raises(DataError, match="zzz.png has shape"):
        list(image_files.ImageSet(tmp_path / "folder", 1).batches(64))
    with pytest.raises(ValueError, match="12 images of 13"):
        image_files.write(tmp_path / "c.npz", some_images.shape, [some_images[1:]])
    assert not (tmp_path / "c.npz").exists()


def test_the_command_measures_any_images(with_features, some_images, tmp_path, capsys):
    write_images(tmp_path / "real", some_images)
    np.savez(tmp_path / "made.npz", some_images[::-1])
    flags = [f"--workdir={with_features}", f"--cache={tmp_path}/cache"]
    sets = [f"--samples={tmp_path}/made.npz", f"--reference={tmp_path}/real"]
    command.main([*sets, *flags, f"--save={tmp_path}/stats.npz"])
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["FID (digits features)"] == pytest.approx(0, abs=1e-6)
    assert found["metrics"]["precision (digits features)"] == 1
    assert found["settings"]["number"] == found["settings"]["reference_number"] == 13
    # Against statistics alone there are no neighbourhoods.
    command.main([sets[0], f"--reference={tmp_path}/stats.npz", *flags])
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["FID (digits features)"] == pytest.approx(0, abs=1e-6)
    assert "precision (digits features)" not in found["metrics"]
    with pytest.raises(SystemExit, match="no.npz"):
        command.main([f"--samples={tmp_path}/no.npz", sets[1], *flags])


def test_features_of_another_size_are_refused(extractor):
    with pytest.raises(ConfigError, match="takes"):
        extractor(np.zeros((2, 16, 16, 1), np.uint8))


def test_streams_and_batches_have_the_same_statistics(extractor, some_images):
    """Whatever the batch; to 1e-6."""
    whole, parts = measure.Collector(), measure.Collector(keep=6)
    whole.add_all(extractor, [some_images])
    parts.add_all(extractor, np.split(some_images, [4, 5, 12]))
    a, b = whole.reference(), parts.reference()
    np.testing.assert_allclose(b.gaussian.mean, a.gaussian.mean, rtol=1e-6)
    np.testing.assert_allclose(
        b.gaussian.covariance, a.gaussian.covariance, rtol=1e-5, atol=1e-9
    )
    np.testing.assert_allclose(b.pool, a.pool[:6], rtol=1e-6)
