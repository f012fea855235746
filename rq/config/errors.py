# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The error that every part of `rq` raises for settings that cannot be used."""


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line."""
