# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares transformers that read positions row by row and in any order.

    python benchmarks/any_order.py --runs raster=runs/digits_raster \
        random=runs/digits_random --steps=16,8,4,2

The runs have the same data and RQ-VAE; the first reads positions row by row, the others
may be of any order (`transformer.order`).

1. Bits of an unseen image, row by row and, where the model can, in random orders.
2. Samples: the Fréchet distance to real images, on the first principal components of
   their pixels; and whether a support vector machine, trained on real images, sees the
   requested class.
3. Several positions at once: the same by number of steps, images per second in batches
   of 100, and the time of a single image; with `--levels` also where all positions are
   drawn at one depth before the next.
4. Completion of validation images without their class: of the drawn part, PSNR against
   the truth; and whether the support vector machine sees the true class. Beside it,
   the images as the RQ-VAE reconstructs them.

Writes completions.png, parallel.png and, of the last run and levels, levels.png to
--out. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import pathlib
import time

import jax
import numpy as np
from digits_quality import flatten, read, train_classifier
from sklearn.decomposition import PCA

from rq import visualize
from rq.config import SamplingConfig
from rq.data import sources
from rq.experiment import Experiment
from rq.metrics import distances, moments
from rq.sampling import conditions, inpainting, likelihood
from rq.sampling.sampler import Wanted

MASKS = ("top", "left", "center", "drawn")
COMPONENTS = 50
SHOWN = 10  # images of a row of the pictures


