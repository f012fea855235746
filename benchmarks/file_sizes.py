# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares files of codes with JPEG, WebP and PNG of equal size, on unseen images.

    python benchmarks/file_sizes.py --model=emoji --num_images=100 --document

Writes each held-out image as files of one stream and with layers, decodes every one,
and compares the codes, the size with the likelihood, and the pictures with those of
Pillow's formats. For each image and size a format has the best PSNR of all its
qualities and of images made smaller and enlarged again, and only the bytes of its
picture count: not JPEG's tables and markers, nor the chunk headers of WebP and PNG.
Files of codes count whole. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import time

import document
import jax
import numpy as np
from PIL import Image

import rq
from rq import visualize
from rq.compression import file_format
from rq.compression.compressor import Compressor
from rq.data import pixels, sources
from rq.metrics.image_quality import psnr, ssim

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs/results.md"
PICTURE = ROOT / "docs/images/compression.png"
SCALES = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8)
QUALITIES = (0, 1, 2, 3, 4, 5, 7, 10, 13, 16, 20, 25, 30, 40, 50, 60, 70, 80)
COLORS = (2, 4, 8, 16, 32, 64)
FORMATS = ("WebP", "JPEG", "PNG")
SHOWN = 4  # images in the picture


def jpeg_scan(data: bytes) -> int:
    """Returns the bytes of a JPEG after its tables and headers."""
    at = 2
    while data[at + 1] != 0xDA:  # start of scan
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return len(data) - at - 2 - int.from_bytes(data[at + 2 : at + 4], "big")


def candidates(image: Image.Image, kind: str):
    """Yields images that a format makes of one: (file bytes, picture bytes, pixels)."""
    for scale in SCALES:
        side = [max(1, round(length * scale)) for length in image.size]
        small = image.resize(side, Image.Resampling.LANCZOS)
        for level in COLORS if kind == "PNG" else QUALITIES:
            stream = io.BytesIO()
            if kind == "PNG":
                small.quantize(level).save(stream, "PNG", optimize=True)
            elif kind == "JPEG":
                small.save(stream, "JPEG", quality=max(level, 1), optimize=True)
            else:
                small.save(stream, "WEBP", quality=level, method=6)
            data = stream.getvalue()
            # Signature and chunk headers: 8 + 25 + 12 + 12 of PNG, 20 of WebP.
            picture = jpeg_scan(data) if kind == "JPEG" else len(data)
            picture -= {"PNG": 57, "WebP": 20, "JPEG": 0}[kind]
            decoded = Image.open(io.BytesIO(data)).convert(image.mode)
            yield (
                len(data),
                picture,
                decoded.resize(image.size, Image.Resampling.BICUBIC),
            )


def best(found, image, size: int):
    """Returns the candidate of highest PSNR within a size, or else the smallest."""
    within = [x for x in found if x[1] <= size] or [min(found, key=lambda x: x[1])]
    return max(within, key=lambda x: -np.square(_floats(x[2]) - _floats(image)).mean())


def _floats(image) -> np.ndarray:
    found = np.asarray(image, np.float32) / 127.5 - 1
    return found if found.ndim == 3 else found[..., None]


def quality(images, originals) -> dict[str, float]:
    """Returns mean PSNR and SSIM of uint8 images."""
    a, b = (np.stack([_floats(x) for x in group]) for group in (images, originals))
    return {"psnr": float(psnr(a, b).mean()), "ssim": float(np.mean(ssim(a, b)))}


def read(config, number: int):
    """Returns held-out images uint8 `[N, H, W, C]`, their classes and captions."""
    source = sources.open_split(config.data, config.data.eval_split)
    examples = [source.read(index) for index in range(min(number, len(source)))]
    images = np.stack([example["image"] for example, _ in examples])
    labels = [int(example["label"]) for example, _ in examples]
    return images, labels, [lines[0] if lines else "" for _, lines in examples]


