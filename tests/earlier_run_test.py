# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""A run directory that version 0.1 left unfinished opens, resumes and samples the same.

`tests/earlier_run/run_0.1.tar.xz` has config.json and the checkpoints of step 2 of both
stages of `configs/digits.py:tiny`, written by commit 27c3cfc, before modules moved into
packages. `expected.npz` has what that commit made of them: parameters and codebooks
after step 4, and samples (`--num_samples=12 --classes=3,7 --seed=5 --top_p=0.9`).
"""

import os
import pathlib
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pytest

from rq.experiment import Experiment

HERE = pathlib.Path(__file__).parent


def run(*args):
    """Runs `python -m rq.main` on one CPU device, with XLA's own defaults."""
    # A file of no flags: `import rq` adds none to it. The last bits depend on fusions.
    flags = HERE / "earlier_run/no_xla_flags.txt"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": str(flags)}
    command = [sys.executable, "-m", "rq.main", *args]
    subprocess.run(command, check=True, env=environment, cwd=HERE.parent, timeout=600)


@pytest.fixture(scope="module")
def expected():
    with np.load(HERE / "earlier_run/expected.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("earlier") / "tiny"
    with tarfile.open(HERE / "earlier_run/run_0.1.tar.xz") as file:
        file.extractall(workdir, filter="data")
    config = [
        "--config=configs/digits.py:tiny",
        "--config.data.resolution=32",  # as the config was
        "--config.data.augment=none",
    ]
    run(*config, f"--workdir={workdir}", f"--config.data.dir={data_dir}")
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["rqvae", "transformer"])
def test_resuming_a_run_of_version_0_1_ends_bit_for_bit_the_same(
    resumed, expected, stage
):
    experiment = Experiment(resumed)
    state = getattr(experiment, f"{stage}_state")
    tree = {"params": state.params, "codebook": state.codebook}
    found = {
        stage + jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    assert found.keys() == {name for name in expected if name.startswith(stage)}
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.slow
def test_samples_of_a_run_of_version_0_1_are_the_same_codes(resumed, expected):
    out = resumed / "samples.png"
    run(
        "--mode=sample", f"--workdir={resumed}", "--num_samples=12", "--classes=3,7",
        "--seed=5", "--top_p=0.9", f"--out={out}",
    )  # fmt: skip
    with np.load(out.with_suffix(".npz")) as drawn:
        np.testing.assert_array_equal(drawn["codes"], expected["codes"])
        np.testing.assert_array_equal(drawn["labels"], expected["labels"])
        np.testing.assert_array_equal(drawn["arr_0"], expected["images"])
