# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Computes the CLIP score: how well images match their captions.

It takes any CLIP model that Hugging Face's exporter writes,

    optimum-cli export onnx --model openai/clip-vit-base-patch32 FOLDER

and runs it with ONNX Runtime (`pip install -e '.[clip]'`). The paper uses ViT-B/32.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from rq.config import ConfigError
from rq.data import DataError

# Where exporters put the model in the folder.
MODELS = ("model.onnx", "onnx/model.onnx")
TOKENIZER, PREPROCESSOR = "tokenizer.json", "preprocessor_config.json"
CONTEXT = 77  # tokens in a text, at most


class Clip:
    """Computes the cosines between embeddings of images and captions.

    Attributes:
      fingerprint: hash of the model's file.
    """

    def __init__(self, folder):
        """Loads the model in a folder.

        Raises:
          ConfigError: if ONNX Runtime is not installed.
          DataError: if a file is missing or not of a CLIP model.
        """
        folder = pathlib.Path(folder)
        models = [folder / name for name in MODELS if (folder / name).exists()]
        needed = [folder / name for name in (TOKENIZER, PREPROCESSOR)]
        if missing := [str(f) for f in needed if not f.exists()]:
            raise DataError(f"--clip={folder} has no {', '.join(missing)}: {_HOW}")
        if not models:
            raise DataError(f"--clip={folder} has no {' or '.join(MODELS)}: {_HOW}")
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(
                "--clip needs ONNX Runtime: pip install -e '.[clip]'"
            ) from error
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
        self._tokenizer.enable_truncation(CONTEXT)
        self._tokenizer.no_padding()
        self._preprocessor = json.loads((folder / PREPROCESSOR).read_text())
        self._session = onnxruntime.InferenceSession(
            models[0], providers=onnxruntime.get_available_providers()
        )
        self._inputs = {value.name for value in self._session.get_inputs()}
        outputs = {value.name for value in self._session.get_outputs()}
        if not {"image_embeds", "text_embeds"} <= outputs:
            raise DataError(f"{models[0]} outputs {sorted(outputs)}: no CLIP; {_HOW}")
        self.fingerprint = hashlib.sha256(models[0].read_bytes()).hexdigest()

    def __call__(self, images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """Returns cosines `[B]`; images are uint8 `[B, H, W, C]`, C is 1 or 3."""
        tokens, mask = self._tokens(captions)
        given = {
            "pixel_values": np.stack([self._pixels(image) for image in images]),
            "input_ids": tokens,
            "attention_mask": mask,
        }
        names = ["image_embeds", "text_embeds"]
        given = {name: x for name, x in given.items() if name in self._inputs}
        a, b = self._session.run(names, given)
        a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
        return np.sum(a * b, axis=-1)

    def _tokens(self, captions):
        """Returns ids and mask, int64 `[B, S]`, padded with the end token."""
        found = [encoding.ids for encoding in self._tokenizer.encode_batch(captions)]
        length = max(map(len, found))
        mask = [[1] * len(ids) + [0] * (length - len(ids)) for ids in found]
        found = [ids + [ids[-1]] * (length - len(ids)) for ids in found]
        return np.asarray(found, np.int64), np.asarray(mask, np.int64)

    def _pixels(self, image: np.ndarray) -> np.ndarray:
        """Returns what CLIP's image processor would: float32 `[3, S, S]`."""
        known = self._preprocessor
        side, crop = (_side(known[name]) for name in ("size", "crop_size"))
        image = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)))
        width, height = image.size
        short = min(width, height)
        # The longer side is rounded down, as in the processor.
        size = (side * width // short, side * height // short)
        image = image.resize(size, Image.Resampling(known.get("resample", 3)))
        left, top = ((length - crop) // 2 for length in image.size)
        image = image.crop((left, top, left + crop, top + crop))
        scale = known.get("rescale_factor", 1 / 255)
        mean, std = (np.float32(known[k]) for k in ("image_mean", "image_std"))
        pixels = (np.asarray(image, np.float32) * np.float32(scale) - mean) / std
        return np.moveaxis(pixels, -1, 0)


_HOW = "optimum-cli export onnx --model openai/clip-vit-base-patch32 FOLDER makes one"


def _side(size) -> int:
    if isinstance(size, dict):
        return size.get("shortest_edge") or size["height"]
    return size


def score(clip: Clip, batches: Iterable[np.ndarray], captions: Sequence[str]) -> float:
    """Returns the mean cosine of images and captions, as reported in the paper.

    TorchMetrics and others multiply it by 100.

    Args:
      clip: the model.
      batches: uint8 images `[n, H, W, C]`.
      captions: image i has the caption `captions[i % len(captions)]`.
    """
    total, number = 0.0, 0
    for images in batches:
        rows = np.arange(number, number + len(images)) % len(captions)
        total += float(np.sum(clip(images, [captions[row] for row in rows.tolist()])))
        number += len(images)
    return total / number
