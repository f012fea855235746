# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stored codes: what stage 1 makes of every image, written once and read by stage 2.

A folder for each split, with plain arrays that are mapped, not loaded:

    codes.npy      uint16 [N, H, W, D]
    features.npy   float32 [N, H, W, C], what was quantized
    labels.npy     int32 [N]
    manifest.json  sizes, checksums, and the RQ-VAE that made them; written last

The features are there because soft targets and stochastic codes cannot be drawn from
nearest codes (paper section 3.2.3).
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from rq.data import DataError

MANIFEST = "manifest.json"
ARRAYS = ("codes", "features", "labels")


def write(
    directory, batches: Iterable[Mapping], *, num_examples: int, fingerprint: Mapping
) -> None:
    """Streams batches to files; without its manifest an interrupted folder is nothing.

    Args:
      directory: made where it is missing, overwritten where it is not complete.
      batches: dicts of 'codes' int `[B, H, W, D]`, 'features' float `[B, H, W, C]`,
        'label' int `[B]` (zeros where absent).
      num_examples: N, in all.
      fingerprint: of the RQ-VAE, JSON.

    Raises:
      DataError: where the batches have another number of examples, change their shape,
        or hold codes that are no uint16.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST).unlink(missing_ok=True)
    arrays, done = {}, 0
    for batch in batches:
        codes = np.asarray(batch["codes"])
        if codes.min() < 0 or codes.max() > np.iinfo(np.uint16).max:
            raise DataError(f"codes from {codes.min()} to {codes.max()} are no uint16")
        rows = {
            "codes": codes.astype(np.uint16),
            "features": np.asarray(batch["features"], np.float32),
            "labels": np.asarray(batch.get("label", np.zeros(len(codes))), np.int32),
        }
        end = done + len(rows["codes"])
        if end > num_examples:
            raise DataError(f"more than the {num_examples} examples announced")
        for name, values in rows.items():
            if name not in arrays:
                arrays[name] = np.lib.format.open_memmap(
                    directory / f"{name}.npy",
                    mode="w+",
                    dtype=values.dtype,
                    shape=(num_examples, *values.shape[1:]),
                )
            row = arrays[name].shape[1:]
            if values.shape != (end - done, *row):  # NumPy would broadcast
                raise DataError(f"{name} {values.shape}, not {(end - done, *row)}")
            arrays[name][done:end] = values
        done = end
    if done != num_examples or not arrays:
        raise DataError(f"{done} examples, {num_examples} announced")
    for array in arrays.values():
        array.flush()
    manifest = {
        "num_examples": num_examples,
        "fingerprint": _as_stored(fingerprint),
        "sha256": {name: _checksum(directory / f"{name}.npy") for name in ARRAYS},
    }
    temporary = directory / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    temporary.replace(directory / MANIFEST)


def _as_stored(fingerprint: Mapping) -> dict:
    """As JSON gives it back, with lists for tuples."""
    return json.loads(json.dumps(dict(fingerprint)))


def _checksum(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_complete(directory, fingerprint: Mapping) -> bool:
    """Whether a folder holds all codes of this RQ-VAE."""
    file = pathlib.Path(directory) / MANIFEST
    if not file.exists():
        return False
    return json.loads(file.read_text())["fingerprint"] == _as_stored(fingerprint)


class CodeSource:
    """Random access to a folder: {'codes' int32, 'features' float32, 'label' int32}."""

    def __init__(self, directory, fingerprint: Mapping):
        """Opens a folder and checks it against the RQ-VAE at hand.

        Raises:
          DataError: where the codes are missing, damaged or another RQ-VAE's.
        """
        directory = pathlib.Path(directory)
        if not (directory / MANIFEST).exists():
            raise DataError(
                f"{directory} has no stored codes; python -m rq.main --mode=encode "
                f"--workdir={directory.parent.parent} makes them"
            )
        manifest = json.loads((directory / MANIFEST).read_text())
        if manifest["fingerprint"] != _as_stored(fingerprint):
            raise DataError(
                f"{directory} holds codes of the RQ-VAE {manifest['fingerprint']}, "
                f"not of {dict(fingerprint)}; remove that folder to make them anew"
            )
        for name, expected in manifest["sha256"].items():
            path = directory / f"{name}.npy"
            if not path.exists() or _checksum(path) != expected:
                raise DataError(
                    f"{path} is damaged; remove {directory} to make it anew"
                )
        self._arrays = {
            name: np.load(directory / f"{name}.npy", mmap_mode="r") for name in ARRAYS
        }

    def __len__(self) -> int:
        return len(self._arrays["codes"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {
            "codes": self._arrays["codes"][index].astype(np.int32),
            "features": np.asarray(self._arrays["features"][index]),
            "label": np.asarray(self._arrays["labels"][index]),
        }
