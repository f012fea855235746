# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stored codes: what stage 1 makes of every image, written once and read by stage 2.

A folder for each split:

    manifest.json             sizes, and the RQ-VAE that made them
    00000-of-00012.array_record ...   shards, each there when it is whole

A record is one image: a checksum, codes (uint16 `[H, W, D]`), features (float32
`[H, W, C]`, what was quantized), label (int32) and captions (UTF-8, a line each).

The features are there because soft targets and stochastic codes are drawn by distances
to them (paper section 3.2.3), which the nearest codes do not tell: with them both are
made anew in every step, exactly as if the images had been encoded then. They are most
of the 66 kB that an image of the paper's models takes.
"""

from __future__ import annotations

import json
import pathlib
import zlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from array_record.python import array_record_data_source, array_record_module

from rq.data import DataError
from rq.parallel import atomic_files

MANIFEST = "manifest.json"
CHECKSUM = 4  # bytes in front of each record, of all that follows
LABEL = np.dtype(np.int32)
LARGEST = np.iinfo(np.uint16).max  # code
SHARD_SIZE = 8192  # images, unless told


def write(
    directory,
    encode: Callable[[int, int], Iterable[Mapping]],
    *,
    num_examples: int,
    fingerprint: Mapping,
    shard_size: int = SHARD_SIZE,
    process: int = 0,
    processes: int = 1,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Writes the shards that are not there yet; of several processes each its share.

    Args:
      directory: made where it is missing; without another RQ-VAE's codes, see `clear`.
      encode: function of (start, stop) to batches of these examples in order: dicts of
        'codes' int `[B, H, W, D]`, 'features' float `[B, H, W, C]`, 'label' int `[B]`
        (zeros where absent) and 'captions' (B sequences of lines; none where absent).
      num_examples: N, in all.
      fingerprint: of the RQ-VAE, JSON.
      shard_size: images of a shard.
      process, processes: which of how many.
      between: called after each shard, equally often in all processes.

    Raises:
      DataError: where there are other than the examples announced, or codes that are no
        uint16, or no examples at all.
    """
    directory = pathlib.Path(directory)
    if not num_examples:
        raise DataError(f"{directory}: no examples to encode")
    directory.mkdir(parents=True, exist_ok=True)
    manifest = _announced(num_examples, fingerprint, shard_size)
    known = _read_manifest(directory)
    paths = _shards(directory, manifest)
    for shard in range(process, process + len(paths), processes):
        if shard < len(paths) and not paths[shard].exists():
            start = shard * shard_size
            stop = min(start + shard_size, num_examples)
            shapes = _write_shard(paths[shard], encode(start, stop), stop - start)
            known = _agree(directory, manifest, known, shapes, process)
        between()


def clear(
    directory, *, num_examples: int, fingerprint: Mapping, shard_size: int = SHARD_SIZE
) -> None:
    """Removes what `write` with these arguments could not go on with; one process does.

    Args:
      directory, num_examples, fingerprint, shard_size: as `write` takes them.
    """
    directory, known = pathlib.Path(directory), _read_manifest(directory)
    manifest = _announced(num_examples, fingerprint, shard_size)
    if {name: known.get(name) for name in manifest} != manifest:
        for file in [directory / MANIFEST, *directory.glob("*.array_record*")]:
            file.unlink(missing_ok=True)


def _announced(num_examples, fingerprint, shard_size) -> dict:
    return {
        "num_examples": num_examples,
        "shard_size": shard_size,
        "fingerprint": _as_stored(fingerprint),
    }


def _write_shard(path, batches, expected):
    """Writes a file and only then gives it its name; returns dtypes and shapes."""
    temporary = path.with_suffix(".array_record_tmp")
    # Each record for itself: they are read in any order.
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
    done, shapes = 0, None
    for batch in batches:
        codes, features = np.asarray(batch["codes"]), np.asarray(batch["features"])
        if codes.size and not 0 <= codes.min() <= codes.max() <= LARGEST:
            raise DataError(f"codes from {codes.min()} to {codes.max()} are no uint16")
        labels = np.asarray(batch.get("label", np.zeros(len(codes))), LABEL)
        captions = batch.get("captions", [()] * len(codes))
        found = {"codes": codes.shape[1:], "features": features.shape[1:]}
        if (
            shapes not in (None, found)
            or len({*map(len, (codes, features, labels))}) > 1
        ):
            raise DataError(f"batches of {found} after {shapes}, {len(labels)} labels")
        shapes, done = found, done + len(codes)
        for row in zip(codes, features, labels, captions, strict=True):
            writer.write(_pack(*row))
    writer.close()
    if done != expected:
        temporary.unlink()
        raise DataError(f"{path}: {done} examples, {expected} announced")
    temporary.replace(path)
    return {name: list(shape) for name, shape in shapes.items()}


