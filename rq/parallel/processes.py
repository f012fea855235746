# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Start-up, barriers and broadcasts for runs of several processes.

Every process runs the same code on the same global arrays. Shared files are the
exception: process 0 writes them, and the others wait for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from absl import logging

# JAX has no public barrier with a time limit, and no public process index that works
# before the devices are initialized.
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from rq.config import ConfigError

T = TypeVar("T")
COORDINATOR, NUMBER, INDEX = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)
# Names that other launchers use; the last is set by Kubernetes for indexed jobs.
NUMBERS = (NUMBER, "OMPI_COMM_WORLD_SIZE")
INDICES = (INDEX, "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX")
LOCAL_INDEX = "OMPI_COMM_WORLD_LOCAL_RANK"  # index on this machine: picks the GPU
# Launchers that JAX detects: the variable with the number of processes -> the variable
# that JAX reads the coordinator from, which Open MPI 5 no longer sets.
LAUNCHERS = {
    "SLURM_STEP_NUM_TASKS": "SLURM_STEP_NODELIST",
    "OMPI_COMM_WORLD_SIZE": "OMPI_MCA_orte_hnp_uri",
}


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    cluster: bool = False,
) -> None:
    """Connects to the other processes, if any; call it before any use of a device.

    Settings come from the arguments, else from the environment variables
    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (with a
    coordinator, also from Open MPI's variables and Kubernetes' index), else from SLURM
    or Open MPI if they started several processes. Otherwise there is one process.

    Args:
      coordinator: HOST:PORT of process 0, the same in all processes.
      num_processes: number of processes.
      process_id: index of this process.
      cluster: lets JAX detect the cluster, for example from a TPU pod's metadata;
        required on a pod.

    Raises:
      ConfigError: if only some of the three settings are given, one is out of range, or
        no cluster is found.
    """
    coordinator = coordinator or os.environ.get(COORDINATOR)
    numbers, indices = (NUMBERS, INDICES) if coordinator else ([NUMBER], [INDEX])
    number, index = _number(num_processes, numbers), _number(process_id, indices)
    given = coordinator, number, index
    if any(value is not None for value in given):
        if coordinator is None or number is None or index is None:
            raise ConfigError(
                "multi-process runs need all of --coordinator, --num_processes and "
                f"--process_id, or {COORDINATOR}, {NUMBER} and {INDEX}; found {given}"
            )
        if not re.fullmatch(r".+:\d+", coordinator):
            raise ConfigError(f"coordinator {coordinator} is not HOST:PORT")
        if not 0 <= index < number:
            raise ConfigError(f"--process_id={index} must be from 0 to {number - 1}")
        if number > 1:
            local = _number(None, [LOCAL_INDEX])
            jax.distributed.initialize(
                *given, local_device_ids=None if local is None else [local]
            )
    elif cluster or _launched():
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ConfigError(f"JAX finds no cluster to join: {error}") from None
    if jax.distributed.is_initialized():
        logging.info(
            "process %d of %d, %d of %d devices",
            jax.process_index(),
            jax.process_count(),
            jax.local_device_count(),
            jax.device_count(),
        )


def _launched() -> bool:
    """Returns whether a launcher that JAX detects has started several processes."""
    for number, place in LAUNCHERS.items():
        if int(os.environ.get(number, 1)) > 1:
            if place not in os.environ:
                raise ConfigError(
                    f"{number}={os.environ[number]}, but no {place} says where the "
                    f"first process is: pass --coordinator=HOST:PORT or {COORDINATOR}"
                )
            return True
    return False


def _number(value: int | None, variables) -> int | None:
    """Returns `value`, or if None the first environment variable that is set."""
    known = [name for name in variables if name in os.environ]
    if value is not None or not known:
        return value
    try:
        return int(os.environ[known[0]])
    except ValueError:
        raise ConfigError(
            f"{known[0]}={os.environ[known[0]]} is not a number"
        ) from None


def is_process_0() -> bool:
    """Returns whether this is process 0, the one that writes shared files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes have reached the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def barrier_within(name: str, seconds: float) -> bool:
    """Returns whether all processes reach a barrier within a number of seconds.

    It never raises, so it can be used while an error is handled.
    """
    if not jax.distributed.is_initialized():
        return True
    try:
        client: Any = jax_distributed.global_state.client
        client.wait_at_barrier(name, round(1000 * seconds))
    except Exception:  # the service raises several types
        return False
    return True


def exit_now(status: int) -> NoReturn:
    """Ends this process with an exit code, without waiting for other processes.

    At a normal exit JAX waits for the other processes. If one has failed, JAX aborts
    after minutes and the exit code is lost.
    """
    if jax.distributed.is_initialized():
        if jax_distributed.global_state.process_id == 0:
            time.sleep(2)  # the coordination service ends with this process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def broadcast(values) -> np.ndarray:
    """Returns process 0's values (numbers or bools) in every process."""
    values = np.asarray(values)
    if jax.process_count() == 1:
        return values
    return multihost_utils.broadcast_one_to_all(values)


def all_true(value: bool) -> bool:
    """Returns, in every process, whether the value is true in all of them."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(np.asarray(value)).all())


def run_on_process_0(function: Callable[[], T]) -> T | None:
    """Returns a function's result in process 0, and None in the others, which wait.

    If the function fails, all processes fail; none waits for process 0 forever.

    Args:
      function: takes no arguments; must not communicate with other processes.

    Raises:
      Exception: in process 0, any error of the function.
      ConfigError: in the others, if the function failed.
    """
    result = failed = None
    if is_process_0():
        try:
            result = function()
        except Exception as error:
            failed = error
    if broadcast(failed is not None):
        raise failed or ConfigError("process 0 has failed: see its messages")
    return result


def digest_from_process_0(function: Callable[[], str]) -> str:
    """Returns process 0's result, a hexadecimal SHA-256, in all processes.

    Arguments and errors are those of `run_on_process_0`.
    """
    digest = run_on_process_0(function) or "00" * 32
    values = np.frombuffer(bytes.fromhex(digest), np.uint8)
    return broadcast(values).tobytes().hex()


@contextlib.contextmanager
def process_0_first(name: str) -> Iterator[None]:
    """Runs the body in process 0 first, then in the others.

    Args:
      name: name of the barrier in between.
    """
    if not is_process_0():
        barrier(name)
    try:
        yield
    finally:
        if is_process_0():
            barrier(name)
