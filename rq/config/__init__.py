# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The config: declares and validates every field, reads JSON and the command line.

A config file in `configs/` starts from `default()` and changes some fields. Errors are
`ConfigError`s of one line with the field and its value. `python -m rq.config` prints
docs/config.md.
"""

from rq.config.command_line import parse_with_config
from rq.config.errors import ConfigError
from rq.config.image_shape import height_and_width, image_shape, size_text
from rq.config.sampling import SamplingConfig
from rq.config.schema import STAGES, choose_variant, default
from rq.config.stored import (
    differences,
    from_json,
    to_json,
    with_absolute_paths,
    with_portable_paths,
)
from rq.config.validation import codebook_vectors, trained_positions, validate

__all__ = [
    "STAGES",
    "ConfigError",
    "SamplingConfig",
    "choose_variant",
    "codebook_vectors",
    "default",
    "differences",
    "from_json",
    "height_and_width",
    "image_shape",
    "parse_with_config",
    "size_text",
    "to_json",
    "trained_positions",
    "validate",
    "with_absolute_paths",
    "with_portable_paths",
]
