#!/bin/bash
# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Trains on a TPU slice of Cloud TPU VMs, through preemptions, to the end:
#
#   PROJECT=my-project WORKDIR=/mnt/runs/imagenet launch/tpu_vm.sh
#   ... launch/tpu_vm.sh --dry-run     # prints the commands
#   ... launch/tpu_vm.sh delete        # the slice and its request
#
# Asks for the slice as a queued resource, waits until it is there, copies this clone to
# all of its hosts, installs, and runs the same command on each. When the slice is
# preempted (or training ends with status 143, saved) it asks for another one and goes
# on. Variables:
#
#   PROJECT      of Google Cloud (needed)
#   WORKDIR      on a file system that all hosts mount, such as Filestore (needed)
#   MOUNT        command that mounts it, run on each host
#   CONFIG       config file, with a variant after a colon
#   FLAGS        more flags of rq.main, separated by spaces
#   NAME, ZONE, ACCELERATOR, RUNTIME    of the slice
#   PROVISIONING --spot, --reserved or nothing
#   PYTHON       of the hosts, 3.11 or newer, installed by apt-get

set -euo pipefail

PROJECT=${PROJECT:?name a project of Google Cloud: PROJECT=...}
WORKDIR=${WORKDIR:?name a folder that all hosts mount: WORKDIR=...}
MOUNT=${MOUNT:-true}
CONFIG=${CONFIG:-configs/imagenet.py:1.4B}
FLAGS=${FLAGS:-}
NAME=${NAME:-rq}
ZONE=${ZONE:-us-west4-a}
ACCELERATOR=${ACCELERATOR:-v5litepod-64}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
PROVISIONING=${PROVISIONING---spot}
PYTHON=${PYTHON:-python3.11}
POLL=${POLL:-60} # seconds between looks at the request

PREEMPTED=143
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PLACE=(--project="$PROJECT" --zone="$ZONE")
TPU=(gcloud compute tpus)
DRY=

# Runs a command, or prints it.
do_it() {
  if [ -n "$DRY" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# The request's state: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; MISSING.
state() {
  "${TPU[@]}" queued-resources describe "$NAME" "${PLACE[@]}" \
    --format='value(state.state)' 2>/dev/null || echo MISSING
}

delete() {
  do_it "${TPU[@]}" queued-resources delete "$NAME" "${PLACE[@]}" --force --quiet
}

request() {
  local provisioning=()
  if [ -n "$PROVISIONING" ]; then provisioning=("$PROVISIONING"); fi
  do_it "${TPU[@]}" queued-resources create "$NAME" "${PLACE[@]}" --node-id="$NAME" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
    "${provisioning[@]}"
}

# Returns when the slice is there; asks anew where the request has failed.
wait_for_slice() {
  if [ -n "$DRY" ]; then
    request
    return
  fi
  while true; do
    case $(state) in
      ACTIVE) return ;;
      MISSING) request ;;
      FAILED | SUSPENDED | SUSPENDING) delete || true ;;
    esac
    sleep "$POLL"
  done
}

on_all_hosts() {
  do_it "${TPU[@]}" tpu-vm ssh "$NAME" "${PLACE[@]}" --worker=all --command="$1"
}

set_up() {
  local archive
  archive=$(mktemp -t rq.XXXXXX.tgz)
  do_it git -C "$ROOT" archive --format=tgz --prefix=rq/ --output="$archive" HEAD
  do_it "${TPU[@]}" tpu-vm scp "$archive" "$NAME:rq.tgz" "${PLACE[@]}" --worker=all
  rm -f "$archive"
  on_all_hosts "tar xzf rq.tgz && cd rq &&
    sudo apt-get install -q -y $PYTHON-venv && $PYTHON -m venv .venv &&
    .venv/bin/pip install -q -e '.[tpu]' && $MOUNT"
}

run() {
  local command="cd rq && .venv/bin/python -m rq.main --distributed"
  on_all_hosts "$command --config=$CONFIG --workdir=$WORKDIR $FLAGS"
}

if [ "${1:-}" = --dry-run ]; then
  DRY=1
  shift
fi
if [ "${1:-}" = delete ]; then
  delete
  exit
fi

while true; do
  wait_for_slice
  status=0
  { set_up && run; } || status=$?
  if [ "$status" -eq 0 ]; then break; fi
  # Training's own mistakes end this script; a slice that is gone does not.
  if [ "$status" -ne "$PREEMPTED" ] && [ "$(state)" = ACTIVE ]; then
    echo "error: training ended with status $status" >&2
    exit "$status"
  fi
  echo "preempted; asking for another slice" >&2
done
