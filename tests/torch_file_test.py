# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""PyTorch's files without PyTorch: what is read, and what is refused in one line."""

import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch_files
import yaml
from torch_files import Tensor

from rq import convert
from rq.convert import npz_file, read_torch_file
from rq.data import DataError

GOLDEN = os.path.join(os.path.dirname(__file__), "golden/ckpt")
FLOATS = np.arange(12, dtype=np.float32).reshape(3, 4)


def refused(path, match):
    """The one line with which a file is refused."""
    with pytest.raises(ValueError, match=match) as info:
        read_torch_file(path)
    line = str(info.value)
    assert "\n" not in line and len(line) < 500 and str(path) in line
    return line


@pytest.mark.parametrize("save", [torch_files.save, torch_files.save_legacy])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_both_formats_are_read(tmp_path, save, protocol):
    path, saved = tmp_path / "model.pt", torch_files.example()
    save(path, saved, protocol)
    found = read_torch_file(path)
    state, weight = found["state_dict"], saved["state_dict"]["weight"].array
    assert list(state) == list(saved["state_dict"])
    np.testing.assert_array_equal(state["weight"], weight)
    np.testing.assert_array_equal(state["column"], weight[:, 1])
    assert np.shares_memory(state["weight"], state["tied"])
    assert state["steps"] == 7 and state["steps"].dtype == np.int64
    np.testing.assert_array_equal(state["mask"], [True, False])
    assert state["empty"].shape == (0, 3)
    assert found["epoch"] == 2**40 and found["milestones"] == {10: 1}
    assert found["optimizer"]["param_groups"] == [{"lr": 1e-3, "params": [0]}]
    assert found["others"] == ({1: {}}, None, True, "ä", -1.5)


