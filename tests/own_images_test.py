# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests the path of a user from a folder of images to a trained stage 1."""

import json

import numpy as np
import pytest
from PIL import Image
from program import run

CONFIG = """
from rq.config import default

def get_config():
    config = default()
    config.update_from_flattened_dict({
        "stages": ("features", "rqvae"),
        "data.name": "folder", "data.path": "PLACE/images",
        "data.dir": "PLACE/tfds",
        "data.holdout": 6, "data.resolution": 16, "data.num_classes": 2,
        "data.augment": "crop_flip",
        "features.batch_size": 8, "features.steps": 3,
        "features.model.widths": (8, 8), "features.model.convs": (1, 1),
        "features.optimizer.warmup_steps": 0,
        "rqvae.batch_size": 8, "rqvae.steps": 3,
        "rqvae.model.ch": 32, "rqvae.model.ch_mult": (1, 1),
        "rqvae.model.num_res_blocks": 1, "rqvae.model.attn_resolutions": (),
        "rqvae.model.z_channels": 8, "rqvae.model.embed_dim": 4,
        "rqvae.model.num_codes": (16,),
        "rqvae.loss.perceptual": "features", "rqvae.adversarial.ndf": 8,
        "rqvae.adversarial.start": 1,
    })
    return config
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Returns a folder of two classes with one damaged file, and a config for it."""
    place = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for k in range(40):
        path = place / f"images/{'ab'[k % 2]}/{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 255, (5, 6, 3), np.uint8)
        Image.fromarray(coarse).resize((24, 20)).save(path)
        path.with_suffix(".txt").write_text(f"{'ab'[k % 2]} picture {k}\n")
    (place / "images/a/broken.jpg").write_bytes(b"no image")
    (place / "config.py").write_text(CONFIG.replace("PLACE", str(place)))
    return place


@pytest.mark.slow
def test_a_folder_is_prepared_trained_on_and_measured(place, tmp_path):
    config, workdir = f"--config={place}/config.py", f"--workdir={place}/run"
    output = run(config, workdir, status=1)
    assert "rq prepare" in output.splitlines()[-1] and "Traceback" not in output

    output = run("--mode=prepare", config)  # TFDS also prints
    report = json.loads(output[output.index("{\n") :])
    assert report["splits"] == {"train": 34, "validation": 6}
    assert list(report["files_left_out"]) == ["a/broken.jpg"]

    run(config, workdir)
    metrics = json.loads((place / "run/samples/evaluation.json").read_text())
    assert {"rqvae/psnr/depth_4", "rqvae/ssim/depth_4"} <= set(metrics)
    assert metrics["rqvae/feature_distance/depth_4"] > 0
    for folder in ("features/3", "rqvae/3"):
        assert (place / "run" / folder).is_dir()

    out = tmp_path / "one.json"
    images = f"--images={place}/images/b"
    run("--mode=eval", workdir, images, f"--out={out}")
    other = json.loads(out.read_text())
    distances = {f"rqvae/rFID (folder features)/depth_{d}" for d in range(1, 5)}
    expected = {n for n in metrics if n.startswith("rqvae/")} | distances
    assert set(other) == expected and all(other[name] > 0 for name in distances)
    assert other["rqvae/psnr/depth_4"] != metrics["rqvae/psnr/depth_4"]

    picture = tmp_path / "one.png"
    image = f"--images={place}/images/a/0.png"
    run("--mode=reconstruct", workdir, image, f"--out={picture}")
    one = Image.open(picture).size
    run("--mode=reconstruct", workdir, images, "--num_images=3", f"--out={picture}")
    assert Image.open(picture).size[1] > one[1] and one[0] > one[1]
    output = run("--mode=eval", workdir, f"--images={place}/gone", status=1)
    assert "gone" in output.splitlines()[-1] and "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("online", [False, True])
def test_captions_condition_both_with_stored_codes_and_online(place, tmp_path, online):
    """From a tokenizer and codes of several variants to guided samples."""
    config, workdir = f"--config={place}/config.py", f"--workdir={tmp_path}/run"
    run("--mode=prepare", config)
    flags = [
        f"--config.{name}"
        for name in (
            "stages=rqvae", "stages=codes", "stages=transformer",
            "rqvae.loss.perceptual=none", "rqvae.adversarial.weight=0.0",
            "codes.batch_size=8", "codes.variants=3", "codes.shard_size=40",
            "transformer.batch_size=8", "transformer.steps=3",
            "transformer.condition=class_text", "transformer.condition_dropout=0.1",
            f"transformer.online={online}",
            "transformer.text.vocab_size=300", "transformer.text.length=8",
            "transformer.model.width=32",
            "transformer.model.body.layers=1", "transformer.model.body.heads=2",
            "transformer.model.head.layers=1", "transformer.model.head.heads=2",
        )
    ]  # fmt: skip
    run("--mode=tokenizer", config, workdir, *flags)
    assert (tmp_path / "run/tokenizer.json").exists()
    run(config, workdir, *flags)
    metrics = json.loads((tmp_path / "run/samples/evaluation.json").read_text())
    assert metrics["transformer/bits_per_image"] > 0
    if not online:
        manifest = tmp_path / "run/codes/train/manifest.json"
        assert json.loads(manifest.read_text())["num_examples"] == 3 * 34
    sample = ("--mode=sample", workdir, "--num_samples=4", "--guidance=1.5")
    run(*sample, "--text=a picture 3", "--text=grün 🙂", "--classes=1")
    arrays = np.load(tmp_path / "run/samples/generated.npz")
    np.testing.assert_array_equal(arrays["labels"], [1, 1, 1, 1])
    assert arrays["arr_0"].shape == (4, 16, 16, 3)
    output = run(*sample, status=1)
    assert "--text" in output.splitlines()[-1] and "Traceback" not in output
