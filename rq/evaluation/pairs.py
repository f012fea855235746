# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures models of source images: their samples beside the true images."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from rq import visualize
from rq.config import ConfigError, SamplingConfig
from rq.data import loader, sources
from rq.data.pixels import colours, nearest_labels, to_float
from rq.evaluation.feature_sets import BATCH
from rq.metrics import segmentation
from rq.metrics.distances import frechet_distance
from rq.metrics.image_quality import SSIM_WINDOW, psnr, ssim
from rq.metrics.moments import Stream
from rq.sampling import conditions

ROWS, COLUMNS = 8, 4  # pairs shown, and samples of each


class Pairs(NamedTuple):
    """N pairs of the evaluation split.

    Attributes:
      images: the true images, uint8 `[N, H, W, C]`.
      sources: their source images, of the same form.
      labels: int32 `[N]`.
      captions: N tuples.
    """

    images: np.ndarray
    sources: np.ndarray
    labels: np.ndarray
    captions: list[tuple[str, ...]]


def read(experiment, number: int = 0) -> Pairs:
    """Returns the first pairs of the evaluation split; 0: all.

    Raises:
      ConfigError: if the model has no source images.
      DataError: if the data set is missing.
    """
    data = experiment.config.data
    if data.source == "none":
        raise ConfigError(f"{experiment.path} is not conditioned on source images")
    split = sources.open_split(data, data.eval_split, paired=True)
    number = min(number or len(split), len(split))
    found: list[list] = [[], [], [], []]
    for batch in loader.in_order(
        split, data, BATCH, stop=number, captions=True, paired=True
    ):
        for part, name in zip(
            found, ("image", "source", "label", "captions"), strict=True
        ):
            part.extend(x for x, m in zip(batch[name], batch["mask"], strict=True) if m)
    images, given, labels, captions = found
    return Pairs(
        np.stack(images), np.stack(given), np.asarray(labels, np.int32), captions
    )


def asked(experiment, pairs: Pairs) -> conditions.Conditions:
    """Returns the condition of each pair: its source, and its class and first caption.

    Images without a caption have an empty text.
    """
    config, needs = experiment.config, conditions.NEEDS
    needed = needs[config.transformer.condition]
    codes = experiment.source_codes(pairs.sources)
    names = tuple(map(str, range(len(codes))))
    return conditions.parse(
        config,
        experiment.tokenizer,
        tuple(pairs.labels.tolist()) if "label" in needed else (),
        tuple(x[0] if x else "" for x in pairs.captions) if "text" in needed else (),
        conditions.Sources(codes, names, pairs.sources),
    )


def evaluate(experiment, number: int = 0, extractor=None) -> dict[str, float]:
    """Returns metrics of one sample of each source image of the evaluation split.

    Args:
      experiment: a `rq.experiment.Experiment` with both stages.
      number: of pairs; 0: all.
      extractor: from `rq.evaluation.extractors`, for distances of features.

    Returns:
      'samples/psnr' and so on; the same of 'source', the source images themselves, and
      of 'rqvae', the true images encoded and decoded, which no sample can exceed by
      much. 'mIoU' and 'pixel accuracy' of label maps (`data.palette`), else 'psnr',
      'ssim' and, with an extractor, 'feature distance' (mean Euclidean distance of the
      features of both images) and 'FID'.
    """
    pairs = read(experiment, number)
    found = asked(experiment, pairs)
    options = SamplingConfig(**experiment.config.sampling)
    number = len(pairs.images)
    made = experiment.sampler.sample(found.cond, number, options, dtype=np.uint8)
    codec, batch_size = experiment.codec, options.batch_size
    codes = codec.encode(pairs.images, batch_size)
    decoded = np.concatenate(list(codec.decode(codes, batch_size, dtype=np.uint8)))
    each = {"samples": made.images, "source": pairs.sources, "rqvae": decoded}
    palette = [name for name in experiment.config.data.palette if name]
    metrics = {"pairs": float(number)}
    for name, images in each.items():
        if palette:
            values = of_label_maps(pairs.images, images, palette)
        else:
            values = of_images(pairs.images, images, extractor)
        if not (palette and name == "source"):  # pictures are no label maps
            metrics |= {f"{name}/{key}": value for key, value in values.items()}
    return metrics


def of_label_maps(true: np.ndarray, made: np.ndarray, palette) -> dict[str, float]:
    """Returns 'mIoU' and 'pixel accuracy' of label maps, uint8 `[N, H, W, C]`.

    Args:
      true, made: the maps, of three channels or one; pixels count as the class of the
        nearest colour.
      palette: colours '#rrggbb' of the classes.
    """
    found = colours(palette, true.shape[-1])
    counts = np.zeros((len(found), len(found)), np.int64)
    for part in _parts(len(true)):
        labels, others = (nearest_labels(x[part], found) for x in (true, made))
        counts += segmentation.confusion(labels, others, len(found))
    return segmentation.statistics(counts)


def of_images(true: np.ndarray, made: np.ndarray, extractor=None) -> dict[str, float]:
    """Returns means of 'psnr' and 'ssim', and distances of features, see `evaluate`.

    Args:
      true, made: uint8 `[N, H, W, C]`.
      extractor: see `evaluate`.
    """
    compare, each = jax.jit(ssim), {"psnr": [], "ssim": []}
    for part in _parts(len(true)):
        a, b = (np.asarray(to_float(x[part])) for x in (true, made))
        # The mean over images would be infinite with one that is equal.
        each["psnr"].append(np.minimum(psnr(a, b), 100.0))
        if min(a.shape[1:3]) >= SSIM_WINDOW:
            each["ssim"].append(np.asarray(compare(a, b)))
    found = {name: float(np.mean(np.concatenate(x))) for name, x in each.items() if x}
    if extractor is None:
        return found
    features = [
        np.concatenate([extractor(x[part]).pool for part in _parts(len(x))])
        for x in (true, made)
    ]
    named = f" ({extractor.label})" if extractor.label else ""
    apart = np.linalg.norm(features[0] - features[1], axis=1)
    found[f"feature distance{named}"] = float(apart.mean())
    if len(true) > 1:
        streams = [Stream(), Stream()]
        for stream, values in zip(streams, features, strict=True):
            stream.add(values)
        real, moments = (stream.moments() for stream in streams)
        assert real is not None and moments is not None  # of two images or more
        found[f"FID{named}"] = frechet_distance(
            real.mean, real.covariance, moments.mean, moments.covariance
        ).value
    return found


def _parts(number: int) -> list[slice]:
    """Returns the images that are measured at once, to bound the memory."""
    return [slice(start, start + BATCH) for start in range(0, number, BATCH)]


def picture(
    experiment, seed: int, number: int = ROWS, samples: int = COLUMNS
) -> np.ndarray:
    """Returns a picture: a source image, samples of it, and the true image, by row."""
    pairs = read(experiment, number)
    found = asked(experiment, pairs)
    number = len(pairs.images)
    _, cond = found.at(np.repeat(np.arange(number), samples))
    options = SamplingConfig(**experiment.config.sampling).replace(seed=seed)
    made = experiment.sampler.sample(
        cond, number * samples, options, dtype=np.uint8
    ).images
    made = made.reshape(number, samples, *made.shape[1:])
    rows = np.concatenate([pairs.sources[:, None], made, pairs.images[:, None]], axis=1)
    title = f"source image, {samples} samples, true image"
    images = rows.reshape(-1, *rows.shape[2:])
    return visualize.sample_grid(images, samples + 2, title=title)
