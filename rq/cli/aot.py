# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiles a config's program for TPUs or GPUs, without having one.

    rq aot --config=imagenet:3.8B --topology=v5e:16x16

Prints memory, FLOPs, collectives and an upper bound of the speed; for GPUs (h100:8, or
h100:2x8 on two hosts) also the kernels that a step launches. --batch=fit compiles
several times to find the largest batch that fits into the chips' memory. Needs the
compiler for TPUs (`pip install -e '.[tpu]'`) or GPUs (`'.[aot-gpu]'`) and one to three
minutes per compilation. The exit code is 1 if the program does not fit into the chips'
memory or the flags are wrong.
"""

from __future__ import annotations

import json
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX is imported

from absl import logging  # noqa: E402

from rq.aot import chips, compiled_report, programs  # noqa: E402
from rq.cli import found_conditions, source_rqvae  # noqa: E402
from rq.cli.flag import Flag  # noqa: E402
from rq.config import ConfigError  # noqa: E402
from rq.training import given_model  # noqa: E402

CONFIG = "file"
FLAGS = (
    Flag("topology", "chip and shape, as v5e:16x16, v5p:4x4x8, h100:8 or h100:2x8"),
    Flag("slices", "number of slices of that topology", 1, int, minimum=1),
    Flag(
        "program",
        "a train step, or the sampler",
        "transformer",
        choices=tuple(programs.PROGRAMS),
    ),
    Flag(
        "batch",
        "the config's batch, or the largest that fits",
        "config",
        choices=("config", "fit"),
    ),
    Flag("xla", "compiler option NAME=VALUE; repeat the flag for several", [], tuple),
    Flag("json", "print JSON", False, bool),
    Flag("out", "JSON file to write"),
)


def run(values) -> int:
    """Prints the report; returns exit code 1 if the program does not fit."""
    logging.set_verbosity(logging.WARNING)
    if values.config is None or values.topology is None:
        raise ConfigError("rq aot needs --config=FILE and --topology=NAME")
    config = found_conditions.without_data(values.config)
    if config.transformer.source_rqvae:
        given = given_model.of_source_images(config)
        config = source_rqvae.with_shapes(config, given.config)
    make = compiled_report.make
    if values.batch == "fit":
        make = compiled_report.make_for_largest_batch
    options = dict(option.partition("=")[::2] for option in values.xla)
    try:
        result = make(config, values.program, values.topology, values.slices, options)
    except chips.TopologyError as error:
        raise ConfigError(str(error)) from error
    text = json.dumps(result, indent=2)
    print(text if values.json else compiled_report.text(result))
    if values.out:
        pathlib.Path(values.out).write_text(text + "\n")
    return int(not result["fits"])
