# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The error that all packages raise for settings that cannot be used."""


class ConfigError(ValueError):
    """Reports a setting that cannot be used, in one line."""
