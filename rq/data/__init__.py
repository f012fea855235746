# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sources of images and stored codes: indexed, deterministic, without TensorFlow."""


class DataError(ValueError):
    """Raised when data is missing or malformed; the message is one line."""
