# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Auxiliary networks: the discriminator, VGG16 (LPIPS), Inception-v3 and ResNet."""
