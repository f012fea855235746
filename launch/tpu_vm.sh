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
# all of its hosts, installs, and starts the same command on each, as a service that
# does not need this script: started again, it goes on watching. When the slice is
# preempted it asks for another one, and training goes on where it was saved. Variables:
#
#   PROJECT      of Google Cloud (needed)
#   WORKDIR      on a file system that all hosts mount, such as Filestore (needed)
#   DATA         folder of prepared data sets there; else ~/tensorflow_datasets
#   MOUNT        command that mounts it, run on each host
#   CONFIG       config file, with a variant after a colon
#   FLAGS        more flags of rq.main, separated by spaces: for stage 1 with LPIPS
#                --config.rqvae.lpips_weights=FILE
#   NAME, ZONE, ACCELERATOR, RUNTIME    of the slice
#   PROVISIONING --spot, --reserved or nothing
#   PYTHON       of the hosts, 3.11 or newer, installed by apt-get

set -euo pipefail

PROJECT=${PROJECT:?name a project of Google Cloud: PROJECT=...}
WORKDIR=${WORKDIR:?name a folder that all hosts mount: WORKDIR=...}
DATA=${DATA:-}
MOUNT=${MOUNT:-true}
CONFIG=${CONFIG:-configs/imagenet.py:1.4B}
FLAGS=${FLAGS:-}
NAME=${NAME:-rq}
ZONE=${ZONE:-us-west4-a}
ACCELERATOR=${ACCELERATOR:-v5litepod-64}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
PROVISIONING=${PROVISIONING---spot}
PYTHON=${PYTHON:-python3.11}
POLL=${POLL:-60} # seconds between looks

UNIT=rq # the service's name on the hosts
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

# The request's state: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; MISSING, also where
# it could not be asked.
state() {
  "${TPU[@]}" queued-resources describe "$NAME" "${PLACE[@]}" \
    --format='value(state.state)' 2>/dev/null || echo MISSING
}

delete() {
  do_it "${TPU[@]}" queued-resources delete "$NAME" "${PLACE[@]}" --force --quiet
}

request() {
  do_it "${TPU[@]}" queued-resources create "$NAME" "${PLACE[@]}" --node-id="$NAME" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
    ${PROVISIONING:+"$PROVISIONING"}
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
      MISSING) request || true ;; # there already, if only the question failed
      FAILED | SUSPENDED | SUSPENDING) delete || true ;;
    esac
    sleep "$POLL"
  done
}

# Runs a command on a host by its number, or on all of them.
on_host() {
  do_it "${TPU[@]}" tpu-vm ssh "$NAME" "${PLACE[@]}" --worker="$1" --command="$2"
}

set_up() {
  local archive commit
  # What is not committed goes along, but for files that git does not know.
  commit=$(git -C "$ROOT" stash create)
  archive=$(mktemp -t rq.XXXXXX.tgz)
  do_it git -C "$ROOT" archive --format=tgz --prefix=rq/ --output="$archive" \
    "${commit:-HEAD}"
  do_it "${TPU[@]}" tpu-vm scp "$archive" "$NAME:rq.tgz" "${PLACE[@]}" --worker=all
  rm -f "$archive"
  on_host all "tar xzf rq.tgz && cd rq && sudo apt-get update -q &&
    sudo apt-get install -q -y -o DPkg::Lock::Timeout=600 $PYTHON-venv &&
    $PYTHON -m venv .venv && .venv/bin/pip install -q -e '.[tpu]' && $MOUNT"
}

clear() {
  on_host all "sudo systemctl stop $UNIT; sudo systemctl reset-failed $UNIT; true"
}

# As a service it outlives the connection, and hears SIGTERM when its host is stopped.
start() {
  local command=".venv/bin/python -m rq.main --distributed --config=$CONFIG"
  command+=" --workdir=$WORKDIR ${DATA:+--config.data.dir=$DATA }$FLAGS"
  clear
  on_host all "sudo systemd-run --unit=$UNIT --uid=\$(id -u) \
    --working-directory=\$HOME/rq --setenv=HOME=\$HOME -p RemainAfterExit=yes \
    -p TimeoutStopSec=120 $command"
}

# Of the first host's service: running, exited, failed or dead, with its exit status;
# and the last line of its log.
progress() {
  on_host 0 "systemctl show $UNIT -p SubState -p ExecMainStatus --value | xargs
    sudo journalctl -u $UNIT -n 1 -o cat --no-pager" 2>/dev/null
}

# Watches the service, and starts it where there is none: its exit status, or 255 where
# the slice is gone.
train() {
  local found service
  while true; do
    if found=$(progress); then
      service=${found%%$'\n'*}
      echo "$found"
      case $service in
        *exited*) return 0 ;;
        *failed*) return "${service//[!0-9]/}" ;;
        *dead*) { set_up && start; } || true ;;
      esac
    elif [ "$(state)" != ACTIVE ]; then
      return 255
    fi
    sleep "$POLL"
  done
}

if [ "${1:-}" = --dry-run ]; then
  DRY=1
  shift
fi
if [ "${1:-}" = delete ]; then
  delete
  exit
fi

wait_for_slice
if [ -n "$DRY" ]; then
  set_up
  start
  progress
  exit
fi
while true; do
  status=0
  train || status=$?
  case $status in
    0) break ;;
    1 | 2) # the program's own word for a mistake, which would come again
      echo "error: training ended with status $status" >&2
      exit "$status"
      ;;
  esac
  echo "status $status: going on, on another slice if this one is gone" >&2
  # Where only the connection was gone the service still runs, and is watched again.
  [ "$status" = 255 ] || clear || true
  wait_for_slice
done
