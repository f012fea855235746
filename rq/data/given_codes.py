# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads codes of another tokenizer from an `.npz` file, and stores them in a run.

codes      integers [N, H, W, D], or [N, H, W] of one depth
codebook   floats [K, C], or [D, K, C] with a codebook for each depth
labels     optional: integers [N], the classes from 0 on
captions   optional: strings [N]
features   optional: floats [N, H, W, C], what was quantized; for soft targets and
           stochastic codes, which are otherwise unknown
"""

from __future__ import annotations

import hashlib
import pathlib
import zipfile
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from rq.data import DataError
from rq.data.permutation import mixed_order
from rq.data.stored_codes import LARGEST, CodeWriter
from rq.models.codebook import Codebook
from rq.models.digest import digest
from rq.parallel import atomic_files

CODEBOOK = "codebook.npz"  # beside the folders of the splits
_NEEDED = ("codes", "codebook")
_OPTIONAL = ("labels", "captions", "features")


class GivenCodes(NamedTuple):
    """The checked contents of a file.

    Attributes:
      codes: int32 `[N, H, W, D]`.
      codebook: float32 `[K, C]` or `[D, K, C]`.
      labels: int32 `[N]`, or None.
      captions: N strings, or None.
      features: float32 `[N, H, W, C]`, or None.
    """

    codes: np.ndarray
    codebook: np.ndarray
    labels: np.ndarray | None = None
    captions: tuple[str, ...] | None = None
    features: np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        """The largest label and one more; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    @property
    def captioned(self) -> float:
        """Fraction of the codes that have a caption."""
        if self.captions is None:
            return 0.0
        return float(np.mean([bool(x) for x in self.captions]))

    def splits(self, data) -> dict[str, np.ndarray]:
        """Returns the indices of each split; `data.holdout` are for evaluation.

        Raises:
          DataError: if none is left to train on.
        """
        number = len(self.codes)
        if data.holdout >= number:
            raise DataError(
                f"data.holdout={data.holdout} of {number} codes leaves none to train "
                "on: set --config.data.holdout to less"
            )
        order = np.asarray(mixed_order(number))
        held, rest = order[: data.holdout], order[data.holdout :]
        return {data.train_split: np.sort(rest), data.eval_split: np.sort(held)}


def read(file) -> GivenCodes:
    """Reads and checks a file.

    Raises:
      DataError: in one line, if it is no such file.
    """
    file = pathlib.Path(file).expanduser()
    if not file.is_file():
        raise DataError(f"{file} does not exist")
    if not zipfile.is_zipfile(file):
        raise DataError(f"{file} is no .npz of numbers and strings")
    try:
        with np.load(file, allow_pickle=False) as found:
            names = [n for n in (*_NEEDED, *_OPTIONAL) if n in found]
            arrays = {name: found[name] for name in names}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is no .npz of numbers and strings: {error}") from None
    if missing := [name for name in _NEEDED if name not in arrays]:
        raise DataError(f"{file} has no array {missing[0]!r}")
    try:
        return _checked(**arrays)
    except ValueError as error:
        raise DataError(f"{file}: {error}") from None


