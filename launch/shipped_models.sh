#!/usr/bin/env bash
# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Trains the models that come with rq and writes them to rq/shipped. Took two hours on two
# CPU cores that did other work too; needs the Debian packages of configs/emoji.py.
#
#   ./launch/shipped_models.sh [digits|emoji ...]
#
# If it is interrupted, run it again: it resumes where it stopped. environment.sh
# describes PYTHON and VENV.
set -euo pipefail

RUNS=runs/shipped
LICENCE=Apache-2.0

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

STAGES=(--config.stages={features,rqvae,codes,transformer})

# The quick start's model, trained for longer, and for guidance.
train_digits() {
  "$VENV/bin/rq" train --config=configs/digits.py --workdir="$RUNS/digits" \
    "${STAGES[@]}" --config.rqvae.steps=3000 --config.transformer.steps=2000 \
    --config.transformer.condition_dropout=0.1
}

train_emoji() {
  "$VENV/bin/rq" train --config=configs/emoji.py:class_text --workdir="$RUNS/emoji"
}

use_environment digits
[ $# -gt 0 ] || set -- digits emoji
for name in "$@"; do
  "train_$name"
  rm -rf "rq/shipped/$name"
  mkdir -p rq/shipped
  "$VENV/bin/rq" convert export --workdir="$RUNS/$name" --to=safetensors --half \
    --licence="$LICENCE" --out="rq/shipped/$name"
done
