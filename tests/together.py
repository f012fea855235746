# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What several real processes do together, for tests: a program of each of them.

python tests/together.py COORDINATOR NUMBER INDEX WHAT [MORE]
"""

import pathlib
import socket
import subprocess
import sys
import time

import numpy as np

TESTS = pathlib.Path(__file__).parent


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(number: int, *what: str, **options) -> list[subprocess.Popen]:
    """The processes; `options` go to `subprocess.Popen`."""
    place = f"127.0.0.1:{free_port()}"
    return [
        subprocess.Popen(
            [sys.executable, __file__, place, str(number), str(index), *what],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        for index in range(number)
    ]


def ends(started, limit: int = 120) -> list[tuple[int, str]]:
    """Exit status and output of each; whoever is late is killed."""
    found = []
    for process in started:
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            for other in started:
                other.kill()
            output, _ = process.communicate()
        found.append((process.returncode, output))
    return found


def _until(path: pathlib.Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def asks(index: int, folder: str, before: str) -> None:
    """Steps of two stages, each counted from 1; waits for `go` after so many asked."""
    from rq.parallel import preemption

    folder = pathlib.Path(folder)
    for step in range(int(before)):
        assert not preemption.reached_stop(), step
    (folder / f"ready{index}").touch()
    _until(folder / "go")
    for step in range(2_000):
        if preemption.reached_stop():
            print(f"stopped after {step} more", flush=True)
            raise preemption.Preempted
        time.sleep(0.002 * (1 + index))


def shards(index: int) -> None:
    """Checks batches on meshes whose `tensor` spans processes, and others."""
    import jax

    from rq.parallel import sharding

    whole = np.arange(16 * 3).reshape(16, 3)
    for sizes in ((8, 1, 1), (2, 2, 2), (2, 1, 4), (1, 1, 8), (4, 2, 1)):
        mesh = sharding.make_mesh(*sizes)
        sharding.check_batch(16, mesh)
        shard, count = sharding.batch_shard(mesh)
        rows = np.split(whole, count)[shard]
        batch = sharding.shard_batch({"x": rows}, mesh)["x"]
        assert batch.shape == whole.shape
        for part in batch.addressable_shards:
            np.testing.assert_array_equal(part.data, whole[part.index])
        rows = sharding.rows(mesh, 16)
        again = sharding.shard_batch({"x": whole[rows]}, mesh)["x"]
        for part in again.addressable_shards:
            np.testing.assert_array_equal(part.data, whole[part.index])
        again = sharding.shard_batch({"x": whole}, mesh, whole=True)["x"]
        for part in again.addressable_shards:
            np.testing.assert_array_equal(part.data, whole[part.index])
        print(sizes, shard, count, jax.process_index(), flush=True)


class Squares:
    """A source that remembers what was read."""

    def __init__(self, number: int):
        self.number, self.asked = number, []

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        self.asked.append(index)
        return {"label": np.int32(index * index)}


def reads(index: int) -> None:
    """Each process its own rows, all of them together every example once, in order."""
    import jax

    from rq.config import default
    from rq.data import loader
    from rq.parallel import sharding

    for sizes, threads in (((8, 1, 1), 0), ((4, 2, 1), 4), ((2, 1, 4), 2)):
        mesh, data, source = sharding.make_mesh(*sizes), default().data, Squares(50)
        data.threads = threads
        found = []
        for batch in loader.in_order(source, data, 16, mesh=mesh):
            assert len(batch["label"]) == 16 // jax.process_count()
            batch = sharding.to_host(sharding.shard_batch(batch, mesh))
            found.append(batch["label"][batch["mask"]])
        np.testing.assert_array_equal(np.concatenate(found), np.arange(50) ** 2)
        assert len(source.asked) == 64 // jax.process_count()
        print(sizes, len(set(source.asked)), flush=True)


def measures(index: int, data_dir: str, out: str) -> None:
    """Evaluates and encodes the digits with an untrained RQ-VAE, into a folder."""
    import json

    import flax.linen as nn
    import jax

    from configs.digits import get_config
    from rq.data import loader, sources
    from rq.evaluation.reconstruction import make_reconstructor
    from rq.parallel import sharding
    from rq.training import encode

    config, out = get_config("tiny"), pathlib.Path(out)
    config.data.dir, config.codes.shard_size = data_dir, 50
    data, mesh = config.data, sharding.make_mesh()
    reconstructor = make_reconstructor(config, mesh)
    images = np.zeros((1, data.resolution, data.resolution, data.channels), np.float32)
    init = jax.jit(reconstructor.model.init)
    variables = nn.unbox(init(jax.random.key(0), images))
    variables = jax.device_put(variables, sharding.replicated(mesh))
    split = "validation[:120]"
    source = sources.open_split(data, split)
    batches = loader.in_order(source, data, 48, mesh=mesh)
    metrics = reconstructor.evaluate(variables, {}, batches)
    encoder = encode.Encoder(reconstructor.model, variables, config)
    encode.encode_split(split, out / "codes", encoder, {"rqvae": "x"}, config)
    if index == 0:
        (out / "metrics.json").write_text(json.dumps(metrics))


def takes(index: int, given: str, run: str) -> None:
    """Takes the RQ-VAE of source images into a run."""
    from etils import epath
    from stages_test import tiny

    from rq.cli import source_rqvae

    config = tiny()
    config.data.source, config.transformer.source_rqvae = "lowres:2", given
    found = source_rqvae.resolve(config, epath.Path(run))
    assert found.transformer.source_shape == (4, 4, 2)


def fails(index: int, how: str) -> None:
    """All of them, by the user's mistake or the program's; or one of them alone."""
    import os
    import signal

    from rq.cli import exits
    from rq.data import DataError
    from rq.parallel import processes

    exits.PATIENCE = 2.0
    with exits.exit_codes():
        if how == "all":
            raise ZeroDivisionError
        if index and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if index:
            raise DataError("no data")
        processes.barrier("the other")


def caches(index: int, *folders: str) -> None:
    """Enables the cache of compiled programs in a folder for each process."""
    import os

    import jax

    from rq.cli import compilation_cache

    jax.config.update(compilation_cache.FOLDER, folders[index])
    print("cache:", compilation_cache.enable(), flush=True)
    assert not [x for x in os.listdir(folders[index]) if x.startswith(".shared")]


def main(place: str, number: str, index: str, what: str, *more: str) -> None:
    """Joins the others and does it."""
    from rq.parallel import processes

    processes.start(place, int(number), int(index))
    programs = asks, shards, reads, measures, takes, fails, caches
    {program.__name__: program for program in programs}[what](int(index), *more)


if __name__ == "__main__":
    main(*sys.argv[1:])
