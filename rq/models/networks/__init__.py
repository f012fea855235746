# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Networks around the models: VGG16, Inception, ResNet, the discriminator."""
