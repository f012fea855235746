# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The whole program on its smallest config, as real processes."""

import json
import math
import pathlib
import random
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest
import resnet_test
from PIL import Image
from program import LIMIT, TINY, run, start
from samples import draw

from rq.config import ConfigError, SamplingConfig
from rq.convert import resnet_weights
from rq.evaluation import trained_stages
from rq.experiment import Experiment
from rq.parallel import run_lock, sharding
from rq.sampling import classifier, likelihood
from rq.sampling.sampler import Sampler
from rq.training import checkpoint


def models(workdir):
    return [checkpoint.load_model(workdir / s, s)[0] for s in ("rqvae", "transformer")]


def assert_same(a, b):
    import jax

    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_training_leaves_all_that_the_guide_promises(trained):
    for name in ("samples", "reconstructions", "code_usage"):
        picture = Image.open(trained / "samples" / f"{name}.png")
        assert min(picture.size) > 100, name
    metrics = json.loads((trained / "samples/evaluation.json").read_text())
    assert metrics["transformer/bits_per_image"] > 0
    for stage in ("rqvae", "transformer"):
        assert list((trained / "tensorboard" / stage).glob("events.*"))


@pytest.fixture
def copied(trained, tmp_path):
    """A copy, for tests that train: other processes read the directory itself."""
    return shutil.copytree(trained, tmp_path / "copied")


def test_training_again_does_nothing_twice(copied, data_dir):
    def files():
        return {
            path: path.stat().st_mtime_ns
            for path in copied.rglob("*")
            if path.is_file() and path.name != run_lock.FILE  # taken by every run
        }

    before = files()
    run(TINY, f"--workdir={copied}", data_dir=data_dir)
    assert files() == before


def test_another_config_is_refused_with_the_fields_that_differ(copied, data_dir):
    output = run(
        TINY,
        f"--workdir={copied}",
        "--config.rqvae.optimizer.learning_rate=0.5",
        data_dir=data_dir,
        status=1,
    )
    assert "rqvae.optimizer.learning_rate" in output.splitlines()[-1]
    assert "Traceback" not in output


def test_sampling_from_the_workdir_alone(trained, tmp_path):
    def sample(name, *flags):
        out = tmp_path / f"{name}.png"
        flags = ("--mode=sample", f"--workdir={trained}", f"--out={out}", *flags)
        run(*flags, "--num_samples=6", "--classes=3,7", "--seed=5")
        assert Image.open(out).size[0] > 100
        return np.load(out.with_suffix(".npz"))

    filters = ("--temperature=0.9", "--top_k=8", "--top_p=0.9,0.8")
    first = sample("a", *filters)
    assert first["arr_0"].shape == (6, 16, 16, 1) and first["arr_0"].dtype == np.uint8
    np.testing.assert_array_equal(first["labels"], [3, 3, 3, 7, 7, 7])
    split = sample("b", *filters, "--batch_size=4")
    np.testing.assert_array_equal(split["codes"], first["codes"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "many.npz"])
def test_samples_are_written_as_files_or_one_archive(trained, tmp_path, kind):
    out, known = tmp_path / kind, tmp_path / "grid.png"
    flags = ("--mode=sample", f"--workdir={trained}", "--num_samples=5", "--seed=5")
    run(*flags, f"--out={known}")
    run(*flags, f"--out={out}", "--batch_size=2")
    known = np.load(known.with_suffix(".npz"))
    if kind == "many.npz":
        found = np.load(out)
        for name in ("arr_0", "labels", "codes"):
            np.testing.assert_array_equal(found[name], known[name])
        assert [path.name for path in tmp_path.glob("many*")] == ["many.npz"]
        return
    files = sorted(path.name for path in out.iterdir())
    assert files == [f"{i:08d}.png" for i in range(5)] + ["labels.csv"]
    for i, image in enumerate(known["arr_0"]):
        found = Image.open(out / f"{i:08d}.png")
        np.testing.assert_array_equal(np.asarray(found)[..., None], image)
    rows = [line.split(",") for line in (out / "labels.csv").read_text().splitlines()]
    assert [int(label) for _, label, _ in rows[1:]] == known["labels"].tolist()
    codes = np.array([codes.split(" ") for _, _, codes in rows[1:]], int)
    np.testing.assert_array_equal(codes.reshape(known["codes"].shape), known["codes"])
    error = run(*flags, f"--out={out}", status=1)
    assert "is not empty" in error and "Traceback" not in error


