# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes the model card of a saved folder, its README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from rq.config import size_text

UNKNOWN = "not stated"  # a licence
_NAMES = {"rqvae": "RQ-VAE", "transformer": "RQ-Transformer"}
_CARD = """\
---
license: {license}
library_name: rq
---

# {title}

{model}, trained on `{data}` with `rq`, after Lee et al.,
"Autoregressive Image Generation using Residual Quantization" (CVPR 2022).

| | |
|---|---|
{table}

## How to load it

    import rq
    model = rq.load("FOLDER")
{example}
    codes = model.encode(["photo.png"])
    pictures = model.decode(codes)

`model.safetensors` has the weights in {precision},
with the names and layouts of the authors' PyTorch code after `rqvae.` and
`transformer.`; `config.json` describes the networks.
{metrics}
## Licence

{licence}
"""


def text(
    config: ConfigDict,
    info: Mapping[str, Any],
    variables: Mapping[str, dict],
    half: bool = False,
) -> str:
    """Returns the card.

    Args:
      config: of the run.
      info: see `saved_folder.SavedFolder`.
      variables: of each stage.
      half: parameters are stored as float16.
    """
    size, channels = size_text(config.data.resolution), config.data.channels
    model, condition = config.rqvae.model, config.transformer.condition
    rows = {
        "images": f"{size}, {'grey' if channels == 1 else 'colour'}",
        "codes": f"{' x '.join(map(str, model.code_shape))} of "
        + ", ".join(f"{size:,}" for size in model.num_codes),
    }
    for stage, found in variables.items():
        steps = info["steps"][stage]
        rows[_NAMES[stage]] = f"{parameters(found):,} parameters, {steps:,} steps"
    example = ""
    if "transformer" in variables:
        rows["condition"] = condition
        if "class" in condition:
            rows["condition"] += f", {config.data.num_classes:,} classes"
        asked = {"class": "classes=[0], ", "text": 'texts=["a text"], '}
        asked |= {"none": "", "class_text": asked["class"] + asked["text"]}
        given = asked[condition]
        if config.data.source != "none":
            rows["source images"] = config.data.source
            given += 'source="image.png", '
        example = f"    images = model.sample({given}num_samples=16)"
    licence = info["licence"]
    return _CARD.format(
        license="unknown" if licence == UNKNOWN else licence.lower(),
        title=f"{config.data.name}, {size}",
        model=" and ".join(_NAMES[stage] for stage in variables),
        data=config.data.name,
        table="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        example=example,
        precision="float16 (the codebook in float32)" if half else "float32",
        metrics=_metrics(info["metrics"]),
        licence=f"Of the weights: {licence}. It may depend on that of the data.",
    ).replace("\n\n\n", "\n\n")


def parameters(variables: Mapping[str, Any]) -> int:
    """Returns the number of parameters, without the codebook."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _metrics(metrics: Mapping[str, float]) -> str:
    if not metrics:
        return ""
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in metrics.items())
    return f"\n## Metrics\n\n| metric | value |\n|---|---|\n{rows}\n"
