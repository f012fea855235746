# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""A run directory that version 0.1 left unfinished opens, resumes and samples the same.

`tests/earlier_run/run_0.1.tar.xz` has config.json and the checkpoints of step 2 of both
stages of `configs/digits.py:tiny`, written by commit 27c3cfc, before modules moved into
packages, and of step 4 of the RQ-VAE, on which the transformer was trained, resumed by
commit 9a9c9e0. `expected.npz` has what commit 27c3cfc made of them: parameters and
codebooks after step 4, and samples (`--num_samples=12 --classes=3,7 --seed=5
--top_p=0.9`).

All random numbers are the same. Sums are not taken in the same order any more (see
`rq.models.channel_sums`), so that the last bits of parameters differ.
"""

import os
import pathlib
import shutil
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


def resume(workdir, data_dir, stage_1: bool = False):
    """Extracts the run and trains on: stage 2, or stage 1 and a new stage 2."""
    with tarfile.open(HERE / "earlier_run/run_0.1.tar.xz") as file:
        file.extractall(workdir, filter="data")
    if stage_1:
        shutil.rmtree(workdir / "rqvae/4")
        shutil.rmtree(workdir / "transformer")
    config = [
        "--config=configs/digits.py:tiny",
        "--config.data.resolution=32",  # as the config was
        "--config.data.augment=none",
    ]
    run(*config, f"--workdir={workdir}", f"--config.data.dir={data_dir}")
    return workdir


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, data_dir):
    return resume(tmp_path_factory.mktemp("earlier") / "tiny", data_dir)


def check_close(state, stage, expected):
    """Checks all but a few parameters: Adam makes steps of rounding errors, too.

    Some gradients are zero but for rounding, such as those of a key's bias.
    """
    tree = {"params": state.params, "codebook": state.codebook}
    found = {
        stage + jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    assert found.keys() == {name for name in expected if name.startswith(stage)}
    apart = np.concatenate([np.abs(found[x] - expected[x]).ravel() for x in found])
    assert np.quantile(apart, 0.99) < 1e-6


@pytest.mark.slow
def test_resuming_stage_1_of_a_run_of_version_0_1_ends_the_same(
    tmp_path, data_dir, expected
):
    resume(tmp_path, data_dir, stage_1=True)
    check_close(Experiment(tmp_path).rqvae_state, "rqvae", expected)


@pytest.mark.slow
def test_resuming_stage_2_of_a_run_of_version_0_1_ends_the_same(resumed, expected):
    check_close(Experiment(resumed).transformer_state, "transformer", expected)


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
        # Pixels are 8-bit: a rounding error may move one to the next value.
        difference = drawn["arr_0"].astype(int) - expected["images"]
        assert np.abs(difference).max() <= 1