def drawn_mask(height: int, width: int) -> np.ndarray:
    """Returns positions to sample `[H, W]`: a thick stroke from corner to corner."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    return np.abs(rows / height - columns / width) < 0.3


class Measured:
    """The real images of a data set, and what they are compared by."""

    def __init__(self, config, number: int):
        data = config.data
        training, labels = read(sources.open_split(data, data.train_split))
        self.images, self.labels = read(sources.open_split(data, data.eval_split))
        self.classifier = train_classifier(training, labels)
        self._components = PCA(COMPONENTS, random_state=0).fit(flatten(training))
        self._real = self._moments(training)
        self.images, self.labels = self.images[:number], self.labels[:number]

    def _moments(self, images):
        return moments.of(self._components.transform(flatten(images)))

    def compare(self, images, labels) -> dict[str, float]:
        """Returns the Fréchet distance, and how often the class is as requested."""
        found = self._moments(images)
        distance = distances.frechet_distance(
            found.mean, found.covariance, self._real.mean, self._real.covariance
        )
        return {
            "frechet": float(distance.value),
            "agreement": self.agreement(images, labels),
        }

    def agreement(self, images, labels) -> float:
        """Returns the fraction of images whose class is the given one."""
        return float(np.mean(self.classifier.predict(flatten(images)) == labels))


def bits(models, codes, labels, orders) -> float:
    """Returns bits of an image given its class, the mean over images and orders."""
    classes = tuple(labels.tolist())
    cond = conditions.parse(models.config, models.tokenizer, classes).cond
    variables = models.transformer_variables
    params, codebook = variables["params"], variables["codebook"]["state"].embedding
    total = []
    for order in orders:
        for start in range(0, len(codes), 100):
            at = slice(start, start + 100)
            found = likelihood.log_likelihood(
                models.decoder,
                params,
                codebook,
                codes[at],
                cond[at],
                None if order is None else order[at],
            )
            total.append(np.asarray(found).sum((1, 2, 3)))
    return float(-np.concatenate(total).mean() / math.log(2))


def complete(models, codes, keep, config, cond) -> np.ndarray:
    """Returns codes of images `[N, H, W, D]`, of which those at `keep` are kept."""
    sampler, found = models.sampler, []
    for start in range(0, len(codes), config.batch_size):
        part = codes[start : start + config.batch_size]
        wanted = [
            Wanted(cond, start + i, config, inpainting.Given(one, keep))
            for i, one in enumerate(part)
        ]
        rows = np.concatenate(list(sampler.by_row(wanted, config.batch_size)), axis=1)
        drawn = np.empty_like(rows)
        order = sampler.row_order(wanted)
        places = np.arange(len(part))[:, None], order
        drawn[places] = rows[: len(part)]
        found.append(drawn[: len(part)].reshape(part.shape))
    return np.concatenate(found)


def pixels(models, codes) -> np.ndarray:
    """Returns images `[N, R, R, C]` in [-1, 1] of codes."""
    return np.concatenate(list(models.codec.decode(codes, 100, dtype=np.float32)))


def measure_completion(runs, real: Measured, out) -> dict:
    """Returns PSNR and agreement by mask and run; draws the first images."""
    first = next(iter(runs.values()))
    codes = first.codec.encode(visualize.to_uint8(real.images), 100)
    through = pixels(first, codes)
    height, width, depth = first.rqvae.code_shape
    found = {"reconstructed": {"agreement": real.agreement(through, real.labels)}}
    shown, names = [real.images[:SHOWN]], ["original"]
    for mask in MASKS:
        redo = drawn_mask(height, width)
        if mask != "drawn":
            redo = inpainting.read_mask(mask, height, width)
        keep = inpainting.make_keep(redo, depth)
        scale = np.asarray(real.images.shape[1:3]) // (height, width)
        where = np.kron(redo, np.ones(scale, bool))[None, ..., None]
        shown.append(np.where(where, 0, real.images[:SHOWN]))
        names.append(mask)
        found[mask] = {}
        for name, models in runs.items():
            null = models.sampler.null_cond
            config = SamplingConfig(**models.config.sampling).replace(
                batch_size=min(100, len(codes)), seed=1
            )
            images = pixels(models, complete(models, codes, keep, config, null))
            error = np.where(where, images - real.images, 0)
            error = (error**2).sum() / where.sum() / len(images) / images.shape[-1]
            found[mask][name] = {
                "psnr": float(10 * math.log10(4 / error)),
                "agreement": real.agreement(images, real.labels),
            }
            shown.append(images[:SHOWN])
            names.append(name)
    picture = visualize.sample_grid(np.concatenate(shown), SHOWN, names)
    visualize.save_png(out / "completions.png", picture)
    return found


def measure_samples(runs, real: Measured, number: int, steps, levels, out) -> dict:
    """Returns quality and images per second by run, steps and levels; draws some."""
    found, shown, names = {}, [], []
    for name, models in runs.items():
        asked = conditions.parse(
            models.config,
            models.tokenizer,
            tuple(range(models.config.data.num_classes)),
        )
        labels, cond = asked.at(asked.spread(number))
        any_order = models.sampler.model.any_order
        ways = [(0, (0,))]
        if any_order:
            ways += itertools.product(steps, [(0,), *levels])
        for count, depths in ways:
            config = SamplingConfig(**models.config.sampling).replace(
                parallel_steps=count, levels=depths, batch_size=min(100, number)
            )
            batch = config.batch_size
            models.sampler.sample(cond[:batch], batch, config)  # compiles
            start = time.perf_counter()
            images, _ = models.sampler.sample(cond, number, config)
            seconds = time.perf_counter() - start
            key = f"{name}, {count} steps" if count else name
            if any(depths):
                key += f", depths {', '.join(map(str, depths))}"
            found[key] = real.compare(images, labels)
            found[key]["images_per_second"] = number / seconds
            found[key]["seconds_of_one"] = time_of_one(models, cond, config)
            print(key, found[key], flush=True)
            places = np.linspace(0, number - 1, SHOWN).astype(int)
            shown.append(images[places])
            names.append(key)
    picture = visualize.sample_grid(np.concatenate(shown), SHOWN, names)
    visualize.save_png(out / "parallel.png", picture)
    return found


def show_levels(models, steps: int, levels, out) -> None:
    """Draws samples after each level: coarse codes do not depend on finer ones."""
    asked = conditions.parse(
        models.config, models.tokenizer, tuple(range(models.config.data.num_classes))
    )
    _, cond = asked.at(asked.spread(SHOWN))
    config = SamplingConfig(**models.config.sampling).replace(parallel_steps=steps)
    rows = []
    for number, depth in enumerate(levels, 1):
        now = config.replace(levels=levels[:number], depth=depth)
        rows.append(models.sampler.sample(cond, SHOWN, now).images)
    names = [f"all at depth {depth}" for depth in levels]
    picture = visualize.sample_grid(np.concatenate(rows), SHOWN, names)
    visualize.save_png(out / "levels.png", picture)


def time_of_one(models, cond, config, repeats: int = 5) -> float:
    """Returns the median time of one image in a batch of its own, after compiling."""
    config, times = config.replace(batch_size=1), []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        models.sampler.sample(cond[:1], 1, config)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def measure(runs, number: int, steps, levels, out: pathlib.Path) -> dict:
    """Returns all results; writes the pictures."""
    first = next(iter(runs.values()))
    real = Measured(first.config, 200)
    source = first.code_source(first.config.data.eval_split)
    examples = [source[i] for i in range(len(source))]
    codes = np.stack([x["codes"] for x in examples])
    labels = np.stack([x["label"] for x in examples])
    rng = np.random.default_rng(0)
    positions = first.sampler.model.positions
    random = [
        rng.permuted(
            np.tile(np.arange(positions, dtype=np.int32), (len(codes), 1)), axis=1
        )
        for _ in range(3)
    ]
    of_bits = {}
    for name, models in runs.items():
        of_bits[name] = {"raster": bits(models, codes, labels, [None])}
        if models.sampler.model.any_order:
            of_bits[name]["random"] = bits(models, codes, labels, random)
        print(name, of_bits[name], flush=True)
    if levels:
        show_levels(list(runs.values())[-1], max(steps), levels[-1], out)
    return {
        "bits_per_image": of_bits,
        "samples": measure_samples(runs, real, number, steps, levels, out),
        "completion": measure_completion(runs, real, out),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", required=True, help="NAME=RUN, several")
    parser.add_argument("--steps", default="64,32,16,8")
    parser.add_argument(
        "--levels", nargs="*", default=[], help="such as 1,4: values of sampling.levels"
    )
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs"))
    options = parser.parse_args()
    runs = {}
    for given in options.runs:
        name, _, place = given.partition("=")
        runs[name] = Experiment(pathlib.Path(place))
    steps = tuple(int(x) for x in options.steps.split(","))
    levels = [tuple(int(x) for x in given.split(",")) for given in options.levels]
    options.out.mkdir(parents=True, exist_ok=True)
    results = measure(runs, options.num_samples, steps, levels, options.out)
    devices = str(jax.devices()[0].device_kind)
    print(json.dumps({"benchmark": "any_order", "device": devices} | results))


if __name__ == "__main__":
    main()
