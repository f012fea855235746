# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The commands of `rq`, one module each: its flags, and the calls that it makes.

A command's module has a docstring, whose first line and example `--help` prints; a
tuple `FLAGS` of `rq.cli.flag.Flag`; and `run(values)`, which may return an exit code.
With `CONFIG = "file"` it also accepts `--config`; with "directory" it accepts overrides
of a run directory's config. `POSITIONAL` is the flag whose name may be omitted;
if it may be given several times, all other arguments are its values.
"""
