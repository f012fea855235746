# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The web page: sampling to watch, reconstruction by depth, completion and codes."""
