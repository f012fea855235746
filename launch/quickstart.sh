#!/usr/bin/env bash
# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Installs rq, samples a model that comes with it, trains both stages on 5,000 MNIST
# digits and writes pictures. Needs only Python.
#
#   ./launch/quickstart.sh [WORKDIR] [--config.FIELD=VALUE ...]
#
# Takes 11 to 18 minutes on two CPU cores. If it is interrupted, run it again:
# it resumes where it stopped. environment.sh describes PYTHON and VENV.
set -euo pipefail

CONFIG=configs/digits.py
WORKDIR=runs/digits # in the clone; the first argument replaces it

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [ $# -gt 0 ] && [[ $1 != --* ]]; then
  WORKDIR=$(absolute "$1")
  shift
else
  WORKDIR=$ROOT/$WORKDIR
fi

use_environment digits

first=$(dirname "$WORKDIR")/shipped_model.png
"$VENV/bin/python" -m rq.main --mode=sample --workdir=digits --num_samples=100 \
  --out="$first"
echo "A model that comes with rq drew $first."

echo "Training $CONFIG in $WORKDIR"
"$VENV/bin/python" -m rq.main --config="$CONFIG" --workdir="$WORKDIR" "$@"

echo
echo "Done. Pictures are in $WORKDIR/samples:"
for picture in "$WORKDIR"/samples/*.png; do
  echo "  $picture"
done
printf 'Curves:       %q --logdir=%q\n' "$VENV/bin/tensorboard" "$WORKDIR"
printf 'More samples: %q sample %q --classes=3,7\n' "$VENV/bin/rq" "$WORKDIR"
