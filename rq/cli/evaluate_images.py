# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""`rq evaluate --samples=...`: measures any images.

Samples and reference are each a folder of images or an `.npz` for ADM's evaluator. The
reference may also be statistics: an `.npz` of pytorch-fid, or a reference file of ADM.
"""

from __future__ import annotations

import hashlib
import pathlib

from rq.cli import compilation_cache, run_flags
from rq.cli.flag import Flag
from rq.config import ConfigError
from rq.data import DataError
from rq.data.captions import decode_text, split_lines
from rq.evaluation import clip, extractors, feature_sets
from rq.evaluation.image_files import ImageSet
from rq.parallel import sharding

FLAGS = (
    Flag("samples", "folder of images, or .npz, to measure"),
    Flag("captions", "for --samples and --clip: text file, one line per image"),
    Flag("save", "for --samples: .npz to write their mu and sigma to"),
    Flag("cache", "for --samples: folder to keep statistics of references in"),
)
NEED_SAMPLES = ("captions", "save", "cache")


def run(values) -> None:
    """Prints metrics as JSON and writes them."""
    try:
        result = _measure(values, _captions(values))
    except ValueError as error:
        if isinstance(error, ConfigError | DataError):
            raise
        raise ConfigError(f"--samples={values.samples}: {error}") from error
    run_flags.write_json(values.out, result)


def _captions(values) -> list[str]:
    """Returns the captions, after checking all flags before any compute."""
    if not values["reference"].present:
        raise ConfigError("--samples needs --reference=IMAGES_OR_STATISTICS")
    if (values.inception is None) == (values.workdir is None):
        raise ConfigError(
            "--samples needs either --inception=FILE or, for the features of its "
            "classifier, a run directory"
        )
    if (values.clip is None) != (values.captions is None):
        raise ConfigError("--clip and --captions go together")
    if values.batch_size is not None and values.batch_size < 1:
        raise ConfigError(f"--batch_size={values.batch_size} must be positive")
    for name in ("save", "out"):
        path = values[name].value
        if path and not pathlib.Path(path).absolute().parent.is_dir():
            raise ConfigError(f"--{name}={path}: no such folder")
    if values.captions is None:
        return []
    text, _ = decode_text(pathlib.Path(values.captions).read_bytes())
    return split_lines(text)


def _measure(values, captions: list[str]) -> dict:
    """Returns metrics, and the settings that identify them."""
    network = clip.Clip(values.clip) if values.clip else None
    channels = 3
    if values.inception:
        compilation_cache.enable()
        mesh = sharding.make_mesh()
        extractor = extractors.inception(values.inception, mesh, values.resize)
    else:
        experiment = run_flags.open_run(values, "evaluate")
        extractor = extractors.of_experiment(experiment)
        channels = experiment.config.data.channels
    images = ImageSet(values.samples, channels)
    if network is not None and len(captions) != images.number:
        raise DataError(
            f"--captions={values.captions} has {len(captions)} lines for "
            f"{images.number} images"
        )
    real, source = feature_sets.reference(
        values.reference, extractor, channels, values.cache
    )
    assert real is not None  # it is only in other processes than 0
    feature_sets.check(images.number, real, extractor)
    batch_size = values.batch_size or feature_sets.BATCH
    made = feature_sets.of_images(images, extractor, batch=batch_size)
    if values.save:
        some = made._replace(pool=None, logits=None)
        feature_sets.save(values.save, some, extractor=extractor.fingerprint)
    found = feature_sets.metrics(made, real, extractor.label)
    if network is not None:
        batches = images.batches(batch_size)
        found["CLIP score"] = clip.score(network, batches, captions)
    about = {
        "samples": str(values.samples),
        "samples_sha256": images.fingerprint(),
        "number": images.number,
        "reference": str(values.reference),
        "reference_sha256": source,
        "reference_number": real.gaussian.number,
        "features": extractor.name,
        "features_of": values.inception or values.workdir,
        "features_sha256": extractor.fingerprint,
    }
    if network is not None:
        text = "\n".join(captions).encode()
        about |= {
            "clip": values.clip,
            "clip_sha256": network.fingerprint,
            "captions": values.captions,
            "captions_sha256": hashlib.sha256(text).hexdigest(),
        }
    return {"metrics": found, "settings": about}
