# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests that checkpoints restore what was saved, on any mesh, and refuse others."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint.path import atomicity

from rq import config as config_lib
from rq import experiment
from rq.models.codebook import Codebook
from rq.parallel import sharding
from rq.training import checkpoint, checkpoint_files, checkpoint_manager
from rq.training.train_state import TrainState

CONFIG = config_lib.to_json(config_lib.default())
MESH = sharding.make_mesh(fsdp=2)


def make_state(value=1.0, *, codebook=True, ema=True, width=8):
    """Returns a state on `MESH`, with an optimizer that has empty parts."""
    w = jnp.arange(4.0 * width).reshape(4, width) * value
    params = {"layer": {"w": w, "b": jnp.full(width, value, jnp.bfloat16)}}
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(0.1, lambda tree: jax.tree.map(lambda _: True, tree)),
        optax.adam(lambda step: 0.1),
    )
    vectors = jnp.ones((3, 2)) * value
    book = {"state": Codebook(vectors, jnp.zeros(3), vectors + 1)} if codebook else {}
    state = TrainState.create(params, book, tx, ema, jax.random.key(int(value)))
    return jax.device_put(state, sharding.replicated(MESH))


def abstract(state, mesh=MESH):
    where = sharding.replicated(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state
    )


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def save(directory, states, stage="rqvae", keep=2):
    """Saves states by step, and waits until they are complete."""
    checkpoints = checkpoint_manager.Checkpoints(directory, stage, keep)
    for step, state in states.items():
        checkpoints.save(step, state, CONFIG, {"next_index": step})
    checkpoints.wait()
    return checkpoints


@pytest.mark.parametrize("codebook", [True, False])
@pytest.mark.parametrize("ema", [True, False])
def test_a_state_comes_back_as_it_was(tmp_path, codebook, ema):
    """Includes empty codebook, average and optimizer parts, bfloat16 and the key."""
    state = make_state(codebook=codebook, ema=ema)
    checkpoints = save(tmp_path, {5: state})
    found, data = checkpoints.restore(abstract(state))
    assert_same(found, state)
    assert data == {"next_index": 5}
    np.testing.assert_array_equal(
        jax.random.normal(found.key, (3,)), jax.random.normal(state.key, (3,))
    )


def test_the_latest_stay_and_any_of_them_can_be_restored(tmp_path):
    states = {step: make_state(float(step)) for step in (1, 2, 3)}
    checkpoints = save(tmp_path, states, keep=2)
    assert checkpoints.latest_step() == checkpoint.latest_step(tmp_path) == 3
    assert_same(checkpoints.restore(abstract(states[3]))[0], states[3])
    assert_same(checkpoints.restore(abstract(states[2]), 2)[0], states[2])
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint of step 1"):
        checkpoints.restore(abstract(states[1]), 1)


def test_copies_of_a_checkpoint_have_its_identity_and_no_other_has(tmp_path):
    state = make_state()
    save(tmp_path / "a", {1: state, 2: state})
    save(tmp_path / "b", {2: state})
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    first = checkpoint.identity(tmp_path / "a")
    assert checkpoint.identity(tmp_path / "copy") == first
    assert checkpoint.identity(tmp_path / "copy", 2) == first
    assert checkpoint.identity(tmp_path / "a", 1) != first
    assert checkpoint.identity(tmp_path / "b") != first


def test_damage_in_what_is_not_read_stops_nothing(tmp_path):
    """Sampling needs no optimizer, whose files may be damaged."""
    state = make_state()
    checkpoints = save(tmp_path, {1: state})
    next((tmp_path / "1/training").rglob("*manifest*")).write_text("")
    model, _ = checkpoint.load_model(tmp_path, "rqvae")
    np.testing.assert_array_equal(model["params"]["layer"]["w"][1], np.arange(8.0, 16))
    with pytest.raises(checkpoint.CheckpointError, match="damaged"):
        checkpoints.restore(abstract(state))


def test_every_chunk_of_every_file_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "CHUNK", 4)
    files = [tmp_path / "model/a", tmp_path / "training/deep/b", tmp_path / "model/c"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(range(11)))
    checkpoint_files.write_checksums(tmp_path, lambda: True)
    assert checkpoint_files.find_changes(tmp_path) == []
    for file in files[:2]:
        file.write_bytes(bytes(range(10)) + b"x")
    found = checkpoint_files.find_changes(tmp_path)
    assert [line.split()[0] for line in found] == [str(file) for file in files[:2]]


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    """The next steps do not overwrite the buffers that are being written."""
    state = make_state(width=100_000)
    expected = jax.device_get(state.params)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    checkpoints = checkpoint_manager.Checkpoints(tmp_path, "rqvae")
    checkpoints.save(1, state, CONFIG, {})
    params = state.params
    for _ in range(20):
        params = step(params)
    checkpoints.wait()
    found, _ = checkpoints.restore(abstract(make_state(width=100_000)))
    assert_same(found.params, jax.tree.map(jnp.asarray, expected))


