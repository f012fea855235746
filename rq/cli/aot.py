# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiles a config's program for TPUs without having any.

    rq aot --config=configs/imagenet.py:3.8B --topology=v5e:16x16

Prints memory, FLOPs, collectives and a bound on the speed. With --batch=fit it looks
for the largest batch that the chips' memory holds, and compiles a few times. Needs a
TPU's compiler, `pip install -e '.[tpu]'`, and one to three minutes a compilation. Exits
with 1 where the program does not fit into the chips' memory, or the flags are wrong.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX is imported

from absl import flags, logging  # noqa: E402

from rq.aot import chips, compiled_report, programs  # noqa: E402
from rq.config import ConfigError  # noqa: E402

CONFIG = "file"


def define(values) -> None:
    """Defines the flags."""
    string = functools.partial(flags.DEFINE_string, flag_values=values)
    enum = functools.partial(flags.DEFINE_enum, flag_values=values)
    string("topology", None, "chip and shape, as v5e:16x16 or v5p:4x4x8")
    flags.DEFINE_integer(
        "slices", 1, "slices of that topology", lower_bound=1, flag_values=values
    )
    enum("program", "transformer", programs.PROGRAMS, "a train step, or the sampler")
    enum("batch", "config", ["config", "fit"], "the config's, or the largest that fits")
    flags.DEFINE_multi_string(
        "xla", [], "a compiler's option, NAME=VALUE; repeat it", flag_values=values
    )
    flags.DEFINE_bool("json", False, "prints JSON", flag_values=values)
    string("out", None, "JSON file to write as well")


def run(values) -> int:
    """Compiles and prints; returns exit code 1 if the program does not fit."""
    logging.set_verbosity(logging.WARNING)
    if values.config is None or values.topology is None:
        raise ConfigError("rq aot needs --config=FILE and --topology=NAME")
    make = compiled_report.make
    if values.batch == "fit":
        make = compiled_report.make_for_largest_batch
    options = dict(option.partition("=")[::2] for option in values.xla)
    try:
        result = make(
            values.config, values.program, values.topology, values.slices, options
        )
    except chips.TopologyError as error:
        raise ConfigError(str(error)) from error
    text = json.dumps(result, indent=2)
    print(text if values.json else compiled_report.text(result))
    if values.out:
        pathlib.Path(values.out).write_text(text + "\n")
    return int(not result["fits"])
