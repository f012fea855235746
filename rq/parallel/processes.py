# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Several processes, one program: how they find each other, meet, and take turns.

Every process runs the same code on the same global arrays. Only files are special: what
all of them need is written by the first, and the others wait for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import jax
import numpy as np
from absl import logging
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from rq.config import ConfigError

T = TypeVar("T")
COORDINATOR, NUMBER, INDEX = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)
# What launchers call the same; Kubernetes numbers the pods of an indexed job.
NUMBERS = (NUMBER, "OMPI_COMM_WORLD_SIZE")
INDICES = (INDEX, "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX")
LOCAL_INDEX = "OMPI_COMM_WORLD_LOCAL_RANK"  # on this machine, whose GPU it takes
# Of launchers that JAX can ask for all three: how many processes there are, and what it
# must find there. Open MPI 5 no longer tells where the first process is.
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
    """Joins the other processes, if there are any; before anything touches a device.

    Who they are comes from the arguments, or from the environment variables
    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (with a
    coordinator, Open MPI tells the other two, Kubernetes the last), or from SLURM or
    Open MPI where they have started several. Otherwise this is the only one.

    Args:
      coordinator: host:port of the first process, the same in all.
      num_processes, process_id: how many, and which this one is.
      cluster: asks what JAX can ask, such as a TPU pod's metadata; on a pod it must.

    Raises:
      ConfigError: where some of the three are missing, or out of range, or there is no
        cluster.
    """
    coordinator = coordinator or os.environ.get(COORDINATOR)
    numbers, indices = (NUMBERS, INDICES) if coordinator else ([NUMBER], [INDEX])
    number, index = _number(num_processes, numbers), _number(process_id, indices)
    given = coordinator, number, index
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise ConfigError(
                "several processes need all of --coordinator, --num_processes and "
                f"--process_id, or {COORDINATOR}, {NUMBER} and {INDEX}; found {given}"
            )
        if not re.fullmatch(r".+:\d+", coordinator):
            raise ConfigError(f"coordinator {coordinator} is no HOST:PORT")
        if not 0 <= index < number:
            raise ConfigError(f"process {index} of {number}: it must be below")
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
    """Whether a launcher that JAX can ask has started several processes."""
    for number, place in LAUNCHERS.items():
        if int(os.environ.get(number, 1)) > 1:
            if place not in os.environ:
                raise ConfigError(
                    f"{number}={os.environ[number]}, but no {place} says where the "
                    f"first process is: give --coordinator=HOST:PORT or {COORDINATOR}"
                )
            return True
    return False


def _number(value: int | None, variables) -> int | None:
    """The value, or that of the first of these environment variables that is set."""
    known = [name for name in variables if name in os.environ]
    if value is not None or not known:
        return value
    try:
        return int(os.environ[known[0]])
    except ValueError:
        raise ConfigError(f"{known[0]}={os.environ[known[0]]}: no number") from None


def is_first() -> bool:
    """Whether this is the process that writes what only one may write."""
    return jax.process_index() == 0


def meet(name: str) -> None:
    """Returns when all processes have come here; at once where there is one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_come(name: str, seconds: float) -> bool:
    """Whether all processes come here in time, be it in the midst of a failure."""
    if not jax.distributed.is_initialized():
        return True
    try:
        client = jax_distributed.global_state.client
        client.wait_at_barrier(name, round(1000 * seconds))
    except Exception:  # of the service's many kinds
        return False
    return True


def leave(status: int) -> NoReturn:
    """Ends this process with a status, whatever the others do.

    At the end of a program JAX waits for the others. Where they do not come it aborts
    after minutes, and nobody learns the status.
    """
    if jax.distributed.is_initialized():
        if jax_distributed.global_state.process_id == 0:
            time.sleep(2)  # the others' service ends with this process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def agree(values) -> np.ndarray:
    """The first process's values, in all of them."""
    values = np.asarray(values)
    if jax.process_count() == 1:
        return values
    return multihost_utils.broadcast_one_to_all(values)


def by_first(function: Callable[[], T]) -> T | None:
    """What a function returns in the first process, None in the others.

    Where it fails, which is where others would wait for the first in vain, all stop.

    Args:
      function: without arguments; must not need the other processes.

    Raises:
      ConfigError: in the others; in the first whatever the function raises.
    """
    result = failed = None
    if is_first():
        try:
            result = function()
        except Exception as error:
            failed = error
    if agree(failed is not None):
        raise failed or ConfigError("the first process has failed: see its messages")
    return result


@contextlib.contextmanager
def first_alone(name: str) -> Iterator[None]:
    """The body runs in the first process, and only then in the others."""
    if not is_first():
        meet(name)
    try:
        yield
    finally:
        if is_first():
            meet(name)
