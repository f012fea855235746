# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Positions in any order: training, likelihoods, completion, several at once."""

import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from sampling_test import logits_of, tiny
from stages_test import (
    BATCH,
    check_transformer_on_eight_devices,
    make_stage,
    one_device,
)
from stages_test import tiny as tiny_config

from rq.config import ConfigError, SamplingConfig, validate
from rq.models.unroll import unroll
from rq.parallel import sharding
from rq.sampling import Sampler, likelihood, make_filters, make_guidance, program
from rq.sampling.groups import draw_groups
from rq.sampling.inpainting import make_given
from rq.sampling.order import group_starts, largest_group, make_order
from rq.sampling.sampler import Wanted

KEY = jax.random.key(0)
SOURCE = dict(source_shape=(2, 3, 2), source_dim=4)


def any_order(**changes):
    """A transformer of 2 x 3 x 2 codes; what its queries ask for is random."""
    model, params, codebook = tiny(any_order=True, **changes)
    shape = params["target_positions"].shape
    params["target_positions"] = jax.random.normal(jax.random.key(9), shape)
    return model, params, codebook


def orders(batch, positions=6, seed=4):
    order = np.random.default_rng(seed).permuted([range(positions)] * batch, axis=1)
    return jnp.asarray(order, jnp.int32)


def random_codes(batch, shape=(2, 3, 2)):
    return jax.random.randint(jax.random.key(2), (batch, *shape), 0, 8)


def with_source(model, cond, null):
    """Adds random codes of source images, if the model reads them, to a condition."""
    if not model.source_shape:
        return cond, null
    cond = cond.reshape(len(cond), -1)
    number = model.source_length * model.source_shape[2]
    codes = jax.random.randint(jax.random.key(8), (len(cond), number), 0, 8)
    null = jnp.concatenate([jnp.full(number, -1), jnp.reshape(null, -1)])
    return jnp.concatenate([codes, cond], axis=1), null


def in_raster(order):
    return jnp.broadcast_to(jnp.arange(order.shape[1]), order.shape)


# The model


def test_row_by_row_it_is_the_model_of_raster_order():
    """With queries that say nothing, as they do at first."""
    model, params, codebook = tiny()
    codes, cond, order = random_codes(3), jnp.array([1, 4, 0]), orders(3)
    expected = logits_of(model, params, codes, cond, codebook)
    model = model.clone(any_order=True)
    fresh = model.init(KEY, codes, cond, codebook)["params"]["target_positions"]
    assert not jnp.any(fresh.unbox())
    params = params | {"target_positions": jnp.zeros((6, 16))}
    forward = jax.jit(model.apply)
    for given in (None, in_raster(order)):
        found = forward({"params": params}, codes, cond, codebook, order=given)
        np.testing.assert_array_equal(found, expected)
    found = forward({"params": params}, codes, cond, codebook, order=order)
    assert not np.allclose(found, expected)


def test_each_position_sees_those_before_it_in_the_order_alone():
    model, params, codebook = any_order(condition_length=2)
    order, codes = orders(1), random_codes(1)
    cond = jnp.array([[1, 4]])

    @jax.jit
    def logits(codes):
        found = model.apply({"params": params}, codes, cond, codebook, order=order)
        return found.reshape(6, 2, -1)

    before = logits(codes)
    for number, position in enumerate(order[0]):
        row, column = divmod(int(position), 3)
        other = codes.at[0, row, column, 1].add(1) % 8
        seen = np.abs(logits(other) - before).max(axis=(1, 2)) > 1e-6
        assert set(np.flatnonzero(seen)) == set(order[0, number + 1 :].tolist())


@pytest.mark.parametrize("code_shape", [(1, 3, 1), (2, 2, 1)])
def test_under_any_order_all_code_maps_sum_to_one(code_shape):
    size, number = 3, int(np.prod(code_shape))
    model, params, codebook = any_order(code_shape=code_shape, num_codes=(size,))
    every = np.array(list(itertools.product(range(size), repeat=number)), np.int32)
    codes = jnp.asarray(every.reshape(-1, *code_shape))
    totals = []
    for order in list(itertools.permutations(range(number)))[:7:3]:
        order = jnp.broadcast_to(jnp.asarray(order), (len(codes), number))
        log_probs = likelihood.log_likelihood(
            model, params, codebook[:size], codes, None, order
        )
        totals.append(np.asarray(log_probs, np.float64).sum((1, 2, 3)))
        np.testing.assert_allclose(np.exp(totals[-1]).sum(), 1, rtol=1e-5)
    assert not np.allclose(totals[0], totals[1])


