# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Images and stored codes: random access, deterministic, without TensorFlow."""
