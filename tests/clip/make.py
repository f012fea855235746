# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes a CLIP of random weights as ONNX, and what its own library says: expected.npz.

    pip install torch torchvision transformers onnx onnxscript
    python tests/clip/make.py

The tests need none of them.
"""

from __future__ import annotations

import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent
SIZES = ((48, 48), (40, 64), (71, 33))  # of images, height and width
CAPTIONS = (
    "a red heart",
    "two dogs in the snow",
    "a very long caption of a person who walks along the shore of a lake at night",
)


def images() -> list[np.ndarray]:
    """uint8, one of each size, smooth with some noise."""
    found = []
    for height, width in SIZES:
        rng = np.random.default_rng(height)
        y, x = np.mgrid[:height, :width] / 9
        waves = np.stack([np.sin(x + y + k) for k in range(3)], axis=-1)
        noise = rng.normal(0, 20, waves.shape)
        found.append(np.clip(128 + 90 * waves + noise, 0, 255).astype(np.uint8))
    return found


def tokenizer(folder):
    """CLIP's, with a vocabulary of letters and a few merges."""
    from transformers import CLIPTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    merges = ["t h", "th e</w>", "a n", "an d</w>", "i n", "o n", "r e", "e d</w>"]
    pieces = [*letters, *(f"{x}</w>" for x in letters)]
    pieces += ["".join(merge.split()) for merge in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    pairs = [tuple(merge.split()) for merge in merges]
    made = CLIPTokenizerFast(vocab=vocabulary, merges=pairs)
    made.save_pretrained(folder)
    return made, vocabulary


def main() -> None:
    """Writes the files beside this one."""
    import torch
    import transformers

    torch.manual_seed(0)
    words, vocabulary = tokenizer(FOLDER)
    end = vocabulary["<|endoftext|>"]
    ends = {"eos_token_id": end, "pad_token_id": end, "bos_token_id": end - 1}
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "initializer_factor": 8.0,  # so that images and texts differ
    }
    config = transformers.CLIPConfig(
        text_config=sizes | ends | {"vocab_size": len(vocabulary)},
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    model = transformers.CLIPModel(config).eval()
    processor = transformers.CLIPProcessor(
        transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        words,
    )
    processor.image_processor.save_pretrained(FOLDER)
    given = processor(
        text=list(CAPTIONS), images=images(), return_tensors="pt", padding=True,
        truncation=True,
    )  # fmt: skip
    with torch.no_grad():
        found = model(**given)
        cosines = (found.image_embeds * found.text_embeds).sum(-1).numpy()
    names = ("input_ids", "pixel_values", "attention_mask")

    class Export(torch.nn.Module):
        """The embeddings alone, by position."""

        def forward(self, input_ids, pixel_values, attention_mask):
            found = model(input_ids, pixel_values, attention_mask)
            return found.image_embeds, found.text_embeds

    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=77)
    torch.onnx.export(
        Export(),
        tuple(given[name] for name in names),
        FOLDER / "model.onnx",
        input_names=names,
        output_names=("image_embeds", "text_embeds"),
        dynamic_shapes=({0: batch, 1: length}, {0: batch}, {0: batch, 1: length}),
        dynamo=True,
        external_data=False,
    )
    np.savez_compressed(FOLDER / "expected.npz", cosines=cosines)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (FOLDER / name).unlink(missing_ok=True)
    print(cosines)


if __name__ == "__main__":
    main()
