# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests that stored codes are exact, resumable, intact and of the right model."""

import json
import threading

import numpy as np
import pytest

from rq.data import DataError, loader, stored_codes

RQVAE = {"rqvae": "abc"}
SHAPES = {"codes": (2, 2, 3), "features": (2, 2, 4)}
N, SHARD = 10, 4


def examples(n=N):
    rng = np.random.default_rng(0)
    return {
        "codes": rng.integers(0, 300, (n, 2, 2, 3)),
        "features": rng.normal(size=(n, 2, 2, 4)).astype(np.float32),
        "label": rng.integers(0, 5, n),
        "captions": [("é", "two \N{GRINNING FACE}")[: i % 3] for i in range(n)],
    }


class Encoder:
    """Yields examples in batches of three and records the requests."""

    def __init__(self, stop_at=None, **changes):
        self.data = examples() | changes
        self.asked, self.stop_at = [], stop_at

    def __call__(self, start, stop):
        self.asked.append((start, stop))
        for first in range(start, stop, 3):
            if self.stop_at is not None and first >= self.stop_at:
                raise KeyboardInterrupt
            last = min(first + 3, stop)
            yield {name: values[first:last] for name, values in self.data.items()}


def writer(folder, n=N, fingerprint=RQVAE, images=""):
    return stored_codes.CodeWriter(
        folder, num_examples=n, shapes=SHAPES, fingerprint=fingerprint, images=images,
        shard_size=SHARD,
    )  # fmt: skip


def store(folder, encode=None, **changes):
    """Writes the missing shards; returns the encoder."""
    encode, codes = encode or Encoder(), writer(folder, **changes)
    for shard in codes.start():
        span = codes.span(shard)
        codes.write(shard, encode(span.start, span.stop))
    return encode


def assert_stored(folder):
    source, data = stored_codes.CodeSource(folder, RQVAE), examples()
    assert len(source) == N
    for i in range(N):
        example = source[i]
        np.testing.assert_array_equal(example["codes"], data["codes"][i])
        np.testing.assert_array_equal(example["features"], data["features"][i])
        assert example["label"] == data["label"][i]
        assert source.read(i)[1] == data["captions"][i]
        assert example["codes"].dtype == np.int32
        assert example["features"].dtype == np.float32


def test_stored_codes_come_back_exactly(tmp_path):
    store(tmp_path)
    assert_stored(tmp_path)
    assert len(list(tmp_path.glob("*-of-00003.array_record"))) == 3


def test_they_are_batched_with_text_and_without(tmp_path):
    store(tmp_path)
    source = stored_codes.CodeSource(tmp_path, RQVAE)
    (batch,) = loader.in_order(source, _section(), N)
    assert "text" not in batch and "captions" not in batch
    assert batch["codes"].shape == (N, 2, 2, 3)
    tokens = lambda captions, rng: np.array([len(captions)])  # noqa: E731
    (batch,) = loader.in_order(source, _section(), N, tokens=tokens)
    np.testing.assert_array_equal(batch["text"][:, 0], np.arange(N) % 3)


def _section():
    from rq.config import default

    return default().data


def test_an_interrupted_write_keeps_its_whole_shards(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, Encoder(stop_at=7))
    assert not stored_codes.is_complete(tmp_path, RQVAE)
    with pytest.raises(DataError, match="rq encode"):
        stored_codes.CodeSource(tmp_path, RQVAE)
    assert store(tmp_path).asked == [(4, 8), (8, 10)]
    assert_stored(tmp_path)
    assert store(tmp_path).asked == []


def test_shards_are_written_in_any_order_by_any_process(tmp_path):
    assert writer(tmp_path).start() == [0, 1, 2]
    encode = Encoder()
    for shard in (2, 0, 1):
        codes = writer(tmp_path)  # by another process
        span = codes.span(shard)
        codes.write(shard, encode(span.start, span.stop))
    assert encode.asked == [(8, 10), (0, 4), (4, 8)]
    assert writer(tmp_path).start() == []
    assert_stored(tmp_path)


def test_codes_of_images_that_have_changed_are_recomputed(tmp_path):
    store(tmp_path, images="a")
    assert store(tmp_path, images="a").asked == []
    assert len(store(tmp_path, images="b").asked) == 3
    assert_stored(tmp_path)


