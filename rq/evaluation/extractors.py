# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Feature extractors for metrics, with their preprocessing.

Only distances of Inception's features are called FID. If Inception's weights are
unavailable or do not fit the images, use an experiment's own classifier; its metrics
have a label: 'FID (digits features)'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from rq.config import ConfigError, image_shape
from rq.convert import inception_weights as weights
from rq.data.pixels import to_float
from rq.models.digest import digest
from rq.models.networks.inception import SIDE, WIDTH, Inception, preprocess
from rq.parallel import sharding

# Inception's preprocessing, of TensorFlow's graph, of pytorch-fid and the authors, and
# of clean-fid: the label in metric names, and whether logits include the bias.
RESIZES = {
    "tf1": ("", False),
    "pytorch": ("pytorch-fid", True),
    "clean": ("clean-fid", False),
}


class Found(NamedTuple):
    """Holds the features of N images, float32 on the host.

    Attributes:
      pool: `[N, F]`.
      logits: `[N, K]`, of classes; None if the network has none.
      spatial: `[N, S]`, for sFID; None if the network has none.
    """

    pool: np.ndarray
    logits: np.ndarray | None
    spatial: np.ndarray | None


class Extractor:
    """Computes features of images, with one compiled program for each image size.

    Attributes:
      name: used in file names: 'inception-tf1', 'digits-features'.
      label: used in metric names; '' for Inception with TensorFlow's preprocessing.
      width: F, the number of features.
      fingerprint: hash of weights and preprocessing.
      mesh: devices that a batch is sharded over.
    """

    def __init__(
        self,
        name: str,
        label: str,
        width: int,
        apply: Callable,
        params,
        mesh,
        prepare: Callable | None = None,
    ):
        """Use `inception`, `own` or `of_experiment`.

        Args:
          name, label, width, mesh: see the class.
          apply: function of (params, prepared images) to (pool, logits, spatial).
          params: parameters of the network.
          prepare: applied to uint8 images `[B, H, W, C]` before, on the host.
        """
        self.name, self.label, self.width = name, label, width
        self.mesh, self._prepare = mesh, prepare
        self._params = jax.device_put(params, sharding.replicated(mesh))
        self._apply = jax.jit(apply)
        self._batch = 0  # size of the largest batch so far: others are padded
        self.fingerprint = digest(params, name)

    def batch_size(self, wanted: int, number: int) -> int:
        """Returns a batch size for `number` images that divides over the devices."""
        parts = sharding.batch_parts(self.mesh)
        return -(-min(wanted, number) // parts) * parts

    def __call__(self, images: np.ndarray) -> Found:
        """Returns features of uint8 images `[B, H, W, C]` that all processes have."""
        number = len(images)
        self._batch = max(self._batch, self.batch_size(number, number))
        padded = np.resize(images, (self._batch, *images.shape[1:]))
        local = sharding.rows(self.mesh, self._batch)
        return self.of_batch({"image": padded[local], "mask": local < number})

    def of_batch(self, batch: dict[str, np.ndarray]) -> Found:
        """Returns features of a batch of which each process holds its own rows.

        Args:
          batch: 'image' uint8 and 'mask', from `rq.data.loader.in_order` with this
            mesh. Masked images are left out.
        """
        images = batch["image"]
        if self._prepare is not None:
            images = self._prepare(images)
        with sharding.context(self.mesh):
            rows = {"image": images, "mask": batch["mask"]}
            rows = sharding.shard_batch(rows, self.mesh)
            found = self._apply(self._params, rows["image"])
            mask, found = sharding.to_host((rows["mask"], found))
        own: list[Any] = [None if x is None else x[mask] for x in found]
        return Found(*own)


def clean_resize(images: np.ndarray) -> np.ndarray:
    """Returns images resized as in clean-fid: bicubic, antialiased, not rounded.

    Takes uint8 `[B, H, W, C]`; returns float32 `[B, 299, 299, C]` in [0, 255].
    """

    def plane(values):
        image = Image.fromarray(values.astype(np.float32), mode="F")
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))

    planes = [
        np.stack([plane(image[..., c]) for c in range(image.shape[-1])], axis=-1)
        for image in images
    ]
    return np.clip(np.stack(planes), 0, 255)


def inception(path, mesh, resize: str = "tf1") -> Extractor:
    """Returns FID's Inception, from the file of `rq convert inception`.

    Args:
      path: an `.npz`.
      mesh: the devices.
      resize: 'tf1': bilinear without antialiasing, as in TensorFlow's graph, ADM's
        evaluator and torch-fidelity; 'pytorch': PyTorch's, with its logits, as in
        pytorch-fid and the authors' code; 'clean': bicubic with antialiasing, as in
        clean-fid.

    Raises:
      DataError: if the file is missing or of another kind.
      ConfigError: if `resize` is unknown.
    """
    if resize not in RESIZES:
        raise ConfigError(f"--resize={resize} is not one of {', '.join(RESIZES)}")
    label, biased = RESIZES[resize]
    model, clean = Inception(biased=biased), resize == "clean"

    def apply(params, images):
        images = jnp.broadcast_to(images, (*images.shape[:3], 3))  # grey as three
        if clean:
            prepared = (images - 128.0) / 128.0
        else:
            prepared = preprocess(images, resize)
        found: Any = model.apply({"params": params}, prepared)
        return found.pool, found.logits, found.spatial

    name, prepare = f"inception-{resize}", clean_resize if clean else None
    return Extractor(name, label, WIDTH, apply, weights.load(path), mesh, prepare)


def own(module, params, config, mesh) -> Extractor:
    """Returns the extractor of a feature network trained on the data set itself.

    It has logits if the network was trained on classes.

    Args:
      module: a `FeatureClassifier`.
      params: its parameters.
      config: config that it was trained with.
      mesh: the devices.
    """
    shape = image_shape(config.data)
    knows_classes = config.features.objective == "class"

    def apply(params, images):
        if images.shape[1:] != shape:
            raise ConfigError(
                f"images of {images.shape[1:]}; the feature network takes {shape}"
            )
        pool, logits = module.apply(
            {"params": params}, to_float(images), method="pool_and_logits"
        )
        return pool, logits if knows_classes else None, None

    kind, width = config.data.name.split("/")[0], config.features.model.widths[-1]
    name, label = f"{kind}-features", f"{kind} features"
    return Extractor(name, label, width, apply, jax.device_get(params), mesh)


def of_experiment(experiment) -> Extractor:
    """Returns the extractor of an experiment's own feature network.

    Raises:
      ConfigError: if it has none.
    """
    module, params = experiment.feature_classifier()
    return own(module, params, experiment.config, experiment.mesh)
