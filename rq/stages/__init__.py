# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the train loop is given, one object a stage: init, train_step, evaluation."""

from rq.stages.features import FeaturesStage
from rq.stages.rqvae import RQVAEStage
from rq.stages.stage import Stage
from rq.stages.transformer import TransformerStage

__all__ = ["FeaturesStage", "RQVAEStage", "Stage", "TransformerStage"]