@pytest.mark.slow
def test_completing_an_image_and_codes(trained, tmp_path):
    """What the mask leaves stays; of it, the depths that are kept."""

    def complete(path, *flags):
        out = tmp_path / "completed.png"
        flags = ("--mode=sample", f"--workdir={trained}", f"--out={out}", *flags)
        run(*flags, f"--complete={path}", "--num_samples=3", "--classes=4")
        return np.load(out.with_suffix(".npz"))["codes"]

    image = np.random.default_rng(0).integers(0, 255, (40, 32), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    codes = complete(tmp_path / "image.png", "--mask=bottom")
    assert codes.shape == (3, 4, 4, 2)
    assert (codes[:, :2] == codes[:1, :2]).all() and (codes[0] != codes[1]).any()
    np.save(tmp_path / "codes.npy", codes[0])
    again = complete(tmp_path / "codes.npy", "--mask=all", "--keep_depth=1", "--seed=3")
    np.testing.assert_array_equal(again[..., 0], np.tile(codes[0, ..., 0], (3, 1, 1)))
    assert (again[..., 1] != codes[0, ..., 1]).any()


@pytest.mark.parametrize(
    "sizes", [(8, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)]
)
def test_samples_do_not_depend_on_devices_or_batches(trained, sizes):
    one = Experiment(trained, sharding.make_mesh(devices=jax.devices()[:1]))
    several = Experiment(trained, sharding.make_mesh(*sizes))
    samples = draw(one, 13, (1, 8), seed=2)
    others = draw(several, 13, (1, 8), seed=2, batch_size=5)
    np.testing.assert_array_equal(others.codes, samples.codes)
    np.testing.assert_allclose(others.images, samples.images, atol=1e-5)
    place = jax.tree.leaves(several.transformer_state.params)
    divided = any(not leaf.sharding.is_fully_replicated for leaf in place)
    assert divided == (sizes != (8, 1, 1))
    config = SamplingConfig(batch_size=5)
    batch = next(several.sampler.on_devices(np.ones(13, np.int32), 13, config))
    assert len(batch.images) == 8 and batch.rows == range(8)  # fills the devices
    for array in (batch.images, batch.codes):
        divided = sharding.batch_sharding(several.mesh)
        assert array.sharding.is_equivalent_to(divided, array.ndim)


@pytest.mark.slow
def test_weights_of_half_the_size_give_nearly_the_same_distribution(trained):
    """Restored as bfloat16: logits of the first code, and samples that are images."""
    whole = Experiment(trained)
    half = Experiment(trained, dtype="bfloat16")
    leaves = jax.tree.leaves(half.transformer_state.params)
    assert all(leaf.dtype == "bfloat16" for leaf in leaves)
    bits = [
        trained_stages.evaluate(e)["transformer/bits_per_image"] for e in (whole, half)
    ]
    assert bits[0] != bits[1] == pytest.approx(bits[0], rel=5e-3)
    images = draw(half, 4, (1, 8)).images
    assert images.shape == (4, 16, 16, 1) and np.abs(images).max() <= 1


def test_weights_that_are_not_finite_are_reported(trained):
    """With the place of the first fault; images of an RQ-VAE likewise."""
    experiment = Experiment(trained)
    stage, variables = experiment.transformer, experiment.transformer_state
    variables = variables.model_variables()
    bad = jax.tree.map(lambda x: x * np.nan, variables["params"])
    broken = [variables | {"params": bad}, experiment.rqvae_variables]
    for message in (
        "sample 3: .*logits are not finite at row 0, column 0, depth 1",
        "sample 3: pixels that are not finite",
    ):
        sampler = Sampler(
            stage.model, broken[0], stage.rqvae, broken[1], mesh=experiment.mesh
        )
        with pytest.raises(ConfigError, match=message) as error:
            sampler.sample(np.arange(2), 2, SamplingConfig(), first=3)
        assert "\n" not in str(error.value)
        bad = jax.tree.map(lambda x: x * np.nan, broken[1]["params"])
        broken = [variables, broken[1] | {"params": bad}]


@pytest.mark.slow
def test_rejection_by_a_named_resnet(trained, tmp_path):
    shapes = resnet_test.golden("basic")[0]
    state = resnet_test.make.weights(shapes)
    module, params = resnet_weights.from_torch(state)
    file = tmp_path / "resnet.npz"
    resnet_weights.save(module, params, file)
    flags = [f"--workdir={trained}", f"--classifier={file}", "--keep=0.5"]
    run("--mode=sample", "--num_samples=4", *flags, f"--out={tmp_path}/best.png")
    with np.load(tmp_path / "best.npz") as found:
        judge = classifier.from_file(file, 10)
        samples = draw(Experiment(trained), 4, keep=0.5, classifier=judge)
        np.testing.assert_array_equal(found["codes"], samples.codes)
        np.testing.assert_array_equal(found["labels"], samples.labels)
    with pytest.raises(ConfigError, match="knows 10 classes"):
        classifier.from_file(file, 1000)


@pytest.mark.slow
def test_classes_are_ranked_by_exact_likelihood(trained, tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        image = rng.integers(0, 255, (40, 32), np.uint8)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    flags = (f"--images={tmp_path}", "--classes=4,0,7", f"--out={tmp_path}/rank.json")
    run("--mode=rank", f"--workdir={trained}", *flags)
    ranking = json.loads((tmp_path / "rank.json").read_text())
    assert [pathlib.Path(one["file"]).name for one in ranking] == ["a.png", "b.png"]

    experiment = Experiment(trained)
    codes = experiment.codes_of(tmp_path / "b.png")
    variables = experiment.transformer_state.model_variables()
    expected = {
        label: likelihood.log_likelihood(
            experiment.transformer.model,
            variables["params"],
            variables["codebook"]["state"].embedding,
            codes,
            np.array([label]),
        )[0]
        for label in (4, 0, 7)
    }
    found = ranking[1]["conditions"]
    totals = {label: float(x.sum()) for label, x in expected.items()}
    assert [one["class"] for one in found] == sorted(totals, key=totals.get)[::-1]
    for one in found:
        assert one["log_likelihood"] == pytest.approx(totals[one["class"]], rel=1e-5)
        bits = -expected[one["class"]].mean((0, 1)) / math.log(2)
        np.testing.assert_allclose(one["bits_per_code"], bits, rtol=1e-4)
    error = run("--mode=rank", f"--workdir={trained}", status=1)
    assert "--images" in error.splitlines()[-1] and "Traceback" not in error


def test_evaluation_and_reconstruction_from_the_workdir_alone(trained, tmp_path):
    out = tmp_path / "metrics.json"
    output = run("--mode=eval", f"--workdir={trained}", f"--out={out}")
    for stage in ("rqvae", "transformer"):  # how far it is, of how many images
        assert re.search(rf"{stage}: evaluation (\d+)/\1 \(100%\)", output)
    metrics = json.loads(out.read_text())
    stored = json.loads((trained / "samples/evaluation.json").read_text())
    assert metrics == pytest.approx(stored)
    names = {name.split("/depth")[0] for name in metrics}
    assert {"rqvae/psnr", "rqvae/usage", "rqvae/perplexity"} <= names
    assert {"transformer/cross_entropy", "transformer/bits_per_image"} <= names
    picture = tmp_path / "pictures.png"
    run("--mode=reconstruct", f"--workdir={trained}", f"--out={picture}")
    assert min(Image.open(picture).size) > 100


@pytest.mark.parametrize(
    "flags, message",
    [
        pytest.param(
            ["--mode=sample", "--classes=11"], "classes", marks=pytest.mark.slow
        ),
        pytest.param(["--mode=sample", "--top_p=2"], "top_p", marks=pytest.mark.slow),
        pytest.param(["--mode=sample", "--top_k=x"], "top_k", marks=pytest.mark.slow),
        pytest.param(
            ["--mode=sample", "--guidance=2"],
            "condition_dropout",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--mode=sample", "--complete=no.png"], "no.png", marks=pytest.mark.slow
        ),
        pytest.param(
            ["--mode=sample", "--keep=0.5"],
            "--config.stages=features",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--mode=sample", "--out=samples.jpg"], ".png", marks=pytest.mark.slow
        ),
        pytest.param(
            ["--mode=sample", "--mesh=tensr=2"], "tensr=2", marks=pytest.mark.slow
        ),
        pytest.param(
            ["--mode=sample", "--mesh=tensor=2"], "1 device", marks=pytest.mark.slow
        ),
        (["--mode=train"], "--config"),
    ],
)
def test_wrong_flags_are_told_in_a_line(trained, flags, message):
    output = run(*flags, f"--workdir={trained}", status=1)
    assert message in output.splitlines()[-1]
    assert "Traceback" not in output


def test_an_empty_workdir_says_what_would_fill_it(tmp_path):
    output = run("--mode=sample", f"--workdir={tmp_path}", status=1)
    assert "--config" in output.splitlines()[-1] and "Traceback" not in output


def test_codes_of_another_rqvae_are_refused(trained, tmp_path):
    from rq.data import DataError, stored_codes

    experiment = Experiment(trained)
    directory = trained / "codes/train"
    assert len(stored_codes.CodeSource(directory, experiment.fingerprint)) == 4500
    with pytest.raises(DataError, match="another|not of"):
        stored_codes.CodeSource(directory, {"rqvae": "0" * 64})


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_at_any_moment_it_ends_bit_for_bit_the_same(
    trained, data_dir, tmp_path, seed
):
    """Signal 9, twice, at random moments of the whole program; then undisturbed."""
    workdir = tmp_path / "killed"
    rng = random.Random(seed)
    for _ in range(2):
        process = start(TINY, f"--workdir={workdir}", data_dir=data_dir)
        deadline = time.monotonic() + rng.uniform(8, 60)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    run(TINY, f"--workdir={workdir}", data_dir=data_dir)
    for killed, undisturbed in zip(models(workdir), models(trained), strict=True):
        assert_same(killed, undisturbed)


@pytest.mark.slow
def test_sigterm_saves_and_the_next_run_goes_on(trained, data_dir, tmp_path):
    workdir = tmp_path / "stopped"
    process = start(TINY, f"--workdir={workdir}", data_dir=data_dir)
    while process.poll() is None:  # until the first stage is about to step
        line = process.stdout.readline()
        if "compiling the step" in line:
            process.send_signal(signal.SIGTERM)
            break
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 143, output[-3000:]
    assert checkpoint.latest_step(workdir / "rqvae") is not None
    run(TINY, f"--workdir={workdir}", data_dir=data_dir)
    for stopped, undisturbed in zip(models(workdir), models(trained), strict=True):
        assert_same(stopped, undisturbed)


@pytest.mark.slow
def test_encoding_anew_gives_the_same_codes(trained, data_dir, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(trained, workdir)
    manifest = (workdir / "codes/train/manifest.json").read_text()
    shutil.rmtree(workdir / "codes")
    run("--mode=encode", f"--workdir={workdir}")
    assert (workdir / "codes/train/manifest.json").read_text() == manifest
