# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares an RQ-Transformer of label maps with a plain convolutional network.

    python benchmarks/segmentation.py --workdir=runs/emoji_segment

The network has as many parameters as the run's transformer: an encoder and a decoder
of 3 x 3 convolutions with skip connections, four resolutions, group norms. It is
trained on the same pairs, flipped half of the time, with the cross entropy of the
classes of the palette, for as many steps and images as the transformer. Both are
measured on all pairs of the evaluation split: mean IoU over classes, and pixel
accuracy. The transformer draws one map for each picture, at each given temperature.

The last line is one JSON object. --steps=0 measures the run alone.
"""

from __future__ import annotations

import argparse
import json
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rq.data import sources
from rq.data.pixels import colours, nearest_labels, to_float
from rq.evaluation import pairs
from rq.experiment import Experiment
from rq.metrics import segmentation

LEVELS = 4
GROUPS = 8  # of group norms; widths are multiples of it


class Convolutions(nn.Module):
    """Returns logits `[B, H, W, classes]` of images `[B, H, W, C]`.

    Attributes:
      width: channels of the first level; each next has twice as many.
      classes: of the label maps.
    """

    width: int
    classes: int

    @nn.compact
    def __call__(self, x):
        def block(x, width):
            for _ in range(2):
                x = nn.Conv(width, (3, 3))(x)
                x = nn.silu(nn.GroupNorm(GROUPS)(x))
            return x

        skipped = []
        for level in range(LEVELS):
            x = block(x, self.width * 2**level)
            if level < LEVELS - 1:
                skipped.append(x)
                x = nn.avg_pool(x, (2, 2), (2, 2))
        for level in reversed(range(LEVELS - 1)):
            shape = skipped[level].shape
            x = jax.image.resize(x, (*shape[:3], x.shape[-1]), "nearest")
            x = block(jnp.concatenate([x, skipped[level]], axis=-1), shape[-1])
        return nn.Conv(self.classes, (1, 1))(x)


def parameters_of(tree) -> int:
    """Returns the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def network_of(parameters: int, classes: int, shape) -> tuple[Convolutions, int]:
    """Returns the network whose number of parameters is nearest, and that number."""

    def size(width):
        made = Convolutions(width, classes)
        return parameters_of(
            jax.eval_shape(made.init, jax.random.key(0), jnp.zeros((1, *shape)))
        )

    sizes = {width: size(width) for width in range(GROUPS, 33 * GROUPS, GROUPS)}
    width = min(sizes, key=lambda w: abs(sizes[w] - parameters))
    return Convolutions(width, classes), sizes[width]


def read(data, split: str, palette) -> tuple[np.ndarray, np.ndarray]:
    """Returns pictures uint8 `[N, H, W, C]` and label maps int32 `[N, H, W]`."""
    source = sources.open_split(data, split, paired=True)
    examples = [source[i] for i in range(len(source))]
    maps = np.stack([example["image"] for example in examples])
    pictures = np.stack([example["source"] for example in examples])
    return pictures, nearest_labels(maps, palette)


def train(network, pictures, labels, *, steps, batch_size, seed, learning_rate=1e-3):
    """Returns trained parameters, and the seconds that training took."""
    rng = np.random.default_rng(seed)
    params = network.init(jax.random.key(seed), jnp.zeros((1, *pictures.shape[1:])))
    schedule = optax.warmup_cosine_decay_schedule(0, learning_rate, 100, steps)
    optimizer = optax.adamw(schedule, weight_decay=1e-4)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, images, labels):
        def loss(params):
            logits = network.apply(params, to_float(images))
            found = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return found.mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    start = time.perf_counter()
    for number in range(steps):
        rows = rng.choice(len(pictures), batch_size, replace=False)
        images, maps = pictures[rows].copy(), labels[rows].copy()
        flipped = rng.random(batch_size) < 0.5
        for x in (images, maps):
            x[flipped] = x[flipped, :, ::-1]
        params, state, value = step(params, state, images, maps)
        if (number + 1) % 100 == 0:
            print(f"step {number + 1}/{steps}, loss {float(value):.4f}", flush=True)
    return params, time.perf_counter() - start


def predict(network, params, pictures, batch_size: int = 32) -> np.ndarray:
    """Returns the likeliest class of each pixel, int32 `[N, H, W]`."""
    apply = jax.jit(lambda x: network.apply(params, to_float(x)).argmax(-1))
    parts = range(0, len(pictures), batch_size)
    return np.concatenate(
        [np.asarray(apply(pictures[i : i + batch_size])) for i in parts]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--workdir", required=True, help="run of configs/emoji.py:segment"
    )
    parser.add_argument("--steps", type=int, help="of the network; default: the run's")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.1, 1.0])
    parser.add_argument("--pairs", type=int, default=0, help="to measure; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    experiment = Experiment(options.workdir)
    config = experiment.config
    palette = colours(config.data.palette)
    params = experiment.transformer_variables["params"]
    results = {"transformer parameters": parameters_of(params)}
    results["run"] = {}
    for temperature in options.temperatures:
        changed = config.copy_and_resolve_references()
        changed.sampling.temperature = (temperature,)
        changed.sampling.seed = options.seed
        measured = Experiment(options.workdir, config=changed)
        found = pairs.evaluate(measured, options.pairs)
        results["run"][f"temperature {temperature:g}"] = found
        print(temperature, found, flush=True)

    steps = config.transformer.steps if options.steps is None else options.steps
    if steps:
        pictures, labels = read(config.data, config.data.train_split, palette)
        network, size = network_of(
            results["transformer parameters"], len(palette), pictures.shape[1:]
        )
        params, seconds = train(
            network,
            pictures,
            labels,
            steps=steps,
            batch_size=config.transformer.batch_size,
            seed=options.seed,
        )
        pictures, labels = read(config.data, config.data.eval_split, palette)
        number = options.pairs or len(pictures)
        made = predict(network, params, pictures[:number])
        counts = segmentation.confusion(labels[:number], made, len(palette))
        results["convolutions"] = segmentation.statistics(counts) | {
            "parameters": size,
            "steps": steps,
            "seconds": seconds,
            "IoU": segmentation.iou(counts).round(4).tolist(),
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
