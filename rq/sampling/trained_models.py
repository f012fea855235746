# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""A trained RQ-VAE and RQ-Transformer on devices, wherever their weights come from."""

from __future__ import annotations

import abc
import functools
import os
import pathlib

import numpy as np

from rq.config import ConfigError
from rq.data import DataError, augment, given_images, source_images, text, walk
from rq.models import RQVAE, RQTransformer
from rq.models.build import rqvae_model, transformer_model
from rq.models.transformer import code_vectors
from rq.models.unroll import decoding
from rq.parallel import sharding
from rq.sampling import codec, conditions, inpainting, likelihood
from rq.sampling.conditions import Sources
from rq.sampling.sampler import Sampler


def source_image(data, image: np.ndarray, mask) -> np.ndarray:
    """Returns what the model reads of a source image, uint8 `[R, R, C]`.

    Args:
      data: the `data` section of the config.
      image: uint8 `[H, W, C]` of any size.
      mask: of 'mask', what is missing, see `inpainting.read_mask`.

    Raises:
      ConfigError: if the mask does not fit, or nothing is missing.
    """
    size, missing = source_images.given_size(data), None
    if data.source == "mask":
        canvas = inpainting.Canvas(image.shape[:2], size)
        missing = inpainting.read_mask(mask, *size, canvas)
        if not missing.any():
            raise ConfigError("the mask is dark everywhere: nothing is missing")
    image = augment.center(image, size, None)
    return source_images.make(data, image, missing=missing)