def test_codes_stored_before_images_had_a_fingerprint_are_kept(tmp_path):
    store(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["images"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert store(tmp_path, images="a").asked == []
    assert_stored(tmp_path)


def test_a_reader_waits_for_files_that_appear_late(tmp_path):
    store(tmp_path / "written")
    late = threading.Timer(
        0.5, (tmp_path / "written").rename, [tmp_path / "seen"]
    )  # fmt: skip
    late.start()
    assert len(stored_codes.CodeSource(tmp_path / "seen", RQVAE, patience=60)) == N
    late.join()


@pytest.mark.parametrize("changes", [{"n": 9}, {"fingerprint": {"rqvae": "other"}}])
def test_codes_of_another_run_are_recomputed(tmp_path, changes):
    store(tmp_path, **changes)
    assert len(store(tmp_path).asked) == 3
    assert_stored(tmp_path)


def test_codes_of_another_rqvae_are_refused(tmp_path):
    store(tmp_path)
    assert not stored_codes.is_complete(tmp_path, {"rqvae": "other"})
    with pytest.raises(DataError, match="abc.*other"):
        stored_codes.CodeSource(tmp_path, {"rqvae": "other"})


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_is_found_and_the_file_named(tmp_path, seed):
    """A flipped bit in the second shard is found when opening or reading it."""
    store(tmp_path)
    path = sorted(tmp_path.glob("*.array_record"))[1]
    content, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    # Only used bytes, since the format pads with zeros.
    place = rng.choice(np.flatnonzero(np.frombuffer(bytes(content), np.uint8)))
    content[place] ^= 1 << rng.integers(8)
    path.write_bytes(content)
    try:
        source = stored_codes.CodeSource(tmp_path, RQVAE)
        found = [source[i] for i in range(N)]
    except DataError as error:
        assert path.name in str(error)
        return
    data = examples()  # a bit that only describes how the file was written
    for i, example in enumerate(found):
        np.testing.assert_array_equal(example["codes"], data["codes"][i])
        np.testing.assert_array_equal(example["features"], data["features"][i])


def test_a_flipped_bit_in_a_record_is_found_by_its_checksum():
    data, shapes = examples(), {"codes": [2, 2, 3], "features": [2, 2, 4]}
    no_source, label = np.zeros(0, np.int32), np.asarray(3, np.int32)
    row = (data["codes"][0], data["features"][0], label, no_source, ("a",))
    record = stored_codes._pack(*row)
    assert stored_codes._unpack(record, shapes)[0]["label"] == 3
    for place in range(len(record)):
        damaged = bytearray(record)
        damaged[place] ^= 4
        with pytest.raises(ValueError, match="checksum"):
            stored_codes._unpack(bytes(damaged), shapes)


def test_a_file_cut_short_is_found(tmp_path):
    store(tmp_path)
    path = sorted(tmp_path.glob("*.array_record"))[2]
    path.write_bytes(path.read_bytes()[:-80])
    with pytest.raises(DataError, match=path.name):
        source = stored_codes.CodeSource(tmp_path, RQVAE)
        [source[i] for i in range(N)]


def test_a_line_break_in_a_caption_makes_no_second_caption(tmp_path):
    lines = ("one\ntwo", "three \u2028 four", "")
    store(tmp_path, Encoder(captions=[lines] * N))
    source = stored_codes.CodeSource(tmp_path, RQVAE)
    for i in range(N):
        found = [" ".join(line.split()) for line in source.read(i)[1]]
        assert found == ["one two", "three four", ""]


def test_a_shard_with_other_than_its_number_of_records_is_found(tmp_path):
    store(tmp_path)
    shards = sorted(tmp_path.glob("*.array_record"))
    shards[1].write_bytes(shards[2].read_bytes())  # two records of four
    with pytest.raises(DataError, match="8 records, not 10"):
        stored_codes.CodeSource(tmp_path, RQVAE)


def test_what_other_codes_have_left_half_written_is_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, Encoder(stop_at=7))
    assert list(tmp_path.glob("*_tmp"))
    writer(tmp_path, images="other").start()
    assert [path.name for path in tmp_path.iterdir()] == [stored_codes.MANIFEST]


def test_without_labels_and_captions_there_are_none(tmp_path):
    def encode(start, stop):
        data = examples()
        yield {name: data[name][start:stop] for name in ("codes", "features")}

    store(tmp_path, encode)
    source = stored_codes.CodeSource(tmp_path, RQVAE)
    assert source[3]["label"] == 0 and source.read(3)[1] == ()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"codes": np.full((N, 2, 2, 3), -1)}, "-1"),
        ({"codes": np.full((N, 2, 2, 3), 65536)}, "65536"),
        ({"features": np.ones((N - 9, 2, 2, 4))}, "batches of"),
        ({"label": np.zeros(1)}, "1 labels"),
        ({"codes": np.zeros((N, 2, 3, 2), int)}, r"'codes': \[2, 3, 2\]"),
        ({"features": np.ones((N, 2, 2, 5))}, r"'features': \[2, 2, 5\]"),
    ],
)
def test_batches_that_would_be_stored_wrong_are_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        store(tmp_path, Encoder(**changes))
    assert not stored_codes.is_complete(tmp_path, RQVAE)


def test_fewer_examples_than_declared_are_an_error(tmp_path):
    with pytest.raises(DataError, match="declared"):
        store(tmp_path, n=12)
    with pytest.raises(DataError, match="no examples"):
        store(tmp_path, n=0)


def test_a_fingerprint_may_hold_tuples(tmp_path):
    fingerprint = {"code_shape": (8, 8, 4)}
    store(tmp_path, fingerprint=fingerprint)
    assert stored_codes.is_complete(tmp_path, fingerprint)
    stored_codes.CodeSource(tmp_path, fingerprint)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["shapes"] == {"codes": [2, 2, 3], "features": [2, 2, 4]}
