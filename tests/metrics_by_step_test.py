# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests the ranking and the table of benchmarks/metrics_by_step.py."""

import importlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

metrics_by_step = importlib.import_module("metrics_by_step")


def rows(*distances):
    """Returns rows of noise, two steps, two scales of the second, and real images."""
    names = (
        "noise",
        "step 200",
        "step 1,000",
        "step 1,000, guidance 1.5",
        "step 1,000, guidance 3",
        "real, unseen",
    )
    return [
        {"name": name, "FID": distance}
        for name, distance in zip(names, distances, strict=True)
    ]


@pytest.mark.parametrize(
    "distances, wrong",
    [
        ((90.0, 20.0, 8.0, 6.0, 9.0, 1.0), []),
        # It is enough that the best scale is better than the first checkpoint.
        ((90.0, 20.0, 30.0, 6.0, 40.0, 1.0), []),
        (
            (90.0, 20.0, 8.0, 6.0, 9.0, 7.0),
            ["real, unseen", "step 1,000, guidance 1.5"],
        ),
        ((90.0, 5.0, 8.0, 6.0, 9.0, 1.0), ["step 1,000, guidance 1.5", "step 200"]),
        ((10.0, 20.0, 8.0, 6.0, 9.0, 1.0), ["step 200", "noise"]),
    ],
)
def test_ranks_real_before_the_best_before_the_first_before_noise(distances, wrong):
    wrong_pairs = metrics_by_step.out_of_order(rows(*distances))
    assert len(wrong_pairs) == bool(wrong)
    assert all(name in wrong_pairs[0] for name in wrong)


def test_without_guidance_the_last_checkpoint_is_the_best():
    found = [row for row in rows(90, 20, 8, 6, 9, 1) if "guidance" not in row["name"]]
    assert metrics_by_step.out_of_order(found) == []
    found[2]["FID"] = 21.0
    assert "step 1,000" in metrics_by_step.out_of_order(found)[0]


def test_the_table_never_says_fid_alone():
    row = dict.fromkeys(metrics_by_step.COLUMNS, 0.5)
    row |= {"name": "noise", "images": 5000, "FID of all": 12.344}
    head, _, line = metrics_by_step.table([row], 500, "digits features").splitlines()
    cells = [cell.strip() for cell in head.strip("|").split("|")]
    assert cells[1] == "FID (digits features)" and "FID" not in cells
    assert "FID (digits features) of all" in cells and len(cells) == line.count("|") - 1
    assert line.startswith("| noise | 0.50 | 0.500 |")
    assert line.endswith("| 12.34 | 5,000 |")


def test_checkpoints_are_found_by_step_and_remnants_are_not(tmp_path):
    for name in ("1000", "200", "200.damaged", "best.json"):
        (tmp_path / "transformer" / name).mkdir(parents=True)
    assert metrics_by_step.steps(tmp_path) == [200, 1000]
