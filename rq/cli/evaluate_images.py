# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics of anybody's images.

python -m rq.evaluation --samples=DIR_OR_NPZ --reference=DIR_OR_NPZ_OR_STATS \\
    --inception=inception.npz

Samples are a folder of images or an `.npz` of ADM's evaluator; so is the reference, or
it is an `.npz` of pytorch-fid's statistics, or one of ADM's reference files. With
`--workdir` in place of `--inception` the features are those of an experiment's own
classifier, and metrics are named so. `--save` keeps the samples' statistics in
pytorch-fid's format. `--clip` and `--captions` say how well the samples show captions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import sys

from rq.config import ConfigError
from rq.data import DataError
from rq.data.captions import decode_text, split_lines
from rq.evaluation import clip, extractors, feature_sets
from rq.evaluation.image_files import ImageSet
from rq.experiment import Experiment
from rq.parallel import atomic_files, sharding


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    given = argparse.ArgumentParser(
        prog="python -m rq.evaluation", description="Metrics of anybody's images."
    )
    given.add_argument("--samples", required=True, help="folder or .npz of images")
    given.add_argument("--reference", required=True, help="likewise, or statistics")
    network = given.add_mutually_exclusive_group(required=True)
    network.add_argument("--inception", help="file of `rq.convert inception`")
    network.add_argument("--workdir", help="of an experiment with stage 'features'")
    given.add_argument(
        "--resize", choices=extractors.RESIZES, help="with --inception: tf1"
    )
    given.add_argument("--clip", help="folder of a CLIP in ONNX; needs --captions")
    given.add_argument("--captions", help="text file, a line for each sample in turn")
    given.add_argument("--batch_size", type=int, default=feature_sets.BATCH)
    given.add_argument("--save", help=".npz for the samples' mu and sigma")
    given.add_argument("--out", help="JSON file to write as well")
    given.add_argument("--cache", help="folder of references' statistics")
    return given


def _check(given) -> list[str]:
    """Refuses before any compute what would fail after it; the captions."""
    if (given.clip is None) != (given.captions is None):
        raise ConfigError("--clip and --captions go together")
    if given.resize and not given.inception:
        raise ConfigError("--resize goes with --inception")
    if given.batch_size < 1:
        raise ConfigError(f"--batch_size={given.batch_size} must be positive")
    for name in ("save", "out"):
        path = getattr(given, name)
        if path and not pathlib.Path(path).absolute().parent.is_dir():
            raise ConfigError(f"--{name}={path}: there is no such folder")
    if given.captions is None:
        return []
    text, _ = decode_text(pathlib.Path(given.captions).read_bytes())
    return split_lines(text)


def evaluate(given) -> dict:
    """Metrics, and what they are of."""
    captions = _check(given)
    network = clip.Clip(given.clip) if given.clip else None
    channels = 3
    if given.inception:
        mesh = sharding.make_mesh()
        resize = given.resize or "tf1"
        extractor = extractors.inception(given.inception, mesh, resize)
    else:
        experiment = Experiment(given.workdir)
        extractor = extractors.of_experiment(experiment)
        channels = experiment.config.data.channels
    images = ImageSet(given.samples, channels)
    if network is not None and len(captions) != images.number:
        raise DataError(
            f"--captions={given.captions} has {len(captions)} lines for "
            f"{images.number} images"
        )
    real, source = feature_sets.reference(
        given.reference, extractor, channels, given.cache
    )
    feature_sets.check(images.number, real, extractor)
    made = feature_sets.of_images(images, extractor, batch=given.batch_size)
    if given.save:
        some = made._replace(pool=None, logits=None)
        feature_sets.save(given.save, some, extractor=extractor.fingerprint)
    found = feature_sets.metrics(made, real, extractor.label)
    if network is not None:
        batches = images.batches(given.batch_size)
        found["CLIP score"] = clip.score(network, batches, captions)
    about = {
        "samples": str(given.samples),
        "samples_sha256": images.fingerprint(),
        "number": images.number,
        "reference": str(given.reference),
        "reference_sha256": source,
        "reference_number": real.gaussian.number,
        "features": extractor.name,
        "features_of": given.inception or given.workdir,
        "features_sha256": extractor.fingerprint,
    }
    if network is not None:
        text = "\n".join(captions).encode()
        about |= {
            "clip": given.clip,
            "clip_sha256": network.fingerprint,
            "captions": given.captions,
            "captions_sha256": hashlib.sha256(text).hexdigest(),
        }
    return {"metrics": found, "settings": about}


def main(args=None) -> None:
    """Prints metrics as JSON; mistakes are told in a line, with status 1."""
    given = parser().parse_args(args)
    try:
        result = evaluate(given)
    except (ConfigError, DataError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(result, indent=2))
    if given.out:
        atomic_files.write_json(given.out, result)


if __name__ == "__main__":
    main()
