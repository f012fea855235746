# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes samples as they come: one `.npz`, a grid with its `.npz`, a folder of PNGs.

Nothing but the current batch is in memory, whatever the number of samples. A file
appears under its name when it is whole; paths may be in a bucket.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath
from numpy.lib import format as npy
from PIL import Image

from rq import visualize
from rq.config import ConfigError, SamplingConfig
from rq.parallel import atomic_files, processes
from rq.sampling import conditions, inpainting, rejection
from rq.sampling.classifier import Classifier

# Takes uint8 images `[B, H, W, C]`, labels `[B]` and codes `[B, h, w, D]`.
Add = Callable[[np.ndarray, np.ndarray, np.ndarray], None]
GRID = 400  # images in a grid, at most
CHUNK = 1 << 18  # bytes copied at once
SUFFIXES = (".npz", ".png", "")
LABELS = "labels.csv"  # of a folder


def check_writable(path, num_bytes: int = 0) -> None:
    """Checks, before any compute, that an output can be written; makes its folder.

    Args:
      path: as in `writing`.
      num_bytes: about how large it will be.

    Raises:
      ConfigError: where it cannot, or has no place, or is a folder that has files.
    """
    path = epath.Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--out={path}: a .png, an .npz, or a folder without suffix")
    folder = path.parent if path.suffix else path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder == path and any(path.iterdir()):
            raise ConfigError(f"--out={path} is not empty: name a new folder")
        probe = folder / f".writable{os.getpid()}"
        probe.write_text("")
        probe.unlink()
        free = shutil.disk_usage(folder).free if "://" not in str(path) else math.inf
    except OSError as error:
        raise ConfigError(f"--out={path} cannot be written: {error}") from None
    if free < num_bytes:
        raise ConfigError(
            f"--out={path} needs about {num_bytes / 1e9:.3g} GB, {free / 1e9:.3g} GB "
            "are free: name another place with --out"
        )


def writing(path, number: int, image_shape, code_shape):
    """Returns a context manager that gives a function to add batches, see `Add`.

    Args:
      path: an `.npz`, with 'arr_0' of images, 'labels' and 'codes'; a `.png`, a grid of
        the first images with such an `.npz` beside it; else a folder, of a PNG for each
        image, with its index as its name, labels and codes beside them.
      number: of samples.
      image_shape, code_shape: of one of them.
    """
    path = epath.Path(path)
    if path.suffix == ".npz":
        return npz(path, number, image_shape, code_shape)
    if path.suffix == ".png":
        return _grid(path, number, image_shape, code_shape)
    return _folder(path)


