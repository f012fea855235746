# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""All positions drawn coarsely, then finer (`sampling.levels`)."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from any_order_test import (
    KEY,
    SOURCE,
    _State,
    any_order,
    codes_of,
    orders,
    random_codes,
    with_source,
)
from hypothesis import strategies as st
from stages_test import check_transformer_on_eight_devices, make_stage, one_device
from stages_test import tiny as tiny_config

from rq.config import ConfigError, SamplingConfig, validate
from rq.models.unroll import unroll
from rq.parallel import sharding
from rq.sampling import Sampler
from rq.sampling.choice import Request, make_choice, with_null
from rq.sampling.filters import make_filters
from rq.sampling.inpainting import make_given
from rq.sampling.levels import draw_levels, group_size, make_steps

COND = np.array([1, 2, 3], np.int32)


def make_sampler(mesh=None):
    model, params, codebook = any_order()
    variables = {"params": params, "codebook": {"state": _State(codebook)}}
    mesh = mesh or one_device()
    return Sampler(model, variables, None, None, mesh=mesh, null_cond=4)


# Steps


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(st.data())
def test_every_code_is_drawn_once_and_after_what_is_read(data):
    rows, columns, depth = (data.draw(st.integers(1, 4)) for _ in range(3))
    positions = rows * columns
    keep = np.asarray(
        data.draw(st.lists(st.booleans(), min_size=positions, max_size=positions))
    )
    keep = np.broadcast_to(keep.reshape(rows, columns, 1), (rows, columns, depth))
    levels = data.draw(st.sets(st.integers(1, depth)))
    levels = tuple(sorted(levels | {depth}))
    steps = data.draw(st.integers(1, positions))
    found = make_steps(keep, levels, steps)
    assert len(found.order) == len(levels) * steps
    assert found.number.max() <= group_size(positions, steps)
    deep = np.where(keep[..., 0].ravel(), depth, 0)
    drawn = np.zeros((positions, depth), int)
    for order, depths, first, start, number, low, high in zip(*found, strict=True):
        assert sorted(order) == list(range(positions))
        np.testing.assert_array_equal(depths, deep[order])
        assert (depths[:first] > 0).all() and (np.diff(depths[:first]) >= 0).all()
        group = order[first : first + number]
        assert start == (deep >= high).sum()
        assert (deep[group] == low).all()
        assert (deep[order[first + number :]] == 0).all()  # what is not read
        drawn[group, low:high] += 1
        deep[group] = high
    np.testing.assert_array_equal(drawn, ~keep.reshape(positions, depth))


# Sampling


