# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Networks in whose features images are compared, and how images get there.

Only of Inception are distances called FID. Those of an experiment's own classifier are
a stand-in where its weights cannot be had, or say nothing of the images, and carry a
label: 'FID (digits features)'.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from rq import sharding
from rq.config import ConfigError
from rq.convert import inception as weights
from rq.data.pixels import to_float
from rq.models.inception import SIDE, Inception, preprocess
from rq.stages import FeaturesStage

RESIZES = ("tf1", "clean")


class Found(NamedTuple):
    """Features of N images, float32 on the host.

    Attributes:
      pool: `[N, F]`.
      logits: `[N, K]`.
      spatial: `[N, S]`, of sFID; None where the network has none.
    """

    pool: np.ndarray
    logits: np.ndarray
    spatial: np.ndarray | None


class Extractor:
    """Images to features, one compiled program for one size of batch.

    Attributes:
      label: what names of metrics are followed by; '' of Inception.
      fingerprint: of weights and preprocessing.
    """

    def __init__(self, label: str, apply: Callable, params, mesh, prepare=None):
        """Use `inception` or `own`.

        Args:
          label: see the class.
          apply: function of (params, prepared images) to (pool, logits, spatial).
          params: of the network.
          mesh: of the devices that share a batch.
          prepare: what is done to uint8 images `[B, H, W, C]` before, on the host.
        """
        self.label, self._mesh, self._prepare = label, mesh, prepare
        self._params = jax.device_put(params, sharding.replicated(mesh))
        self._apply = jax.jit(apply)
        digest = hashlib.sha256(label.encode())
        for leaf in jax.tree.leaves(params):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        digest.update(getattr(prepare, "__name__", "").encode())
        self.fingerprint = digest.hexdigest()

    def __call__(self, images) -> Found:
        """Features of uint8 images `[B, H, W, C]`: of the host, or on the devices."""
        if self._prepare is not None:
            images = self._prepare(np.asarray(sharding.to_host(images)))
        with sharding.context(self._mesh):
            if not isinstance(images, jax.Array):
                parts = sharding.batch_parts(self._mesh)
                number = len(images)
                full = np.resize(
                    images, (-(-number // parts) * parts, *images.shape[1:])
                )
                images = sharding.shard_batch({"": full}, self._mesh, whole=True)[""]
            else:
                number = len(images)
            found = sharding.to_host(self._apply(self._params, images))
        pool, logits, spatial = (None if x is None else x[:number] for x in found)
        return Found(pool, logits, spatial)


def clean_resize(images: np.ndarray) -> np.ndarray:
    """clean-fid's: bicubic with antialiasing in float32, channel by channel.

    uint8 `[B, H, W, C]` to float32 `[B, 299, 299, C]` in [0, 255]. Nothing is rounded.
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
    """The network of FID, from the file of `python -m rq.convert inception`.

    Args:
      path: an `.npz`.
      mesh: of the devices.
      resize: 'tf1': bilinear without antialiasing, of pytorch-fid, torch-fidelity and
        ADM's evaluator; 'clean': bicubic with it, of clean-fid.

    Raises:
      DataError: where the file is missing or something else.
      ConfigError: on another way to resize.
    """
    if resize not in RESIZES:
        raise ConfigError(f"--resize={resize} is not one of {', '.join(RESIZES)}")
    model, clean = Inception(), resize == "clean"

    def apply(params, images):
        images = jnp.broadcast_to(images, (*images.shape[:3], 3))  # grey as three
        prepared = (images - 128.0) / 128.0 if clean else preprocess(images)
        found = model.apply({"params": params}, prepared)
        return found.pool, found.logits, found.spatial

    label = "clean-fid" if clean else ""
    return Extractor(
        label, apply, weights.load(path), mesh, clean_resize if clean else None
    )


def own(experiment) -> Extractor:
    """The network of stage 0, as an experiment trained it on its own classes.

    Raises:
      ConfigError: where there is none.
    """
    config = experiment.config
    if not experiment.finished("features"):
        raise ConfigError(
            f"{experiment.path} has no network of its own to compare images by: train "
            "one, by the command that trained it with --config.stages=features; or "
            "name Inception's weights with --inception"
        )
    stage = FeaturesStage(config, experiment.mesh, lambda: iter([]))
    side, channels = config.data.resolution, config.data.channels

    def apply(params, images):
        if images.shape[1:] != (side, side, channels):
            raise ConfigError(
                f"images of {images.shape[1:]}; the network of {experiment.path} takes "
                f"{side, side, channels}"
            )
        pool, logits = stage.model.apply(
            {"params": params}, to_float(images), method="pool_and_logits"
        )
        return pool, logits, None

    params = jax.device_get(experiment.features_state.model_variables()["params"])
    name = config.data.name.split("/")[0]
    return Extractor(f"{name} features", apply, params, experiment.mesh)
