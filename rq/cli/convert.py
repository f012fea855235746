# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Converts weights of frozen networks to files that rq reads.

    rq convert lpips --vgg=vgg16-397923af.pth --out=lpips.npz
    rq convert resnet --weights=resnet101-63fe2227.pth --out=resnet101.npz
    rq convert inception --weights=pt_inception-2015-12-05-6726825d.pth --out=FILE.npz

The files are for rqvae.lpips_weights, for --classifier of `rq sample`, and for
--inception of `rq evaluate`.
"""

from __future__ import annotations

import sys

from rq.cli import exits
from rq.cli.flag import Flag
from rq.config import ConfigError
from rq.config.command_line import one_line
from rq.convert import inception_weights, lpips_weights, resnet_weights

_KINDS = ("lpips", "resnet", "inception")
POSITIONAL = "kind"
FLAGS = (
    Flag("kind", "network to convert; --kind= may be omitted", choices=_KINDS),
    Flag("weights", "resnet: .pth of torchvision; inception: .pth of pytorch-fid"),
    Flag("vgg", "lpips: torchvision's vgg16-*.pth"),
    Flag(
        "heads", "lpips: weights/v0.1/vgg.pth of the package lpips; default: installed"
    ),
    Flag("out", "the .npz to write"),
)


def run(values) -> None:
    """Converts one network; exits with code 2 on an error."""
    try:
        _convert(values)
    except (ValueError, OSError) as error:
        exits.print_error(one_line(error), values.debug)
        sys.exit(2)
    print(f"wrote {values.out}")


def _convert(values) -> None:
    if values.kind is None:
        raise ConfigError(f"rq convert needs one of {', '.join(_KINDS)}")
    lpips = values.kind == "lpips"
    for name in ("vgg" if lpips else "weights", "out"):
        if values[name].value is None:
            raise ConfigError(f"rq convert {values.kind} needs --{name}=FILE")
    for name in ("weights",) if lpips else ("vgg", "heads"):
        if values[name].present:
            raise ConfigError(f"rq convert {values.kind} does not use --{name}")
    if lpips:
        lpips_weights.convert(values.vgg, values.heads, values.out)
    elif values.kind == "resnet":
        resnet_weights.convert(values.weights, values.out)
    else:
        inception_weights.convert(values.weights, values.out)