@pytest.mark.slow
def test_one_level_is_the_sampler_of_several_positions_at_once():
    sampler = make_sampler()
    config = SamplingConfig(parallel_steps=3, top_p=0.9, guidance=2.0)
    expected = codes_of(sampler, COND, config)
    found = codes_of(sampler, COND, config.replace(levels=(2,)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("length", "guided", "mask", "source"),
    [
        pytest.param(1, False, "all", {}, marks=pytest.mark.slow),
        pytest.param(3, True, "all", {}, marks=pytest.mark.slow),
        pytest.param(3, True, "all", SOURCE, marks=pytest.mark.slow),
        (1, True, "left", SOURCE),
    ],
)
def test_each_code_is_that_of_the_whole_forward_pass(length, guided, mask, source):
    """Given the others as deep as they are, and the position's own coarse codes."""
    model, params, codebook = any_order(
        condition_length=length,
        code_shape=(2, 3, 3),
        shared_classifier=False,
        **source,
    )
    config = SamplingConfig(temperature=(0.8,), top_k=(5,), levels=(1, 3))
    keep = np.zeros((2, 3, 3), bool)
    codes = np.asarray(random_codes(1, (2, 3, 3)))
    if mask == "left":
        keep = make_given(codes[0], "left").keep
    codes = np.repeat(codes, 2, axis=0)
    cond = jax.random.randint(KEY, (2, length)[: 1 + (length > 1)], 0, 4)
    scale = jnp.linspace(1, 3, 18).reshape(6, 3) if guided else None
    cond, null = with_source(model, cond, jnp.full(cond.shape[1:], 4))
    cond = with_null(cond, null) if guided else cond
    filters, copies = make_filters(config, 3), 1 + guided
    steps = make_steps(keep, config.levels, 2)
    decoder, unrolled = unroll(model, params)
    given = jnp.asarray(codes)
    request = Request(unrolled, codebook, cond, KEY, filters, scale, 0, given, keep)
    found = draw_levels(decoder, group_size(6, 2), request, steps)

    @jax.jit
    def logits_of(codes, order, depths):
        outputs, _ = model.apply(
            {"params": params},
            codes,
            cond,
            codebook,
            order=order,
            depths=depths,
            method="outputs",
        )
        return model.apply({"params": params}, outputs, method="logits")

    drawn, keys = codes.reshape(2, 6, 3).copy(), request.keys
    for order, depths, first, start, number, low, high in zip(*steps, strict=True):
        before = drawn.copy()
        for i, place in enumerate(order[first : first + number]):
            others = [p for p in order[first:] if p != place]
            one = np.asarray([*order[:first], place, *others], np.int32)
            choose = make_choice(
                model.sizes,
                filters,
                None if scale is None else scale[start + i],
                jax.vmap(jax.random.fold_in, (0, None))(keys, int(place)),
                jnp.zeros((2, 3), jnp.int32),
                jnp.zeros((2, 3), bool),
            )
            given = before.copy()
            for d in range(low, high):
                logits = logits_of(
                    jnp.tile(given.reshape(2, 2, 3, 3), (copies, 1, 1, 1)),
                    jnp.tile(one, (2 * copies, 1)),
                    jnp.tile(depths, (2 * copies, 1)),
                )
                chosen, _ = choose(logits[:, place, d], d)
                given[:, place, d] = drawn[:, place, d] = chosen[:2]
    np.testing.assert_array_equal(found.reshape(2, 6, 3), drawn)
    np.testing.assert_array_equal(found[:, keep], codes[:, keep])


def test_masks_of_the_same_number_of_steps_share_one_program():
    sampler, codes = make_sampler(), np.asarray(random_codes(1)[0])
    before = draw_levels._cache_size()
    for mask in ("bottom", "left", "all"):
        given = make_given(codes, mask)
        config = SamplingConfig(parallel_steps=3, levels=(1, 2), batch_size=2)
        found = codes_of(sampler, COND, config, given=given)
        np.testing.assert_array_equal(
            found[:, given.keep], np.stack([codes[given.keep]] * 3)
        )
    assert draw_levels._cache_size() == before + 1
    alone = codes_of(sampler, COND[1:2], config.replace(batch_size=1), first=1)
    np.testing.assert_array_equal(alone[0], found[1])


def test_coarse_codes_are_those_that_are_drawn_alone():
    """The first level does not depend on the later ones."""
    sampler = make_sampler()
    config = SamplingConfig(parallel_steps=3, levels=(1, 2))
    whole = codes_of(sampler, COND, config)
    coarse = codes_of(sampler, COND, config.replace(levels=(1,), depth=1))
    np.testing.assert_array_equal(whole[..., :1], coarse)


def test_eight_devices_draw_what_one_does():
    config = SamplingConfig(parallel_steps=2, levels=(1, 2), seed=5, guidance=2.0)
    cond = np.arange(8, dtype=np.int32) % 4
    expected = codes_of(make_sampler(), cond, config)
    found = codes_of(make_sampler(sharding.make_mesh(2, 2, 2)), cond, config)
    np.testing.assert_array_equal(found, expected)


def test_without_steps_positions_are_drawn_one_by_one():
    sampler = make_sampler()
    found = codes_of(sampler, COND, SamplingConfig(levels=(1, 2)))
    steps = SamplingConfig(levels=(1, 2), parallel_steps=6)
    np.testing.assert_array_equal(found, codes_of(sampler, COND, steps))


@pytest.mark.parametrize(
    ("levels", "depth"),
    [((), 0), ((2, 1), 0), ((1,), 0), ((0, 2), 0), ((1, 2), 1), ((3,), 0)],
)
def test_levels_that_cannot_be_are_refused(levels, depth):
    with pytest.raises(ConfigError, match="the last is the depth drawn"):
        codes_of(make_sampler(), COND, SamplingConfig(levels=levels, depth=depth))


def test_without_an_rqvae_all_samples_are_codes_alone():
    found = make_sampler().sample(COND, 3, SamplingConfig(batch_size=2))
    assert found.images is None and found.codes.shape == (3, 2, 3, 2)


def test_levels_need_any_order():
    config = tiny_config()
    config.sampling.levels = (1, 2)
    with pytest.raises(ConfigError, match=r"sampling.levels.*transformer.order"):
        validate(config)


# Training


def test_what_is_not_read_does_not_matter():
    model, params, codebook = any_order()
    order, depths = orders(3), jnp.tile(jnp.array([1, 1, 1, 2, 2, 2]), (3, 1))
    codes = np.asarray(random_codes(3)).reshape(3, 6, 2)

    def inputs(codes):
        return model.apply(
            {"params": params},
            codes,
            jnp.asarray(COND),
            codebook,
            order,
            depths,
            method="body_inputs",
        )

    changed = codes.copy()
    coarse = np.arange(3)[:, None], np.asarray(order)[:, :3]
    changed[*coarse, 1] = (codes[*coarse, 1] + 1) % 8
    np.testing.assert_array_equal(inputs(codes), inputs(changed))
    changed[*coarse, 0] = (codes[*coarse, 0] + 1) % 8
    assert (inputs(codes) != inputs(changed)).any()


@pytest.mark.slow
def test_eight_devices_train_what_one_does():
    config = tiny_config()
    config.transformer.order, config.transformer.depth_dropout = "random", 0.5
    check_transformer_on_eight_devices(config)


@pytest.mark.slow
def test_depths_grow_once_within_an_image():
    config = tiny_config()
    config.transformer.order, config.transformer.depth_dropout = "random", 0.5
    stage, _ = make_stage("transformer", config, one_device())
    depths = np.asarray(stage.drawn_depths(400, KEY))
    depth = stage.model.depth
    assert depths.shape == (400, stage.model.positions)
    steps = np.diff(depths, axis=1)
    assert (steps >= 0).all() and ((steps > 0).sum(axis=1) <= 1).all()
    assert depths.min() == 1 and depths.max() == depth
    whole = (depths == depth).all(axis=1).mean()
    # Of the other half, a third or so happens to be whole: no two depths are drawn.
    config.transformer.depth_dropout = 1.0
    dropped = make_stage("transformer", config, one_device())[0].drawn_depths(400, KEY)
    by_chance = (np.asarray(dropped) == depth).all(axis=1).mean()
    assert by_chance < 0.7 and abs(whole - (0.5 + 0.5 * by_chance)) < 0.08
