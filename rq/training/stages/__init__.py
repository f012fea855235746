# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The stages: objects with `init`, `train_step` and `evaluate` for the train loop."""

from rq.training.stages.features_stage import FeaturesStage
from rq.training.stages.rqvae_stage import RQVAEStage
from rq.training.stages.stage import Stage
from rq.training.stages.transformer_stage import TransformerStage

__all__ = ["FeaturesStage", "RQVAEStage", "Stage", "TransformerStage"]
