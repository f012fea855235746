# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Filters keep exactly the right codes; a sample depends on its key alone."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from authors_test import weights
from hypothesis import strategies as st

from rq.config import ConfigError, SamplingConfig
from rq.config.sampling import SCHEDULES
from rq.models import RQTransformer, StackConfig
from rq.models.unroll import unroll
from rq.sampling import make_filters, make_guidance, program
from rq.sampling.filters import _search, filter_logits

NORMED = StackConfig(layers=2, heads=2, norm="rms", qk_norm=True)
few = hypothesis.settings(max_examples=30, deadline=None)

SIZES = st.sampled_from([1, 2, 7, 12])  # few, since each compiles
filtered_by = jax.jit(filter_logits)


def logits_of(model, params, codes, cond, codebook):
    """The full forward pass."""
    return jax.jit(model.apply)({"params": params}, codes, cond, codebook)


def tiny(scale=3, **changes):
    """A transformer of a 2 x 3 x 2 code map, its parameters and a codebook.

    The parameters are scaled up so that logits are far from uniform.
    """
    stack = StackConfig(layers=2, heads=2)
    settings = dict(
        code_shape=(2, 3, 2),
        num_codes=(8,),
        input_dim=4,
        num_conditions=5,
        width=16,
        body=stack,
        head=stack,
    )
    model = RQTransformer(**(settings | changes))
    shape = (8, 4) if len(model.num_codes) == 1 else (2, 8, 4)
    codebook = jax.random.normal(jax.random.key(1), shape)
    params = jax.tree.map(lambda x: scale * x, weights(model)["params"])
    return model, params, codebook


@hypothesis.given(
    seed=st.integers(0, 9999),
    num_codes=SIZES,
    top_k=st.integers(0, 14),
    top_p=st.floats(0.01, 1.0),
    min_p=st.just(0.0) | st.floats(0, 1),
    temperature=st.floats(0.2, 3.0),
)
@few
def test_filters_keep_exactly_the_right_set(
    seed, num_codes, top_k, top_p, min_p, temperature
):
    rng = np.random.default_rng(seed)
    # Distinct logits, spaced so that float32 sums cannot change the order.
    logits = rng.permutation(num_codes).astype(np.float32) * 0.3
    filtered = filtered_by(
        jnp.asarray(logits), temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    order = np.argsort(-logits)
    kept = order[: top_k or num_codes]
    scaled = np.exp(logits[kept].astype(np.float64) / temperature)
    before = np.cumsum(scaled / scaled.sum()) - scaled / scaled.sum()
    hypothesis.assume((np.abs(before[1:] - top_p) > 1e-5).all())
    share = scaled / scaled[0]
    hypothesis.assume((np.abs(share[1:] - min_p) > 1e-5).all())
    first = np.arange(len(kept)) == 0
    kept = kept[first | (before < top_p) & (share >= min_p)]
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(filtered)), np.sort(kept))
    np.testing.assert_allclose(filtered[kept], logits[kept] / temperature, rtol=1e-5)


@pytest.mark.parametrize(
    "options, kept",
    [
        (dict(min_p=0.2), 2),  # probabilities 0.64, 0.23, 0.09, 0.03, 0.01
        (dict(min_p=0.1), 3),
        (dict(top_p=0.6), 1),
        (dict(top_p=0.7), 2),
        (dict(top_p=0.9), 3),
        (dict(top_k=4), 4),
        (dict(top_k=3, top_p=0.9), 2),  # of three: 0.67, 0.24, 0.09
        (dict(top_p=0.7, temperature=3.0), 3),  # 0.35, 0.25, 0.18, 0.13, 0.09
        (dict(min_p=0.2, temperature=0.5), 1),
    ],
)
def test_filters_keep_codes_worked_out_by_hand(options, kept):
    logits = jnp.array([0.0, 3.0, 1.0, -1.0, 2.0])
    filtered = filter_logits(logits, **options)
    expected = np.sort(np.argsort(-logits)[:kept])
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(filtered)), expected)


@hypothesis.given(seed=st.integers(0, 9999), size=SIZES, p=st.floats(0.01, 0.99))
@few
def test_typical_codes_are_those_nearest_to_the_entropy(seed, size, p):
    logits = np.random.default_rng(seed).normal(size=size).astype(np.float32) * 2
    filtered = filtered_by(jnp.asarray(logits), typical_p=p)
    log_probs = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    distance = np.abs(-log_probs + (np.exp(log_probs) * log_probs).sum())
    order = np.argsort(distance)
    hypothesis.assume((np.diff(distance[order]) > 1e-5).all())
    before = np.cumsum(np.exp(log_probs[order])) - np.exp(log_probs[order])
    hypothesis.assume((np.abs(before[1:] - p) > 1e-5).all())
    kept = np.sort(order[before < p])
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(filtered)), kept)
    np.testing.assert_array_equal(filtered[kept], logits[kept])