def main() -> None:
    """Measures, and writes the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--num_images", type=int, default=100)
    parser.add_argument("--document", action="store_true", help="write docs/results.md")
    given = parser.parse_args()
    model = rq.load(given.model)
    images, labels, captions = read(model.config, given.num_images)
    result = codes(model, images, labels, captions)
    depth, files = model.models.rqvae.depth, result.pop("files")
    sizes = {
        d: [len(file_format.cut(f, d)) for f in files] for d in range(1, depth + 1)
    }
    by_depth = {d: model.reconstruct(images, d) for d in sizes}
    rows = [
        {"format": f"rq, {d} of {depth} layers", "bytes": float(np.mean(sizes[d])),
         **quality(by_depth[d], images)}
        for d in sizes
    ]  # fmt: skip
    one = {"format": "rq, one stream", "bytes": result["one stream"]["bytes"]}
    rows.append(one | quality(by_depth[depth], images))
    sizes |= {"all": result.pop("sizes")}
    lossless, pictures = [], {}
    for kind in FORMATS:
        chosen = {d: [] for d in sizes}
        for index, pixels_of in enumerate(images):
            image = Image.fromarray(pixels_of.squeeze())
            found = list(candidates(image, kind))
            for d in sizes:
                chosen[d].append(best(found, image, sizes[d][index]))
        for d, these in chosen.items():
            pictures[kind, d] = [x[2] for x in these]
            row = {"format": kind, "as": d}
            for place, name in enumerate(("file", "bytes")):
                row[name] = float(np.mean([x[place] for x in these]))
            rows.append(row | quality(pictures[kind, d], images))
    for pixels_of in images:
        stream = io.BytesIO()
        Image.fromarray(pixels_of.squeeze()).save(stream, "PNG", optimize=True)
        lossless.append(stream.tell())
    result |= {"rows": rows, "lossless_png": float(np.mean(lossless))}
    print(table(result))
    if given.document:
        document.insert(RESULTS, "compression", table(result))
        visualize.save_png(PICTURE, picture(images, by_depth, pictures, sizes))
        print(f"wrote {RESULTS} and {PICTURE}")
    print(json.dumps(result))


def codes(model, images, labels, captions) -> dict:
    """Writes and reads files in every way; returns sizes, and the files with layers."""
    encoded, compressor = model.encode(images), Compressor(model.models)
    kind, result = model.config.transformer.condition, {}
    ways = {"one stream": {}, "layers": {"layers": True}}
    if "class" in kind:
        ways["one stream, class"] = {"classes": labels}
    if "text" in kind:
        ways["one stream, text"] = {"texts": captions}
    for name, options in ways.items():
        compressor.decompress(
            *model.compress(images[:1], **_first(options))
        )  # compiles
        start = time.perf_counter()
        made = list(model.compress_each(images, **options))
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        for codes_of, one in zip(encoded, made, strict=True):
            found = compressor.decompress(one.data)
            assert (found == codes_of).all()
        bits = np.array([sum(one.bits) for one in made])
        coded = 8 * np.array(
            [sum(map(len, file_format.unpack(one.data).streams)) for one in made]
        )
        sums = 32 * len(made[0].bits)
        result[name] = {
            "bytes": float(np.mean([len(one.data) for one in made])),
            "bits_by_likelihood": float(bits.mean()),
            "excess": float((coded - sums).sum() / bits.sum() - 1),
            "write_seconds": seconds / len(images),
            "read_seconds": (time.perf_counter() - start) / len(images),
        }
        if name == "one stream":
            result["sizes"] = [len(one.data) for one in made]
        if name == "layers":
            by_layer = np.mean([one.bits for one in made], axis=0)
            result["bits_by_layer"] = by_layer.tolist()
            result["files"] = [one.data for one in made]
    return result


def _first(options: dict) -> dict:
    return {k: v if v is True else v[:1] for k, v in options.items()}


def table(result) -> str:
    """Returns two Markdown tables: ways to write codes, and formats by size."""
    lines = [
        "| files of codes | bytes | by the likelihood | streams exceed it by | "
        "write | read |",
        "|---|---|---|---|---|---|",
    ]
    for name, way in result.items():
        if isinstance(way, dict):
            lines.append(
                f"| {name} | {way['bytes']:.1f} | {way['bits_by_likelihood'] / 8:.1f} "
                f"| {100 * way['excess']:.2f} % | {way['write_seconds']:.2f} s | "
                f"{way['read_seconds']:.2f} s |"
            )
    lines += ["", "| | bytes | PSNR | SSIM |", "|---|---|---|---|"]
    rows = result["rows"]
    ours = [row for row in rows if "as" not in row]
    for number, row in enumerate(ours):
        size = number + 1 if number + 1 < len(ours) else "all"
        lines.append(_row(f"**{row['format']}**", row))
        lines += [_row(x["format"], x) for x in rows if x.get("as") == size]
    lines.append(f"| PNG, lossless | {result['lossless_png']:,.0f} | | 1 |")
    return "\n".join(lines)


def _row(name: str, row: dict) -> str:
    size = f"{row['bytes']:.0f}"
    if "file" in row:
        size += f" (file: {row['file']:.0f})"
    return f"| {name} | {size} | {row['psnr']:.2f} dB | {row['ssim']:.3f} |"


def picture(images, by_depth, pictures, sizes) -> np.ndarray:
    """Returns originals, depths, and the formats at the size of one stream."""
    chosen = np.linspace(0, len(images) - 1, SHOWN).astype(int)
    size = {d: f"{np.mean(np.array(sizes[d])[chosen]):.0f} bytes" for d in sizes}
    rows, names = [images], ["original"]
    for d, shown in by_depth.items():
        rows.append(shown)
        names.append(f"layers to {d}, {size[d]}")
    names[-1] = f"one stream, {size['all']}"
    rows += [np.stack([_pixels(x) for x in pictures[k, "all"]]) for k in FORMATS]
    names += [f"{kind}, as large" for kind in FORMATS]
    tiles = np.concatenate([row[chosen] for row in rows])
    return visualize.sample_grid(tiles, SHOWN, names)


def _pixels(image) -> np.ndarray:
    return np.asarray(pixels.to_uint8(jax.numpy.asarray(_floats(image))))


if __name__ == "__main__":
    main()