class TrainedModels(abc.ABC):
    """Encodes, decodes, samples and computes likelihoods.

    Subclasses provide the weights: `rqvae_variables` and `transformer_variables`, which
    are read when they are first used.

    Attributes:
      path: where the models come from.
      config: that they were trained with.
      mesh: the devices in use.
      dtype: precision of the transformer's weights; None: as in training.
    """

    def __init__(self, path, config, mesh=None, dtype: str | None = None):
        """Takes the attributes; a mesh of all devices if None."""
        self.path, self.config, self.dtype = path, config, dtype
        self.mesh = sharding.make_mesh() if mesh is None else mesh

    @property
    @abc.abstractmethod
    def rqvae_variables(self) -> dict:
        """The trained RQ-VAE's `params` and `codebook`."""

    @property
    @abc.abstractmethod
    def transformer_variables(self) -> dict:
        """The `params` of `decoder`, and the `codebook` of its RQ-VAE."""

    @property
    def tokenizer_path(self):
        """The file or folder that `rq.data.text.load` reads, of a model with text."""
        return self.path / text.FILE

    @functools.cached_property
    def rqvae(self) -> RQVAE:
        """The RQ-VAE; its weights are `rqvae_variables`."""
        return rqvae_model(self.config)

    @functools.cached_property
    def decoder(self) -> RQTransformer:
        """The RQ-Transformer, in the layout of decoding if there is a `dtype`."""
        model = transformer_model(self.config)
        return model if self.dtype is None else decoding(model, self.dtype)

    @functools.cached_property
    def tokenizer(self) -> text.TextTokenizer | None:
        """The tokenizer of captions; None if the condition has no text.

        Raises:
          DataError: if it is missing, or has more tokens than the config.
        """
        options = self.config.transformer.text
        if "text" not in self.config.transformer.condition:
            return None
        tokenizer = text.load(self.tokenizer_path, options.length)
        if tokenizer.vocab_size > options.vocab_size:
            raise DataError(
                f"{self.tokenizer_path} has {tokenizer.vocab_size} tokens, more than "
                f"transformer.text.vocab_size = {options.vocab_size}"
            )
        return tokenizer

    @property
    def has_rqvae(self) -> bool:
        """Whether there is an RQ-VAE; not for the codes of another tokenizer."""
        return not self.config.transformer.codes_file

    def require_rqvae(self, what: str) -> None:
        """Raises ConfigError if there is none, which `what` needs."""
        if not self.has_rqvae:
            raise ConfigError(
                f"{self.path} has codes of {self.config.transformer.codes_file} and no "
                f"RQ-VAE, which {what} needs: rq sample writes codes for your decoder"
            )

    @functools.cached_property
    def codec(self) -> codec.Codec:
        """Encodes and decodes with the trained RQ-VAE."""
        return codec.Codec(self.rqvae, self.rqvae_variables, self.mesh)

    def open_source_models(self) -> TrainedModels:
        """Opens the models whose RQ-VAE encodes source images, if it is another."""
        raise ConfigError(f"{self.path} has no RQ-VAE of source images")

    @functools.cached_property
    def source_models(self) -> TrainedModels:
        """The models whose RQ-VAE encodes source images: these, or those of a folder.

        Raises:
          ConfigError: if there are no source images.
        """
        if self.config.data.source == "none":
            raise ConfigError(
                f"{self.path} is not conditioned on source images: data.source='none'"
            )
        own = self.config.transformer.source_rqvae
        return self.open_source_models() if own else self

    def source_codes(self, sources: np.ndarray) -> np.ndarray:
        """Returns codes int32 `[N, H', W', D']` of source images uint8 `[N, R, R, C]`.

        Raises:
          ConfigError: if the model has no source images.
        """
        batch_size = self.config.sampling.batch_size
        return self.source_models.codec.encode(sources, batch_size)

    def read_sources(self, images, mask=None) -> Sources:
        """Returns the source images that users give, as the model reads them.

        Args:
          images: as `given_images.read` takes them, or a folder of images. Of 'pairs'
            they are the source images; others are made of them as in training.
          mask: of 'mask', what is missing, see `inpainting.read_mask`; 'bottom' if
            None.

        Raises:
          ConfigError: if the model has no source images, or the mask does not fit.
          DataError: if an image cannot be read.
        """
        self.source_models  # noqa: B018  # raises before images are read
        data = self.config.data
        if data.source != "mask" and mask is not None:
            raise ConfigError(f"a mask of a model whose data.source is {data.source!r}")
        if isinstance(images, str | os.PathLike):
            folder = pathlib.Path(images).expanduser()
            if folder.is_dir():
                images = [str(file) for file in walk.images(folder)] or images
        made = np.stack(
            [
                source_image(data, image, "bottom" if mask is None else mask)
                for image in given_images.pixels(images, data.channels)
            ]
        )
        names = list(map(str, range(len(made))))
        given = images if isinstance(images, list | tuple) else [images]
        for number, image in enumerate(given):
            if isinstance(image, str | os.PathLike):
                names[number] = os.path.basename(image)
        return Sources(self.source_codes(made), tuple(names), made)

    @functools.cached_property
    def sampler(self) -> Sampler:
        """Draws codes and images with the trained models."""
        null_text = None if self.tokenizer is None else self.tokenizer.null
        return Sampler(
            self.decoder,
            self.transformer_variables,
            self.rqvae if self.has_rqvae else None,
            self.rqvae_variables,
            mesh=self.mesh,
            null_cond=conditions.null(self.config, null_text),
        )

    def log_likelihoods(self, codes: np.ndarray, conds) -> np.ndarray:
        """Returns log p of images by condition and depth, float32 `[N, conditions, D]`.

        Args:
          codes: int32 `[N, H, W, D]`.
          conds: int32, one class or text a row; None of an unconditional model.
        """
        variables = self.transformer_variables
        params, codebook = variables["params"], code_vectors(variables["codebook"])

        def dispatched():
            size = self.config.sampling.batch_size
            for number, batch in codec.batches(self.mesh, codes, size):
                with sharding.context(self.mesh):
                    found = likelihood.by_condition(
                        self.decoder, params, codebook, batch, conds
                    )
                yield number, found

        return np.concatenate(list(codec.read_behind(dispatched())))
