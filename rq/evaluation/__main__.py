# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics of anybody's images.

python -m rq.evaluation --samples=DIR_OR_NPZ --reference=DIR_OR_NPZ_OR_STATS \\
    --inception=inception.npz

Samples are a folder of images or an `.npz` of ADM's evaluator; so is the reference, or
it is an `.npz` of pytorch-fid's statistics. With `--workdir` in place of `--inception`
the features are those of an experiment's own classifier, and metrics are named so.
`--save` keeps the samples' statistics in pytorch-fid's format.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from rq import sharding
from rq.config import ConfigError
from rq.data import DataError
from rq.evaluation import extractors, measure, statistics
from rq.evaluation.image_files import ImageSet
from rq.workdir import Experiment


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
        "--resize", choices=extractors.RESIZES, default="tf1", help="with --inception"
    )
    given.add_argument("--batch_size", type=int, default=measure.BATCH)
    given.add_argument("--save", help=".npz for the samples' mu and sigma")
    given.add_argument("--out", help="JSON file to write as well")
    given.add_argument("--cache", help="folder of references' statistics")
    return given


def evaluate(given) -> dict:
    """Metrics, and what they are of."""
    if given.inception:
        extractor = extractors.inception(
            given.inception, sharding.make_mesh(), given.resize
        )
        channels = 3
    else:
        experiment = Experiment(given.workdir)
        extractor, channels = (
            extractors.own(experiment),
            experiment.config.data.channels,
        )
    images = ImageSet(given.samples, channels)
    real = measure.reference(given.reference, extractor, channels, given.cache)
    collector = measure.of_images(images, extractor, given.batch_size)
    made = collector.reference()
    if given.save:
        statistics.save(given.save, made.gaussian)
    found = measure.metrics(made, real, extractor.label, collector.logits)
    about = {
        "samples": str(given.samples),
        "samples_sha256": images.fingerprint(),
        "reference": str(given.reference),
        "features": given.inception or given.workdir,
        "features_sha256": extractor.fingerprint,
        "resize": given.resize if given.inception else "none",
        "number": images.number,
        "reference_number": real.gaussian.number,
    }
    return {"metrics": found, "settings": about}


def main(args=None) -> None:
    """Prints metrics as JSON; mistakes are told in a line, with status 1."""
    given = parser().parse_args(args)
    try:
        result = evaluate(given)
    except (ConfigError, DataError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    text = json.dumps(result, indent=2)
    print(text)
    if given.out:
        pathlib.Path(given.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