def test_a_model_of_raster_order_refuses_others():
    model, params, codebook = tiny()
    for changes in (dict(order=orders(2)), dict(group_starts=[0, 6])):
        with pytest.raises(ValueError, match="row by row: no other order"):
            program.sample(model, params, codebook, None, KEY, batch=2, **changes)
    with pytest.raises(ValueError, match="row by row: no other order"):
        model.apply(
            {"params": params}, random_codes(2), None, codebook, order=orders(2)
        )


# Orders and groups


@hypothesis.given(
    st.integers(1, 5), st.integers(1, 6), st.booleans(), st.integers(0, 2**30)
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_kept_positions_come_first_and_none_is_left_out(rows, columns, spread, bits):
    keep = np.array([bits >> i & 1 for i in range(rows * columns)], bool)
    by_code = np.stack([keep, np.ones_like(keep)], axis=-1)
    order = make_order(by_code.reshape(rows, columns, 2), spread)
    assert sorted(order) == list(range(rows * columns))
    assert keep[order[: keep.sum()]].all()
    if not spread:
        assert (np.diff(order[keep.sum() :]) > 0).all()


def test_spread_positions_are_far_apart():
    order = make_order(np.zeros((8, 8, 1), bool), spread=True)
    for number, least in ((4, 5), (8, 2.8), (16, 1.4)):
        rows, columns = np.divmod(order[:number], 8)
        distances = np.hypot(
            rows[:, None] - rows, columns[:, None] - columns
        ) + 99 * np.eye(number)
        assert distances.min() >= least


@hypothesis.given(st.integers(1, 40), st.integers(1, 45), st.data())
@hypothesis.settings(max_examples=60, deadline=None)
def test_groups_have_all_unknown_positions_once(positions, steps, data):
    known = data.draw(st.integers(0, positions))
    starts = group_starts(positions, known, steps)
    sizes = np.diff(starts)
    assert len(sizes) == steps and sizes.min() >= 0
    assert (starts[0], starts[-1]) == (known, positions)
    assert (sizes > 0).sum() == min(steps, positions - known)
    assert sizes.max() <= largest_group(positions, steps)


def test_groups_grow():
    assert np.diff(group_starts(64, 0, 8)).tolist() == [1, 4, 6, 8, 9, 12, 12, 12]
    assert largest_group(64, 8) == 12
    assert np.diff(group_starts(64, 0, 64)).tolist() == [1] * 64


# Sampling


@pytest.mark.parametrize(
    "changes",
    [{}, dict(condition_length=3), dict(num_codes=(8, 5), shared_classifier=False)],
    ids=str,
)
def test_decoding_in_an_order_equals_the_full_forward_pass(changes):
    model, params, codebook = any_order(**changes)
    codes, order = random_codes(3) % 5, orders(3)
    shape = (3, model.condition_length)[: 1 + (model.condition_length > 1)]
    cond = jax.random.randint(jax.random.key(3), shape, 0, 5)
    kept, logits = program.sample(
        model,
        params,
        codebook,
        cond,
        KEY,
        codes=codes,
        keep=True,
        return_logits=True,
        order=order,
    )
    np.testing.assert_array_equal(kept, codes)
    full = model.apply({"params": params}, codes, cond, codebook, order=order)
    np.testing.assert_allclose(logits, full, 1e-4, 1e-4)


def sampled(steps, guided=True, keep=None, batch=3, order=None, first=0, **changes):
    """Codes drawn in groups, or one by one (None)."""
    model, params, codebook = any_order(**changes)
    config = SamplingConfig(guidance=(2.0, 1.5), guidance_schedule="linear", top_p=0.9)
    shape = (batch, model.condition_length)[: 1 + (model.condition_length > 1)]
    cond = jax.random.randint(jax.random.key(3), shape, 0, 4)
    keep = np.zeros((2, 3, 2), bool) if keep is None else keep
    order = make_order(keep, spread=True) if order is None else order
    options = {}
    if steps is not None:
        known = int(keep.all(-1).sum())
        options = dict(
            group_starts=group_starts(6, known, steps),
            largest_group=largest_group(6, steps),
        )
    cond, null_cond = with_source(model, cond, jnp.full(shape[1:], 4))
    return program.sample(
        model,
        params,
        codebook,
        cond,
        jax.random.key(5),
        filters=make_filters(config, model.depth),
        guidance=make_guidance(config, model.code_shape) if guided else None,
        null_cond=null_cond,
        codes=random_codes(batch),
        keep=keep,
        order=order,
        first_index=first,
        **options,
    )


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("length", [1, 3])
def test_groups_of_one_position_are_the_sequential_sampler(length, guided):
    found = sampled(6, guided, condition_length=length)
    np.testing.assert_array_equal(found, sampled(None, guided, condition_length=length))


def test_groups_of_one_position_complete_as_the_sequential_sampler_does():
    keep = np.zeros((2, 3, 2), bool)
    keep[1], keep[0, 1, 0] = True, True
    found = sampled(6, keep=keep)
    np.testing.assert_array_equal(found, sampled(None, keep=keep))
    np.testing.assert_array_equal(found[:, keep], random_codes(3)[:, keep])
    assert (found != random_codes(3)).any()


@pytest.mark.parametrize("changes", [{}, SOURCE], ids=["none", "source"])
def test_a_position_of_a_group_is_drawn_as_if_it_came_next(changes):
    """Given all groups before it, and none of its own."""
    steps, spread = 2, make_order(np.zeros((2, 3, 2), bool), spread=True)
    found = sampled(steps, **changes)
    starts = group_starts(6, 0, steps)
    for begin, end in itertools.pairwise(starts):
        for position in spread[begin:end]:
            others = [x for x in spread[begin:] if x != position]
            order = np.asarray([*spread[:begin], position, *others])
            keep = np.zeros((6, 2), bool)
            keep[spread[:begin]] = True
            keep = keep.reshape(2, 3, 2)
            alone = _continued(found, keep, order, begin, changes)
            row, column = divmod(int(position), 3)
            np.testing.assert_array_equal(found[:, row, column], alone[:, row, column])


def _continued(codes, keep, order, begin, changes):
    """Draws one by one from position number `begin` on; guidance has grown by then."""
    model, params, codebook = any_order(**changes)
    config = SamplingConfig(guidance=(2.0, 1.5), guidance_schedule="linear", top_p=0.9)
    guidance = make_guidance(config, model.code_shape)
    numbers = {int(p): i for i, p in enumerate(make_order(keep * False, True))}
    guidance = guidance.at[begin].set(guidance[numbers[int(order[begin])]])
    cond = jax.random.randint(jax.random.key(3), (3,), 0, 4)
    cond, null_cond = with_source(model, cond, 4)
    return program.sample(
        model,
        params,
        codebook,
        cond,
        jax.random.key(5),
        filters=make_filters(config, model.depth),
        guidance=guidance,
        null_cond=null_cond,
        codes=codes,
        keep=keep,
        order=order,
    )


def test_in_groups_the_first_index_changes_the_samples():
    whole = sampled(3)
    np.testing.assert_array_equal(whole, sampled(3))
    assert (np.asarray(sampled(3, first=9)) != whole).any()


def test_one_program_for_all_masks():
    model, params, codebook = any_order()
    variables = {"params": params, "codebook": {"state": _State(codebook)}}
    sampler = Sampler(model, variables, None, None, mesh=one_device(), null_cond=4)
    codes, before = np.asarray(random_codes(1)[0]), draw_groups._cache_size()
    cond = np.array([1, 2, 3], np.int32)
    for mask in ("bottom", "left", "all"):
        given = make_given(codes, mask)
        config = SamplingConfig(parallel_steps=3, batch_size=2)
        found = codes_of(sampler, cond, config, given=given)
        np.testing.assert_array_equal(
            found[:, given.keep], np.stack([codes[given.keep]] * 3)
        )
    assert draw_groups._cache_size() == before + 1
    alone = codes_of(sampler, cond[:1], SamplingConfig(parallel_steps=3))
    np.testing.assert_array_equal(alone[0], found[0])


class _State:
    def __init__(self, embedding):
        self.embedding = embedding


def codes_of(sampler, cond, config, **options):
    batches = sampler.batches(cond, len(cond), config, **options)
    return np.concatenate([batch.codes for batch in batches])


@pytest.mark.slow
def test_row_by_row_samples_of_different_masks_are_those_of_the_sampler():
    model, params, codebook = any_order()
    variables = {"params": params, "codebook": {"state": _State(codebook)}}
    sampler = Sampler(model, variables, None, None, mesh=one_device(), null_cond=4)
    codes = np.asarray(random_codes(1)[0])
    config = SamplingConfig(seed=3)
    kept = [None, make_given(codes, "top"), make_given(codes, "left")]
    wanted = [Wanted(np.int32(i), i, config, given) for i, given in enumerate(kept)]
    rows = np.concatenate(list(sampler.by_row(wanted, 4)), axis=1)
    order = sampler.row_order(wanted)
    for i, one in enumerate(wanted):
        found = np.empty((6, 2), np.int32)
        found[order[i]] = rows[i]
        cond = np.asarray([one.cond])
        expected = codes_of(sampler, cond, config, first=i, given=one.given)[0]
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    with pytest.raises(ConfigError, match="not row by row"):
        many = config.replace(parallel_steps=2)
        list(sampler.by_row([Wanted(np.int32(0), 0, many)], 1))


def test_groups_need_a_model_of_any_order():
    model, params, codebook = tiny()
    variables = {"params": params, "codebook": {"state": _State(codebook)}}
    sampler = Sampler(model, variables, None, None, mesh=one_device())
    with pytest.raises(ConfigError, match="needs a model that was trained with"):
        codes_of(sampler, np.array([1]), SamplingConfig(parallel_steps=3))


def test_unrolled_weights_are_those_of_the_model():
    model, params, codebook = any_order()
    plain = program.sample(model, params, codebook, None, KEY, batch=2, order=orders(2))
    model, params = unroll(model, params)
    found = program.sample(model, params, codebook, None, KEY, batch=2, order=orders(2))
    np.testing.assert_array_equal(found, plain)


# Training


def stage_of(order, **changes):
    config = tiny_config()
    config.transformer.update(order=order, **changes)
    return make_stage("transformer", config, one_device())


@pytest.mark.parametrize(
    "order, anneal, step, expected",
    [
        ("random", (0.5, 0.75), 99, 1.0),
        ("annealed", (0.5, 0.75), 0, 1.0),
        ("annealed", (0.5, 0.75), 50, 1.0),
        ("annealed", (0.2, 0.7), 45, 0.5),
        ("annealed", (0.5, 0.75), 75, 0.0),
        ("annealed", (0.5, 0.5), 50, 0.0),
        ("annealed", (0.5, 0.5), 49, 1.0),
    ],
)
def test_the_fraction_of_random_orders(order, anneal, step, expected):
    stage, _ = stage_of(order, order_anneal=anneal)
    stage.steps = 100
    found = np.asarray(stage.drawn_order(1000, step, KEY))
    np.testing.assert_array_equal(np.sort(found), [range(16)] * 1000)
    random = np.mean((found != range(16)).any(axis=1))
    assert abs(random - expected) < (0.06 if 0 < expected < 1 else 1e-9)


def test_raster_order_draws_none():
    assert stage_of("raster")[0].drawn_order(4, 0, KEY) is None


@pytest.mark.slow
def test_the_loss_depends_on_the_order_and_is_of_the_same_codes():
    found = []
    for order in ("raster", "random"):
        stage, batch = stage_of(order)
        state = sharding.unbox(jax.jit(stage.init)(KEY))
        found.append(jax.jit(stage.gradients)(state, batch, KEY)[2])
    raster, random = (float(x["loss"]) for x in found)
    assert raster != random and abs(raster - random) < 0.5


@pytest.mark.slow
def test_eight_devices_compute_what_one_does():
    config = tiny_config()
    config.transformer.order = "annealed"
    config.transformer.order_anneal = (0.0, 1.0)
    check_transformer_on_eight_devices(config)
    assert BATCH > 1


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(order_anneal=(0.7, 0.2)), "two fractions, the first at most the second"),
        (dict(order_anneal=(0.7,)), "two fractions, the first at most the second"),
        (dict(order="spiral"), "raster"),
    ],
)
def test_wrong_settings_are_errors(changes, message):
    config = tiny_config()
    config.transformer.update(changes)
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_groups_in_the_config_need_any_order():
    config = tiny_config()
    config.sampling.parallel_steps = 4
    with pytest.raises(ConfigError, match="needs transformer.order"):
        validate(config)
    config.transformer.order = "random"
    validate(config)
