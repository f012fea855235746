# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests which part of the model an instruction of a profile counts for."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "benchmarks"))
import profile_parts  # noqa: E402

HLO = """
%fused (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  ROOT %m = f32[2]{0} multiply(%x, %x), metadata={op_name="jit(step)/optimizer/mul"}
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %dot.1 = f32[2]{0} dot(%x, %x), metadata={op_name="blocks/mlp_in/dot_general"}
  ROOT %wrapped.2 = f32[2]{0} fusion(%dot.1), kind=kLoop, calls=%fused
}
"""


def test_a_fusion_has_the_name_of_what_it_computes():
    names = profile_parts.op_names(HLO)
    assert names["wrapped.2"] == "jit(step)/optimizer/mul"
    assert names["dot.1"] == "blocks/mlp_in/dot_general"


@pytest.mark.parametrize(
    "kind, op_name, expected",
    [
        ("ynn_fusion.1", "body_stack/while/body/blocks/mlp_in/dot_general", 0),
        ("broadcast_add.3", "blocks/Dropout_0/jit(_bernoulli)/jit(_uniform)/add", 1),
        ("fusion.2", "decoder/up_1_block_2/norm1/reduce_sum", 2),
        ("fusion.4", "jvp(quantizer)/while/body/dot_general", 3),
        ("wrapped_broadcast.7", "", 4),
    ],
)
def test_an_instruction_counts_for_the_module_in_its_name(kind, op_name, expected):
    parts = ("matrix products", "dropout", "normalisation", "quantizer", "other")
    assert profile_parts.part(kind, op_name) == parts[expected]
