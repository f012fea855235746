# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests that thousands of damaged and forged files give an error or a correct load.

Each kind of file is read in a subprocess with little extra memory, so that a crash, a
hang or a huge allocation fails the test.
"""

import io
import json
import os
import pathlib
import pickle
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

import faulty_folder
import numpy as np
import pytest
import torch_files

pytestmark = pytest.mark.slow
NUMBER = 1000
MEMORY = 256 * 2**20  # in addition to the memory after all imports
LIMIT = 5  # seconds for one file
EDGES = (0, 1, 0x7F, 0x80, 0xFF)
SIZES = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", bytes(4))


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """Applies one to four changes: bytes, sizes, parts cut out, doubled or moved."""
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, max(len(data), 1)))
        length = int(rng.choice([1, 2, 4, 8, 64, 1024]))
        part = data[at : at + length]
        match rng.integers(0, 7):
            case 0:
                change = bytes([rng.integers(0, 256)])
                data = data[:at] + change + data[at + 1 :]
            case 1:
                data = data[:at] + bytes([rng.choice(EDGES)]) + data[at + 1 :]
            case 2:
                data = data[:at] + SIZES[rng.integers(0, 4)] + data[at + 4 :]
            case 3:
                data = data[:at] + data[at + length :]
            case 4:
                data = data[:at] + part + data[at:]
            case 5:
                other = int(rng.integers(0, max(len(data), 1)))
                data = data[:other] + part + data[other + len(part) :]
            case 6:
                data = data[:at]
    return data


def mutate_member(rng, path) -> None:
    """Changes one file inside an archive, and writes correct checksums."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = list(members)[rng.integers(0, len(members))]
    if rng.random() < 0.7:  # where the header is
        name = next((n for n in members if n.endswith("data.pkl")), name)
    members[name] = mutate(rng, members[name])
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def write_torch(path, index):
    save = (torch_files.save, torch_files.save_legacy)[index % 2]
    save(path, torch_files.example(), protocol=(2, 4)[index // 2 % 2])


def write_released(path, index):
    """Writes a small checkpoint in the released format, with its config."""
    golden = pathlib.Path(__file__).parent / "golden/ckpt/rqtransformer"
    path.write_bytes((golden / "model.pt").read_bytes())
    (path.parent / "config.yaml").write_bytes((golden / "config.yaml").read_bytes())


def write_weights(path, index):
    from rq.convert import npz_file

    arrays = {"a": {"kernel": np.ones((3, 4), np.float32)}, "b": np.ones(2)}
    npz_file.save(path, "toy", arrays, [1, 2])


def write_moments(path, index):
    from rq.metrics import moments

    found = moments.of(np.random.default_rng(0).standard_normal((20, 3)))
    moments.save(path, found, label="toy")


def write_arrays(path, index):
    layer = {"kernel": np.ones((3, 3, 2, 4), np.float32), "bias": np.zeros(4)}
    content = {
        "VGG16_0": {f"Conv_{k}": dict(layer) for k in range(3)},
        "b": np.arange(5),
    }
    path.write_bytes(pickle.dumps(content, (3, 4)[index % 2]))


def read_arrays(path):
    from rq.convert import array_pickle

    touch(array_pickle.read_array_pickle(path))


def write_safetensors(path, index):
    from rq.convert import safetensors_file

    safetensors_file.write(path, {"a": np.ones((3, 4)), "b": np.ones(2)}.items())


def read_safetensors(path):
    from rq.convert import safetensors_file

    with safetensors_file.opened(path, lambda size: None) as found:
        for array in found.values():
            np.asarray(array).tobytes()


def write_archive(path, index):
    """Writes a .tar of models, compressed or not."""
    formats = tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT
    mode = ("w", "w:gz")[index // 3 % 2]
    with tarfile.open(path, mode, format=formats[index % 3]) as archive:
        for name in ("a/model.pt", "a/config.yaml", f"{'ä/' * 60}model.pt"):
            member = tarfile.TarInfo(name)
            member.size = 700
            archive.addfile(member, io.BytesIO(bytes(range(250)) * 3))


def read_archive(path):
    from rq.convert import archive

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            out = pathlib.Path(folder, "out")
            archive.unpack(path, out, lambda name: "." in name)
        except OSError as error:  # names that are too long, or there already
            raise ValueError(f"{path.name}: {error}") from None
        assert os.listdir(folder) == ["out"]


def read_weights(path):
    from rq.convert import npz_file

    npz_file.load(path, "toy", "--flag", "make it")


def read_torch(path):
    from rq.convert import read_torch_file

    touch(read_torch_file(path))


def read_released(path):
    from rq import convert

    convert.load(path)


def read_moments(path):
    from rq.metrics import moments

    touch(moments.load(path)._asdict())


def touch(found) -> None:
    """Reads every number, to detect arrays that exceed their buffer."""
    if isinstance(found, np.ndarray):
        found.tobytes()
    elif isinstance(found, dict):
        for value in found.values():
            touch(value)


def write_image(path, index):
    """Writes an image in one of the supported formats."""
    image = np.random.default_rng(index % 3).integers(0, 255, (40, 60, 3), np.uint8)
    image = image // 4 + np.arange(60, dtype=np.uint8)[:, None]
    formats = "PNG JPEG GIF WEBP TIFF BMP JPEG2000 TGA AVIF QOI PPM".split()
    name = formats[index % len(formats)]
    options = {"progressive": True} if name == "JPEG" and index % 2 else {}
    path.write_bytes(faulty_folder.encoded(image, name, **options))


def read_image(path):
    from rq.data import decode

    content = path.read_bytes()
    try:
        shape, _ = decode.examine(content)
        assert decode.decode(content, 1).shape == (*shape, 1)
    except (decode.DecodeError, MemoryError) as error:
        raise ValueError(f"{path.name}: {error}") from error


def write_shard(path, index):
    """Writes a tar file of images with captions, classes and a JSON."""
    image = faulty_folder.shape("circle", index % 5)
    with tarfile.open(path, "w") as archive:
        for name, content in (
            ("0.left.png", faulty_folder.encoded(image)),
            ("0.txt", "two\nlines".encode("utf-16")),
            ("1.jpg", faulty_folder.encoded(image, "JPEG")),
            ("1.json", b'{"caption": "one \\u2028 line"}'),
            ("1.cls", b"3"),
            ("._1.jpg", b"\0\5\x16\7"),
            (f"{'long/' * 40}2", faulty_folder.encoded(image, "GIF")),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def read_shard(path):
    """Reads a tar file; raises an error if anything was left out."""
    from rq.data.own_images import prepared, readers
    from rq.data.own_images.inventory import Inventory

    inventory = Inventory()
    for image in readers.tar(path, inventory):
        "\n".join((image.name, image.label or "", image.captions)).encode()
        _, encoded, _, reason, _ = prepared._examine(image)
        if encoded is None:
            inventory.leave_out(image.name, reason)
    report = inventory.as_dict()
    json.dumps(report).encode()
    notes = [line for line in report["notes"] if not line.startswith("texts read as")]
    if inventory.left_out or notes:
        text = f"{report['files_left_out']} {notes}"
        raise ValueError(f"{path.name}: {text[:300]}")


def write_table(path, index):
    """Writes a table of captions with quotes and line breaks."""
    ends, separators = ("\n", "\r\n")[index % 2], ",;\t"
    separator = separators[index % 3] if path.suffix == ".csv" else "\t"
    rows = [("file", "caption"), ("a.png", "plain"), ("b.png", f'"two{ends}""lines"""')]
    rows += [(f"{k}.png", "gr\u00fcn \u2028 text") for k in range(5)]
    text = ends.join(separator.join(row) for row in rows)
    encoding = ("utf-8", "utf-8-sig", "cp1252", "utf-16")[index % 4]
    path.write_bytes(text.encode(encoding, "replace"))


def read_table(path):
    from rq.data import captions

    read = captions.read_csv if path.suffix == ".csv" else captions.read_tsv
    for file, caption in read(path)[0]:
        assert "\n" not in caption and "\r" not in caption
        (file + caption).encode("utf-8", "surrogateescape")


def write_json(path, index):
    content = {
        "caption": ["one", "two \u2028"][: 1 + index % 2],
        "width": [1, {"a": 2.5}],
    }
    path.write_bytes(json.dumps(content).encode(("utf-8", "utf-16")[index % 2]))


def read_json(path):
    from rq.data import captions

    try:
        lines = captions.json_captions(captions.decode_text(path.read_bytes())[0])
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    "\n".join(lines).encode()


# Name, writer of a valid file, reader, number of files.
KINDS = {
    "torch.pt": (write_torch, read_torch, NUMBER),
    "released.pt": (write_released, read_released, NUMBER // 10),
    "weights.npz": (write_weights, read_weights, NUMBER),
    "moments.npz": (write_moments, read_moments, NUMBER),
    "arrays.pkl": (write_arrays, read_arrays, NUMBER),
    "arrays.safetensors": (write_safetensors, read_safetensors, NUMBER),
    "archive.tar": (write_archive, read_archive, NUMBER),
}
OWN_IMAGES = {
    "image": (write_image, read_image, 2 * NUMBER),
    "shard.tar": (write_shard, read_shard, NUMBER),
    "captions.csv": (write_table, read_table, NUMBER),
    "table.tsv": (write_table, read_table, NUMBER),
    "caption.json": (write_json, read_json, NUMBER),
}


@pytest.mark.parametrize("kind", OWN_IMAGES)
def test_mutated_files_of_a_data_set_are_read_or_left_out(tmp_path, kind):
    command = [sys.executable, __file__, kind, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    counts = json.loads(result.stdout.splitlines()[-1])
    assert counts["refused"] > 0 and counts["read"] > 0
    assert counts["refused"] + counts["read"] == OWN_IMAGES[kind][2]


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_or_refused_in_a_line(tmp_path, kind):
    command = [sys.executable, __file__, kind, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    counts = json.loads(result.stdout.splitlines()[-1])
    assert counts["refused"] > 0.3 * KINDS[kind][2] and counts["read"] > 0


def main(kind, folder) -> None:
    """Reads mutated files of one kind; prints how many were read and rejected."""
    import faulthandler
    import warnings

    warnings.simplefilter("ignore")
    write, read, number = (KINDS | OWN_IMAGES)[kind]
    path = pathlib.Path(folder) / kind
    write(path, 0)
    read(path)  # imports what it needs
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = used * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    counts = {"read": 0, "refused": 0}
    for index in range(number):
        rng = np.random.default_rng(index)
        write(path, index)
        if index % 4 < 2 and zipfile.is_zipfile(path):
            mutate_member(rng, path)
        else:
            path.write_bytes(mutate(rng, path.read_bytes()))
        faulthandler.dump_traceback_later(10 * LIMIT, exit=True)
        start = time.monotonic()
        try:
            read(path)
            counts["read"] += 1
        except ValueError as error:
            counts["refused"] += 1
            message = str(error)
            assert "\n" not in message and 10 < len(message) < 800, (index, message)
            assert kind in message, (index, message)
        assert time.monotonic() - start < LIMIT, index
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(counts))


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main(*sys.argv[1:])
