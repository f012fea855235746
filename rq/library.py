# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The library: loads trained models, and samples, encodes and decodes with them.

import rq
model = rq.load("runs/digits")
images = model.sample(classes=[3, 7], num_samples=16, seed=0, top_p=0.95)
"""

from __future__ import annotations

import functools
import numbers
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from rq import loaded_models
from rq.compression.compressor import Compressed, Compressor
from rq.compression.file_format import MAX_DEPTH
from rq.config import ConfigError, SamplingConfig
from rq.config.sampling import OPTIONS
from rq.convert import model_card, saved_folder
from rq.data import DataError, given_images
from rq.models.projection import PRECISIONS
from rq.parallel import atomic_files
from rq.sampling import conditions, inpainting
from rq.sampling.trained_models import TrainedModels

_NAMES = {"rqvae": "RQ-VAE", "transformer": "RQ-Transformer"}


def load(path, *, step: str | int = "latest", dtype: str | None = None) -> Model:
    """Returns the trained models of a folder; weights are read when first used.

    Args:
      path: a run directory, a folder that `Model.save` or `rq convert export` wrote, a
        folder of the authors' checkpoints, or the name of a model that comes with the
        package: 'digits' or 'emoji'.
      step: of a run directory: checkpoint of the last stage: 'latest', 'best' or a
        number.
      dtype: precision of the transformer's weights and products: 'float32', 'bfloat16'
        or 'int8'; as in training if None.

    Raises:
      FileNotFoundError: if there is no such folder.
      ConfigError: if there is no precision of that name, or the folder has no steps.
      ValueError: if there are no models in it, or they are damaged.
    """
    if dtype not in (None, *PRECISIONS):
        raise ConfigError(f"dtype {dtype!r}: one of {', '.join(PRECISIONS)}")
    path = loaded_models.find_folder(path)
    if loaded_models.is_run(path):
        return load_run(path, step=step, dtype=dtype)
    loaded_models.require_no_step(path, step)
    models = loaded_models.from_folder(path, dtype=dtype)
    return Model(models, models.stages, lambda: models.info)


def load_run(path, *, step: str | int = "latest", dtype: str | None = None) -> Model:
    """Returns the trained models of a run directory, see `load`.

    Raises:
      FileNotFoundError: if nothing was trained there.
      CheckpointError: if there is no such checkpoint.
    """
    # Only run directories need Orbax, and only `info` and `save` the metrics.
    from rq import experiment
    from rq.training import checkpoint

    run = experiment.Experiment(path, step=step, dtype=dtype)
    if not run.stages:
        raise checkpoint.missing(run.path / "rqvae", "rqvae", None)
    run.require_rqvae("rq.load")

    def info():
        from rq.evaluation import recorded

        steps = {stage: int(run.step_of(stage)) for stage in run.stages}
        metrics = recorded.metrics(run)
        return {"steps": steps, "metrics": metrics, "licence": model_card.UNKNOWN}

    return Model(run, run.stages, info)


class Model:
    """A trained RQ-VAE and, if there is one, the RQ-Transformer of its codes.

    Images are given as paths, images of Pillow or arrays `[H, W]` or `[H, W, C]`, of
    any size and mode; several as a list, or as an array `[N, H, W, C]`. They are
    resized to cover the model's resolution, and the centre is cropped. Integers are
    0..255 (16 bits: 0..65535), floats are in [0, 1]. Images are returned as uint8
    `[N, H, W, C]`.

    Methods raise `ConfigError` on arguments that the model does not have, and
    `DataError` on images that cannot be read: both are `ValueError`s of one line.
    """

    def __init__(
        self,
        models: TrainedModels,
        stages: Iterable[str],
        info: Callable[[], dict[str, Any]],
    ):
        """Takes models, as `load` makes them.

        Args:
          models: the models.
          stages: those of 'rqvae' and 'transformer' that there are.
          info: returns what `saved_folder.write` takes.
        """
        self._models, self.stages, self._info = models, tuple(stages), info
        self.config = models.config

    def __repr__(self) -> str:
        return f"rq.load({str(self._models.path)!r})"

    @property
    def models(self) -> TrainedModels:
        """The modules, weights and sampler behind the methods."""
        return self._models

    def sample(
        self,
        classes=(),
        texts=(),
        num_samples: int | None = None,
        seed: int = 0,
        *,
        source=None,
        mask=None,
        **options,
    ) -> np.ndarray:
        """Samples images, uint8 `[N, H, W, C]`, in the order of their conditions.

        Args:
          classes: a class or several, of a model that has them; all if empty.
          texts: a text or several, of a model that has them.
          num_samples: N, divided evenly among the conditions; one of each if None.
          seed: sample i of a seed is always the same.
          source: images, of a model that was trained with `data.source`: the source
            images of 'pairs'; of other kinds they are made of them.
          mask: of the kind 'mask', what the source images lack, as in `complete`, but
            of at least their size; 'bottom' if None.
          **options: of `rq.config.SamplingConfig`, such as top_p=0.95, guidance=2;
            those of the model's config if not given.
        """
        asked = self._conditions(classes, texts, source, mask)
        return self._sample(asked, num_samples, seed, options)

    def complete(
        self,
        image,
        mask="bottom",
        classes=(),
        texts=(),
        num_samples: int | None = None,
        seed: int = 0,
        keep_depth: int = 0,
        *,
        source=None,
        **options,
    ) -> np.ndarray:
        """Samples the codes of a region, and keeps the others of an image.

        Args:
          image: one image.
          mask: 'bottom', 'top', 'left', 'right', 'center' or 'all'; or an image, bright
            where to sample, of at least a pixel for each position.
          classes, texts, num_samples, seed, source, options: see `sample`.
          keep_depth: first depths that are kept in the region, too.

        Returns:
          uint8 `[N, H, W, C]`.
        """
        self._require("transformer")
        data = self.config.data
        images = list(given_images.pixels(image, data.channels))
        if len(images) != 1:
            raise ConfigError(f"completes one image, not {len(images)}")
        canvas = inpainting.Canvas(images[0].shape[:2], data.resolution)
        codes = self.encode(images)[0]
        given = inpainting.make_given(codes, mask, keep_depth, canvas)
        missing = mask if data.source == "mask" and source is not None else None
        asked = self._conditions(classes, texts, source, missing)
        return self._sample(asked, num_samples, seed, options, given)

    def _sample(self, asked, number, seed, options, given=None):
        number = len(asked.labels) if number is None else number
        if not isinstance(number, numbers.Integral) or number < 1:
            raise ConfigError(f"num_samples {number!r}: a positive number")
        if unknown := sorted(options.keys() - OPTIONS.keys()):
            raise ConfigError(
                f"no option of sampling is named {', '.join(unknown)}; there are "
                f"{', '.join(OPTIONS)}"
            )
        config = SamplingConfig(**self.config.sampling)
        config = config.replace(seed=seed, **options)
        _, cond = asked.at(asked.spread(int(number)))
        return self._models.sampler.sample(
            cond, int(number), config, given=given, dtype=np.uint8
        ).images

    def encode(self, images) -> np.ndarray:
        """Returns the codes of images, int32 `[N, h, w, D]`."""
        data = self.config.data
        images = given_images.read(images, data.channels, data.resolution)
        return self._models.codec.encode(images, self._batch_size)

    def decode(self, codes, depth: int | None = None) -> np.ndarray:
        """Returns the images of codes, uint8 `[N, H, W, C]`.

        Args:
          codes: integers `[N, h, w, d]` or `[h, w, d]`, of the first d depths.
          depth: how many depths are decoded, the first ones; all of them if None.
        """
        codes, rqvae = np.asarray(codes), self._models.rqvae
        codes = codes[None] if codes.ndim == 3 else codes
        if codes.ndim != 4 or not len(codes):
            raise ConfigError(f"codes of shape {codes.shape}, not [N, h, w, D]")
        known = min(max(codes.shape[-1], 1), rqvae.depth)
        if depth is not None and depth not in range(1, known + 1):
            raise ConfigError(f"depth {depth!r} is not within 1..{known}")
        shape = (*rqvae.code_shape[:2], known)
        for number, one in enumerate(codes):
            inpainting.check_codes(one, shape, rqvae.sizes, f"code map {number}")
        images = self._models.codec.decode(
            codes.astype(np.int32), self._batch_size, depth, np.uint8
        )
        return np.concatenate(list(images))

    def reconstruct(self, images, depth: int | None = None) -> np.ndarray:
        """Returns images encoded and decoded again, see `encode` and `decode`."""
        return self.decode(self.encode(images), depth)

    def compress(
        self, images, classes=(), texts=(), layers: bool = False, depth=None
    ) -> list[bytes]:
        """Returns a small file for each image: its codes, entropy-coded by the model.

        Needs constriction: `pip install 'rq[compress]'`.

        Args:
          images: N images.
          classes, texts: one for all images, or one for each, see `sample`; files are
            smaller where the model expects what is in the image. If empty, what stands
            for no condition.
          layers: whether each depth is coded by itself, so that a file may be cut, see
            `rq.compression.file_format.cut`.
          depth: how many depths are stored, the first ones; all if None.
        """
        compressed = self.compress_each(images, classes, texts, layers, depth)
        return [one.data for one in compressed]

    def compress_each(
        self, images, classes=(), texts=(), layers: bool = False, depth=None
    ) -> Iterator[Compressed]:
        """Yields each image's file, and its size by the likelihood; see `compress`."""
        self._require("transformer")
        known = min(self._models.rqvae.depth, MAX_DEPTH)
        depth = known if depth is None else depth
        if depth not in range(1, known + 1):
            raise ConfigError(f"depth {depth!r} is not within 1..{known}")
        part = self.config.transformer
        if part.condition == "class_text" and texts and not np.size(classes):
            if not part.condition_dropout:
                raise ConfigError("the model takes no text alone: give the class, too")
        if np.size(classes) or texts:
            cond = self._conditions(classes, texts).cond
        elif (cond := self._compressor.null_cond()) is not None:
            cond = cond[None]
        codes = self.encode(images)
        if cond is not None and len(cond) not in (1, len(codes)):
            raise ConfigError(
                f"{len(cond)} conditions for {len(codes)} images: give one, or one for "
                "each"
            )
        for number, one in enumerate(codes):
            at = None if cond is None else cond[number % len(cond)]
            yield self._compressor.compress(one, at, int(depth), layers)

    def decompress(self, files, depth: int | None = None) -> np.ndarray:
        """Returns the images of files that `compress` made, uint8 `[N, H, W, C]`.

        Args:
          files: the bytes of a file, or its path, or a list of these.
          depth: how many depths are decoded, the first ones; all if None.
        """
        self._require("transformer")
        images, in_memory = [], (bytes, bytearray)
        if isinstance(files, (str, os.PathLike, *in_memory)):
            files = [files]
        for number, one in enumerate(files):
            name = f"file {number}" if isinstance(one, in_memory) else one
            if isinstance(one, in_memory):
                data = bytes(one)
            else:
                data = pathlib.Path(one).expanduser().read_bytes()
            try:
                codes = self._compressor.decompress(data, depth)
            except DataError as error:
                raise DataError(f"{name} {error}") from None
            images.append(self.decode(codes))
        if not images:
            raise DataError("no files were given")
        return np.concatenate(images)

    @functools.cached_property
    def _compressor(self) -> Compressor:
        return Compressor(self._models)

    def log_likelihood(
        self, images, classes=(), texts=(), *, source=None
    ) -> np.ndarray:
        """Returns log p of the images' codes under each condition, float32 `[N, M]`.

        In nats. With equal priors the likeliest condition is Bayes' choice.

        Args:
          images: N images.
          classes, texts, source: the M conditions, see `sample`; M = 1 of an
            unconditional model.
        """
        asked = self._conditions(classes, texts, source)
        return self._models.log_likelihoods(self.encode(images), asked.cond).sum(-1)

    def info(self) -> dict[str, Any]:
        """Returns sizes, parameters, training steps, metrics and licence, for JSON."""
        rqvae, config = self._models.rqvae, self.config
        has_classes = "class" in config.transformer.condition
        return {
            "resolution": config.data.resolution,
            "channels": config.data.channels,
            "code_shape": list(rqvae.code_shape),
            "num_codes": list(rqvae.sizes),
            "data": config.data.name,
            "condition": config.transformer.condition,
            "source": config.data.source,
            "num_classes": config.data.num_classes if has_classes else 0,
            "parameters": {
                stage: model_card.parameters(variables)
                for stage, variables in self._variables().items()
            },
            "dtype": self._models.dtype or "as trained",
            **self._info(),
        }

    def save(self, folder, licence: str | None = None, half: bool = False) -> None:
        """Writes the models to a folder that `load` reads without Orbax.

        It has model.safetensors, config.json, README.md (the model card) and, of a
        model with text, tokenizer.json; and appears when it is complete.

        Args:
          folder: new or empty.
          licence: of the weights, for the card; the one that is known if None.
          half: stores parameters as float16, which the loaded model computes with in
            the dtypes of training; the codebook stays float32.

        Raises:
          ConfigError: if the model was loaded with a dtype, or a parameter is too large
            for float16.
        """
        if self._models.dtype is not None:
            raise ConfigError("saves weights as trained: load the model without dtype")
        info = self._info() | ({"licence": licence} if licence else {})
        with atomic_files.new_folder(folder) as (_, made):
            made.mkdir()
            has_transformer = "transformer" in self.stages
            tokenizer = self._models.tokenizer if has_transformer else None
            variables = self._variables()
            saved_folder.write(made, self.config, variables, info, tokenizer, half)
            if has_transformer and self.config.transformer.source_rqvae:
                source = self._models.source_models.path
                shutil.copytree(source, made / saved_folder.SOURCE)

    @property
    def _batch_size(self) -> int:
        return self.config.sampling.batch_size

    def _variables(self) -> dict[str, dict]:
        models = self._models
        found = {"rqvae": lambda: models.rqvae_variables}
        found["transformer"] = lambda: models.transformer_variables
        return {stage: found[stage]() for stage in self.stages}

    def _require(self, stage: str) -> None:
        if stage not in self.stages:
            raise ConfigError(f"{self._models.path} has no {_NAMES[stage]}")

    def _conditions(
        self, classes, texts, source=None, mask=None
    ) -> conditions.Conditions:
        self._require("transformer")
        texts = (texts,) if isinstance(texts, str) else tuple(texts)
        classes = np.asarray(classes).ravel()
        if classes.size and not np.issubdtype(classes.dtype, np.integer):
            raise ConfigError(f"classes {classes.tolist()}: must be whole numbers")
        classes = tuple(classes.tolist())
        sources = None
        if source is not None:
            sources = self._models.read_sources(source, mask)
        elif mask is not None:
            raise ConfigError("mask needs source, an image")
        tokenizer = self._models.tokenizer
        return conditions.parse(self.config, tokenizer, classes, texts, sources)
