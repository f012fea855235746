# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Preparing and converting data: interruptions, races, other formats."""

import json
import shutil
import subprocess
import sys

import pytest

from rq.config import default
from rq.data import DataError, digits, sources


def section(**changes):
    """Returns the `data` section of the digits with changes."""
    data = default().data
    data.update(dict(name="digits", resolution=32, channels=1, num_classes=10))
    data.update(changes)
    return data


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Returns a folder with the prepared digits."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    digits.prepare(folder)
    return folder


def run(code):
    """Runs code in a subprocess with parsed flags; returns its exit status."""
    head = "import sys; from absl import flags; flags.FLAGS.mark_as_parsed()"
    return subprocess.run(
        [sys.executable, "-c", f"{head}\n{code}"], timeout=120
    ).returncode


@pytest.mark.slow
def test_preparing_and_reading_need_no_tensorflow(tmp_path):
    code = f"""
from rq.config import default
from rq.data import sources, loader
data = default().data
data.update(dict(name='digits', dir={str(tmp_path)!r}, resolution=32, channels=1))
source = sources.open_split(data, 'train')
batch = next(loader.shuffled(source, data, batch_size=4, seed=0))
assert batch['image'].shape == (4, 32, 32, 1)
assert 'tensorflow' not in sys.modules
"""
    assert run(code) == 0


@pytest.mark.slow
def test_the_first_of_two_processes_to_prepare_a_set_wins(tmp_path, monkeypatch):
    load = digits.load

    def load_late():
        monkeypatch.setattr(digits, "load", load)
        digits.prepare(str(tmp_path))  # the other process
        return load()

    monkeypatch.setattr(digits, "load", load_late)
    digits.prepare(str(tmp_path))
    assert digits.load is load
    assert len(sources.open_split(section(dir=str(tmp_path)), "train")) == 4500
    assert [p.name for p in (tmp_path / "digits").iterdir()] == ["1.0.0"]


@pytest.mark.slow
def test_a_killed_preparation_is_done_again(tmp_path):
    code = f"""
import os
from rq.data import digits
generate = digits.Digits._generate_examples
def killed(self, *args):
    for i, example in enumerate(generate(self, *args)):
        if i == 100:
            os._exit(9)
        yield example
digits.Digits._generate_examples = killed
digits.prepare({str(tmp_path)!r})
"""
    assert run(code) == 9
    assert list((tmp_path / "digits").iterdir())  # left by the killed process
    assert len(sources.open_split(section(dir=str(tmp_path)), "train")) == 4500


def test_split_sizes_that_tfds_reads_from_the_network_are_no_data(
    tmp_path, monkeypatch
):
    from tensorflow_datasets.core import dataset_info, splits

    def initialize(info):
        split = splits.SplitInfo(
            name="train", shard_lengths=[10], num_bytes=1, filename_template=None
        )
        info._splits = splits.SplitDict([split])

    monkeypatch.setattr(dataset_info.DatasetInfo, "initialize_from_bucket", initialize)
    with pytest.raises(DataError, match="tfds build cifar10"):
        sources.open_split(section(name="cifar10", dir=str(tmp_path)), "train")


@pytest.mark.parametrize("name", ["cifar10:9.9.9", "a b"])
def test_a_name_that_tfds_refuses_is_one_line(tmp_path, name):
    with pytest.raises(DataError, match=name) as error:
        sources.open_split(section(name=name, dir=str(tmp_path)), "train")
    assert "\n" not in str(error.value)


def test_tfrecords_need_conversion_and_a_converted_copy_is_read(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "digits" / "1.0.0" / "dataset_info.json"
    info = json.loads(file.read_text()) | {"fileFormat": "tfrecord"}
    file.write_text(json.dumps(info))
    data = section(dir=str(tmp_path))
    with pytest.raises(DataError, match="convert_format --dataset_version_dir"):
        sources.open_split(data, "train")
    # The description that convert_format of TFDS writes for a set converted in place.
    file.write_text(json.dumps(info | {"alternativeFileFormats": ["array_record"]}))
    assert sources.open_split(data, "train")[0]["image"].shape == (32, 32, 1)


@pytest.mark.parametrize(
    "split, size", [("train+validation", 5000), ("train[:10%]", 450)]
)
def test_splits_are_added_and_cut(data_dir, split, size):
    assert len(sources.open_split(section(dir=data_dir), split)) == size
