#!/bin/bash
# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Trains on a slice of Cloud TPU VMs and restarts after preemptions until done:
#
#   PROJECT=my-project WORKDIR=/mnt/runs/imagenet launch/tpu_vm.sh
#   ... launch/tpu_vm.sh --dry-run     # prints the commands
#   ... launch/tpu_vm.sh delete        # deletes the slice and its request
#
# Requests the slice as a queued resource, waits for it, copies this clone to all hosts,
# installs rq and starts training on each host as a systemd service. The service does not
# depend on this script, which can be stopped and started again. If the slice is
# preempted, the script requests another one and training resumes. Variables:
#
#   PROJECT      Google Cloud project (required)
#   WORKDIR      run directory on a file system that all hosts mount, such as Filestore
#                (required)
#   DATA         folder of prepared data sets on it (default: ~/tensorflow_datasets)
#   MOUNT        command that mounts the file system, run on each host
#   CONFIG       config file, with a variant after a colon
#   FLAGS        more flags of rq.main, separated by spaces; for stage 1 with LPIPS
#                --config.rqvae.lpips_weights=FILE
#   NAME, ZONE, ACCELERATOR, RUNTIME    describe the slice
#   PROVISIONING --spot (default), --reserved or empty
#   PYTHON       Python for the hosts, 3.11 or newer, installed with apt-get
#   POLL         seconds between checks of the service (default: 60)

set -euo pipefail

PROJECT=${PROJECT:?set it to a Google Cloud project}
WORKDIR=${WORKDIR:?set it to a folder that all hosts mount}
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
POLL=${POLL:-60}

UNIT=rq # name of the systemd service
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PLACE=(--project="$PROJECT" --zone="$ZONE")
TPU=(gcloud compute tpus)
DRY=

# Runs a command; in a dry run, prints it.
do_it() {
  if [ -n "$DRY" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Prints the state of the request: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ..., or
# MISSING if there is none or the query failed.
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

# Waits until the slice is active; replaces a failed request.
wait_for_slice() {
  if [ -n "$DRY" ]; then
    request
    return
  fi
  while true; do
    case $(state) in
      ACTIVE) return ;;
      MISSING) request || true ;; # fails harmlessly if only the query had failed
      FAILED | SUSPENDED | SUSPENDING) delete || true ;;
    esac
    sleep "$POLL"
  done
}

# Runs a command on one host, given its number, or on `all`.
on_host() {
  do_it "${TPU[@]}" tpu-vm ssh "$NAME" "${PLACE[@]}" --worker="$1" --command="$2"
}

set_up() {
  local archive commit
  # Includes uncommitted changes, but not untracked files.
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

# Starts training as a service: it survives the end of the connection, and receives
# SIGTERM when its host is stopped.
start() {
  local command=".venv/bin/python -m rq.main --distributed --config=$CONFIG"
  command+=" --workdir=$WORKDIR ${DATA:+--config.data.dir=$DATA }$FLAGS"
  clear
  on_host all "sudo systemd-run --unit=$UNIT --uid=\$(id -u) \
    --working-directory=\$HOME/rq --setenv=HOME=\$HOME -p RemainAfterExit=yes \
    -p TimeoutStopSec=120 $command"
}

# Prints a line for each host: the state of its service (running, exited, failed or
# dead) and its exit code. Fails if a host cannot be reached.
states() {
  on_host all "systemctl show $UNIT -p SubState -p ExecMainStatus --value | xargs" \
    2>/dev/null
}

# Prints the last line of the log of a host, or of `all`.
last_line() {
  on_host "$1" "sudo journalctl -u $UNIT -n 1 -o cat --no-pager" 2>/dev/null || true
}

# Starts the services if there are none and waits for them to end on all hosts. Returns
# their exit code, or 255 if the slice is gone.
train() {
  local found reached
  while true; do
    reached=1
    found=$(states) || reached=
    [ -z "$found" ] || sort <<<"$found" | uniq -c | sed -E 's/^ *([0-9]+)/\1 hosts:/'
    if grep -q failed <<<"$found"; then
      last_line all
      # The lowest: an error (1 or 2) makes the other hosts fail with higher codes.
      return "$(grep failed <<<"$found" | tr -cd '0-9\n' | sort -n | head -n 1)"
    elif [ -z "$reached" ]; then
      [ "$(state)" = ACTIVE ] || return 255
    elif grep -q dead <<<"$found"; then
      { set_up && start; } || true
    elif ! grep -qv exited <<<"$found"; then
      return 0
    else
      last_line 0
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
  states
  last_line 0
  exit
fi
while true; do
  status=0
  train || status=$?
  case $status in
    0) break ;;
    1 | 2) # an error that a retry would repeat
      echo "error: training ended with exit code $status" >&2
      exit "$status"
      ;;
  esac
  echo "exit code $status: resuming, on a new slice if this one is gone" >&2
  # After 255 the service may still run: only the connection may have been lost.
  [ "$status" = 255 ] || clear || true
  wait_for_slice
done