@contextlib.contextmanager
def npz(
    path, number: int, image_shape, code_shape=None, labels_name: str = "labels"
) -> Iterator[Add]:
    """An `.npz`, as `numpy.load` and ADM's evaluator read it; see `writing`.

    Args:
      path: of it.
      number: of samples; another number added is a ValueError.
      image_shape: (H, W, C).
      code_shape: (h, w, D); None: without codes.
      labels_name: of the labels; ADM's evaluator calls them 'arr_1'.
    """
    written, all_labels = 0, []
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(atomic_files.atomic_write(path, os.getpid()))
        stack.push(lambda kind, *_: kind and temporary.unlink(missing_ok=True))
        file = stack.enter_context(temporary.open("wb"))
        archive = stack.enter_context(zipfile.ZipFile(file, "w", zipfile.ZIP_STORED))
        # An archive takes one member at a time: codes wait on the disk.
        spooled = stack.enter_context(tempfile.TemporaryFile())
        with _member(archive, "arr_0", np.uint8, (number, *image_shape)) as stream:

            def add(images, labels, codes=None):
                nonlocal written
                if images.shape[1:] != tuple(image_shape) or images.dtype != np.uint8:
                    raise ValueError(
                        f"images {images.dtype} {images.shape} in {image_shape}"
                    )
                stream.write(np.ascontiguousarray(images).data)
                all_labels.append(np.asarray(labels))
                if code_shape is not None:
                    spooled.write(np.ascontiguousarray(codes, np.int32).data)
                written += len(images)

            yield add
        if written != number:
            raise ValueError(f"{written} images of {number}")
        labels = np.concatenate(all_labels)
        with _member(archive, labels_name, labels.dtype, labels.shape) as stream:
            stream.write(np.ascontiguousarray(labels).data)
        if code_shape is not None:
            spooled.seek(0)
            with _member(archive, "codes", np.int32, (number, *code_shape)) as stream:
                shutil.copyfileobj(spooled, stream, CHUNK)


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, name: str, dtype, shape):
    """A member of an `.npz`, open for the array's bytes."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
        npy.write_array_header_1_0(
            stream,
            {
                "descr": npy.dtype_to_descr(np.dtype(dtype)),
                "fortran_order": False,
                "shape": tuple(shape),
            },
        )
        yield stream


@contextlib.contextmanager
def _grid(path, number: int, image_shape, code_shape) -> Iterator[Add]:
    shown = []
    with npz(path.with_suffix(".npz"), number, image_shape, code_shape) as add_all:

        def add(images, labels, codes):
            shown.extend(images[: GRID - len(shown)])
            add_all(images, labels, codes)

        yield add
    columns = math.ceil(math.sqrt(len(shown)))
    visualize.save_png(path, visualize.grid(np.stack(shown), columns))


@contextlib.contextmanager
def _folder(path: epath.Path) -> Iterator[Add]:
    """PNGs named by index; at the end labels.csv, of file, label and codes."""
    rows = tempfile.TemporaryFile("w+", newline="")
    first = 0
    with rows:
        table = csv.writer(rows)
        table.writerow(["file", "label", "codes"])

        def add(images, labels, codes):
            nonlocal first
            for i, image in enumerate(images):
                name = f"{first + i:08d}.png"
                buffer = io.BytesIO()
                grey = image.shape[-1] == 1
                Image.fromarray(image[..., 0] if grey else image).save(buffer, "png")
                with atomic_files.atomic_write(path / name) as temporary:
                    temporary.write_bytes(buffer.getvalue())
                flat = " ".join(map(str, np.ravel(codes[i]).tolist()))
                table.writerow([name, int(labels[i]), flat])
            first += len(images)

        yield add
        rows.seek(0)
        with (
            atomic_files.atomic_write(path / LABELS) as temporary,
            temporary.open("w") as file,
        ):
            shutil.copyfileobj(rows, file, CHUNK)


def write_samples(
    experiment,
    out,
    number: int,
    *,
    classes=(),
    texts=(),
    keep: float = 1.0,
    classifier: Classifier | None = None,
    complete=None,
    mask: str = "bottom",
    keep_depth: int = 0,
) -> None:
    """Draws samples and writes them as they come; prints where they are.

    Args:
      experiment: a `rq.experiment.Experiment` with both stages.
      out: see `writing`.
      number: of samples.
      classes, texts: see `conditions.parse`.
      keep, classifier: see `rejection.draw`; the experiment's own classifier if None.
      complete: an image file, or codes (.npy, .npz), to complete.
      mask, keep_depth: what is drawn of it, see `inpainting.make_given`.

    Raises:
      ConfigError: where `out` cannot be written, before any compute; and on options,
        conditions or codes that the model does not have.
      DataError: where the image cannot be read.
    """
    data, rqvae = experiment.config.data, experiment.rqvae
    shape = (data.resolution, data.resolution, data.channels)
    num_bytes = number * (math.prod(shape) + 8 * math.prod(rqvae.code_shape))
    processes.run_on_process_0(lambda: check_writable(out, num_bytes))
    asked = conditions.parse(experiment.config, experiment.tokenizer, classes, texts)
    given = None
    if complete is not None:
        if pathlib.Path(complete).suffix in inpainting.NUMPY:
            sizes = rqvae.sizes
            codes = inpainting.read_codes(complete, rqvae.code_shape, sizes)
        else:
            codes = experiment.codes_of(complete)[0]
        given = inpainting.make_given(codes, mask, keep_depth)
    if keep != 1 and classifier is None:
        classifier = experiment.classifier
    batches = rejection.draw(
        experiment.sampler,
        asked,
        number,
        SamplingConfig(**experiment.config.sampling),
        keep=keep,
        classifier=classifier,
        given=given,
    )
    if not processes.is_process_0():
        for _ in batches:  # all processes draw, one writes
            pass
        return
    with writing(out, number, shape, rqvae.code_shape) as add:
        for batch in batches:
            images = visualize.to_uint8(batch.images)
            add(images, batch.labels, batch.codes)
    grid = epath.Path(out).suffix == ".png"
    beside = f" and {epath.Path(out).with_suffix('.npz')}" if grid else ""
    print(f"wrote {out}{beside}")
