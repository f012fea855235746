# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stage 2 alone, on codes of a tokenizer of your own.

    rq train --config=codes --config.transformer.codes_file=FILE.npz --workdir=RUN
    rq evaluate RUN
    rq sample RUN --num_samples=64 --classes=3

The file has `codes`, integers `[N, H, W, D]` (`[N, H, W]` of one depth), and
`codebook`, floats `[K, C]` or `[D, K, C]`; and, if you have them, `labels` `[N]`,
`captions` `[N]` and `features` `[N, H, W, C]`, what was quantized. The shapes are taken
from it, and the condition is the captions or else the labels. `data.holdout` examples
are set aside for evaluation. There is no RQ-VAE: `rq sample` writes codes for your own
decoder.

Targets are the codes themselves. With `features`, the paper's soft targets and
stochastic codes are possible: `--config.transformer.loss.soft_targets=True
--config.transformer.loss.stochastic_codes=True`, if the codes are the nearest ones of
the residuals.

The model has 52 million parameters with 2,048 codes, as that of `folder:128`, for one
GPU; set `transformer.model.width`, `body.layers` and `head.layers` for others.
"""

from rq.config import choose_variant, default


def get_config(variant=""):
    """Returns the config; there are no variants."""
    choose_variant(variant, {"": None})
    config = default()
    config.stages = ("codes", "transformer")
    transformer = config.transformer
    transformer.batch_size = 64
    transformer.steps = 100_000
    transformer.condition = "auto"
    transformer.condition_dropout = 0.1
    transformer.loss.soft_targets = False
    transformer.loss.stochastic_codes = False
    transformer.model.width = 512
    for stack, layers in ((transformer.model.body, 12), (transformer.model.head, 4)):
        stack.layers = layers
        stack.heads = 8
    transformer.model.dtype = "bfloat16"
    transformer.optimizer.warmup_steps = 1000
    config.sampling.top_p = (0.95,)
    config.log.eval_every = 5000
    return config
