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
import json
import pathlib
import sys

from rq import sharding
from rq.config import ConfigError
from rq.data import DataError
from rq.evaluation import clip, extractors, measure
from rq.evaluation.image_files import ImageSet
from rq.evaluation.job import write_json
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
    given.add_argument("--clip", help="folder of a CLIP in ONNX; needs --captions")
    given.add_argument("--captions", help="text file, a line for each sample in turn")
    given.add_argument("--batch_size", type=int, default=measure.BATCH)
    given.add_argument("--save", help=".npz for the samples' mu and sigma")
    given.add_argument("--out", help="JSON file to write as well")
    given.add_argument("--cache", help="folder of references' statistics")
    return given


def evaluate(given) -> dict:
    """Metrics, and what they are of."""
    if (given.clip is None) != (given.captions is None):
        raise ConfigError("--clip and --captions go together")
    network = clip.Clip(given.clip) if given.clip else None
    channels = 3
    if given.inception:
        mesh = sharding.make_mesh()
        extractor = extractors.inception(given.inception, mesh, given.resize)
    else:
        experiment = Experiment(given.workdir)
        extractor = extractors.own(experiment)
        channels = experiment.config.data.channels
    images = ImageSet(given.samples, channels)
    real, source = measure.reference(given.reference, extractor, channels, given.cache)
    measure.check(images.number, real, extractor)
    made = measure.of_images(images, extractor, batch=given.batch_size)
    if given.save:
        measure.save(given.save, made._replace(pool=None, logits=None))
    found = measure.metrics(made, real, extractor.label)
    if network is not None:
        captions = pathlib.Path(given.captions).read_text().splitlines()
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
        "clip": given.clip or "none",
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
        write_json(given.out, result)


if __name__ == "__main__":
    main()
