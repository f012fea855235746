# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stores the codes of all images, which the RQ-VAE writes once and stage 2 reads.

Each split is a folder:

    manifest.json             sizes, the RQ-VAE and the images that the codes belong to
    00000-of-00012.array_record ...   shards, renamed to these names when complete

A record is one image: a checksum, codes (uint16 `[H, W, D]`), features (the latents
before quantization, float32 `[H, W, C]`), label (int32), source_codes (uint16
`[H', W', D']`, of images that have a source image) and captions (UTF-8, one a line).

Soft targets and stochastic codes are sampled from the distances between latents and
code vectors (paper section 3.2.3), so the nearest codes alone are not enough. With the
latents both are recomputed in every step, exactly as if the image had been encoded.
Latents are most of the 66 kB per image of the paper's models.
"""

from __future__ import annotations

import json
import pathlib
import time
import zlib
from collections.abc import Iterable, Mapping

import numpy as np
from array_record.python import array_record_data_source, array_record_module

from rq.data import DataError
from rq.data.captions import split_lines
from rq.parallel import atomic_files

MANIFEST = "manifest.json"
CHECKSUM = 4  # bytes at the start of each record: the CRC-32 of the rest
LABEL = np.dtype(np.int32)
NAMES = ("codes", "features", "source_codes")  # arrays whose shapes are declared
LARGEST = np.iinfo(np.uint16).max  # largest code
SHARD_SIZE = 8192  # images per shard


class CodeWriter:
    """Writes the shards of one split; any process may write any shard."""

    def __init__(
        self,
        directory,
        *,
        num_examples: int,
        shapes: Mapping,
        fingerprint: Mapping,
        images: str = "",
        shard_size: int = SHARD_SIZE,
    ):
        """Describes the codes to write, without touching any file.

        Args:
          directory: folder of the split's codes.
          num_examples: number of examples in all shards.
          shapes: shapes of one example's 'codes' and 'features', and of any
            'source_codes'.
          fingerprint: identifies the RQ-VAE, as JSON.
          images: identifies the images, see `rq.data.sources.fingerprint`.
          shard_size: images per shard.

        Raises:
          DataError: if there are no examples.
        """
        self._directory = pathlib.Path(directory)
        if not num_examples:
            raise DataError(f"{directory}: no examples to encode")
        self._manifest = _as_stored(
            dict(
                num_examples=num_examples,
                shard_size=shard_size,
                fingerprint=fingerprint,
                images=images,
                shapes=shapes,
            )
        )
        self._paths = _shards(self._directory, self._manifest)
        self.num_shards = len(self._paths)

    def start(self) -> list[int]:
        """Removes codes of another RQ-VAE or other images; returns the missing shards.

        Call it in one process, before any process writes.
        """
        known = _read_manifest(self._directory)
        # Manifests of version 0.1 do not identify the images.
        if {"images": self._manifest["images"]} | known != self._manifest:
            for file in self._directory.glob("*.array_record*"):
                file.unlink()
            self._directory.mkdir(parents=True, exist_ok=True)
            atomic_files.write_json(self._directory / MANIFEST, self._manifest)
        return [k for k, path in enumerate(self._paths) if not path.exists()]

    def write(self, shard: int, batches: Iterable[Mapping]) -> None:
        """Writes one shard to a temporary file and renames it when it is complete.

        Args:
          shard: number of the shard.
          batches: the examples of `span(shard)` in order, as dicts of 'codes' int
            `[B, H, W, D]`, 'features' float `[B, H, W, C]`, 'source_codes' if they are
            declared, optionally 'label' int `[B]` (default zeros) and 'captions' (B
            sequences of lines, default none).

        Raises:
          DataError: if number or shapes are not as declared, or codes exceed uint16.
        """
        path = self._paths[shard]
        temporary = path.with_suffix(".array_record_tmp")
        # One record per group, since records are read in random order.
        writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
        written, expected = 0, len(self.span(shard))
        for batch in batches:
            columns = self._checked(batch)
            for row in zip(*columns, strict=True):
                writer.write(_pack(*row))
            written += len(columns[0])
        writer.close()
        if written != expected:
            temporary.unlink()
            raise DataError(f"{path}: {written} examples, not {expected} as declared")
        temporary.replace(path)

    def span(self, shard: int) -> range:
        """Returns the indices of the examples in a shard."""
        size, number = self._manifest["shard_size"], self._manifest["num_examples"]
        return range(shard * size, min((shard + 1) * size, number))

    def _checked(self, batch):
        columns = {name: np.asarray(batch[name]) for name in NAMES if name in batch}
        number = len(columns["codes"])
        for name in columns.keys() - {"features"}:
            codes = columns[name]
            if codes.size and not 0 <= codes.min() <= codes.max() <= LARGEST:
                raise DataError(
                    f"codes from {codes.min()} to {codes.max()} do not fit in uint16"
                )
        labels = np.asarray(batch.get("label", np.zeros(number)), LABEL)
        captions = batch.get("captions", [()] * number)
        found = {name: list(rows.shape[1:]) for name, rows in columns.items()}
        lengths = {len(labels), *map(len, columns.values())}
        if found != self._manifest["shapes"] or len(lengths) > 1:
            raise DataError(
                f"batches of {found}, not {self._manifest['shapes']}, with "
                f"{len(columns['features'])} features and {len(labels)} labels for "
                f"{number} codes"
            )
        sources = columns.get("source_codes", [np.empty(0)] * number)
        return columns["codes"], columns["features"], labels, sources, captions


def _pack(codes, features, label, source_codes, captions) -> bytes:
    content = b"".join(
        (
            codes.astype("<u2").tobytes(),
            features.astype("<f4").tobytes(),
            label.astype("<i4").tobytes(),
            source_codes.astype("<u2").tobytes(),
            "\n".join(" ".join(split_lines(line)) for line in captions).encode(),
        )
    )
    return zlib.crc32(content).to_bytes(CHECKSUM, "little") + content


def _unpack(record: bytes, shapes) -> tuple[dict, tuple[str, ...]]:
    content = memoryview(record)[CHECKSUM:]
    if zlib.crc32(content).to_bytes(CHECKSUM, "little") != record[:CHECKSUM]:
        raise ValueError("a record's checksum is wrong")
    codes, features, sources = (int(np.prod(shapes.get(name, 0))) for name in NAMES)
    ends = np.cumsum([0, 2 * codes, 4 * features, LABEL.itemsize, 2 * sources])
    parts = [content[a:b] for a, b in zip(ends, [*ends[1:], None], strict=True)]
    captions = bytes(parts[4]).decode()
    found = {
        "codes": np.frombuffer(parts[0], "<u2")
        .astype(np.int32)
        .reshape(shapes["codes"]),
        "features": np.frombuffer(parts[1], "<f4").reshape(shapes["features"]),
        "label": np.frombuffer(parts[2], "<i4")[0],
    }
    if sources:
        source = np.frombuffer(parts[3], "<u2").astype(np.int32)
        found["source_codes"] = source.reshape(shapes["source_codes"])
    return found, tuple(captions.split("\n")) if captions else ()


def _read_manifest(directory) -> dict:
    file = pathlib.Path(directory) / MANIFEST
    return json.loads(file.read_text()) if file.exists() else {}


def _shards(directory, manifest) -> list[pathlib.Path]:
    number = -(-manifest["num_examples"] // manifest["shard_size"])
    return [
        pathlib.Path(directory) / f"{shard:05d}-of-{number:05d}.array_record"
        for shard in range(number)
    ]


def _as_stored(fingerprint: Mapping) -> dict:
    """Returns the fingerprint as JSON reads it back, with lists for tuples."""
    return json.loads(json.dumps(dict(fingerprint)))


def _is_of(manifest, fingerprint) -> bool:
    return manifest["fingerprint"] == _as_stored(fingerprint)


def is_complete(directory, fingerprint: Mapping) -> bool:
    """Returns whether a folder has all codes of the RQ-VAE with this fingerprint."""
    manifest = _read_manifest(directory)
    if not manifest or not _is_of(manifest, fingerprint):
        return False
    return all(path.exists() for path in _shards(directory, manifest))


class CodeSource:
    """A source of stored codes: 'codes' int32, 'features' float32, 'label' int32.

    Codes of images with source images have 'source_codes' int32, too.
    """

    def __init__(self, directory, fingerprint: Mapping, patience: float = 0.0):
        """Opens a folder and checks that its codes are of the given RQ-VAE.

        Args:
          directory: folder of the split's codes.
          fingerprint: identifies the RQ-VAE, as in `CodeWriter`.
          patience: seconds to wait for another process's files to become visible on a
            shared file system.

        Raises:
          DataError: if codes are missing, damaged or of another RQ-VAE.
        """
        directory, deadline = pathlib.Path(directory), time.monotonic() + patience
        while not is_complete(directory, fingerprint) and time.monotonic() < deadline:
            time.sleep(0.2)
        manifest = _read_manifest(directory)
        if manifest and not _is_of(manifest, fingerprint):
            raise DataError(
                f"{directory} has codes of the RQ-VAE {manifest['fingerprint']}, "
                f"not of {dict(fingerprint)}; remove that folder to recompute them"
            )
        if not is_complete(directory, fingerprint):
            raise DataError(
                f"{directory} has no stored codes, or not all; to compute them, run: "
                f"rq encode --workdir={directory.parent.parent}"
            )
        self._paths, self._manifest = _shards(directory, manifest), manifest
        for path in self._paths:  # errors of the reader below name no file
            try:
                array_record_module.ArrayRecordReader(str(path)).close()
            except Exception as error:
                raise self._damaged(path, error) from error
        self._records = array_record_data_source.ArrayRecordDataSource(
            [str(path) for path in self._paths]
        )
        if len(self._records) != len(self):
            raise DataError(
                f"{directory} has {len(self._records)} records, not {len(self)}"
            )

    def __len__(self) -> int:
        return self._manifest["num_examples"]

    def __getitem__(self, index: int) -> dict:
        """Returns an example; raises DataError with the file name if it is damaged."""
        return self.read(index)[0]

    def read(self, index: int) -> tuple[dict, tuple[str, ...]]:
        """Returns an example and its captions; raises as indexing does."""
        try:
            return _unpack(self._records[index], self._manifest["shapes"])
        except Exception as error:  # raised by the library or by `_unpack`
            path = self._paths[index // self._manifest["shard_size"]]
            raise self._damaged(path, error) from error

    @staticmethod
    def _damaged(path, error):
        reason = " ".join(str(error).split())[:200]
        return DataError(f"{path} is damaged ({reason}); remove it to recompute it")