@pytest.mark.parametrize("count", [1, 4, 8])
def test_a_checkpoint_is_restored_onto_another_mesh(tmp_path, count):
    state = make_state()
    checkpoints = save(tmp_path, {1: state})
    mesh = sharding.make_mesh(fsdp=min(count, 4), devices=jax.devices()[:count])
    target = abstract(state, mesh)
    divided = NamedSharding(mesh, PartitionSpec("fsdp"))
    w = jax.ShapeDtypeStruct((4, 8), jnp.float32, sharding=divided)
    target.params["layer"]["w"] = w
    found, _ = checkpoints.restore(target)
    assert_same(found, state)
    assert found.params["layer"]["w"].sharding == divided
    assert found.ema["layer"]["w"].sharding.mesh == mesh


@pytest.mark.parametrize("ema", [True, False])
def test_a_model_is_read_without_its_optimizer_or_its_shapes(tmp_path, ema):
    state = make_state(ema=ema)
    save(tmp_path, {3: make_state(3.0), 4: state})
    model, config = checkpoint.load_model(tmp_path, "rqvae")
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(model))
    assert_same(model["params"], state.params)
    assert_same(model["codebook"], state.codebook)
    assert_same(model["ema"], state.ema)
    assert model["ema"] or not ema
    assert (
        config_lib.differences(config_lib.from_json(config), config_lib.default()) == []
    )
    older, _ = checkpoint.load_model(tmp_path, "rqvae", step=3)
    assert_same(older["params"], make_state(3.0).params)


def test_a_model_is_read_onto_devices(tmp_path):
    save(tmp_path, {1: make_state()})
    where = sharding.replicated(sharding.make_mesh())
    model, _ = checkpoint.load_model(tmp_path, "rqvae", sharding=where)
    assert all(leaf.sharding == where for leaf in jax.tree.leaves(model))
    assert_same(model["params"], make_state().params)


def test_a_model_is_read_in_another_dtype_and_sharded(tmp_path):
    """All but the codebook, which distances need in float32."""
    state = make_state(1 / 3)
    save(tmp_path, {1: state})
    mesh = sharding.make_mesh(data=1, fsdp=8)
    everywhere = sharding.replicated(mesh)
    divided = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    where = dict.fromkeys(checkpoint.MODEL, everywhere)
    where["params"] = {"layer": {"w": divided, "b": everywhere}}
    model, _ = checkpoint.load_model(tmp_path, "rqvae", "latest", where, "bfloat16")
    w = model["params"]["layer"]["w"]
    assert w.sharding == divided and w.dtype == jnp.bfloat16
    assert {s.data.shape for s in w.addressable_shards} == {(4, 1)}
    expected = state.params["layer"]["w"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(w), np.asarray(expected))
    assert model["ema"]["layer"]["w"].dtype == jnp.bfloat16
    assert_same(model["codebook"], state.codebook)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_training_resumes_in_another_dtype(tmp_path, dtype):
    state = make_state(1 / 3)
    checkpoints = save(tmp_path, {1: state})

    def cast(x):
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(
            x.shape, dtype if floating else x.dtype, sharding=x.sharding
        )

    found, _ = checkpoints.restore(jax.tree.map(cast, abstract(state)))
    checkpoints.close()
    expected = jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
    )
    assert_same(found, expected)


def test_the_config_and_the_position_of_the_data_can_be_read_by_a_person(tmp_path):
    save(tmp_path, {1: make_state()})
    assert '"stage": "rqvae"' in (tmp_path / "1" / "config" / "metadata").read_text()
    assert '"next_index": 1' in (tmp_path / "1" / "data" / "metadata").read_text()


def test_the_error_of_a_missing_checkpoint_names_the_command_that_makes_it(tmp_path):
    folder = tmp_path / "rqvae"
    assert checkpoint.latest_step(folder) is None
    message = f"{folder} has no checkpoint of 'rqvae'; to train one, run: rq train"
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.load_model(folder, "rqvae")
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint_manager.Checkpoints(folder, "rqvae").restore(abstract(make_state()))
    assert checkpoint.latest_step(folder) is None


