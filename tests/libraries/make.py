# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes what the field's libraries say of random images and features: expected.npz.

    pip install torch torchvision torch-fidelity pytorch-fid clean-fid prdc
    python tests/libraries/make.py

The tests need none of them: they make weights, images and features again from the seed.
"""

from __future__ import annotations

import json
import pathlib
from unittest import mock

import numpy as np

SEED = 0
STEP = 13  # of the pixels that are kept of resized images
SIZES = ((64, 80), (320, 320), (299, 299))  # of images, height and width
# Rows, width of features; rows of logits. Enough for the library's subsets of 1,000.
ROWS, WIDTH, CLASSES = (1300, 1100), 16, 12


def weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """A state dict of these shapes, whose activations neither vanish nor explode."""
    rng, state = np.random.default_rng(SEED), {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("running_var"):
            values = 0.5 + np.abs(values)
        elif len(shape) > 1:
            values = values * np.sqrt(2 / np.prod(shape[1:])).astype(np.float32)
        elif name.endswith("bn.weight"):
            values = 1 + values / 4
        else:
            values = values / 4
        state[name] = values if shape else np.asarray(values).astype(np.int64)
    return state


def images(height: int, width: int) -> np.ndarray:
    """Two uint8 images `[2, height, width, 3]`, smooth with some noise."""
    rng = np.random.default_rng(height)
    y, x = np.mgrid[:height, :width] / 20
    waves = np.sin(x + np.arange(6).reshape(2, 1, 1, 3)[..., 0] + y)[..., None]
    noise = rng.normal(0, 20, (2, height, width, 3))
    return np.clip(128 + 90 * waves + noise, 0, 255).astype(np.uint8)


def features() -> tuple[np.ndarray, np.ndarray]:
    """Returns features of generated and real images: correlated, the second wider."""
    rng = np.random.default_rng(SEED)
    mix = rng.normal(size=(WIDTH, WIDTH)) / 4
    made = rng.normal(size=(ROWS[0], WIDTH)) @ mix + 0.3
    real = 1.2 * rng.normal(size=(ROWS[1], WIDTH)) @ mix
    return made.astype(np.float32), real.astype(np.float32)


def logits() -> np.ndarray:
    """`[N, CLASSES]`, of which some are sure and some not."""
    rng = np.random.default_rng(SEED + 1)
    scale = rng.uniform(0, 3, (ROWS[0], 1))
    return (scale * rng.normal(size=(ROWS[0], CLASSES))).astype(np.float32)


def inception_outputs(torch) -> dict:
    """Shapes of the library's weights and its features of `images`."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    network = module.FeatureExtractorInceptionV3
    nothing = {"load_state_dict_from_url": lambda *_, **__: None}
    with (
        mock.patch.multiple(module, **nothing),
        mock.patch.object(network, "load_state_dict", lambda *_: None),
    ):
        net = network("random", ["2048", "logits_unbiased"])
    shapes = {name: list(value.shape) for name, value in net.state_dict().items()}
    state = {name: torch.tensor(value) for name, value in weights(shapes).items()}
    torch.nn.Module.load_state_dict(net, state)
    seen = []
    branch = net.Mixed_6d.branch1x1  # of which ADM's evaluator takes 7 channels
    branch.register_forward_hook(lambda module, x, y: seen.append(y))
    found = {"shapes": json.dumps(shapes)}
    for height, width in SIZES:
        x = torch.tensor(images(height, width)).permute(0, 3, 1, 2)
        with torch.no_grad():
            pool, logits = net(x)
        spatial = seen[-1][:, :7].permute(0, 2, 3, 1).reshape(2, -1)
        for name, value in (("pool", pool), ("logits", logits), ("spatial", spatial)):
            found[f"{name}_{height}"] = value.numpy()
    return found


def other_outputs(torch, shapes) -> dict:
    """pytorch-fid's features as the authors have them, and images by clean-fid.

    Their logits are those of its network, with their bias.
    """
    from cleanfid.resize import make_resizer
    from pytorch_fid import inception as module

    with (
        mock.patch.object(module, "load_state_dict_from_url", lambda *_, **__: {}),
        mock.patch.object(torch.nn.Module, "load_state_dict", lambda *_: None),
    ):
        net = module.fid_inception_v3().eval()
    state = {name: torch.tensor(value) for name, value in weights(shapes).items()}
    missing, _ = net.load_state_dict(state, strict=False)
    assert not [name for name in missing if "num_batches" not in name], missing
    pools, found = [], {}
    net.avgpool.register_forward_hook(lambda module, x, y: pools.append(y))
    resize = make_resizer("PIL", False, "bicubic", (299, 299))
    for height, width in SIZES:
        x = torch.tensor(images(height, width)).permute(0, 3, 1, 2) / 255
        x = torch.nn.functional.interpolate(x, (299, 299), mode="bilinear")
        with torch.no_grad():
            found[f"pytorch_logits_{height}"] = net(2 * x - 1).numpy()
        found[f"pytorch_pool_{height}"] = pools[-1][..., 0, 0].numpy()
        clean = np.stack([resize(image) for image in images(height, width)])
        found[f"clean_{height}"] = clean[:, ::STEP, ::STEP]
        x = torch.tensor((clean - 128) / 128).permute(0, 3, 1, 2)
        with torch.no_grad():
            net(x)
        found[f"clean_pool_{height}"] = pools[-1][..., 0, 0].numpy()
    return found


def metrics(torch) -> dict:
    """The libraries' figures of `features` and `logits`."""
    from prdc import compute_prdc
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import (
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    made, real = map(torch.tensor, features())
    statistics = [fid_features_to_statistics(x) for x in (made, real)]
    found = dict(fid_statistics_to_metric(*statistics, verbose=False))
    found |= kid_features_to_metric(made, real, verbose=False)
    found |= isc_features_to_metric(torch.tensor(logits()), shuffle=False)
    found["shuffled"] = isc_features_to_metric(torch.tensor(logits()), shuffle=True)
    precision, recall = calculate_precision_recall_full(made, real)
    found |= {"precision": precision, "recall": recall}
    made, real = features()
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (made, real)]
    found["pytorch_fid"] = float(calculate_frechet_distance(*moments[0], *moments[1]))
    shares = compute_prdc(real, made, nearest_k=5)
    return found | {f"prdc_{name}": float(x) for name, x in shares.items()}


def main() -> None:
    """Writes the file beside this one."""
    import torch

    found = inception_outputs(torch)
    found |= other_outputs(torch, json.loads(found["shapes"]))
    figures = metrics(torch)
    path = pathlib.Path(__file__).with_name("expected.npz")
    np.savez_compressed(path, metrics=json.dumps(figures), **found)
    print(figures, {name: np.std(x) for name, x in found.items() if name != "shapes"})
    print(path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
