# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Sourced by the other scripts: use_environment EXTRA leaves a virtual environment with
# rq and the given extra of setup.py in $VENV, and the clone as working directory.
#
#   PYTHON  the interpreter to make it with (default: the newest one of 3.11 to 3.13)
#   VENV    where it is (default: .venv in the clone)

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$ROOT/.venv}
PYTHON=${PYTHON:-}

OLDEST=3.11
CANDIDATES="python3.13 python3.12 python3.11 python3"

fail() {
  echo "error: $*" >&2
  exit 1
}

# Whether a command is a Python that can be used. A command may exist and still not run:
# version managers leave one for every version that they know of.
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
    "Install one, or name it: PYTHON=/path/to/python $0"
}

# Paths that the caller gives are relative to where the caller is.
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

  # pip comes last when an environment is made, so one without it is unfinished.
  if ! "$VENV/bin/python" -c 'import pip' >/dev/null 2>&1; then
    find_python
    "$PYTHON" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
      fail "$PYTHON cannot make virtual environments" \
        "(Debian and Ubuntu: apt-get install python3-venv)"
    echo "Making a virtual environment in $VENV with $("$PYTHON" --version)"
    "$PYTHON" -m venv --clear "$VENV"
  fi
  is_recent "$VENV/bin/python" || fail "$VENV is older than Python $OLDEST: remove it"

  # Installed already, from this clone and this setup.py?
  stamp=$VENV/.rq-$extra
  key="$ROOT $(cksum <"$ROOT/setup.py")"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$key" ]; then
    echo "Installing rq[$extra] into $VENV (about a minute on a fast network)"
    if [ -t 1 ]; then
      "$VENV/bin/python" -m pip install -e ".[$extra]"
    else
      "$VENV/bin/python" -m pip install --quiet -e ".[$extra]"
    fi
    echo "$key" >"$stamp"
  fi
}
