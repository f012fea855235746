# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Sourced by the other scripts. use_environment EXTRA installs rq, with an extra from
# setup.py, into the virtual environment $VENV and changes to the root of the clone.
#
#   PYTHON  interpreter that creates the environment (default: newest of 3.11 to 3.13)
#   VENV    folder of the environment (default: .venv in the clone)

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$ROOT/.venv}
PYTHON=${PYTHON:-}

OLDEST=3.11
CANDIDATES="python3.13 python3.12 python3.11 python3"

fail() {
  echo "error: $*" >&2
  exit 1
}

# Checks that a command is a Python that runs and is recent enough. Version managers
# install commands for versions that are not there, so existing is not enough.
is_recent() {
  "$1" -c 'import sys
sys.exit(sys.version_info[:2] < tuple(map(int, sys.argv[1].split("."))))' "$OLDEST" \
    >/dev/null 2>&1
}

find_python() {
  if [ -n "$PYTHON" ]; then
    is_recent "$PYTHON" || fail "PYTHON=$PYTHON is not Python $OLDEST or newer"
    return
  fi
  for PYTHON in $CANDIDATES; do
    if is_recent "$PYTHON"; then return; fi
  done
  fail "no Python $OLDEST or newer among: $CANDIDATES." \
    "Install one, or set PYTHON: PYTHON=/path/to/python $0"
}

# Prints a path as an absolute one; relative paths start at the current directory.
absolute() {
  case $1 in
    /*) echo "$1" ;;
    *) echo "$PWD/$1" ;;
  esac
}

use_environment() {
  local extra=$1 stamp key
  VENV=$(absolute "$VENV")
  cd "$ROOT" || fail "no $ROOT"

  # pip is installed last, so an environment without it is incomplete.
  if ! "$VENV/bin/python" -c 'import pip' >/dev/null 2>&1; then
    find_python
    "$PYTHON" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
      fail "$PYTHON cannot create virtual environments" \
        "(Debian and Ubuntu: apt-get install python3-venv)"
    echo "Creating a virtual environment in $VENV with $("$PYTHON" --version)"
    "$PYTHON" -m venv --clear "$VENV"
  fi
  is_recent "$VENV/bin/python" || fail "$VENV has a Python older than $OLDEST: remove it"

  # The stamp records which clone and which setup.py were installed.
  stamp=$VENV/.rq-$extra
  key="$ROOT $(cksum <"$ROOT/setup.py")"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$key" ]; then
    echo "Installing rq[$extra] into $VENV (about a minute on a fast network)"
    # Python compiles modules when it first imports them: few of those installed.
    local output=--quiet
    if [ -t 1 ]; then output=--progress-bar=on; fi
    "$VENV/bin/python" -m pip install "$output" --no-compile -e ".[$extra]"
    echo "$key" >"$stamp"
  fi
}
