# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The config: every field's declaration, validation, JSON, command line.

A config file in `configs/` starts from `default()` and says only what differs. Errors
are `ConfigError`s of one line that name the field and its value. `python -m rq.config`
prints docs/config.md.
"""

from rq.config.command_line import flags_parser, parse_with_config
from rq.config.errors import ConfigError
from rq.config.sampling import SamplingConfig
from rq.config.schema import PRACTICAL, STAGES, choose_variant, default
from rq.config.stored import differences, from_json, to_json, with_absolute_paths
from rq.config.validation import validate

__all__ = [
    "PRACTICAL",
    "STAGES",
    "ConfigError",
    "SamplingConfig",
    "choose_variant",
    "default",
    "differences",
    "flags_parser",
    "from_json",
    "parse_with_config",
    "to_json",
    "validate",
    "with_absolute_paths",
]
