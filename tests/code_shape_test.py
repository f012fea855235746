# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of codes: their configs can be trained, and tables name the best rows."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import code_shape  # noqa: E402
import codebooks  # noqa: E402

from rq.config import validate  # noqa: E402


@pytest.mark.parametrize("shape", {*code_shape.SHAPES, *code_shape.QUICK}, ids=str)
def test_every_shape_can_be_trained(shape):
    config = code_shape.make_config(shape, steps=100)
    validate(config)
    side = config.data.resolution // 2 ** (len(config.rqvae.model.ch_mult) - 1)
    assert side == shape.grid and config.rqvae.model.ch_mult[-1] == 4


def test_budgets_can_be_met_in_several_ways():
    for resolution in code_shape.RESOLUTIONS:
        bits = [s.bits for s in code_shape.SHAPES if s.resolution == resolution]
        assert sum(bits.count(budget) > 1 for budget in code_shape.BUDGETS) >= 2


def row(*shape, **numbers):
    shape = code_shape.Shape(*shape)
    found = dict(psnr=20.0, rfid=5.0, gfid=9.0, model_bits=300.0, images_per_second=7.0)
    return found | {"shape": shape._asdict(), "bits": shape.bits} | numbers


def test_tables_name_the_best_shape_of_each_budget():
    rows = [
        row(32, 4, 4, 256),
        row(32, 8, 1, 256, rfid=4.0),
        row(32, 4, 8, 256, gfid=3.0),
        row(64, 4, 4, 256, gfid=1.0),
    ]
    text = code_shape.tables(rows)
    assert "| 32 | 4 × 4 × 8, K = 256 | 1,024 | 20.00 dB | 5.00 | 3.00 |" in text
    assert "| 32 | 512 | 8 × 8 × 1, K = 256 | 4 × 4 × 4, K = 256 |" in text
    assert "| 32 | 1,024 | 8 × 8 × 1, K = 256 | 4 × 4 × 8, K = 256 |" in text
    assert "| 32 | 2,048 |" not in text  # nothing new
    assert code_shape.best(rows, 512, "gfid")["shape"]["resolution"] == 64
    assert code_shape.best(rows, 256, "gfid") is None


@pytest.mark.parametrize("data", codebooks.SETS)
def test_every_arm_has_the_same_bits(data):
    bits = set()
    for arm in codebooks.ARMS.values():
        changes = {k: v for k, v in arm.items() if k != "sizes"}
        if "sizes" in arm:
            sizes = {"digits": (64, 512, 256, 512), "emoji": (256, 4096, 256, 4096)}
            changes["rqvae.model.num_codes"] = sizes[data]
        config = codebooks.make_config(data, 100, 0, changes)
        validate(config)
        sizes = config.rqvae.model.num_codes * (4 // len(config.rqvae.model.num_codes))
        bits.add(sizes[0] * sizes[1] * sizes[2] * sizes[3])
    assert len(bits) == 1


def test_rows_of_another_number_of_steps_are_not_taken(tmp_path):
    (tmp_path / "result.json").write_text('{"steps": 7}')
    config = codebooks.make_config("digits", 100, 0, {})
    with pytest.raises(SystemExit, match="has 7 steps"):
        codebooks.train(config, tmp_path)