@pytest.mark.parametrize("save", [torch_files.save, torch_files.save_legacy])
@pytest.mark.parametrize(
    "changes",
    [
        dict(offset=1),
        dict(offset=-1),
        dict(offset=2**63),
        dict(size=(4, 4)),
        dict(size=(3, -4)),
        dict(size=(2**40, 2**40)),
        dict(size=(2**40,), stride=(0,)),
        dict(stride=(5, 1)),
        dict(stride=(-4, 1)),
        dict(stride=(2**62, 1)),
        dict(stride=(4,)),
        dict(size=(1,) * 40, stride=(1,) * 40),
        dict(size=(3.0, 4)),
        dict(size=None),
        dict(number=2**50),
        dict(number=-1),
        dict(kind="QInt8Storage"),
    ],
    ids=str,
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, save, changes):
    path = tmp_path / "model.pt"
    save(path, {"w": Tensor(FLOATS, **changes)})
    refused(path, "model.pt")


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("save", [torch_files.save, torch_files.save_legacy])
@pytest.mark.parametrize(
    "evil, name",
    [
        (Evil(os.system, "touch HERE"), "posix.system"),
        (Evil(eval, "open('HERE', 'w')"), "builtins.eval"),
        (Evil(getattr, (), "count"), "builtins.getattr"),
        (np.zeros(3), "numpy"),
    ],
    ids=["system", "eval", "getattr", "numpy"],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_that_run_code_are_refused_by_name(
    tmp_path, monkeypatch, save, evil, name, protocol
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    save(path, {"state_dict": {"w": evil}}, protocol)
    refused(path, f"refusing to load {name}")
    assert os.listdir(tmp_path) == ["model.pt"]


@pytest.mark.parametrize(
    "pickle_bytes, match",
    [
        (b"\x80\x02X\xff\xff\xff\x7fab.", "bytes"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fab.", "bytes"),
        (b"\x80\x02}" + b"\x85" * 60_000 + b"K\x01s.", "key|instruction"),
        (b"\x80\x02}K\x01" + b"\x85" * 60_000 + b"K\x01s.", "key is a tuple"),
        (b"\x80\x02]" + b"]a" * 10, "opcode|exhausted|pickle"),
        (b"\x80\x02a.", "damaged|instruction"),
        (b"\x80\x02}b.", "damaged|instruction"),
        (b"cbuiltins\ndict\n(tR.", "refusing to call|damaged|cannot"),
        (b"\x80\x02]q\x00h\x00a.", "holds a list"),
        (b"\x80\x02K\x01.", "holds a int"),
        (b"", "cannot read"),
        (b"\x80\x02ccollections\nOrderedDict.popitem\n.", "OrderedDict.popitem"),
        (b"\x80\x02(c__builtin__\nexec\nX\x01\x00\x00\x00xo.", "refusing to load"),
        (b"\x80\x02\x82\x01.", "EXT1"),
    ],
)
def test_hostile_pickles_are_refused(tmp_path, pickle_bytes, match):
    path = tmp_path / "model.pt"
    torch_files.write_zip(path, pickle_bytes, {})
    refused(path, match)


def test_an_index_of_the_memo_costs_no_memory(tmp_path):
    """Python's own unpickler allocates and clears 2^32 entries for this."""
    path = tmp_path / "model.pt"
    torch_files.write_zip(path, b"\x80\x02}r\xff\xff\xff\xff.", {})
    assert read_torch_file(path) == {}


def test_lists_are_not_copied_again_and_again(tmp_path):
    pairs = b"\x80\x02]q\x00(" + b"K\x01K\x02\x86" * 1000 + b"e}q\x01"
    copy = b"K\x01ccollections\nOrderedDict\nh\x00\x85Rs"
    path = tmp_path / "model.pt"
    torch_files.write_zip(path, pairs + copy + b".", {})
    assert read_torch_file(path) == {1: {1: 2}}
    torch_files.write_zip(path, pairs + copy * 1000 + b".", {})
    refused(path, "copied again")


def test_a_flipped_byte_a_cut_and_a_bomb_are_one_line_each(tmp_path):
    path = tmp_path / "model.pt"
    torch_files.save(path, {"w": Tensor(FLOATS)})
    whole = path.read_bytes()
    at = whole.index(FLOATS.tobytes())
    path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    refused(path, "CRC")
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "not a file that torch.save wrote, or is damaged")
    path.write_bytes(b"")
    refused(path, "not a file that torch.save wrote")
    torch_files.save(path, {"w": Tensor(np.zeros(10**6, np.float32))}, compression=8)
    assert path.stat().st_size < 10**5
    refused(path, "compressed")
    torch_files.write_zip(path, torch_files.pickled({"w": Tensor(FLOATS)}), {})
    refused(path, "storage 0 is missing")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    refused(path, "no data.pkl")
    refused(tmp_path, "is a folder")
    with pytest.raises(FileNotFoundError):
        read_torch_file(tmp_path / "gone.pt")


@pytest.mark.parametrize("cut", [1, 8, 40, 60, 200, 300])
def test_a_legacy_file_cut_short_is_refused(tmp_path, cut):
    path = tmp_path / "model.pt"
    torch_files.save_legacy(path, {"w": Tensor(FLOATS)})
    path.write_bytes(path.read_bytes()[:-cut])
    refused(path, "cannot read")


# What is in a checkpoint


@pytest.fixture(params=["rqvae", "rqtransformer"])
def released(request, tmp_path):
    """A released checkpoint's folder, its state dict, and a function that saves it."""
    folder = os.path.join(GOLDEN, request.param)
    shutil.copy(os.path.join(folder, "config.yaml"), tmp_path)
    checkpoint = read_torch_file(os.path.join(folder, "model.pt"))

    def save(state, name="state_dict"):
        state = {n: Tensor(a, key=n) for n, a in state.items()}
        torch_files.save(tmp_path / "model.pt", {name: state} if name else state)
        return tmp_path / "model.pt"

    return save, checkpoint["state_dict"]


def test_a_wrapper_and_a_bare_state_dict_are_taken(released):
    save, state = released
    module, expected = convert.load(save(state))
    for path in (
        lambda: save({f"module.{n}": a for n, a in state.items()}),
        lambda: save(state, name=None),
        lambda: save({f"module.{n}": a for n, a in state.items()}, name=None),
    ):
        found, variables = convert.load(path())
        assert found == module
        ours, theirs = (convert.to_torch(module, v) for v in (variables, expected))
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
    with pytest.raises(ValueError, match="without a moving average"):
        convert.load(save(state, name=None), ema=True)


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda s: {}, "the state dict"),
        (lambda s: {f"net.{n}": a for n, a in s.items()}, r"it has \d+ \(net"),
        (lambda s: dict(list(s.items())[5:]), r"lacks 5 \(.*, \.\.\.\) of \d+ names"),
        (lambda s: dict(list(s.items())[1:]), "has no '"),
        (lambda s: s | {n: a * np.nan for n, a in s.items()}, "NaN, infinite"),
        (lambda s: s | one(s, np.inf), r"NaN, infinite.* in 1 \("),
        (lambda s: s | one(s, -np.inf), r"NaN, infinite.* in 1 \("),
        (lambda s: s | {n: a[None] for n, a in s.items()}, "has shape|vocab"),
    ],
)
def test_wrong_state_dicts_are_one_short_line(released, change, match):
    save, state = released
    with pytest.raises(ValueError, match=match) as info:
        convert.load(save(change(state)))
    assert "\n" not in str(info.value) and len(str(info.value)) < 600


