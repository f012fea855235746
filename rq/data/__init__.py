# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Images and stored codes: random access, deterministic, without TensorFlow."""


class DataError(ValueError):
    """Data that is missing or of the wrong form, told in one line."""