def mass_above(scores, probs):
    """Returns the mass of codes of higher scores than each, in float64."""
    return (probs * (scores[None] > scores[:, None])).sum(axis=1)


@hypothesis.given(
    seed=st.integers(0, 9999),
    size=st.sampled_from([1, 2, 7, 40]),
    ties=st.booleans(),
    missing=st.sampled_from([0.0, 0.3, 0.99]),
    scale=st.sampled_from([1e-6, 1.0, 100.0]),
    k=st.integers(1, 45),
    p=st.floats(0.01, 0.99) | st.sampled_from([1e-30, 1 - 2**-24, 1 - 1e-5]),
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_filters_keep_what_sorting_would(seed, size, ties, missing, scale, k, p):
    """With ties and codes at -inf; p near 1 may round either way by 1e-5."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(-2, 3, size) if ties else rng.normal(size=size)
    logits = (logits * scale).astype(np.float32)
    logits[(rng.random(size) < missing) & (np.arange(size) > 0)] = -np.inf

    found = np.isfinite(filtered_by(jnp.asarray(logits), top_k=k))
    kth = np.sort(logits)[::-1][min(k, size) - 1]
    np.testing.assert_array_equal(found, (logits >= kth) & np.isfinite(logits))

    log_probs = np.float64(logits) - scipy.special.logsumexp(np.float64(logits))
    probs = np.exp(log_probs)
    information = np.where(probs > 0, -log_probs, 0)
    distance = np.abs(information - (probs * information).sum())
    for name, scores in (("top_p", logits), ("typical_p", -distance)):
        if name == "typical_p" and (ties or scale == 1e-6):
            continue  # distances that are equal but for rounding
        found = np.isfinite(filtered_by(jnp.asarray(logits), **{name: p}))
        scores = np.where(probs > 0, scores, -np.inf)
        above = mass_above(scores, probs)
        possible = probs > 1e-37  # float32
        surely = (above < p - 1e-5) & possible
        maybe = ((above < p + 1e-5) | (scores == scores.max())) & (probs > 0)
        assert (found >= surely).all() and (found <= maybe).all(), name
        assert found.any()


@pytest.mark.parametrize("start", [-1.0, 1.0, 1e-30, -3e38])
def test_a_threshold_is_exact_to_the_last_bit(start):
    """Among neighbouring floats; -0 and 0 are one number."""
    logits = np.full(9, start, np.float32)
    for i in range(1, 9):
        logits[i] = np.nextafter(logits[i - 1], np.float32(np.inf))
    logits = np.unique(logits)
    for k in range(1, len(logits)):
        kept = np.isfinite(filtered_by(jnp.asarray(logits), top_k=k))
        np.testing.assert_array_equal(kept, np.arange(len(logits)) >= len(logits) - k)
    zeros = jnp.array([0.0, -1.0, -0.0])
    np.testing.assert_array_equal(
        jnp.isfinite(filtered_by(zeros, top_k=1)), [True, False, True]
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_threshold_does_not_depend_on_the_bits_of_a_digit(bits):
    """CPUs search bit by bit, other devices by four bits."""
    limits = np.array([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 12345], np.uint32)
    limits = jnp.asarray(limits)[:, None]
    found = _search(lambda x: x <= limits, bits, jnp.zeros_like(limits))
    np.testing.assert_array_equal(found, limits)


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p", "typical_p"])
def test_filters_sort_nothing_and_cost_nothing_if_they_are_off(name):
    """On any backend: the program has no sort, and a filter is a branch of it."""
    values = {name: jnp.float32(1) if name != "top_k" else jnp.int32(1)}
    program_text = jax.jit(filter_logits).lower(jnp.zeros((4, 64)), **values).as_text()
    assert "sort" not in program_text and "top_k" not in program_text.lower()
    assert "stablehlo.case" in program_text or "stablehlo.if" in program_text
    outside = jax.make_jaxpr(filter_logits)(jnp.zeros((4, 64)), **values)
    assert "while" not in {eqn.primitive.name for eqn in outside.eqns}


@pytest.mark.parametrize("others", [{}, dict(top_k=3, top_p=0.9, min_p=0.1)])
def test_typical_p_of_1_changes_no_bit(others):
    logits = jax.random.normal(jax.random.key(0), (50, 9)) * 3
    plain = filter_logits(logits, 0.7, **others)
    np.testing.assert_array_equal(
        filter_logits(logits, 0.7, typical_p=1.0, **others), plain
    )


def test_ties_with_the_last_kept_code_stay():
    filtered = filter_logits(jnp.array([1.0, 3.0, 2.0, 2.0]), top_k=2)
    np.testing.assert_array_equal(jnp.isfinite(filtered), [False, True, True, True])


EXTREME = [1e-45, 1e-38, 1e-30, 1e-6, 1.0, 1e30, 1e38, 1e300]


@hypothesis.given(
    seed=st.integers(0, 9999),
    scale=st.sampled_from([1e-30, 1.0, 1e4, 1e30]),
    offset=st.sampled_from([0.0, -100.0, 1e6]),
    temperature=st.sampled_from(EXTREME),
    top_k=st.sampled_from([0, 1, 5, 2**31, 10**30]),
    top_p=st.sampled_from([1e-300, 1e-30, 0.5, 1.0]),
    min_p=st.sampled_from([0.0, 1e-300, 0.5, 1.0]),
)
@few
def test_the_most_probable_code_always_stays(
    seed, scale, offset, temperature, top_k, top_p, min_p
):
    logits = np.random.default_rng(seed).normal(size=(3, 7)) * scale + offset
    config = SamplingConfig(top_k=top_k, top_p=top_p, min_p=min_p)
    values = {name: x[0] for name, x in make_filters(config, 1).items()}
    values["temperature"] = np.minimum(temperature, 1e38).astype(np.float32)
    filtered = filtered_by(jnp.asarray(logits, jnp.float32), **values)
    assert not np.isnan(filtered).any()
    best = np.argmax(np.asarray(logits, np.float32), axis=-1)
    assert np.isfinite(filtered[np.arange(3), best]).all()
    assert (np.argmax(filtered, axis=-1) == best).all() or temperature > 1


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-20])
def test_a_temperature_near_0_draws_the_most_probable_code(temperature):
    model, params, codebook = tiny()
    cond = jnp.array([1, 4])
    drawn, greedy = (
        program.sample(
            model,
            params,
            codebook,
            cond,
            jax.random.key(0),
            filters=filters,
        )
        for filters in (
            {"temperature": jnp.full(2, temperature)},
            make_filters(SamplingConfig(top_k=1), 2),
        )
    )
    np.testing.assert_array_equal(drawn, greedy)


@pytest.mark.parametrize("temperature", [1.0, 1e6, 1e38])
def test_codes_that_a_smaller_codebook_lacks_are_never_drawn(temperature):
    model, params, codebook = tiny(num_codes=(8, 3), shared_classifier=False)
    codes = program.sample(
        model,
        params,
        codebook,
        None,
        jax.random.key(0),
        batch=200,
        filters=make_filters(SamplingConfig(temperature), 2),
    )
    assert codes[..., 0].max() == 7 and codes[..., 1].max() == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["one code", "everywhere"])
def test_where_logits_are_not_finite_no_code_is_drawn(where, value):
    model, params, codebook = tiny()
    bias = params["classifier_bias"]
    bad = bias.at[3].set(value) if where == "one code" else jnp.full_like(bias, value)
    broken = params | {"classifier_bias": bad}
    arguments = codebook, jnp.arange(4), jax.random.key(0)
    codes = program.sample(model, broken, *arguments)
    if where == "one code" and value == -np.inf:  # a code of probability 0
        assert (codes >= 0).all() and (codes != 3).all()
    else:
        assert (codes[:, 0, 0, 0] == -1).all()
    given = jnp.zeros((4, 2, 3, 2), jnp.int32)
    kept = program.sample(model, broken, *arguments, codes=given, keep=True)
    np.testing.assert_array_equal(kept, given)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(num_codes=(8, 5), shared_classifier=False),
        dict(body_from_codebook=False, shared_token_embedding=False),
        pytest.param(dict(head_from_codebook=False), marks=pytest.mark.slow),
        pytest.param(
            dict(shared_classifier=False, cumulative_head=False),
            marks=pytest.mark.slow,
        ),
        dict(condition_length=3),
        dict(dtype="bfloat16"),
        dict(body=NORMED, head=NORMED),
    ],
    ids=lambda changes: ",".join(changes) or "paper",
)
def test_teacher_forced_decode_equals_the_full_forward_pass(changes):
    rough = changes.get("dtype") == "bfloat16"
    model, params, codebook = tiny(scale=1 if rough else 3, **changes)
    codes = jax.random.randint(jax.random.key(2), (3, *model.code_shape), 0, 5)
    shape = (3,) if model.condition_length == 1 else (3, model.condition_length)
    cond = jax.random.randint(jax.random.key(3), shape, 0, 5)
    full = logits_of(model, params, codes, cond, codebook)
    kept, logits = program.sample(
        model,
        params,
        codebook,
        cond,
        jax.random.key(0),
        codes=codes,
        keep=True,
        return_logits=True,
    )
    np.testing.assert_array_equal(kept, codes)
    np.testing.assert_allclose(logits, full, 1e-4, 0.05 if rough else 1e-4)


def test_top_k_1_is_greedy():
    model, params, codebook = tiny()
    cond = jnp.array([1, 4])
    codes = program.sample(
        model,
        params,
        codebook,
        cond,
        jax.random.key(0),
        filters=make_filters(SamplingConfig(top_k=1), 2),
    )
    logits = logits_of(model, params, codes, cond, codebook)
    np.testing.assert_array_equal(codes, jnp.argmax(logits, axis=-1))


def test_a_sample_does_not_depend_on_its_batch():
    model, params, codebook = tiny()
    model, params = unroll(model, params)
    cond, key = jnp.array([0, 1, 2, 3, 4, 0]), jax.random.key(7)
    whole = program.sample(model, params, codebook, cond, key)
    parts = [
        program.sample(model, params, codebook, cond[i : i + 2], key, first_index=i)
        for i in (0, 2, 4)
    ]
    np.testing.assert_array_equal(jnp.concatenate(parts), whole)
    again = program.sample(model, params, codebook, cond, key)
    np.testing.assert_array_equal(again, whole)
    other = program.sample(model, params, codebook, cond, jax.random.key(8))
    assert (other != whole).any()


@pytest.mark.slow
def test_drawn_row_by_row_codes_are_the_same_whatever_the_options_beside_them():
    """Each sample of the batch has a seed, an index and options of its own."""
    model, params, codebook = tiny()
    model, params = unroll(model, params)
    options = [
        dict(seed=3),
        dict(seed=3, temperature=0.5, top_k=(3, 0)),
        dict(seed=4, top_p=0.7, guidance=(2.0, 1.0), guidance_schedule="linear"),
        dict(seed=4, min_p=0.1, typical_p=0.8, top_p=(0.9, 1.0)),
    ]
    configs = [SamplingConfig(**x) for x in options]
    cond, indices = jnp.array([0, 3, 1, 2]), [0, 7, 1, 4]
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 8, (4, *model.code_shape)).astype(np.int32)
    keep = rng.random(codes.shape) < 0.3

    def values(config):
        filters = make_filters(config, model.depth)
        return filters, make_guidance(config, model.code_shape)

    expected = []
    for i, config in enumerate(configs):
        filters, guidance = values(config)
        alone = program.sample(
            model,
            params,
            codebook,
            cond[i : i + 1],
            jax.random.key(config.seed),
            filters=filters,
            guidance=guidance,
            null_cond=4,
            first_index=indices[i],
            codes=codes[i : i + 1],
            keep=keep[i : i + 1],
        )
        expected.append(alone[0])
    filters, guidance = zip(*map(values, configs), strict=True)
    filters = jax.tree.map(lambda *x: jnp.stack(x, 1)[..., None], *filters)
    ones = jnp.ones((model.positions, model.depth))
    guidance = jnp.stack([ones if x is None else x for x in guidance], 2)[..., None]
    keys = jnp.stack(
        [
            jax.random.fold_in(jax.random.key(config.seed), index)
            for config, index in zip(configs, indices, strict=True)
        ]
    )
    rows = program.sample_rows(
        model,
        params,
        codebook,
        cond,
        keys,
        codes,
        keep,
        filters=filters,
        guidance=guidance,
        null_cond=4,
    )
    before = program._draw_row._cache_size()
    np.testing.assert_array_equal(jnp.stack(list(rows), 1), jnp.stack(expected))
    assert program._draw_row._cache_size() == before + 1


def test_codes_are_sampled_independently_at_every_position_depth_sample_and_seed():
    model, params, codebook = tiny(scale=0)  # all codes are equally probable
    number, cond = 2000, jnp.zeros(2000, jnp.int32)
    codes, other = (
        program.sample(model, params, codebook, cond, jax.random.key(seed))
        for seed in (0, 1)
    )
    flat = np.asarray(codes).reshape(number, -1)  # [B, H W D]
    pairs = [flat[:, [i, j]] for i in range(12) for j in range(i)]
    pairs += [np.stack([flat[:-1, i], flat[1:, i]], axis=-1) for i in range(12)]
    pairs += [np.stack([codes.ravel(), other.ravel()], axis=-1)]
    for pair in pairs:
        table = np.zeros((8, 8))
        np.add.at(table, tuple(pair.T), 1)
        # Where two draws use one key the diagonal has everything: p = 0.
        assert scipy.stats.chisquare(table.ravel()).pvalue > 1e-5


def test_kept_codes_stay_and_condition_the_rest():
    model, params, codebook = tiny()
    codes = jax.random.randint(jax.random.key(2), (4, 2, 3, 2), 0, 8)
    keep = jnp.zeros((2, 3, 2), bool).at[0].set(True).at[1, 1, 0].set(True)
    drawn = program.sample(
        model, params, codebook, None, jax.random.key(0), codes=codes, keep=keep
    )
    np.testing.assert_array_equal(drawn[:, keep], codes[:, keep])
    assert (drawn != codes).any()


# Guidance


def guided(model, params, codebook, cond, scale, **options):
    """Samples with a scale, one for each depth, or one for each position and depth."""
    if np.ndim(scale) < 2:
        scale = make_guidance(SamplingConfig(guidance=scale), model.code_shape)
    return program.sample(
        model,
        params,
        codebook,
        cond,
        jax.random.key(5),
        guidance=scale,
        null_cond=jnp.full(cond.shape[1:], 4),
        **options,
    )


SCALES = np.random.default_rng(0).uniform(1, 5, (6, 2)).astype(np.float32)


@pytest.mark.parametrize("scale", [(1.5, 4.0), SCALES], ids=["depths", "positions"])
@pytest.mark.parametrize(
    "condition_length", [1, pytest.param(3, marks=pytest.mark.slow)]
)
def test_guided_logits_lead_away_from_those_without_condition(condition_length, scale):
    model, params, codebook = tiny(condition_length=condition_length)
    codes = jax.random.randint(jax.random.key(2), (3, *model.code_shape), 0, 8)
    shape = (3, condition_length) if condition_length > 1 else (3,)
    cond = jax.random.randint(jax.random.key(3), shape, 0, 4)
    kept, logits = guided(
        model,
        params,
        codebook,
        cond,
        scale,
        codes=codes,
        keep=True,
        return_logits=True,
    )
    conditional = logits_of(model, params, codes, cond, codebook)
    free = logits_of(model, params, codes, jnp.full_like(cond, 4), codebook)
    scale = np.broadcast_to(scale, (6, 2)).reshape(2, 3, 2, 1)
    expected = free + scale * (conditional - free)
    np.testing.assert_array_equal(kept, codes)
    np.testing.assert_allclose(logits, expected, 1e-3, 1e-3)


def test_guidance_of_scale_1_is_none():
    model, params, codebook = tiny()
    cond = jnp.arange(4)
    plain = program.sample(model, params, codebook, cond, jax.random.key(5))
    np.testing.assert_array_equal(guided(model, params, codebook, cond, 1.0), plain)
    assert (guided(model, params, codebook, cond, 3.0) != plain).any()


def test_a_guided_sample_does_not_depend_on_its_batch():
    model, params, codebook = tiny()
    cond = jnp.arange(4)
    whole = guided(model, params, codebook, cond, 2.0)
    parts = [
        guided(model, params, codebook, cond[i : i + 2], 2.0, first_index=i)
        for i in (0, 2)
    ]
    np.testing.assert_array_equal(jnp.concatenate(parts), whole)


def test_guidance_grows_over_positions():
    scales = (1.0, 2.0, 4.0)
    constant, linear, cosine = (
        make_guidance(SamplingConfig(guidance=scales, guidance_schedule=x), (2, 2, 3))
        for x in SCHEDULES
    )
    np.testing.assert_array_equal(constant, np.tile([1.0, 2.0, 4.0], (4, 1)))
    for growing in (linear, cosine):
        np.testing.assert_allclose(growing[0], 1)
        np.testing.assert_allclose(growing[-1], [1, 2, 4], rtol=1e-6)
        assert (np.diff(growing[:, 1:], axis=0) > 0).all()
    np.testing.assert_allclose(linear[1], [1, 4 / 3, 2], rtol=1e-6)


def test_guidance_without_a_null_condition_is_refused():
    model, params, codebook = tiny()
    guidance = make_guidance(SamplingConfig(guidance=2.0), model.code_shape)
    with pytest.raises(ValueError, match="null_cond"):
        program.sample(
            model, params, codebook, jnp.arange(2), jax.random.key(0), guidance=guidance
        )


@pytest.mark.parametrize("guided", [False, True])
def test_other_conditions_filters_guidance_and_keys_compile_nothing(guided):
    """Guidance doubles the batch, and so has a program of its own for all scales."""
    model, params, codebook = tiny()
    model, params = unroll(model, params)
    before = program._sample._cache_size()
    for i, options in enumerate(
        [
            dict(temperature=0.5, top_k=3, top_p=0.9, guidance=2),
            dict(temperature=(1.0, 0.7), min_p=0.1, typical_p=0.8, guidance=(1.5, 3)),
            dict(guidance=4, guidance_schedule="cosine"),
        ]
    ):
        config = SamplingConfig(**options)
        program.sample(
            model,
            params,
            codebook,
            (jnp.arange(5) + i) % 5,
            jax.random.key(i),
            filters=make_filters(config, 2),
            guidance=make_guidance(config, model.code_shape) if guided else None,
            null_cond=4,
            first_index=5 * i,
        )
    assert program._sample._cache_size() == before + 1


def test_samples_follow_the_model():
    """Frequencies of a one-position model against its own probabilities."""
    model, params, codebook = tiny(code_shape=(1, 1, 2))
    n = 4000
    codes = program.sample(
        model, params, codebook, None, jax.random.key(0), batch=n
    ).reshape(n, 2)
    logits = logits_of(model, params, codes.reshape(n, 1, 1, 2), None, codebook)
    probs = jax.nn.softmax(logits, -1).reshape(n, 2, 8)
    first = np.bincount(codes[:, 0], minlength=8) / n
    np.testing.assert_allclose(first, probs[0, 0], atol=0.03)
    second = np.bincount(codes[:, 1], minlength=8) / n
    np.testing.assert_allclose(second, jnp.mean(probs[:, 1], 0), atol=0.03)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(temperature=0.0),
        dict(temperature=np.inf),
        dict(top_k=-1),
        dict(top_p=1.5),
        dict(top_p=0),
        dict(min_p=-0.1),
        dict(min_p=(0.5, np.nan)),
        dict(typical_p=0.0),
        dict(guidance=-1.0),
        dict(guidance_schedule="cubic"),
        dict(seed=-1),
        dict(seed=2**32),
        dict(seed=10**20),
        dict(batch_size=0),
    ],
)
def test_options_out_of_range_are_refused(kwargs):
    (name,) = kwargs
    with pytest.raises(ConfigError, match=f"{name} = .*must") as error:
        SamplingConfig(**kwargs)
    assert "\n" not in str(error.value)


def test_options_are_for_all_depths_or_each():
    with pytest.raises(ConfigError, match="has 3 values; .* depth: 2"):
        make_filters(SamplingConfig(top_p=(0.5, 0.6, 0.7)), 2)
    with pytest.raises(ConfigError, match="has 3 values; .* depth: 2"):
        make_guidance(SamplingConfig(guidance=(0.5, 0.6, 0.7)), (1, 1, 2))


@pytest.mark.parametrize("greedy", [0, 1])
def test_each_depth_has_its_own_filters(greedy):
    """At one depth only the most probable code is drawn, at the other any."""
    model, params, codebook = tiny(scale=1)
    top_k = [0, 0]
    top_k[greedy] = 1
    codes, logits = program.sample(
        model,
        params,
        codebook,
        None,
        jax.random.key(0),
        batch=50,
        filters=make_filters(SamplingConfig(top_k=tuple(top_k)), 2),
        return_logits=True,
    )
    is_best = np.asarray(codes == jnp.argmax(logits, axis=-1))
    assert is_best[..., greedy].all() and not is_best[..., 1 - greedy].all()


def test_every_seed_in_range_is_another_key():
    seeds = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
    keys = {tuple(jax.random.key_data(jax.random.key(seed)).tolist()) for seed in seeds}
    assert len(keys) == len(seeds)


def test_sampling_without_a_batch_size_is_refused():
    model, params, codebook = tiny()
    with pytest.raises(ValueError, match="batch"):
        program.sample(model, params, codebook, None, jax.random.key(0))