def _agree(directory, manifest, known, shapes, process):
    """Completes the manifest by what the first shard of this process showed."""
    if not known:
        known = manifest | {"shapes": shapes}
        atomic_files.write_json(directory / MANIFEST, known, process)
    elif known["shapes"] != shapes:
        raise DataError(f"{directory}: {shapes} after {known['shapes']}")
    return known


def _pack(codes, features, label, captions) -> bytes:
    content = b"".join(
        (
            codes.astype("<u2").tobytes(),
            features.astype("<f4").tobytes(),
            label.astype("<i4").tobytes(),
            "\n".join(captions).encode(),
        )
    )
    return zlib.crc32(content).to_bytes(CHECKSUM, "little") + content


def _unpack(record: bytes, shapes) -> tuple[dict, tuple[str, ...]]:
    content = memoryview(record)[CHECKSUM:]
    if zlib.crc32(content).to_bytes(CHECKSUM, "little") != record[:CHECKSUM]:
        raise ValueError("a record's checksum is wrong")
    codes, features = (int(np.prod(shapes[name])) for name in ("codes", "features"))
    ends = np.cumsum([0, 2 * codes, 4 * features, LABEL.itemsize])
    parts = [content[a:b] for a, b in zip(ends, [*ends[1:], None], strict=True)]
    captions = bytes(parts[3]).decode()
    return {
        "codes": np.frombuffer(parts[0], "<u2")
        .astype(np.int32)
        .reshape(shapes["codes"]),
        "features": np.frombuffer(parts[1], "<f4").reshape(shapes["features"]),
        "label": np.frombuffer(parts[2], "<i4")[0],
    }, tuple(captions.split("\n")) if captions else ()


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
    """As JSON gives it back, with lists for tuples."""
    return json.loads(json.dumps(dict(fingerprint)))


def _is_of(manifest, fingerprint) -> bool:
    return manifest["fingerprint"] == _as_stored(fingerprint)


def is_complete(directory, fingerprint: Mapping) -> bool:
    """Whether a folder holds all codes of this RQ-VAE."""
    manifest = _read_manifest(directory)
    if not manifest or not _is_of(manifest, fingerprint):
        return False
    return all(path.exists() for path in _shards(directory, manifest))


class CodeSource:
    """Random access: {'codes' int32, 'features' float32, 'label' int32}; captions."""

    def __init__(self, directory, fingerprint: Mapping):
        """Opens a folder and checks it against the RQ-VAE at hand.

        Raises:
          DataError: where codes are missing, damaged or another RQ-VAE's.
        """
        directory = pathlib.Path(directory)
        manifest = _read_manifest(directory)
        if manifest and not _is_of(manifest, fingerprint):
            raise DataError(
                f"{directory} holds codes of the RQ-VAE {manifest['fingerprint']}, "
                f"not of {dict(fingerprint)}; remove that folder to make them anew"
            )
        if not is_complete(directory, fingerprint):
            raise DataError(
                f"{directory} has no stored codes, or not all; python -m rq.main "
                f"--mode=encode --workdir={directory.parent.parent} makes them"
            )
        self._paths, self._manifest = _shards(directory, manifest), manifest
        for path in self._paths:  # the reader would name none of them
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
        """Raises DataError, naming the file, where a record is damaged."""
        return self.read(index)[0]

    def read(self, index: int) -> tuple[dict, tuple[str, ...]]:
        """An example and its captions, read once; raises as indexing does."""
        try:
            return _unpack(self._records[index], self._manifest["shapes"])
        except Exception as error:  # the library's own, of damaged chunks, or ours
            path = self._paths[index // self._manifest["shard_size"]]
            raise self._damaged(path, error) from error

    @staticmethod
    def _damaged(path, error):
        reason = " ".join(str(error).split())[:200]
        return DataError(f"{path} is damaged ({reason}); remove it to make it anew")
