# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The sampler compiles once and holds two batches; files are written as it goes."""

import gc
import tracemalloc

import jax
import numpy as np
import pytest
from stages_test import make_sampler, make_stage, one_device, tiny

from rq.config import ConfigError, SamplingConfig
from rq.evaluation import sample_files
from rq.sampling import codec, program
from rq.sampling.inpainting import Given


@pytest.fixture(scope="module")
def small():
    config = tiny()
    config.transformer.condition_dropout = 0.1
    stage, _ = make_stage("transformer", config, one_device())
    return make_sampler(stage)


@pytest.mark.slow
def test_other_options_conditions_and_batches_compile_nothing(small):
    """Three batches, conditions and temperatures; filters on and off; guidance."""
    known = {}
    for scales in ((1.0,), (2.0,)):
        plain = {}
        for cond in ([0] * 10, [3, 7] * 5, range(10)):
            cond = np.array(cond, np.int32)
            for options in (
                dict(),
                dict(temperature=0.5, seed=3),
                dict(temperature=(2.0, 0.7), top_k=(3, 0)),
                dict(top_p=0.8, min_p=0.1),
            ):
                config = SamplingConfig(batch_size=4, guidance=scales, **options)
                list(small.batches(cond, 10, config, first=5))
                sizes = (
                    program._sample._cache_size(),
                    codec._decode_codes._cache_size(),
                )
                plain.setdefault("first", sizes)
                assert sizes == plain["first"]
        known[scales] = plain["first"]
    # Guidance doubles the batch: a program of its own, whatever the scales.
    config = SamplingConfig(
        batch_size=4, guidance=(3.0, 1.5), guidance_schedule="cosine"
    )
    list(small.batches(np.zeros(5, np.int32), 5, config))
    assert program._sample._cache_size() == known[(2.0,)][0]


def test_at_most_two_batches_are_on_the_devices(small):
    shape = (2, 16, 16, 1)
    before = sum(x.shape == shape for x in jax.live_arrays())
    config, most = SamplingConfig(batch_size=2), 0
    for samples in small.batches(np.zeros(20, np.int32), 20, config):
        assert isinstance(samples.images, np.ndarray) and samples.images.shape == shape
        most = max(most, sum(x.shape == shape for x in jax.live_arrays()) - before)
    assert 1 <= most <= 2


def test_the_last_batch_has_no_padding(small):
    cond = np.arange(7, dtype=np.int32)
    batches = list(small.batches(cond, 7, SamplingConfig(batch_size=3)))
    assert (
        [len(x.images) for x in batches] == [len(x.codes) for x in batches] == [3, 3, 1]
    )
    whole = small.sample(cond, 7, SamplingConfig())
    np.testing.assert_array_equal(
        np.concatenate([x.codes for x in batches]), whole.codes
    )
    decoded = np.concatenate(
        list(small.decode(whole.codes, SamplingConfig(batch_size=4)))
    )
    np.testing.assert_allclose(decoded, whole.images, atol=1e-5)
    pixels = small.sample(cond, 7, SamplingConfig(), dtype=np.uint8).images
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels / 127.5 - 1, whole.images, atol=1 / 127)


def test_samples_are_known_by_seed_and_index(small):
    cond, config = np.arange(7, dtype=np.int32), SamplingConfig(batch_size=3, seed=5)
    whole = small.sample(cond, 7, config)
    part = small.sample(cond[4:], 3, config, first=4)
    np.testing.assert_array_equal(part.codes, whole.codes[4:])
    other = small.sample(cond, 7, config.replace(seed=6))
    assert (other.codes != whole.codes).mean() > 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pixel_that_is_not_finite_is_found_anywhere(value):
    images = np.zeros((4, 5, 6, 3), np.float32)
    images[1, 4, 0, 2] = images[2, 0, 5, 0] = value
    _, finite = codec._clip(images)
    np.testing.assert_array_equal(finite, [True, False, False, True])


@pytest.mark.parametrize("code", [-1, 16, 2**31 - 1])
def test_given_codes_that_the_model_lacks_are_refused(small, code):
    codes = np.zeros((4, 4, 2), np.int32)
    codes[1, 2, 1] = code
    given = Given(codes, codes == code)
    with pytest.raises(ConfigError, match="depth 2; the model has 16 there"):
        small.sample(np.zeros(1, np.int32), 1, SamplingConfig(), given=given)


def write(path, number, size=10, stop=None):
    rng = np.random.default_rng(0)
    written = []
    with sample_files.writing(path, number, (8, 8, 3), (2, 2, 4)) as add:
        for first in range(0, number, size):
            if first == stop:
                raise KeyboardInterrupt
            count = min(size, number - first)
            images = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
            codes = rng.integers(0, 99, (count, 2, 2, 4), np.int32)
            written.append((images, np.full(count, first, np.int32), codes))
            add(*written[-1])
    return [np.concatenate(x) for x in zip(*written, strict=True)]


@pytest.mark.parametrize("name", ["samples.npz", "samples.png"])
def test_an_archive_is_what_was_added(tmp_path, name):
    images, labels, codes = write(tmp_path / name, 45)
    with np.load(tmp_path / "samples.npz") as found:
        assert set(found.files) == {"arr_0", "labels", "codes"}
        for key, expected in (("arr_0", images), ("labels", labels), ("codes", codes)):
            np.testing.assert_array_equal(found[key], expected)
            assert found[key].dtype == expected.dtype


@pytest.mark.parametrize("name", ["samples.npz", "samples.png"])
def test_what_is_cut_short_leaves_no_file(tmp_path, name):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / name, 45, stop=20)
    assert not list(tmp_path.iterdir())
    write(tmp_path / name, 45)
    before = (tmp_path / "samples.npz").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / name, 45, stop=20)
    assert (tmp_path / "samples.npz").read_bytes() == before


def test_another_number_of_samples_is_an_error(tmp_path):
    with (
        pytest.raises(ValueError, match="1 images of 2"),
        sample_files.npz(tmp_path / "a.npz", 2, (1, 1, 1)) as add,
    ):
        add(np.zeros((1, 1, 1, 1), np.uint8), np.zeros(1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["samples.npz", "samples.png", "folder"])
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path, name):
    def peak(number):
        out = tmp_path / f"{number}" / name
        sample_files.check_writable(out)
        tracemalloc.start()
        with sample_files.writing(out, number, (32, 32, 3), (8, 8, 4)) as add:
            for _ in range(0, number, 50):
                gc.collect()  # what is no longer held, not when it happens to be freed
                images = np.zeros((50, 32, 32, 3), np.uint8)
                add(images, np.zeros(50, np.int32), np.zeros((50, 8, 8, 4), np.int32))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = (500, 1000) if name == "folder" else (500, 5000)
    gc.freeze()  # or `gc.collect` would look through all that other tests have left
    try:
        peak(few)  # imports, caches
        at_first = peak(few + 50)
        batch = 50 * (32 * 32 * 3 + 8 * 8 * 4 * 4)
        # The second time, Python's own tables have grown already.
        assert min(peak(many), peak(many + 50)) - at_first < 2 * batch
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("name", ["file/samples.npz", "file/folder", "full.npz"])
def test_what_cannot_be_written_is_told_before(tmp_path, name):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="--out=") as error:
        sample_files.check_writable(tmp_path / name, 10**20)
    assert "\n" not in str(error.value)
