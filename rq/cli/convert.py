# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Converts weights of frozen networks to files that rq reads.

    rq convert lpips --vgg=vgg16-397923af.pth --out=lpips.npz
    rq convert resnet --weights=resnet101-63fe2227.pth --out=resnet101.npz
    rq convert inception --weights=pt_inception-2015-12-05-6726825d.pth --out=FILE.npz

They are for rqvae.lpips_weights, for --classifier of `rq sample`, and for --inception
of `rq evaluate`.
"""

from __future__ import annotations

import functools
import sys

from absl import flags

from rq.cli import exits
from rq.config import ConfigError
from rq.config.command_line import one_line
from rq.convert import inception_weights, lpips_weights, resnet_weights

POSITIONAL = "kind"
_KINDS = ("lpips", "resnet", "inception")


def define(values) -> None:
    """Defines the flags."""
    string = functools.partial(flags.DEFINE_string, flag_values=values)
    flags.DEFINE_enum(
        "kind", None, _KINDS, "network; may stand without --kind=", flag_values=values
    )
    string("weights", None, "resnet, inception: .pth of torchvision, of pytorch-fid")
    string("vgg", None, "lpips: torchvision's vgg16-*.pth")
    string(
        "heads",
        None,
        "lpips: weights/v0.1/vgg.pth of the package lpips; its own if absent",
    )
    string("out", None, "the .npz to write")


def run(values) -> None:
    """Converts one network; ends with exit code 2 on an error."""
    try:
        _convert(values)
    except (ValueError, OSError) as error:
        exits.print_error(one_line(error), values.debug)
        sys.exit(2)
    print(f"wrote {values.out}")


def _convert(values) -> None:
    if values.kind is None:
        raise ConfigError(f"rq convert needs one of {', '.join(_KINDS)}")
    given, other = ("vgg", "weights") if values.kind == "lpips" else ("weights", "vgg")
    for name in (given, "out"):
        if values[name].value is None:
            raise ConfigError(f"rq convert {values.kind} needs --{name}=FILE")
    for name in (other, *(["heads"] if values.kind != "lpips" else [])):
        if values[name].present:
            raise ConfigError(f"--{name} does not go with rq convert {values.kind}")
    if values.kind == "lpips":
        lpips_weights.convert(values.vgg, values.heads, values.out)
    elif values.kind == "resnet":
        resnet_weights.convert(values.weights, values.out)
    else:
        inception_weights.convert(values.weights, values.out)
