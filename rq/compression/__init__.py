# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files of codes, which the model's own predictions make small."""
