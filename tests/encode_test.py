# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Encoding between the stages: each image's own codes, label and captions, once."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from rq.config import default
from rq.data import loader, sources
from rq.data.pixels import to_float
from rq.data.stored_codes import CodeSource
from rq.models import build
from rq.parallel import preemption
from rq.training import encode

RQVAE = {"rqvae": "of this test"}
TRAINING, VALIDATION, VERSIONS = 13, 5, 3


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config of a prepared folder: two classes, each image with a caption."""
    place = tmp_path_factory.mktemp("encode")
    rng = np.random.default_rng(0)
    for k in range(TRAINING + VALIDATION):
        path = place / f"images/{'ab'[k % 2]}/{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 255, (2, 2, 3), np.uint8)
        Image.fromarray(coarse).resize((11, 9)).save(path)
        path.with_suffix(".txt").write_text(f"picture {k}\n")
    config = default()
    config.update_from_flattened_dict({
        "seed": 5,
        "data.name": "folder", "data.path": str(place / "images"),
        "data.dir": str(place / "tfds"), "data.holdout": VALIDATION,
        "data.resolution": 8, "data.augment": "crop_flip", "data.num_classes": 2,
        "codes.batch_size": 8, "codes.shard_size": 15, "codes.variants": VERSIONS,
        "rqvae.model.ch": 32, "rqvae.model.ch_mult": (1, 1),
        "rqvae.model.num_res_blocks": 1, "rqvae.model.attn_resolutions": (),
        "rqvae.model.z_channels": 8, "rqvae.model.embed_dim": 4,
        "rqvae.model.code_shape": (4, 4, 4), "rqvae.model.num_codes": (16,),
    })  # fmt: skip
    sources.prepare(config.data)
    return config


@pytest.fixture(scope="module")
def rqvae(config):
    model = build.rqvae_model(config)
    images = np.zeros((1, 8, 8, 3), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    return model, nn.unbox(variables)


@pytest.fixture(scope="module")
def encoder(config, rqvae):
    return encode.Encoder(*rqvae, config)


@pytest.fixture(scope="module")
def stored(config, encoder, tmp_path_factory):
    """The folder of each split's codes."""
    folder = tmp_path_factory.mktemp("codes")
    for split in ("train", "validation"):
        encode.encode_split(split, folder / split, encoder, RQVAE, config)
    return folder


@pytest.mark.parametrize("split", ["train", "validation"])
def test_stored_are_the_codes_features_label_and_captions_of_each_image(
    config, rqvae, stored, split
):
    """Training images in several versions, the evaluation's in one."""
    source = CodeSource(stored / split, RQVAE)
    versions = VERSIONS if split == "train" else 1
    images = sources.open_split(config.data, split)
    assert len(source) == versions * len(images)
    pixels = loader.Variants(images, config.data, versions, config.seed)
    model, variables = rqvae
    examples = [pixels.read(i) for i in range(len(pixels))]
    batch = to_float(np.stack([example["image"] for example, _ in examples]))
    codes, features = jax.jit(
        lambda images: model.apply(variables, images, method="codes_and_features")
    )(batch)
    first = np.asarray(features)[::versions]  # each image is told apart
    assert len({row.tobytes() for row in first}) == len(images)
    for i, (example, captions) in enumerate(examples):
        found, lines = source.read(i)
        np.testing.assert_allclose(found["features"], features[i], 1e-4, 1e-4)
        assert (found["codes"] == codes[i]).mean() > 0.95  # but for ties in rounding
        assert found["label"] == example["label"]
        assert lines == captions and lines[0].startswith("picture")


def test_shards_have_the_size_of_the_config(stored):
    assert len(list((stored / "train").glob("*.array_record"))) == 3  # of 39
    assert len(list((stored / "validation").glob("*.array_record"))) == 1


def test_only_missing_shards_are_encoded(config, encoder, stored):
    shards = sorted((stored / "train").glob("*.array_record"))
    before = [path.read_bytes() for path in shards]
    times = [path.stat().st_mtime_ns for path in shards]
    shards[1].unlink()
    encode.encode_split("train", stored / "train", encoder, RQVAE, config)
    assert [path.read_bytes() for path in shards] == before
    changed = [
        path.stat().st_mtime_ns != t for path, t in zip(shards, times, strict=True)
    ]
    assert changed == [False, True, False]


def test_batches_are_of_the_configs_size_and_end_where_the_images_do(config, encoder):
    images = sources.open_split(config.data, "train")
    source = loader.Variants(images, config.data)
    batches = list(encoder(source, 2, 13))
    assert [len(batch["codes"]) for batch in batches] == [8, 3]
    labels = np.concatenate([batch["label"] for batch in batches])
    assert labels.tolist() == [int(images[i]["label"]) for i in range(2, 13)]
    captions = [lines for batch in batches for lines in batch["captions"]]
    assert captions == [images.read(i)[1] for i in range(2, 13)]


def test_codes_of_other_images_are_encoded_anew(config, encoder, tmp_path, monkeypatch):
    encode.encode_split("validation", tmp_path, encoder, RQVAE, config)
    (shard,) = tmp_path.glob("*.array_record")
    before = shard.stat().st_mtime_ns
    encode.encode_split("validation", tmp_path, encoder, RQVAE, config)
    assert shard.stat().st_mtime_ns == before
    monkeypatch.setattr(sources, "fingerprint", lambda data, split: "ab" * 32)
    encode.encode_split("validation", tmp_path, encoder, RQVAE, config)
    assert shard.stat().st_mtime_ns != before
    with pytest.raises(ValueError, match="not of"):
        CodeSource(tmp_path, {"rqvae": "another"})


def test_a_stop_is_obeyed_when_a_shard_is_complete(
    config, encoder, tmp_path, monkeypatch
):
    def stop(what):
        raise preemption.Preempted

    monkeypatch.setattr(preemption, "exit_on_stop", stop)
    with pytest.raises(preemption.Preempted):
        encode.encode_split("train", tmp_path, encoder, RQVAE, config)
    assert len(list(tmp_path.glob("*.array_record"))) == 1
    monkeypatch.undo()
    encode.encode_split("train", tmp_path, encoder, RQVAE, config)
    assert len(CodeSource(tmp_path, RQVAE)) == VERSIONS * TRAINING
