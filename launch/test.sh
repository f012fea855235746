#!/usr/bin/env bash
# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Lints and tests, from nothing but Python.
#
#   ./launch/test.sh             all but the slow tests
#   ./launch/test.sh -m slow     the slow ones (a later -m replaces ours)
#   ./launch/test.sh -k sampling tests/sampling_test.py
#
# Arguments go to pytest. PYTHON and VENV: see environment.sh.
set -euo pipefail

# Most of a test is compilation, on one core: one process a core, up to a few, because
# each needs about 2 GB. Neighbouring tests stay together, so that what a file compiles
# is mostly compiled once.
WORKERS=${WORKERS:-logical}
MAX_WORKERS=${MAX_WORKERS:-4}

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

use_environment test
"$VENV/bin/ruff" check .
"$VENV/bin/lint-imports" --no-logo
"$VENV/bin/python" -m pytest -m "not slow" --numprocesses="$WORKERS" \
  --maxprocesses="$MAX_WORKERS" --dist=worksteal "$@"
