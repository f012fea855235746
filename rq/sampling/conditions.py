# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What images are conditioned on, as the transformer reads it.

    transformer.condition   condition, int32                   without condition
    none                    None: the start token              -
    class                   [B], the class                     num_classes
    text                    [B, S], tokens                     padding alone
    class_text              [B, 1 + S], vocab_size + class,    vocab_size + num_classes,
                            then tokens                        then padding

The last column stands for none at all, in training with `condition_dropout` and in
guidance; classes have one more for it only then.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

NEEDS = {"none": (), "class": ("label",), "text": ("text",)}
NEEDS["class_text"] = NEEDS["class"] + NEEDS["text"]
FIELDS = {"classes": "label", "texts": "text"}  # of a batch, by what they are


def make(config, batch) -> jax.Array | None:
    """The condition of a batch that has 'label' `[B]` and 'text' `[B, S]`, as needed.

    Raises:
      ValueError: where the batch lacks one of them.
    """
    kind = config.transformer.condition
    if missing := [name for name in NEEDS[kind] if name not in batch]:
        raise ValueError(
            f"transformer.condition={kind!r} needs {missing} in the data, which has "
            f"{sorted(batch)}"
        )
    if kind == "none":
        return None
    if kind == "class":
        return batch["label"]
    if kind == "text":
        return batch["text"]
    label = batch["label"][:, None] + config.transformer.text.vocab_size
    return jnp.concatenate([label, batch["text"]], axis=1)


def null(config, null_text=None) -> np.ndarray | None:
    """What stands for no condition, of one image; None where none is ever left out.

    Args:
      config: of the experiment.
      null_text: tokens of no text `[S]`; zeros where None.
    """
    part = config.transformer
    if not part.condition_dropout:
        return None
    text = np.zeros(part.text.length, np.int32) if null_text is None else null_text
    number = np.int32(config.data.num_classes)
    return {
        "class": number,
        "text": text,
        "class_text": np.concatenate([[part.text.vocab_size + number], text]),
    }[part.condition].astype(np.int32)


def leave_out(cond: jax.Array, null_cond, share: float, key) -> jax.Array:
    """Conditions `[B, ...]` of which a share, drawn, is replaced by `null_cond`."""
    left_out = jax.random.bernoulli(key, share, cond.shape[:1])
    left_out = left_out.reshape(-1, *[1] * (cond.ndim - 1))
    return jnp.where(left_out, null_cond, cond)
