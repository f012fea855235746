# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Converts weights of frozen networks to files that configs and flags name.

python -m rq.convert lpips --vgg=vgg16-397923af.pth --out=lpips.npz
python -m rq.convert resnet --weights=resnet101-63fe2227.pth --out=resnet101.npz
python -m rq.convert inception --weights=pt_inception-2015-12-05-6726825d.pth \\
    --out=inception.npz
"""

from __future__ import annotations

import argparse
import sys

from rq.convert import inception_weights, lpips_weights, resnet_weights


def main(args=None) -> None:
    """Runs one conversion; mistakes are told in a line, with status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m rq.convert",
        description="Converts weights of frozen networks to files.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    part = kinds.add_parser("lpips", help="VGG16 and heads, for rqvae.lpips_weights")
    part.add_argument("--vgg", required=True, help="torchvision's vgg16-*.pth")
    part.add_argument(
        "--heads", help="weights/v0.1/vgg.pth of the package lpips (its own if absent)"
    )
    part.set_defaults(
        run=lambda given: lpips_weights.convert(given.vgg, given.heads, given.out)
    )
    part = kinds.add_parser("resnet", help="for --classifier of --mode=sample")
    part.add_argument("--weights", required=True, help="torchvision's resnet*.pth")
    part.set_defaults(
        run=lambda given: resnet_weights.convert(given.weights, given.out)
    )
    part = kinds.add_parser("inception", help="for --inception of evaluations")
    part.add_argument(
        "--weights", required=True, help="pytorch-fid's pt_inception-2015-12-05-*.pth"
    )
    part.set_defaults(
        run=lambda given: inception_weights.convert(given.weights, given.out)
    )
    for part in kinds.choices.values():
        part.add_argument("--out", required=True, help="the .npz to write")
    given = parser.parse_args(args)
    try:
        given.run(given)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
