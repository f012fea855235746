# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures how a trained RQ-VAE uses its codes, and suggests codebook sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rq import progress
from rq.config import ConfigError
from rq.data import loader, sources
from rq.metrics import code_usage, codebook_sizes
from rq.parallel import sharding
from rq.sampling import codec

FEW = 10  # vectors for each code: from fewer, entropies are too low


def measure(experiment, split: str) -> dict[str, Any]:
    """Returns statistics by depth and suggested sizes, for JSON.

    Args:
      experiment: an `rq.experiment.Experiment` with an RQ-VAE.
      split: of its data set; images are transformed as in evaluation.

    Raises:
      ConfigError: if the codebook is a fixed grid.
      DataError: if the data set or the split is missing.
    """
    if experiment.rqvae.fsq_levels != (0,):
        raise ConfigError(
            "the sizes of an FSQ model are products of rqvae.model.fsq_levels: no "
            "others can be suggested"
        )
    rqvae, sizes = experiment.rqvae, experiment.rqvae.sizes
    counts = [np.zeros(size, np.int64) for size in sizes]
    source = sources.open_split(experiment.config.data, split)
    for codes in _codes(experiment, source):
        found = code_usage.histogram(codes, sizes)
        counts = [total + new for total, new in zip(counts, found, strict=True)]
    return suggest(counts, rqvae.code_shape) | {"split": split, "images": len(source)}


def _codes(experiment, source):
    """Yields the codes of all images of a source, on the host."""
    config, mesh = experiment.config, experiment.mesh
    batches = loader.in_order(source, config.data, config.rqvae.batch_size, mesh=mesh)
    rqvae, variables = experiment.rqvae, experiment.rqvae_variables
    with progress.Bar("codes", len(source)) as shown:
        for batch in batches:
            with sharding.context(mesh):
                local = {name: batch[name] for name in ("image", "mask")}
                rows = sharding.shard_batch(local, mesh)
                found = codec.encode(rqvae, variables, rows["image"])
                found, mask = sharding.to_host((found, rows["mask"]))
            yield found[mask]
            shown.update(int(mask.sum()))


def suggest(
    counts: Sequence[np.ndarray], code_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Returns statistics by depth and suggested sizes.

    Args:
      counts: how often each code occurs, D arrays `[K_d]`.
      code_shape: (H, W, D).

    Returns:
      'num_codes', 'used', 'perplexity' and 'entropy_bits', each of D numbers; 'vectors'
      that were counted; 'bits_per_image'; and 'equal_bits' and 'fewest', suggestions
      with 'num_codes' and 'bits_per_image'.
    """
    positions = math.prod(code_shape[:2])
    sizes = [len(count) for count in counts]
    statistics = code_usage.statistics(counts)
    entropy = statistics["entropy_bits"].tolist()
    bits = sum(map(math.log2, sizes))
    # Larger ones were trained without stored codes, and can be again.
    most = max(codebook_sizes.MOST_BITS, math.ceil(math.log2(max(sizes))))

    def suggestion(sizes):
        return {
            "num_codes": list(sizes),
            "bits_per_image": positions * sum(map(math.log2, sizes)),
        }

    return {
        "num_codes": sizes,
        "used": statistics["used"].tolist(),
        "perplexity": statistics["perplexity"].tolist(),
        "entropy_bits": entropy,
        "vectors": int(counts[0].sum()),
        "bits_per_image": positions * bits,
        "equal_bits": suggestion(codebook_sizes.equal_bits(entropy, bits, most)),
        "fewest": suggestion(codebook_sizes.fewest(entropy)),
    }


def text(report: Mapping[str, Any], model) -> str:
    """Returns a report for people: a table, and flags to paste.

    Args:
      report: what `measure` returns.
      model: the section `transformer.model` of the run's config.
    """
    lines = [
        f"{report['images']:,} images of {report['split']}, "
        f"{report['vectors']:,} codes at each depth",
        "",
        "depth   codes    used  perplexity  entropy",
    ]
    columns = ("num_codes", "used", "perplexity", "entropy_bits")
    rows = zip(*(report[name] for name in columns), strict=True)
    lines += [
        f"{d:5}  {size:6,}  {used:6,}  {perplexity:10,.1f}  {entropy:.2f} bits"
        for d, (size, used, perplexity, entropy) in enumerate(rows, 1)
    ]
    if report["vectors"] < FEW * max(report["num_codes"]):
        lines.append("(few codes were counted: their entropy seems lower than it is)")
    for name, what in (
        ("equal_bits", "as many bits as now"),
        ("fewest", "the fewest bits, those of the perplexity"),
    ):
        found = report[name]
        bits = f"{found['bits_per_image']:,.0f} bits an image"
        flags = " ".join(overrides(found["num_codes"], model))
        lines += ["", f"{what}, {bits}:", f"  {flags}"]
    return "\n".join(lines)


def overrides(sizes: Sequence[int], model) -> list[str]:
    """Returns the flags that set codebook sizes, one for each depth.

    Args:
      sizes: D numbers.
      model: see `text`.
    """
    if len(set(sizes)) == 1:
        return [f"--config.rqvae.model.num_codes={sizes[0]}"]
    flags = {
        "rqvae.model.num_codes": ",".join(map(str, sizes)),
        "rqvae.model.shared_codebook": False,
        "transformer.model.shared_classifier": False,
    }
    if not (model.body_from_codebook and model.head_from_codebook):
        flags["transformer.model.shared_token_embedding"] = False
    return [f"--config.{name}={value}" for name, value in flags.items()]