def one(state, value) -> dict:
    """One weight of one matrix changed."""
    name = max(state, key=lambda n: state[n].size)
    array = np.array(state[name])
    array.flat[-1] = value
    return {name: array}


@pytest.mark.parametrize(
    "text, match",
    [
        ("{", "no YAML"),
        ("a: 1", "no section 'arch'"),
        ("- 1", "no section 'arch'"),
        ("arch: {type: vqgan}", "neither 'rq-vae' nor"),
        ("arch: {type: rq-vae}", "has no 'ddconfig'"),
        ("arch: {type: rq-vae, ddconfig: 3, hparams: 4}", "config.yaml"),
        ("arch: {type: rq-transformer}", "has no"),
    ],
)
def test_a_config_without_its_fields_is_one_line(tmp_path, text, match):
    shutil.copy(os.path.join(GOLDEN, "rqtransformer/model.pt"), tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=match) as info:
        convert.load(tmp_path / "model.pt")
    assert "\n" not in str(info.value)


def test_a_checkpoint_without_its_config_or_state_says_so(tmp_path):
    shutil.copy(os.path.join(GOLDEN, "rqtransformer/model.pt"), tmp_path)
    with pytest.raises(FileNotFoundError, match="config.yaml is missing"):
        convert.load(tmp_path / "model.pt")
    shutil.copy(os.path.join(GOLDEN, "rqtransformer/config.yaml"), tmp_path)
    torch_files.save(tmp_path / "model.pt", {"epoch": 3, "state_dict": 4})
    with pytest.raises(ValueError, match="'state_dict' is no state dict"):
        convert.load(tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"no 'state_dict_ema' but 2 \(epoch, state"):
        convert.load(tmp_path / "model.pt", ema=True)
    arch = yaml.safe_load((tmp_path / "config.yaml").read_text())["arch"]
    with pytest.raises(ValueError, match="state dict"):
        convert.from_torch(arch, {"a": object(), "b": [[1], [1, 2]]})


def test_unused_names_are_counted_not_listed(released, caplog):
    save, state = released
    more = {f"extra.{k:04}": np.zeros(1, np.float32) for k in range(1000)}
    path = save(dict(state) | more)
    with caplog.at_level("WARNING"):
        convert.load(path)
    (line,) = [r.getMessage() for r in caplog.records if "unused" in r.getMessage()]
    assert "1000 (extra.0000, extra.0001" in line and len(line) < 200


# Converted weights of fixed networks


def test_damaged_archives_of_weights_are_one_line_with_the_command(tmp_path):
    path = tmp_path / "x.npz"
    npz_file.save(path, "toy", {"a": {"kernel": FLOATS}}, [1])
    whole, at = path.read_bytes(), path.read_bytes().index(FLOATS.tobytes())
    np.testing.assert_array_equal(
        npz_file.load(path, "toy", "f", "")[1]["a"]["kernel"], FLOATS
    )

    def refused(match):
        with pytest.raises(DataError, match=match) as info:
            npz_file.load(path, "toy", "--flag", "make it so")
        assert "\n" not in str(info.value) and "make it so" in str(info.value)

    path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    refused("is damaged .*CRC")
    path.write_bytes(whole[:-30])
    refused("holds something else")
    for value in (np.nan, np.inf):
        npz_file.save(path, "toy", {"a": {"kernel": FLOATS * value}})
        refused(r"NaN, infinite or no numbers at all in 1 \(a/kernel\)")
    np.savez_compressed(path, kind="toy", about="[]", a=np.zeros(10**6))
    refused("holds something else")
    with zipfile.ZipFile(path, "w") as archive:  # a header that claims 8 TB
        header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
        data = (
            b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
        )
        archive.writestr("a.npy", data + bytes(64))
    refused("holds something else")
    np.savez(path, kind="toy", about="[]", a=np.array([pickle], object)[:0])
    refused("holds something else")
