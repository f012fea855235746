# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiles a config's real program for TPUs that are not here, and says what it needs.

    python -m rq.aot --config=configs/imagenet.py:3.8B --topology=v5e:16x16

With `--batch=fit` it looks for the largest batch that the chips' memory holds, and
compiles a few times. Needs no TPU but its compiler, `pip install -e '.[tpu]'`, and one
to three minutes a compilation. Exits with 1 where the program does not fit into the
chips' memory, or the flags are wrong.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before anything looks for devices

from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from rq import config as configs  # noqa: E402
from rq.aot import chips, compiled_report, programs  # noqa: E402
from rq.parallel.sharding import MeshError  # noqa: E402

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", None, "Config file, with a variant after a colon.", lock_config=True
)
flags.DEFINE_string("topology", None, "Chip and shape, as v5e:16x16 or v5p:4x4x8.")
flags.DEFINE_integer("slices", 1, "Slices of that topology.", lower_bound=1)
flags.DEFINE_enum(
    "program", "transformer", programs.PROGRAMS, "A stage's train step, or the sampler."
)
flags.DEFINE_enum(
    "batch",
    "config",
    ["config", "fit"],
    "The config's batch, or the largest that fits.",
)
flags.DEFINE_multi_string("xla", [], "A compiler's option, NAME=VALUE; repeat it.")
flags.DEFINE_bool("json", False, "Prints JSON instead of the report.")
flags.DEFINE_string("out", None, "JSON file to write as well.")


def main(argv) -> None:
    """Compiles, prints, and says by the exit status whether it fits."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    try:
        if FLAGS.config is None or FLAGS.topology is None:
            raise configs.ConfigError("rq.aot needs --config=FILE and --topology=NAME")
        configs.validate(FLAGS.config)
        make = compiled_report.make
        if FLAGS.batch == "fit":
            make = compiled_report.make_for_largest_batch
        options = dict(option.partition("=")[::2] for option in FLAGS.xla)
        result = make(
            FLAGS.config, FLAGS.program, FLAGS.topology, FLAGS.slices, options
        )
    except (configs.ConfigError, chips.TopologyError, MeshError) as error:
        sys.exit(f"error: {error}")
    text = json.dumps(result, indent=2)
    print(text if FLAGS.json else compiled_report.text(result))
    if FLAGS.out:
        pathlib.Path(FLAGS.out).write_text(text + "\n")
    if not result["fits"]:
        sys.exit(1)


if __name__ == "__main__":
    app.run(main, flags_parser=configs.flags_parser)
