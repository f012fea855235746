# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes images' codes as small files with a trained RQ-Transformer, and reads them.

One stream for all depths has the codes in the order in which the model draws them,
each with its exact probability. It cannot be cut: the codes of a position depend on all
those of earlier ones. With layers, each depth has a stream, coded in a pass of its own
in which the body reads no deeper codes: the first d streams are a file of depth d.

    one stream     p(S[t, d] | S[:t, 1..D], S[t, :d])
    layer d        p(S[t, d] | S[:t, 1..d], S[t, :d])
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import numpy as np

from rq.compression import entropy, file_format
from rq.compression.file_format import CodeFile
from rq.config import ConfigError
from rq.data import DataError
from rq.models.digest import digest
from rq.parallel import sharding
from rq.sampling import conditions
from rq.sampling.code_steps import CodeSteps
from rq.sampling.trained_models import TrainedModels


class Compressed(NamedTuple):
    """An image's file.

    Attributes:
      data: its bytes.
      bits: -log2 of the probability of the codes by stream, as they were coded.
    """

    data: bytes
    bits: tuple[float, ...]


class Compressor:
    """Writes and reads files of codes, one image at a time, on one device."""

    def __init__(self, models: TrainedModels):
        """Takes trained models, both stages.

        Raises:
          ConfigError: if they are conditioned on source images.
        """
        if models.config.data.source != "none":
            raise ConfigError(
                f"{models.path} is conditioned on source images, which files of codes "
                "have no place for: compress with a model that is not"
            )
        self._models, self._model = models, models.decoder

    @functools.cached_property
    def _steps(self) -> CodeSteps:
        variables = self._models.transformer_variables
        codebook = variables["codebook"]["state"].embedding
        return CodeSteps(self._model, variables["params"], codebook)

    @functools.cached_property
    def _digest(self) -> bytes:
        """Identifies what decides codes' probabilities and images."""
        rqvae, stage_2 = (
            self._models.rqvae_variables,
            self._models.transformer_variables,
        )
        weights = {
            "codebook": rqvae["codebook"]["state"].embedding,
            "rqvae": sharding.unbox(rqvae["params"]),
            "transformer": sharding.unbox(stage_2["params"]),
        }
        found = digest(weights, about=self._models.dtype or "")
        return bytes.fromhex(found)[: file_format.DIGEST]

    def null_cond(self) -> np.ndarray | None:
        """Returns the condition of an image of which nothing is known.

        Raises:
          ConfigError: if the model was not trained without condition.
        """
        config, tokenizer = self._models.config, self._models.tokenizer
        null_text = None if tokenizer is None else tokenizer.null
        null = conditions.null(config, null_text)
        if null is None and config.transformer.condition != "none":
            raise ConfigError(
                f"{self._models.path} is conditioned on "
                f"{config.transformer.condition!r} and was not trained without: give "
                "the classes or texts"
            )
        return null

    def compress(
        self, codes: np.ndarray, cond: np.ndarray | None, depth: int, layers: bool
    ) -> Compressed:
        """Returns the file of an image's codes.

        Args:
          codes: int32 `[H, W, D]`.
          cond: int32, a class or tokens `[S]`; None: the start token.
          depth: how many depths are stored.
          layers: whether each has a stream of its own.

        Raises:
          ConfigError: if probabilities are not finite, or constriction is missing.
        """
        codes = codes.reshape(-1, codes.shape[-1])
        streams, bits = [], []
        for first, last in _passes(depth, layers):
            found = []

            def choose(probabilities, position, d, found=found):
                found.append(probabilities)
                return codes[position, d]

            self._steps.run(cond, first, last, codes[:, :first], choose)
            probabilities = np.stack(jax.device_get(found))
            self._check_finite(probabilities)
            chosen = codes[:, first:last].ravel()
            streams.append(entropy.encode(chosen, probabilities))
            each = np.take_along_axis(probabilities, chosen[:, None], 1)
            bits.append(float(-np.log2(each.astype(np.float64)).sum()))
        tokens = () if cond is None else file_format.shorten(np.atleast_1d(cond))
        content = CodeFile(self._digest, depth, layers, tokens, tuple(streams))
        return Compressed(file_format.pack(content), tuple(bits))

    def decompress(self, data: bytes, depth: int | None = None) -> np.ndarray:
        """Returns the codes of a file, int32 `[H, W, d]`.

        Args:
          data: the file.
          depth: d; of layers no more are read; all that there are if None.

        Raises:
          DataError: if the file is of another model, cut or damaged, has fewer depths,
            or was written where floats round otherwise.
          ConfigError: as `compress`.
        """
        content = file_format.unpack(data, depth)
        if content.digest != self._digest:
            raise DataError(
                f"was written with another model than {self._models.path}, or with "
                "another dtype"
            )
        stored = len(content.streams) if content.layers else content.depth
        if depth is None and content.is_cut:
            raise DataError(
                f"is cut within depth {stored + 1}: depth={stored} reads what is whole"
            )
        depth = stored if depth is None else depth
        if not 1 <= depth <= stored:
            raise DataError(f"has depths 1..{stored}, not {depth}")
        cond = self._cond(content)
        height, width, _ = self._model.code_shape
        codes = np.zeros((height * width, 0), np.int32)
        passes = _passes(depth if content.layers else stored, content.layers)
        for (first, last), stream in zip(passes, content.streams, strict=False):
            decoder = entropy.Decoder(stream)

            def choose(probabilities, position, d, decoder=decoder):
                probabilities = jax.device_get(probabilities)
                self._check_finite(probabilities)
                return decoder.decode(probabilities)

            codes = self._steps.run(cond, first, last, codes, choose)
            if not decoder.is_exact():
                raise DataError(
                    "decodes to other codes than were written: this machine, its "
                    "number of cores or its version of JAX computes other "
                    "probabilities than where it was written"
                )
        return codes[:, :depth].reshape(height, width, depth)

    def _cond(self, content: CodeFile) -> np.ndarray | None:
        """Returns a file's condition as the model reads it."""
        tokens, model = content.condition, self._model
        if self._models.config.transformer.condition == "none":
            return None
        length = model.condition_length
        valid = all(token < model.num_conditions for token in tokens)
        if not (0 < len(tokens) <= length and valid):
            raise DataError("has a condition that the model does not have")
        tokens = np.asarray(tokens + tokens[-1:] * (length - len(tokens)), np.int32)
        has_text = "text" in self._models.config.transformer.condition
        return tokens if has_text else tokens[0]

    def _check_finite(self, probabilities: np.ndarray) -> None:
        if not np.isfinite(probabilities).all():
            raise ConfigError(
                f"{self._models.path}: the transformer's probabilities are not finite: "
                "its weights have diverged"
            )


def _passes(depth: int, layers: bool) -> list[tuple[int, int]]:
    """Returns (depths known before, depths known afterwards) of each stream."""
    return [(d, d + 1) for d in range(depth)] if layers else [(0, depth)]
