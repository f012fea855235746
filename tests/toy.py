# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""A stage of one matrix, and data that is a function of its index.

As a program it trains in a process of its own, which tests then kill:

    python tests/toy.py WORKDIR '{"steps": 20, "kill_at": 7, ...}'
"""

import itertools
import json
import os
import pathlib
import signal
import sys
import threading
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rq import config as config_lib
from rq.models.codebook import Codebook
from rq.parallel import sharding
from rq.training import checkpoint, loop
from rq.training.train_state import TrainState

BATCH, INPUTS = 16, 4


class Toy:
    """Linear regression with noise, a moving average and a moving codebook."""

    name, criterion = "rqvae", "total"
    batch_size, codes_per_image = BATCH, 4

    def __init__(self, steps=7, outputs=6, ema=0.9, nan_at=None, nan_model_at=None):
        self.steps, self.outputs, self.ema = steps, outputs, ema
        self.nan_at, self.nan_model_at = nan_at, nan_model_at
        self.tx = optax.chain(
            optax.add_decayed_weights(
                0.01, lambda tree: jax.tree.map(lambda _: True, tree)
            ),
            optax.adam(0.1),
        )
        self.traced = 0
        self.evaluated = []

    def init(self, key):
        w = jax.random.normal(key, (INPUTS, self.outputs))
        params = {"w": nn.LogicallyPartitioned(w, ("embed", "mlp"))}
        sums = jax.random.normal(key, (3, INPUTS))
        codebook = {"state": Codebook(sums, jnp.zeros(3), sums)}
        return TrainState.create(params, codebook, self.tx, self.ema > 0, key)

    def train_step(self, state, batch):
        self.traced += 1
        noise_key, code_key = jax.random.split(
            jax.random.fold_in(state.key, state.step)
        )
        x = batch["x"] + jax.random.normal(noise_key, batch["x"].shape)

        def loss_fn(params):
            hidden = nn.with_logical_constraint(x @ params["w"], ("batch", "mlp"))
            return jnp.mean((hidden - batch["y"]) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        if self.nan_at is not None:
            loss = jnp.where(state.step + 1 == self.nan_at, jnp.nan, loss)
        if self.nan_model_at is not None:  # finite loss, ruined parameters
            bad = jnp.where(state.step + 1 == self.nan_model_at, jnp.inf, 0)
            grads = jax.tree.map(lambda g: g + bad, grads)
        old = state.codebook["state"]
        sums = 0.9 * old.sums + jax.random.normal(code_key, old.sums.shape)
        codebook = {"state": Codebook(sums, old.counts + 1, sums)}
        metrics = {"loss": loss, "step": state.step + 1.0}
        state = state.apply_gradients(grads, self.tx, self.ema)
        return state.replace(codebook=codebook), metrics

    def evaluate(self, state):
        self.evaluated.append(int(state.step))
        return {"total": float(jnp.sum(state.params["w"]))}

    def without_recomputation(self):
        return self

    def pictures(self, state):
        picture = np.full((5, 7, 3), int(state.step) % 256, np.uint8)
        return {"picture": picture, "numbers": np.arange(5.0)}


class Batches:
    """Endless; batch i is a function of i. `act(i)` is called before batch i."""

    def __init__(self, outputs=6, act=lambda index: None):
        self.outputs, self.act = outputs, act
        self.index = 0

    def __next__(self):
        self.act(self.index)
        rng = np.random.default_rng(self.index)
        self.index += 1
        return {
            "x": rng.normal(size=(BATCH, INPUTS)).astype(np.float32),
            "y": rng.normal(size=(BATCH, self.outputs)).astype(np.float32),
        }

    def get_state(self):
        return {"index": self.index}

    def set_state(self, state):
        self.index = state["index"]


def make_config(**changes):
    """The default config, changed: `checkpoint_every=2` is `checkpoint.every`."""
    config = config_lib.default()
    config.checkpoint.every, config.log.every, config.log.eval_every = 2, 3, 4
    for name, value in changes.items():
        section, _, field = name.partition("_")
        config[section][field] = value
    return config


def fit(
    stage, workdir, data=None, mesh=None, first_state=lambda state: state, **changes
):
    """`rq.training.loop.fit` with defaults: all devices on `data`."""
    config = make_config(**changes)
    return loop.fit(
        stage,
        Batches(stage.outputs) if data is None else data,
        config=config,
        workdir=workdir,
        mesh=sharding.make_mesh(fsdp=2) if mesh is None else mesh,
        config_json=config_lib.to_json(config),
        pictures=stage.pictures,
        first_state=first_state,
    )


def killed_again_and_again(workdir, steps: int, outputs: int, kills) -> None:
    """Trains in one child after the other, each killed by signal 9.

    Children are forks of a process that has imported all and started nothing, which
    saves them most of their time.

    Args:
      workdir, steps, outputs: as in `main`.
      kills: for each child (batches that it draws before the signal, delay in seconds).

    Prints the step of the latest checkpoint after each, as JSON.
    """
    latest = []
    for batches, delay in kills:
        child = os.fork()
        if not child:
            drawn = itertools.count(1)

            def act(_, drawn=drawn, batches=batches, delay=delay):
                if next(drawn) == batches:
                    timer = threading.Timer(
                        delay, os.kill, (os.getpid(), signal.SIGKILL)
                    )
                    timer.start()

            fit(Toy(steps, outputs), workdir, Batches(outputs, act))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            raise SystemExit(f"a child ended with {os.waitstatus_to_exitcode(status)}")
        latest.append(checkpoint.latest_step(pathlib.Path(workdir, Toy.name)) or 0)
    print(json.dumps(latest))


def main(workdir, steps, outputs=6, every=2, kill_at=None, delay=0.0, save_kill=None):
    """Trains; dies by itself.

    Args:
      workdir: of the training.
      steps, outputs: of `Toy`.
      every: steps between checkpoints.
      kill_at: [signal, index]: sent to itself, `delay` seconds after this batch.
      delay: see `kill_at`.
      save_kill: a step; SIGKILL as soon as its checkpoint has begun to be written.
    """

    def act(index):
        if kill_at is not None and index == kill_at[1]:
            send = threading.Timer(delay, os.kill, (os.getpid(), kill_at[0]))
            send.start()
            if not delay:
                send.join()
        time.sleep(0.005)

    def watch():
        folder = pathlib.Path(workdir, Toy.name)
        while not list(folder.glob(f"{save_kill}.*tmp*")):
            time.sleep(0.0005)
        os.kill(os.getpid(), signal.SIGKILL)

    if save_kill is not None:
        threading.Thread(target=watch, daemon=True).start()
    fit(Toy(steps, outputs), workdir, Batches(outputs, act), checkpoint_every=every)


if __name__ == "__main__":
    options = json.loads(sys.argv[2])
    (killed_again_and_again if "kills" in options else main)(sys.argv[1], **options)