def test_a_checkpoint_of_the_other_stage_is_refused(tmp_path):
    save(tmp_path, {1: make_state()}, stage="transformer")
    message = f"{tmp_path}/1 is a checkpoint of 'transformer', not of 'rqvae'"
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.load_model(tmp_path, "rqvae")
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint_manager.Checkpoints(tmp_path, "rqvae").restore(
            abstract(make_state())
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 6}, "ema/layer/b is bfloat16 [8], not bfloat16 [6] (and 3 more)"),
        ({"ema": False}, "ema/layer/b is bfloat16 [8], not there (and 1 more)"),
        ({"codebook": False}, "codebook/state/counts is float32 [3], not there"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, change, message):
    checkpoints = save(tmp_path, {1: make_state()})
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoints.restore(abstract(make_state(**change)))
    start = f"{tmp_path}/1 is of another model than this config's: "
    assert str(error.value).startswith(start + message)


def test_a_relative_folder_is_made_absolute(tmp_path, monkeypatch):
    """With relative paths Orbax fails after `save` has returned."""
    monkeypatch.chdir(tmp_path)
    save("here", {1: make_state()})
    assert checkpoint.latest_step("here") == 1
    assert checkpoint.load_model("here", "rqvae")[0]["params"]


def test_an_incomplete_checkpoint_is_ignored_and_removed(tmp_path):
    save(tmp_path, {1: make_state()}).close()
    left = tmp_path / "2.orbax-checkpoint-tmp"
    left.mkdir()
    assert checkpoint.latest_step(tmp_path) == 1
    checkpoints = save(tmp_path, {2: make_state(2.0)})
    assert checkpoints.latest_step() == 2
    checkpoints.close()
    assert not left.exists()


def test_orbax_is_quiet_and_a_checkpoint_is_one_line(tmp_path, caplog):
    with caplog.at_level("INFO", logger="absl"):
        save(tmp_path, {1: make_state()})
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"rqvae: writing {tmp_path}/1"]


SPOILT = {  # the file's content, as after a power failure
    "other contents": ("data/metadata", lambda content: bytes(len(content))),
    "cannot be read": (checkpoint_files.FILES, lambda content: b""),
}


def damage(path, how):
    """Truncates or removes a checkpoint's largest model file, or spoils another.

    Returns its name.
    """
    if how in SPOILT:
        name, content = SPOILT[how]
        file = path / name
        file.write_bytes(content(file.read_bytes()))
        return file
    files = [file for file in (path / "model").rglob("*") if file.is_file()]
    file = max(files, key=lambda file: file.stat().st_size)
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    return file


@pytest.mark.parametrize("how", ["missing", "cut off", *SPOILT])
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_taken_if_allowed(
    tmp_path, how, caplog
):
    states = {step: make_state(float(step)) for step in (1, 2, 3)}
    save(tmp_path, states, keep=3).close()
    files = [damage(tmp_path / str(step), how) for step in (2, 3)]
    what = {"missing": "is missing", "cut off": "bytes of"}.get(how, how)
    strict = checkpoint_manager.Checkpoints(tmp_path, "rqvae")
    with pytest.raises(checkpoint.CheckpointError, match=what) as error:
        strict.restore(abstract(states[3]))
    assert str(files[1]) in str(error.value)
    assert "checkpoint.fallback=True" in str(error.value)
    if how != "other contents":  # of an item that sampling does not read
        with pytest.raises(checkpoint.CheckpointError, match="another --step"):
            checkpoint.load_model(tmp_path, "rqvae")
    strict.close()

    patient = checkpoint_manager.Checkpoints(tmp_path, "rqvae", fallback=True)
    found, data = patient.restore(abstract(states[1]))
    assert_same(found, states[1])
    assert data == {"next_index": 1}
    assert str(files[0]) in caplog.text and str(files[1]) in caplog.text
    # Steps 2 and 3 can be written again, and the damaged checkpoints are kept.
    for step in (2, 3):
        patient.save(step, states[step], CONFIG, {"next_index": step})
    patient.wait()
    assert_same(patient.restore(abstract(states[3]))[0], states[3])
    patient.close()
    assert (tmp_path / "3.damaged" / "model").is_dir()
    assert checkpoint.latest_step(tmp_path) == 3


def test_lists_with_only_sizes_of_old_checkpoints_are_read(tmp_path):
    save(tmp_path, {1: make_state()}).close()
    file = tmp_path / "1" / checkpoint_files.FILES
    sizes = {name: size for name, (size, _) in json.loads(file.read_text()).items()}
    file.write_text(json.dumps(sizes))
    assert checkpoint_files.find_damage(tmp_path / "1") is None
    name = damage(tmp_path / "1", "cut off")
    assert str(name) in checkpoint_files.find_damage(tmp_path / "1")


