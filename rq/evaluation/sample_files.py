# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes samples batch by batch, to an `.npz`, a grid of pictures, or a folder of PNGs.

Only the current batch is in memory. Files are written atomically; paths may be in a
bucket.
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
from rq.config import ConfigError, SamplingConfig, image_shape
from rq.data import given_images
from rq.parallel import atomic_files, processes
from rq.sampling import conditions, inpainting, rejection
from rq.sampling.classifier import Classifier

# Function of uint8 images `[B, H, W, C]`, labels `[B]` and maybe codes `[B, h, w, D]`.
Add = Callable[..., None]
GRID = 400  # images in a grid, at most
CHUNK = 1 << 18  # bytes copied at once
SUFFIXES = (".npz", ".png", "")
LABELS = "labels.csv"  # in a folder


def check_writable(path, num_bytes: int = 0) -> None:
    """Checks, before any compute, that an output can be written; makes its folder.

    Args:
      path: see `writing`.
      num_bytes: its approximate size.

    Raises:
      ConfigError: if it cannot be written, the disk is too full, or the folder is not
        empty.
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


def writing(path, number: int, image_shape, code_shape, sources=()):
    """Returns a context manager that yields a function to add batches, see `Add`.

    Args:
      path: an `.npz` of images 'arr_0', 'labels' and 'codes'; a `.png`, a grid of the
        first images, with an `.npz` of the same name; or else a folder of PNGs named by
        index, with a table of labels and codes.
      number: number of samples.
      image_shape, code_shape: shapes for one sample.
      sources: names of the source images of all samples, if they have some; also in
        the table.
    """
    path = epath.Path(path)
    if path.suffix == ".npz":
        return npz(path, number, image_shape, code_shape)
    if path.suffix == ".png":
        return _grid(path, number, image_shape, code_shape)
    return _folder(path, sources)


@contextlib.contextmanager
def npz(
    path, number: int, image_shape, code_shape=None, labels_name: str = "labels"
) -> Iterator[Add]:
    """Yields a function to add batches to an `.npz`, see `writing`.

    Args:
      path: the `.npz`.
      number: number of samples; adding another number raises ValueError.
      image_shape: (H, W, C).
      code_shape: (h, w, D), or None for no codes.
      labels_name: name of the labels; ADM's evaluator calls them 'arr_1'.
    """
    written, all_labels = 0, []
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(atomic_files.atomic_write(path, os.getpid()))
        stack.push(lambda kind, *_: kind and temporary.unlink(missing_ok=True))
        file = stack.enter_context(temporary.open("wb"))
        archive = stack.enter_context(zipfile.ZipFile(file, "w", zipfile.ZIP_STORED))
        # An archive takes one member at a time: codes are kept in a temporary file.
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
    """Yields a stream for the bytes of an array in an `.npz`."""
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
def _folder(path: epath.Path, sources) -> Iterator[Add]:
    """Yields a function to add PNGs; finally writes labels.csv, with the codes."""
    rows = tempfile.TemporaryFile("w+", newline="")
    first = 0
    with rows:
        table = csv.writer(rows)
        table.writerow(["file", "label", "codes", *(["source"] if sources else [])])

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
                source = sources[first + i : first + i + 1]
                table.writerow([name, int(labels[i]), flat, *source])
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
    mask: str | None = None,
    keep_depth: int = 0,
    source=None,
) -> None:
    """Samples images and writes them batch by batch; prints where they are.

    Args:
      experiment: a `rq.experiment.Experiment` with both stages.
      out: see `writing`.
      number: number of samples.
      classes, texts: see `conditions.parse`.
      keep, classifier: see `rejection.draw`; the experiment's own classifier if None.
      complete: an image file, or codes (.npy, .npz), to complete.
      mask, keep_depth: which of its codes are sampled, see `inpainting.make_given`;
        without `complete`, the mask is what a source of kind 'mask' lacks.
      source: an image file or a folder of them, of a model with source images.

    Raises:
      ConfigError: if `out` cannot be written, or the model does not have the options,
        conditions or codes.
      DataError: if the image cannot be read.
    """
    rqvae = experiment.rqvae
    if not experiment.has_rqvae and epath.Path(out).suffix != ".npz":
        experiment.require_rqvae(f"--out={out}")
    shape = image_shape(experiment.config.data)
    num_bytes = number * (math.prod(shape) + 8 * math.prod(rqvae.code_shape))
    processes.run_on_process_0(lambda: check_writable(out, num_bytes))
    sources = None
    if source is not None:
        same = complete is None or experiment.config.data.source == "mask"
        sources = experiment.read_sources(source, mask if same else None)
    asked = conditions.parse(
        experiment.config, experiment.tokenizer, classes, texts, sources
    )
    given_number = len(asked.labels) if classes or texts or sources else 1
    if number < given_number:
        raise ConfigError(
            f"--num_samples={number}: {given_number} classes, texts or source images "
            f"are given: set --num_samples={given_number} for one sample of each"
        )
    given = canvas = None
    if complete is not None:
        if pathlib.Path(complete).suffix in inpainting.NUMPY:
            sizes = rqvae.sizes
            codes = inpainting.read_codes(complete, rqvae.code_shape, sizes)
        else:
            experiment.require_rqvae("an image to complete")
            data = experiment.config.data
            (image,) = given_images.pixels(complete, data.channels)
            canvas = inpainting.Canvas(image.shape[:2], data.resolution)
            codes = experiment.codes_of(complete)[0]
        given = inpainting.make_given(codes, mask or "bottom", keep_depth, canvas)
    if keep != 1 and classifier is None:
        classifier = experiment.classifier
    config = SamplingConfig(**experiment.config.sampling)
    batches = rejection.draw(
        experiment.sampler,
        asked,
        number,
        config,
        keep=keep,
        classifier=classifier,
        given=given,
    )
    if not processes.is_process_0():
        for _ in batches:  # all processes sample, process 0 writes
            pass
        return
    if not experiment.has_rqvae:
        _write_codes(out, batches)
        print(f"wrote {out}: codes without images, for your own decoder")
        return
    depth = config.depth or rqvae.depth
    names = []
    if sources is not None:
        names = [asked.names[row]["source"] for row in asked.spread(number)]
    code_shape = (*rqvae.code_shape[:2], depth)
    with writing(out, number, shape, code_shape, names) as add:
        for batch in batches:
            images = visualize.to_uint8(batch.images)
            add(images, batch.labels, batch.codes)
    grid = epath.Path(out).suffix == ".png"
    beside = f" and {epath.Path(out).with_suffix('.npz')}" if grid else ""
    print(f"wrote {out}{beside}")


def _write_codes(path, batches) -> None:
    """Writes an `.npz` of 'codes' and 'labels' from batches without images."""
    found = rejection.collect(batches)
    with atomic_files.atomic_write(epath.Path(path), os.getpid()) as temporary:
        with temporary.open("wb") as file:
            np.savez(file, labels=found.labels, codes=found.codes)
