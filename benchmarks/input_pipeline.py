# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures images per second of the input pipeline, for each of its users.

    python benchmarks/input_pipeline.py

Reads 256 x 256 JPEGs as training does (with ImageNet's augmentation), as evaluation and
encoding do, as FID's reference statistics do (centre crop), and as files of a folder.
Compares them with the decoder alone on as many threads, and with tf.data (records,
decoding, random crop, flip, batches). No network runs. The measurements take turns of a
few seconds. Rates are medians over the rounds, fractions medians of the ratio in each
round. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

SIDE = 256
QUALITY = 90


def write_images(folder: pathlib.Path, number: int) -> list[pathlib.Path]:
    """Writes JPEGs of about 30 kB with gradients, edges and noise, like photographs."""
    rng = np.random.default_rng(0)
    paths = []
    for k in range(number):
        coarse = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
        image = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        for _ in range(12):
            corner = rng.integers(0, SIDE, 4).tolist()
            color = rng.integers(0, 255, 3).tolist()
            cv2.rectangle(image, corner[:2], corner[2:], color, -1)
        image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        path = folder / f"{k:05d}.jpg"
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        paths.append(path)
    return paths


def section(folder: pathlib.Path, threads: int):
    """Returns the `data` section of a config for these images."""
    from rq.config import default

    data = default().data
    data.update(
        dict(
            name="folder",
            path=str(folder / "images"),
            dir=str(folder / "tfds"),
            resolution=SIDE,
            augment="crop_flip",
            holdout=1,
            threads=threads,
            prefetch=8,
        )
    )
    return data


def rate(open_batches, seconds: float, batch_size: int) -> float:
    """Returns images per second after a warmup; restarts batches when they end."""

    def endless():
        while True:
            yield from open_batches()

    batches = endless()
    for _ in range(8):
        next(batches)
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        images += batch_size
    return images / (time.perf_counter() - start)


def readers(data, folder: pathlib.Path, batch_size: int) -> dict:
    """Returns functions that open the batches of each user of the loader.

    All of them read the same images.
    """
    from rq.data import loader, sources
    from rq.evaluation.image_files import ImageSet

    source = sources.open_split(data, "train")
    files = ImageSet(folder / "images")
    with data.unlocked():
        center = data.copy_and_resolve_references()
    center.augment = "center"
    variants = loader.Variants(source, data, 1)
    return {
        "training": lambda: loader.shuffled(
            source, data, batch_size=batch_size, seed=0
        ),
        "evaluation": lambda: loader.in_order(source, data, batch_size),
        "encoding": lambda: loader.in_order(variants, data, batch_size, captions=True),
        "reference": lambda: loader.in_order(source, center, batch_size),
        "folder": lambda: files.shared_batches(batch_size),
    }


def decoder_rate(paths, threads: int, seconds: float, batch_size: int) -> float:
    """Returns images per second of OpenCV decoding bytes in memory: the upper limit."""
    encoded = [np.frombuffer(path.read_bytes(), np.uint8) for path in paths]

    def decode_some(start):
        for k in range(start, start + batch_size // threads):
            cv2.imdecode(encoded[k % len(encoded)], cv2.IMREAD_COLOR_RGB)

    with ThreadPoolExecutor(threads) as pool:

        def batches():
            start = 0
            while True:
                starts = range(start, start + batch_size, batch_size // threads)
                list(pool.map(decode_some, starts))
                start += batch_size
                yield

        return rate(batches, seconds, batch_size)


TF_DATA = """
import sys, time
import tensorflow as tf
folder, threads, seconds, batch_size, side = sys.argv[1:]
threads, seconds, side = int(threads), float(seconds), int(side)
files = tf.io.matching_files(folder + "/*.jpg")
records = [tf.io.read_file(f).numpy() for f in files]
def example(record):
    image = tf.io.decode_jpeg(record, channels=3)
    image = tf.image.random_crop(image, (side, side, 3))
    return tf.image.random_flip_left_right(image)
data = tf.data.Dataset.from_tensor_slices(records).shuffle(512).repeat()
data = data.map(example, num_parallel_calls=threads, deterministic=True)
data = data.batch(int(batch_size)).prefetch(8)
options = tf.data.Options()
options.threading.private_threadpool_size = threads
iterator = iter(data.with_options(options))
for _ in range(8):
    next(iterator)
start, images = time.perf_counter(), 0
while time.perf_counter() - start < seconds:
    images += len(next(iterator).numpy())
print(images / (time.perf_counter() - start))
"""


def tf_data_rate(folder, threads: int, seconds: float, batch_size: int) -> float:
    """Returns images per second of tf.data on the same bytes, in a separate process."""
    arguments = [str(folder), str(threads), str(seconds), str(batch_size), str(SIDE)]
    done = subprocess.run(
        [sys.executable, "-c", TF_DATA, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Runs all measurements in turns and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--tf_data", action=argparse.BooleanOptionalAction, default=True
    )
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))

    from absl import flags

    from rq.data import sources

    flags.FLAGS.mark_as_parsed()  # Grain reads flags
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "images").mkdir()
        paths = write_images(folder / "images", given.images)
        data = section(folder, given.threads)
        sources.prepare(data)
        seconds, batch, threads = given.seconds, given.batch_size, given.threads
        measures = {
            "decoder alone": lambda: decoder_rate(paths, threads, seconds, batch)
        }
        for name, opened in readers(data, folder, batch).items():
            measures[name] = functools.partial(rate, opened, seconds, batch)
        if given.tf_data:
            measures["tf.data"] = lambda: tf_data_rate(
                folder / "images", threads, seconds, batch
            )
        found = {name: [] for name in measures}
        for _ in range(given.rounds):
            for name, measure in measures.items():
                found[name].append(measure())
        size = np.mean([path.stat().st_size for path in paths])

    rates = {name: float(np.median(values)) for name, values in found.items()}
    fractions = {
        of: {
            name: round(float(np.median(np.divide(values, found[of]))), 3)
            for name, values in found.items()
        }
        for of in ("decoder alone", "training")
    }
    print(
        f"{SIDE} x {SIDE} JPEG of {size / 1000:.0f} kB, {cores} cores, "
        f"{threads} threads"
    )
    for name, value in rates.items():
        print(
            f"{name:14} {value:7.0f} images/s {value / cores:7.0f} per core"
            + "".join(f" {100 * f[name]:5.0f} % of {of}" for of, f in fractions.items())
        )
    print(
        json.dumps(
            {
                "images_per_second": rates,
                "fraction_of_decoder": fractions["decoder alone"],
                "fraction_of_training": fractions["training"],
            }
        )
    )


if __name__ == "__main__":
    main()
