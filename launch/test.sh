#!/usr/bin/env bash
# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Installs rq, then runs the linters and the tests. Needs only Python.
#
#   ./launch/test.sh             all tests except the slow ones
#   ./launch/test.sh -m slow     the slow tests (the last -m takes effect)
#   ./launch/test.sh -k sampling tests/sampling_test.py
#
# Passes its arguments to pytest. environment.sh describes PYTHON and VENV.
set -euo pipefail

# Tests mostly compile, which uses one core, so there is one worker per core. Each needs
# about 2 GB, hence the maximum. `worksteal` keeps neighbouring tests in one worker, which
# then compiles most programs once.
WORKERS=${WORKERS:-logical}
MAX_WORKERS=${MAX_WORKERS:-4}

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

use_environment test
"$VENV/bin/ruff" check .
"$VENV/bin/lint-imports" --no-logo
"$VENV/bin/mypy"
"$VENV/bin/python" -m pytest -m "not slow" --numprocesses="$WORKERS" \
  --maxprocesses="$MAX_WORKERS" --dist=worksteal "$@"
