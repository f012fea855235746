# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Keeps compiled programs on disk, so that a command starts faster the next time.

This is JAX's persistent compilation cache, and JAX's own environment variables set it:

    JAX_COMPILATION_CACHE_DIR=FOLDER            another folder; FOLDER may be gs://...
    JAX_ENABLE_COMPILATION_CACHE=false          no cache
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS  which programs are worth a file

By default it is in ~/.cache/rq/programs, limited to `MAX_SIZE`. A cache that cannot be
used is reported in one line, and the command runs without it.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import secrets
import shutil
import tempfile

import jax
from absl import logging

# JAX has no public function that reads an entry.
from jax._src import compilation_cache as jax_cache

from rq.data import contents
from rq.parallel import processes

FOLDER, SECONDS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)
MIN_COMPILE_TIME = 0.1  # seconds; JAX's default is 1
MAX_SIZE = 2 * 2**30  # bytes, of the default folder; the least recently used go first
MIN_FREE = 256 * 2**20  # bytes of the disk that are left to others
CHECKED = ".checked"  # file whose mtime is the time of the last check
# Lines of /proc/cpuinfo that say which instructions a CPU has.
_CPU = (
    ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
    + ("Features", "CPU implementer", "CPU variant", "CPU part")
)  # fmt: skip


def enable() -> str | None:
    """Turns the cache on; returns its folder, or None if there is none.

    Call it after the processes are connected. All of them must see the same folder:
    only process 0 writes, and on GPUs a program that some load and others compile would
    wait for ever, since the processes share the search for the fastest kernels.
    """
    named = jax.config.values[FOLDER]
    wanted = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update(FOLDER, None)  # until it is known to be usable
    if not wanted or named == "":
        return None
    folder, problem = named, None
    if named is None or "://" not in named:
        try:
            folder = pathlib.Path(named) if named else default_folder()
            _prepare(folder)
        except (OSError, RuntimeError) as error:
            problem = str(error)
        if not processes.all_true(problem is None):
            problem = problem or "another process cannot use its folder"
        elif not _is_shared(folder):
            problem = f"the processes do not share {folder}"
    if problem:
        logging.warning(
            "no cache of compiled programs: %s (%s=FOLDER names another place)",
            problem,
            FOLDER.upper(),
        )
        return None
    if processes.is_process_0() and "://" not in str(folder):
        _remove_damaged(folder)
        if named is None:
            _limit(folder, MAX_SIZE)
    if SECONDS.upper() not in os.environ:
        jax.config.update(SECONDS, MIN_COMPILE_TIME)
    jax.config.update(FOLDER, str(folder))
    return str(folder)


def default_folder() -> pathlib.Path:
    """Returns the folder for programs compiled on machines like this one.

    XLA compiles for the instructions of the CPU that it runs on, and for its number of
    cores, but does not check them when it loads a program. A home directory may be
    shared by machines that differ.
    """
    return contents.cache_folder() / "programs" / _machine()


def _machine() -> str:
    """Returns a hash of the CPU's kind and of the cores that this process may use."""
    about = [platform.machine(), platform.processor()]
    try:
        first = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        about += [x for x in first.splitlines() if x.partition("\t")[0].strip() in _CPU]
        about.append(str(len(os.sched_getaffinity(0))))
    except (OSError, AttributeError):  # not Linux
        about.append(str(os.cpu_count()))
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]


def _prepare(folder: pathlib.Path) -> None:
    """Creates the folder; raises OSError if it is not writable or the disk is full."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder):
        pass
    if shutil.disk_usage(folder).free < MIN_FREE:
        raise OSError(f"less than {MIN_FREE >> 20} MiB are free in {folder}")


def _is_shared(folder: pathlib.Path) -> bool:
    """Returns, in all processes, whether they all see a new file of process 0."""
    if jax.process_count() == 1:
        return True
    file = folder / f".shared-{int(processes.broadcast(secrets.randbits(31)))}"
    processes.run_on_process_0(file.touch)
    shared = processes.all_true(file.exists())
    processes.run_on_process_0(file.unlink)
    return shared


def _remove_damaged(folder: pathlib.Path) -> None:
    """Removes programs that were not written to their end.

    JAX would report one at each start, and would neither load nor replace it. Each file
    is read once: at the first start after it was written.
    """
    stamp = folder / CHECKED
    checked = stamp.stat().st_mtime if stamp.exists() else 0.0
    stamp.touch()
    for path, stat in _files(folder):
        if path.name.endswith("-cache") and stat.st_mtime >= checked:
            try:
                jax_cache.decompress_executable(path.read_bytes())
            except OSError:  # removed by another program, or not ours to read
                continue
            except Exception:  # zlib's, or that of another compressor
                path.unlink(missing_ok=True)


def _limit(folder: pathlib.Path, size: int) -> None:
    """Removes the least recently used files until the others fit into `size` bytes."""
    files = sorted(_files(folder), key=lambda x: -max(x[1].st_atime, x[1].st_mtime))
    for path, stat in files:
        size -= stat.st_size
        if size < 0:
            path.unlink(missing_ok=True)


def _files(folder: pathlib.Path) -> list[tuple[pathlib.Path, os.stat_result]]:
    """Returns the files of a folder and its subfolders, with their status."""
    found = []
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                found.append((path, path.stat()))
        except FileNotFoundError:  # another program removed it
            continue
    return found
