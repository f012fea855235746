#!/bin/bash
# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Trains on a TPU slice of GKE as a JobSet:
#
#   IMAGE=REGISTRY/rq:1 NAME=imagenet launch/kubernetes.sh
#   IMAGE=REGISTRY/rq:1 launch/kubernetes.sh --dry-run    # prints the manifest
#
# Variables:
#
#   IMAGE         container image with rq, its extra `tpu` and configs/ (required)
#   NAME          name of the JobSet, and of the run directory in the volume
#   CONFIG        config file, with a variant after a colon
#   FLAGS         more flags of rq.main, separated by spaces: for stage 1 with LPIPS
#                 --config.rqvae.lpips_weights=FILE
#   CLAIM         volume claim for run directories and data, mounted as /runs and
#                 writable by all hosts; prepared data sets are in its folder `data`
#   ACCELERATOR, TOPOLOGY, HOSTS, CHIPS_A_HOST    describe the slice
#   MAX_RESTARTS  restarts after preemptions and lost hosts; errors are not retried

set -euo pipefail

export IMAGE=${IMAGE:?set it to a container image}
export NAME=${NAME:-rq}
export CONFIG=${CONFIG:-configs/imagenet.py:1.4B}
export CLAIM=${CLAIM:-rq-runs}
export ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice}
export TOPOLOGY=${TOPOLOGY:-8x8}
export HOSTS=${HOSTS:-16}
export CHIPS_A_HOST=${CHIPS_A_HOST:-4}
export MAX_RESTARTS=${MAX_RESTARTS:-100}

read -ra more <<<"${FLAGS:-}"
FLAGS=$(for flag in ${more[@]+"${more[@]}"}; do echo "                    - $flag"; done)

template=$(cat "$(dirname "${BASH_SOURCE[0]}")/kubernetes.yaml")
for name in NAME IMAGE CONFIG FLAGS CLAIM ACCELERATOR TOPOLOGY HOSTS CHIPS_A_HOST \
  MAX_RESTARTS; do
  template=${template//"\${$name}"/"${!name}"}
done

if [ "${1:-}" = --dry-run ]; then
  echo "$template"
else
  kubectl apply -f - <<<"$template"
fi
