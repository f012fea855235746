# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The commands of `rq`, a module for each: its flags, and what it calls.

A command's module has a docstring, whose first line and example `--help` prints,
`define(values)`, which defines its flags, and `run(values)`, which may return an exit
code. `CONFIG` says whether it takes `--config`: a "file", or overrides of the config
in a run "directory"; a command without it has none.
"""