def _checked(codes, codebook, labels=None, captions=None, features=None) -> GivenCodes:
    """Returns the arrays in their form; raises ValueError if they do not fit."""
    _require(_is_integer(codes), f"codes are {codes.dtype}, not integers")
    shape = f"codes have shape {codes.shape}, not [N, H, W, D] or [N, H, W]"
    _require(codes.ndim in (3, 4) and codes.size, shape)
    codes = codes[..., None] if codes.ndim == 3 else codes
    number, depth = len(codes), codes.shape[-1]

    _require(_is_float(codebook), f"codebook is {codebook.dtype}, not floats")
    shape = f"codebook has shape {codebook.shape}, not [K, C] or [{depth}, K, C]"
    _require(codebook.ndim in (2, 3) and codebook.size, shape)
    _require(codebook.ndim == 2 or len(codebook) == depth, shape)
    codebook = codebook.astype(np.float32)
    _require(np.isfinite(codebook).all(), "codebook has numbers that are not finite")
    size = codebook.shape[-2]
    _require(size <= LARGEST + 1, f"codebook has {size} codes, {LARGEST + 1} at most")
    low, high = int(codes.min()), int(codes.max())
    text = f"codes are within {low}..{high}, the codebook has 0..{size - 1}"
    _require(low >= 0 and high < size, text)

    if labels is not None:
        text = (
            f"labels are {labels.dtype} {list(labels.shape)}, not integers [{number}]"
        )
        _require(_is_integer(labels) and labels.shape == (number,), text)
        _require(labels.min() >= 0, f"labels begin at {labels.min()}, not at 0")
        labels = labels.astype(np.int32)
    if captions is not None:
        text = f"captions are {captions.dtype} {list(captions.shape)}, not strings"
        _require(captions.dtype.kind in "US", f"{text} [{number}]")
        _require(captions.shape == (number,), f"{text} [{number}]")
        captions = tuple(_text(x) for x in captions)
    if features is not None:
        expected = (*codes.shape[:3], codebook.shape[-1])
        text = f"features are {features.dtype} {list(features.shape)}, not floats "
        text += str(list(expected))
        _require(_is_float(features) and features.shape == expected, text)
        features = features.astype(np.float32)
        text = "features have numbers that are not finite"
        _require(np.isfinite(features).all(), text)
    return GivenCodes(codes.astype(np.int32), codebook, labels, captions, features)


def _require(holds, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def _is_integer(array) -> bool:
    return np.issubdtype(array.dtype, np.integer)


def _is_float(array) -> bool:
    return np.issubdtype(array.dtype, np.floating)


def _text(value) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class Captions:
    """The captions of the training split, for `rq.data.text.make`."""

    def __init__(self, given: GivenCodes, data):
        """Takes codes with captions, and the `data` section of the config."""
        chosen = given.splits(data)[data.train_split]
        captions = given.captions or ()
        self._captions = [captions[i] for i in chosen]

    def __len__(self) -> int:
        return len(self._captions)

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions of an example."""
        return (self._captions[index],) if self._captions[index] else ()


def store(given: GivenCodes, folder, data, shard_size: int) -> None:
    """Writes the codes of both splits and the codebook, except for complete shards.

    Call it in one process.

    Args:
      given: the codes.
      folder: folder `codes` of a run.
      data: the `data` section of the config.
      shard_size: codes per file.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_files.atomic_write(folder / CODEBOOK) as temporary:
        with temporary.open("wb") as file:
            np.savez(file, codebook=given.codebook)
    number = len(given.codes)
    features = given.features
    if features is None:  # no channels
        features = np.zeros((*given.codes.shape[:3], 0), np.float32)
    labels = np.zeros(number, np.int32) if given.labels is None else given.labels
    captions = given.captions or ("",) * number
    for split, chosen in given.splits(data).items():
        writer = CodeWriter(
            folder / split,
            num_examples=len(chosen),
            shapes={"codes": given.codes.shape[1:], "features": features.shape[1:]},
            fingerprint=fingerprint(given.codebook),
            images=_digest(given, chosen),
            shard_size=shard_size,
        )
        for shard in writer.start():
            rows = chosen[list(writer.span(shard))]
            batch = {
                "codes": given.codes[rows],
                "features": features[rows],
                "label": labels[rows],
                "captions": [(captions[i],) if captions[i] else () for i in rows],
            }
            writer.write(shard, [batch])
        logging.info("codes: %d of %s in %s", len(chosen), split, folder / split)


def _digest(given: GivenCodes, chosen: np.ndarray) -> str:
    text = "\n".join(given.captions or ())
    arrays = [x for x in (given.codes, given.labels, given.features) if x is not None]
    return digest([chosen, *arrays], hashlib.sha256(text.encode()).hexdigest())


def fingerprint(codebook: np.ndarray) -> dict[str, str]:
    """Returns what identifies codes of a codebook."""
    return {"codebook": digest(codebook)}


def stored_codebook(folder) -> Codebook:
    """Returns the codebook that `store` wrote, as stage 2 takes it.

    Raises:
      DataError: if there is none.
    """
    file = pathlib.Path(folder) / CODEBOOK
    if not file.exists():
        raise DataError(f"{file} is missing: run rq train with stage 'codes'")
    with np.load(file, allow_pickle=False) as found:
        embedding: Any = found["codebook"]
    counts: Any = np.zeros(embedding.shape[:-1], np.float32)
    return Codebook(embedding, counts, embedding)
