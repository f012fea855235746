# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Launch scripts: sound shell, a truthful dry run, and a job of two processes."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

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
        FLAGS="--config.seed=1 --config.mesh.fsdp=8",
    )
    assert done.returncode == 0
    command, afterwards = done.stdout.splitlines()
    assert command.startswith("srun ") and "configs/ffhq.py" in command
    assert "--workdir=/shared/a\\ run --config.seed=1 --config.mesh.fsdp=8" in command
    assert "143" in afterwards and "scontrol requeue" in afterwards


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
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
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


def test_a_preempted_job_is_queued_again(tmp_path):
    command(tmp_path / "bin", "srun", "#!/bin/bash\nexit 143\n")
    requeued = f'#!/bin/bash\necho "$@" > {tmp_path}/requeued\n'
    command(tmp_path / "bin", "scontrol", requeued)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    done = sbatch(PATH=path, SLURM_JOB_ID="17", WORKDIR="/shared/run")
    assert done.returncode == 143
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
    container = job["template"]["spec"]["containers"][0]
    assert container["image"] == "registry/rq:1"
    assert container["args"] == [
        "--distributed",
        "--config=configs/ffhq.py",
        "--workdir=/runs/faces",
        "--config.seed=1",
        "--config.mesh.fsdp=8",
    ]


GCLOUD = """#!/bin/bash
# A cloud in a folder: slices come when asked for, the first is preempted in training.
cd "$(dirname "$0")"
echo "$*" >> calls
case "$*" in
  *"queued-resources describe"*) cat state 2>/dev/null ;;
  *"queued-resources create"*) echo ACTIVE > state ;;
  *"queued-resources delete"*) rm -f state ;;
  *rq.main*)
    if [ ! -e preempted ]; then
      touch preempted
      echo SUSPENDED > state
      exit 143
    fi
    exit "$(cat status)" ;;
esac
"""


@pytest.mark.parametrize("status", [0, 1])
def test_a_preempted_slice_is_asked_for_again(tmp_path, status):
    command(tmp_path / "bin", "gcloud", GCLOUD)
    (tmp_path / "bin/status").write_text(f"{status}\n")
    done = subprocess.run(
        [LAUNCH / "tpu_vm.sh"],
        env=os.environ
        | {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "PROJECT": "mine",
            "WORKDIR": "/mnt/runs/x",
            "POLL": "0",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    calls = (tmp_path / "bin/calls").read_text()
    assert calls.count("queued-resources create") == 2
    assert calls.count("queued-resources delete") == 1
    assert calls.count("rq.main --distributed") == 2
    assert ("training ended with status 1" in done.stderr) == bool(status)


def test_a_dry_run_for_tpus_prints_every_command():
    done = subprocess.run(
        [LAUNCH / "tpu_vm.sh", "--dry-run"],
        env=os.environ | {"PROJECT": "mine", "WORKDIR": "/mnt/runs/x", "NAME": "a"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if "project=mine" in line]
    assert ["create", "scp", "ssh", "ssh"] == [
        word
        for line in lines
        for word in line.split()
        if word in ("create", "scp", "ssh")
    ]
