#!/usr/bin/env bash
# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Trains both stages on 5,000 real digits, from nothing but Python, and leaves pictures.
#
#   ./launch/quickstart.sh [WORKDIR] [--config.FIELD=VALUE ...]
#
# Takes about a quarter of an hour on two CPU cores. Run it again after an interruption:
# it goes on where it was, and does nothing twice. PYTHON and VENV: see environment.sh.
set -euo pipefail

CONFIG=configs/digits.py
WORKDIR=runs/digits # in the clone, unless the first argument names another

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [ $# -gt 0 ] && [[ $1 != --* ]]; then
  WORKDIR=$(absolute "$1")
  shift
else
  WORKDIR=$ROOT/$WORKDIR
fi

use_environment digits

echo "Training on digits: $CONFIG, all results in $WORKDIR"
"$VENV/bin/python" -m rq.main --config="$CONFIG" --workdir="$WORKDIR" "$@"

echo
echo "Done. Pictures are in $WORKDIR/samples:"
for picture in "$WORKDIR"/samples/*.png; do
  echo "  $picture"
done
printf 'Curves:       %q --logdir=%q\n' "$VENV/bin/tensorboard" "$WORKDIR"
printf 'More samples: %q -m rq.main --mode=sample --workdir=%q --classes=3,7\n' \
  "$VENV/bin/python" "$WORKDIR"
