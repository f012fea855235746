# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes what torchvision's ResNets say of random images: basic.npz, bottleneck.npz.

    pip install torch torchvision
    python tests/torchvision/make.py

The tests need neither: they make the same weights and images again from the seed.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

SEED, CLASSES = 0, 10
SIZES = (256, 64, 300)  # of images; other than 256 they are resized
NETWORKS = {"basic": [1, 1, 2, 1], "bottleneck": [1, 2, 1, 1]}


def weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """A state dict of these shapes, whose activations neither vanish nor explode."""
    rng, state = np.random.default_rng(SEED), {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("running_var"):
            values = 0.5 + np.abs(values)
        elif len(shape) > 1:
            values = values * np.sqrt(2 / np.prod(shape[1:])).astype(np.float32)
        elif name.endswith("weight"):
            values = 1 + values / 4
        else:
            values = values / 4
        state[name] = values if shape else np.asarray(values).astype(np.int64)
    return state


def images(size: int) -> np.ndarray:
    """Two images `[2, size, size, 3]` in [-1, 1]."""
    rng = np.random.default_rng(size)
    return rng.uniform(-1, 1, (2, size, size, 3)).astype(np.float32)


def main() -> None:
    """Writes both files beside this one."""
    import torch
    from torchvision.models import resnet
    from torchvision.transforms import functional

    for name, blocks in NETWORKS.items():
        block = resnet.Bottleneck if name == "bottleneck" else resnet.BasicBlock
        model = resnet.ResNet(block, blocks, num_classes=CLASSES).eval()
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        state = {key: torch.tensor(v) for key, v in weights(shapes).items()}
        model.load_state_dict(state)
        logits = []
        for size in SIZES:
            x = (torch.tensor(images(size)).permute(0, 3, 1, 2) + 1) / 2
            x = functional.resize(x, 256, antialias=True)
            x = functional.center_crop(x, 224)
            x = functional.normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            with torch.no_grad():
                logits.append(model(x).numpy())
        path = pathlib.Path(__file__).with_name(f"{name}.npz")
        np.savez(path, shapes=json.dumps(shapes), logits=np.stack(logits))
        print(name, np.stack(logits).std())


if __name__ == "__main__":
    main()
