# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests the launch scripts: shell syntax, dry runs, restarts, and two processes."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml
from program import xla_flags

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), ROOT / ".ci/run"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    if shutil.which("shellcheck"):
        command = ["shellcheck", "--external-sources", "--source-path=SCRIPTDIR"]
    else:
        command = ["bash", "-n"]
    done = subprocess.run([*command, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def sbatch(*args, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    return subprocess.run(
        [LAUNCH / "slurm.sbatch", *args],
        env=environment | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_a_dry_run_prints_the_command():
    done = sbatch(
        "--dry-run",
        WORKDIR="/shared/a run",
        CONFIG="configs/ffhq.py",
        DATA="/shared/data",
        FLAGS="--config.seed=1 --config.mesh.fsdp=8",
    )
    assert done.returncode == 0
    command, afterwards = done.stdout.splitlines()
    assert command.startswith("srun ") and "configs/ffhq.py" in command
    more = "--config.data.dir=/shared/data --config.seed=1 --config.mesh.fsdp=8"
    assert f"--workdir=/shared/a\\ run {more}" in command
    assert "any exit code except 0, 1 and 2: scontrol requeue" in afterwards


def test_a_job_without_a_workdir_is_refused():
    done = sbatch("--dry-run")
    assert done.returncode != 0 and "WORKDIR" in done.stderr


SRUN = """#!/bin/bash
# As SLURM's: two tasks on this machine.
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=127.0.0.1 SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2
pids=() status=0
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit "$status"
"""


def command(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.mark.slow
def test_a_job_of_two_tasks_trains_together(tmp_path):
    command(tmp_path / "bin", "srun", SRUN)
    done = sbatch(
        PATH=f"{tmp_path}/bin:{os.environ['PATH']}",
        SLURM_JOB_ID=str(os.getpid()),  # JAX takes a port by it
        SLURM_SUBMIT_DIR=str(ROOT),
        VENV=sys.prefix,
        JAX_PLATFORMS="cpu",
        XLA_FLAGS=xla_flags(4, optimize=True),
        WORKDIR=str(tmp_path / "run"),
        CONFIG="configs/digits.py:tiny",
        FLAGS=f"--config.stages=rqvae --config.data.dir={tmp_path}/data",
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    for index in range(2):
        assert f"process {index} of 2, 4 of 8 devices" in output
    metrics = json.loads((tmp_path / "run/samples/evaluation.json").read_text())
    assert "rqvae/psnr/depth_2" in metrics


@pytest.mark.parametrize("status", [143, 75, 134, 1])
def test_a_preempted_job_is_queued_again(tmp_path, status):
    """So is a job that lost a node, but not one that ended with an error of its own."""
    command(tmp_path / "bin", "srun", f"#!/bin/bash\nexit {status}\n")
    requeued = f'#!/bin/bash\necho "$@" > {tmp_path}/requeued\n'
    command(tmp_path / "bin", "scontrol", requeued)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    done = sbatch(PATH=path, SLURM_JOB_ID="17", WORKDIR="/shared/run")
    assert done.returncode == status
    assert (tmp_path / "requeued").exists() == (status != 1)
    if status != 1:
        assert (tmp_path / "requeued").read_text() == "requeue 17\n"


def test_the_jobset_is_filled_in():
    done = subprocess.run(
        [LAUNCH / "kubernetes.sh", "--dry-run"],
        env=os.environ
        | {
            "IMAGE": "registry/rq:1",
            "NAME": "faces",
            "CONFIG": "configs/ffhq.py",
            "FLAGS": "--config.seed=1 --config.mesh.fsdp=8",
            "HOSTS": "2",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert "${" not in done.stdout.split("apiVersion")[1]
    found = yaml.safe_load(done.stdout)
    assert found["kind"] == "JobSet" and found["metadata"]["name"] == "faces"
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 2
    # Exit codes 1 and 2 fail the set; 143 (preempted) and 75 (lost) restart it.
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [1, 2]
    container = job["template"]["spec"]["containers"][0]
    assert container["image"] == "registry/rq:1"
    assert container["args"] == [
        "--distributed",
        "--config=configs/ffhq.py",
        "--workdir=/runs/faces",
        "--config.data.dir=/runs/data",
        "--config.seed=1",
        "--config.mesh.fsdp=8",
    ]


GCLOUD = """#!/bin/bash
# A cloud in a folder: slices of two hosts are there at once. Each training ends as the
# next line of `outcomes` says: with an exit code, of both hosts or of each; or `gone`
# if the slice vanishes, which its request reports one query later. A host may also run
# on, have no service (`dead`), or be `unreachable`.
cd "$(dirname "$0")"
echo "$*" >> calls
case "$*" in
  *"queued-resources describe"*)
    cat state 2>/dev/null || exit 1
    if [ -e gone ]; then echo SUSPENDED > state; fi ;;
  *"queued-resources create"*)
    [ ! -e state ] || exit 1
    echo ACTIVE > state ;;
  *"queued-resources delete"*) rm -f state service gone ;;
  *"systemctl stop"*) [ ! -e gone ] && rm -f service ;;
  *systemd-run*)
    outcome=$(head -n 1 outcomes)
    sed -i 1d outcomes
    if [ "$outcome" = gone ]; then touch gone; exit; fi
    case $outcome in *,*) ;; *) outcome=$outcome,$outcome ;; esac
    for host in ${outcome//,/ }; do
      case $host in
        0) echo "0 exited" ;;
        runs) echo "0 running" ;;
        dead) echo "0 dead" ;;
        unreachable) echo unreachable ;;
        *) echo "$host failed" ;;
      esac
    done > service ;;
  *"systemctl show"*)
    [ ! -e gone ] || exit 255
    [ -e service ] || printf '0 dead\n0 dead\n' > service
    grep -v unreachable service
    ! grep -q unreachable service ;;
  *journalctl*) echo "the last line" ;;
esac
"""


@pytest.mark.parametrize(
    "outcomes, slices, starts, status",
    [
        ("0", 1, 1, 0),
        ("143 0", 1, 2, 0),  # saved, the slice is still there
        pytest.param("gone 0", 2, 2, 0, marks=pytest.mark.slow),
        pytest.param("75 gone 143 0", 2, 4, 0, marks=pytest.mark.slow),
        pytest.param("gone 1", 2, 2, 1, marks=pytest.mark.slow),  # an error
        # The first host waits for the second, which is lost.
        pytest.param("runs,75 0", 1, 2, 0, marks=pytest.mark.slow),
        # An error on the second host, by which the first one ends.
        pytest.param("75,1", 1, 1, 1, marks=pytest.mark.slow),
        pytest.param("134,75 143,0 0", 1, 3, 0, marks=pytest.mark.slow),
        # It was started on one host only.
        pytest.param("0,dead 0", 1, 2, 0, marks=pytest.mark.slow),
        pytest.param("unreachable,143 0", 1, 2, 0, marks=pytest.mark.slow),
    ],
)
def test_training_on_a_slice_goes_on_to_its_end(
    tmp_path, outcomes, slices, starts, status
):
    command(tmp_path / "bin", "gcloud", GCLOUD)
    (tmp_path / "bin/outcomes").write_text("\n".join(outcomes.split()) + "\n")
    done = subprocess.run(
        [LAUNCH / "tpu_vm.sh"],
        env=os.environ
        | {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "PROJECT": "mine",
            "WORKDIR": "/mnt/runs/x",
            "DATA": "/mnt/data",
            "POLL": "0",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    calls = (tmp_path / "bin/calls").read_text()
    assert calls.count("queued-resources create") == slices
    assert calls.count("queued-resources delete") == slices - 1
    assert calls.count("rq.main --distributed") == starts
    assert "--workdir=/mnt/runs/x --config.data.dir=/mnt/data" in calls
    assert ("training ended with exit code 1" in done.stderr) == bool(status)


def test_a_script_started_again_watches_what_runs(tmp_path):
    command(tmp_path / "bin", "gcloud", GCLOUD)
    (tmp_path / "bin/state").write_text("ACTIVE\n")
    (tmp_path / "bin/service").write_text("running 0\n" * 2)
    process = subprocess.Popen(
        [LAUNCH / "tpu_vm.sh"],
        env=os.environ
        | {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "PROJECT": "mine",
            "WORKDIR": "/mnt/runs/x",
            "POLL": "0.1",
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = (process.stdout.readline() for _ in range(4))
    assert [line.strip() for line in lines] == [
        "2 hosts: running 0",
        "the last line",
    ] * 2
    (tmp_path / "bin/service").write_text("exited 0\n" * 2)
    assert process.wait(timeout=60) == 0
    calls = (tmp_path / "bin/calls").read_text()
    assert "rq.main" not in calls and "create" not in calls


def test_a_dry_run_for_tpus_prints_every_command():
    done = subprocess.run(
        [LAUNCH / "tpu_vm.sh", "--dry-run"],
        env=os.environ | {"PROJECT": "mine", "WORKDIR": "/mnt/runs/x", "NAME": "a"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if "project=mine" in line]
    assert ["create", "scp", *["ssh"] * 5] == [
        word
        for line in lines
        for word in line.split()
        if word in ("create", "scp", "ssh")
    ]