def test_the_same_step_may_be_damaged_twice(tmp_path):
    states = {step: make_state(float(step)) for step in (1, 2)}
    for _ in range(2):
        checkpoints = checkpoint_manager.Checkpoints(tmp_path, "rqvae", fallback=True)
        for step in {1, 2} - {checkpoints.latest_step()}:
            checkpoints.save(step, states[step], CONFIG, {"next_index": step})
        checkpoints.close()
        damage(tmp_path / "2", "cut off")
        checkpoints = checkpoint_manager.Checkpoints(tmp_path, "rqvae", fallback=True)
        assert_same(checkpoints.restore(abstract(states[1]))[0], states[1])
        checkpoints.close()
    names = sorted(p.name for p in tmp_path.iterdir() if p.is_dir())
    assert names == ["1", "2.damaged", "2.damaged1"]


def test_checkpoints_in_buckets_list_their_files(tmp_path, monkeypatch):
    """They have their final name from the start, and one more file at the end."""
    options = ocp.CheckpointManagerOptions
    in_bucket = atomicity.CommitFileTemporaryPath
    monkeypatch.setattr(
        checkpoint.ocp,
        "CheckpointManagerOptions",
        lambda **given: options(temporary_path_class=in_bucket, **given),
    )
    save(tmp_path, {1: make_state()}).close()
    assert (tmp_path / "1" / "commit_success.txt").exists()
    assert checkpoint_files.find_damage(tmp_path / "1") is None
    file = damage(tmp_path / "1", "cut off")
    assert str(file) in checkpoint_files.find_damage(tmp_path / "1")


def test_a_stage_with_a_damaged_last_checkpoint_is_not_finished_with_fallback(
    tmp_path,
):
    config = config_lib.default()
    config.rqvae.steps = 2
    save(tmp_path / "rqvae", {1: make_state(), 2: make_state()}).close()
    assert experiment.finished(tmp_path, "rqvae", config)
    damage(tmp_path / "rqvae" / "2", "missing")
    assert experiment.finished(tmp_path, "rqvae", config)  # reading it is an error
    config.checkpoint.fallback = True
    assert not experiment.finished(tmp_path, "rqvae", config)


def test_if_all_checkpoints_are_damaged_there_is_none(tmp_path):
    state = make_state()
    save(tmp_path, {1: state}).close()
    damage(tmp_path / "1", "missing")
    checkpoints = checkpoint_manager.Checkpoints(tmp_path, "rqvae", fallback=True)
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
        checkpoints.restore(abstract(state))
    checkpoints.close()


def test_regular_checkpoints_and_the_best_are_kept_besides_the_latest(tmp_path):
    checkpoints = checkpoint_manager.Checkpoints(
        tmp_path, "rqvae", keep=1, keep_every=4
    )
    for step in range(1, 11):
        checkpoints.save(step, make_state(float(step)), CONFIG, {"next_index": step})
        if step in (2, 3):
            checkpoints.record_if_best(step, 1.0 / step)
    checkpoints.close()
    steps = sorted(int(path.name) for path in tmp_path.iterdir() if path.is_dir())
    assert steps == [3, 4, 8, 10]
    assert checkpoint.best(tmp_path) == (3, 1 / 3)
    best, _ = checkpoint.load_model(tmp_path, "rqvae", "best")
    np.testing.assert_array_equal(best["params"]["layer"]["b"][0], 3.0)


def test_the_best_is_recorded_when_complete_and_forgotten_when_removed(tmp_path):
    checkpoints = checkpoint_manager.Checkpoints(
        tmp_path, "rqvae", keep=1, fallback=True
    )
    state = make_state()
    for step, value in ((1, 0.5), (2, 0.25)):
        checkpoints.save(step, state, CONFIG, {"next_index": step})
        checkpoints.record_if_best(step, value)
        assert (tmp_path / str(step) / checkpoint_files.FILES).exists()  # complete
    assert checkpoints.best() == (2, 0.25)
    damage(tmp_path / "2", "missing")
    assert checkpoints.restore(abstract(state))[1] == {"next_index": 1}
    assert checkpoints.best() == (None, None)
    checkpoints.close()


def test_without_an_evaluation_there_is_no_best(tmp_path):
    save(tmp_path, {1: make_state()}).close()
    with pytest.raises(checkpoint.CheckpointError, match="no best checkpoint"):
        checkpoint.load_model(tmp_path, "rqvae", "best")


def test_a_bucket_stays_a_bucket():
    assert str(checkpoint.folder("gs://bucket/run")) == "gs://bucket/run"
