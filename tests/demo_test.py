# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The web page without a browser: batches of several users, previews, uploads."""

import contextlib
import http.client
import io
import json
import os
import pathlib
import re
import sys
import threading
import types
import uuid
import zlib

import numpy as np
import pytest
from cli_test import failing
from PIL import Image

import rq
from rq.config import ConfigError
from rq.data import DataError
from rq.demo import inputs, markup, server, uploads
from rq.demo.actions import Actions
from rq.demo.batches import Batches, Busy
from rq.demo.previews import Previews
from rq.sampling import inpainting

SIZE = 8  # of a batch: one for each simulated device
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def model(trained):
    """The tiny run of the tests, loaded."""
    return rq.load(trained)


@pytest.fixture(scope="module")
def previews(model):
    return Previews(model.models, SIZE)


@pytest.fixture
def batches(model, previews):
    """A queue with nothing in it."""
    made = Batches(model.models, previews, max_requests=3)
    yield made
    made.close()


def wanted(model, number, classes=(), given=None, **options):
    return inputs.make_wanted(model, classes, (), number, options, given)[0]


def images_of(request):
    """The images of a request, when all are finished."""
    *_, last = request.progress()
    assert last.finished == len(last.images) and last.codes is not None
    return np.stack(last.images)


@pytest.fixture
def held(model, monkeypatch):
    """Batches wait for `go`; `log` has the seeds in each."""
    sampler = model.models.sampler
    go, log, by_row = threading.Event(), [], sampler.by_row

    def waiting(samples, size):
        log.append([x.config.seed for x in samples])
        assert go.wait(60)
        return by_row(samples, size)

    monkeypatch.setattr(sampler, "by_row", waiting)
    yield go, log
    go.set()


# Batches.


def test_users_in_one_batch_get_the_images_that_each_would_get_alone(
    model, batches, held
):
    go, log = held
    image = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    given = inpainting.make_given(model.encode(image)[0], "bottom")
    first = batches.submit(wanted(model, 1, seed=9))
    while not log:  # it is alone in a batch; the others come while it is drawn
        pass
    asked = [
        (3, dict(classes=[3, 7], seed=1, temperature=0.7)),
        (4, dict(seed=2, top_k=(3, 0), given=given)),
    ]
    requests = [batches.submit(wanted(model, n, **options)) for n, options in asked]
    with pytest.raises(Busy, match="try again"):
        batches.submit(wanted(model, 1))
    go.set()
    images_of(first)
    plain, completed = map(images_of, requests)
    assert sorted(log[1]) == [1, 1, 1, 2, 2, 2, 2]
    options = dict(num_samples=3, classes=[3, 7], seed=1, temperature=0.7)
    np.testing.assert_array_equal(plain, model.sample(**options))
    options = dict(num_samples=4, seed=2, top_k=(3, 0))
    np.testing.assert_array_equal(completed, model.complete(image, **options))


def test_a_request_waits_no_longer_than_the_batch_that_is_drawn(model, batches, held):
    go, log = held
    many = batches.submit(wanted(model, 3 * SIZE, seed=1))
    while not log:
        pass
    one = batches.submit(wanted(model, 1, seed=2))
    go.set()
    images_of(one)
    assert log[0] == [1] * SIZE and 2 in log[1]
    expected = model.sample(num_samples=3 * SIZE, seed=1)
    np.testing.assert_array_equal(images_of(many), expected)


def test_who_got_nothing_is_first_in_the_next_batch(model, previews, held):
    go, log = held
    batches = Batches(model.models, previews)
    requests = [batches.submit(wanted(model, 2, seed=0))]
    while not log:
        pass
    for seed in range(1, SIZE + 3):
        requests.append(batches.submit(wanted(model, 2, seed=seed)))
    go.set()
    for request in requests:
        images_of(request)
    batches.close()
    assert set(range(SIZE + 1, SIZE + 3)) <= set(log[2])


def test_images_appear_row_by_row_and_depth_by_depth(model, batches):
    grey = previews_grey()
    seen = []
    for progress in batches.submit(wanted(model, 2)).progress():
        if progress.rows:
            seen.append((progress.rows, progress.depth))
            rows = progress.rows * 4  # pixels of a row of codes
            below = progress.images[0][rows:]
            assert (below == grey).all() and (progress.images[0][:rows] != grey).any()
    assert seen and seen == sorted(seen)


def previews_grey():
    return np.rint((0.8 + 1) * 127.5).astype(np.uint8)


def test_a_model_whose_config_is_not_row_by_row_is_drawn_row_by_row(model, batches):
    config = model.config.copy_and_resolve_references()
    config.sampling.parallel_steps, config.sampling.levels = 4, (1, 2)
    config.sampling.depth = 1
    other = types.SimpleNamespace(config=config, models=model.models)
    for asked in (model, other):
        images = images_of(batches.submit(wanted(asked, 1)))
        if asked is model:
            expected = images
    np.testing.assert_array_equal(images, expected)


def test_closing_the_page_cancels_what_is_not_yet_in_a_batch(model, batches, held):
    go, log = held
    gone = batches.submit(wanted(model, 5 * SIZE, seed=1)).progress()
    next(gone)
    while not log:
        pass
    gone.close()
    other = batches.submit(wanted(model, 2, seed=2))
    go.set()
    images_of(other)
    assert log == [[1] * SIZE, [2, 2]]


def test_a_failure_is_reported_to_its_batch_and_the_next_one_is_drawn(
    model, batches, monkeypatch
):
    def fail(*args):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(model.models.sampler, "by_row", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            images_of(batches.submit(wanted(model, 1)))
    assert len(images_of(batches.submit(wanted(model, 1)))) == 1


def test_options_that_the_model_lacks_are_refused_before_they_are_drawn(model, batches):
    with pytest.raises(ConfigError, match="guidance"):
        batches.submit(wanted(model, 1, guidance=2.0))
    with pytest.raises(ConfigError, match="top_k"):
        batches.submit(wanted(model, 1, top_k=(1, 2, 3)))


# Pictures.


def test_previews_decode_up_to_each_positions_depth(model, previews):
    codes = model.encode(np.random.default_rng(1).random((11, 16, 16, 1)))
    for depth in (1, 2):
        found = previews.decode(codes, depth).astype(int)
        assert abs(found - model.decode(codes, depth)).max() <= 1
    depths = np.zeros(codes.shape[:3], np.int32)
    depths[:, 0] = 2
    found = previews.decode(codes, depths)
    assert (found[:, 4:] == previews_grey()).all()
    assert (found[:, :4] != previews_grey()).any()


def test_captions_cannot_bring_markup_into_the_page():
    image, text = np.zeros((4, 4, 3), np.uint8), '"><script>x</script>'
    assert "<script" not in markup.gallery([image, None], [text, text])
    assert "<script" not in markup.message(text)


# What users enter.


@pytest.fixture(scope="module")
def actions(model, previews):
    made = Batches(model.models, previews)
    yield Actions(model, previews, made, max_images=4)
    made.close()


@pytest.mark.parametrize(
    "classes, number, options, message",
    [
        ("3, x", 1, {}, "a class is 'x'"),
        ("12", 1, {}, "the model has 0..9"),
        ("", 5, {}, "the number is '5'"),
        ("", None, {}, "the number is 'None'"),
        ("", 1.5, {}, "the number is '1.5'"),
        ("", 1, {"temperature": 0.0}, "temperature"),
        ("", 1, {"top_p": (0.5, 0.5, 0.5)}, "top_p"),
        ("", 1, {"seed": -1}, "seed"),
        ("1 " * 1001, 1, {}, "at most 1000"),
    ],
)
def test_wrong_input_is_refused_in_one_line(actions, classes, number, options, message):
    with pytest.raises(ConfigError, match=message) as error:
        next(actions.sample(classes, "", number, options))
    assert "\n" not in str(error.value)


def test_texts_are_refused_by_a_model_of_classes(actions):
    with pytest.raises(ConfigError, match="condition is 'class'"):
        next(actions.sample("", "a seven", 1, {}))
    with pytest.raises(ConfigError, match="letters"):
        inputs.read_texts("x" * 1001)


@pytest.mark.parametrize(
    "base, cells, keep_depth, message",
    [
        (None, "1" * 16, 0, "there is no image"),
        ("codes", "1" * 15, 0, "does not fit"),
        ("codes", "x" * 16, 0, "does not fit"),
        ("codes", "0" * 16, 0, "nothing is marked"),
        ("codes", "1" * 16, 2, "depths to keep"),
    ],
)
def test_what_cannot_be_completed_is_refused(actions, base, cells, keep_depth, message):
    base = None if base is None else np.zeros((4, 4, 2), np.int32)
    with pytest.raises(ConfigError, match=message):
        next(actions.complete(base, cells, keep_depth, "", "", 1, {}))


def test_marked_positions_are_completed_as_the_library_does(actions, model):
    image = np.random.default_rng(2).integers(0, 256, (16, 16), np.uint8)
    base, cells = actions.encode(image), actions.region("right")
    *_, last = actions.complete(base, cells, 1, "4", "", 2, {"seed": 3})
    mask = np.reshape([cell == "1" for cell in cells], (4, 4))
    options = dict(mask=mask, keep_depth=1, classes=[4], num_samples=2, seed=3)
    np.testing.assert_array_equal(
        model.decode(last.shown.codes), model.complete(image, **options)
    )


def test_reconstruction_by_depth_and_the_table_of_codes(actions, model):
    image = np.random.default_rng(3).integers(0, 256, (16, 16, 1), np.uint8)
    html, shown = actions.reconstruct(image)
    assert html.count("<img") == 3 and "64 bits" in html and "128 bits" in html
    table = actions.codes(shown, 1, 2, 3)
    assert f'<td class="rq-here">{shown.codes[0, 1, 2, 1]}</td>' in table
    assert table.count("<img") == 4
    with pytest.raises(ConfigError, match="the row is '5'"):
        actions.codes(shown, 1, 5, 1)


# Uploads.


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, format=kind)
    return file.getvalue()


def photo(side=40):
    rng = np.random.default_rng(4)
    return rng.integers(0, 256, (side, side + 7, 3), np.uint8)


def test_an_upload_is_what_the_library_sees(model):
    data = encoded(photo())
    seen = uploads.read_image(data, 1, 16)
    assert seen.shape == (16, 16, 1)
    np.testing.assert_array_equal(model.encode(seen), model.encode(photo()))


def bomb():
    """A PNG of a few bytes that says that it has 10^9 pixels."""
    data = bytearray(encoded(np.zeros((1, 1), np.uint8)))
    data[16:24] = (31623).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "not an image"),
        (b"hello", "not an image"),
        (encoded(photo(), "TIFF"), "not an image; send BMP"),
        (encoded(photo())[:-900], "damaged"),
        (encoded(photo(), "JPEG")[:-400], "damaged"),
        (bomb(), "too many pixels: the limit is 16,777,216"),
    ],
    ids=["empty", "text", "tiff", "half a png", "half a jpeg", "bomb"],
)
def test_what_is_no_image_is_refused(data, message):
    with pytest.raises(DataError, match=message):
        uploads.read_image(data, 3, 16)


@contextlib.contextmanager
def serving(model, **limits):
    """The page, served by a thread; its port and the folder of uploads."""
    import uvicorn

    options = dict(batch_size=SIZE, max_images=SIZE, max_upload=MEGABYTE) | limits
    with server.listen("127.0.0.1", 0) as listening:
        with server.application(model, **options) as app:
            running = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
            thread = threading.Thread(target=running.run, args=([listening],))
            thread.start()
            try:
                folder = pathlib.Path(os.environ["GRADIO_TEMP_DIR"])
                yield listening.getsockname()[1], folder
            finally:
                running.should_exit = True
                thread.join()
    assert not folder.exists()


@pytest.fixture(scope="module")
def served(model):
    pytest.importorskip("gradio", reason="pip install -e '.[demo-test]'")
    with serving(model) as found:
        yield found


def ask(port, method, path, body=None, headers=()):
    """The status and the body of an answer; None where the connection broke."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (http.client.HTTPException, OSError):
        return None
    finally:
        connection.close()


def form(*files, name="files"):
    """Body and headers of a form with files (name, data)."""
    boundary = uuid.uuid4().hex
    body = b""
    for file, data in files:
        body += (
            f"--{boundary}\r\nContent-Disposition: form-data; "
            f'name="{name}"; filename="{file}"\r\n\r\n'
        ).encode()
        body += data + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


UPLOAD = "/gradio_api/upload"


def upload(port, *files, path=UPLOAD):
    return ask(port, "POST", path, *form(*files))


def stored(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_an_upload_is_stored_without_its_name_and_only_as_the_model_sees_it(served):
    port, folder = served
    data = encoded(photo(), "JPEG")
    status, body = upload(port, ("secret.jpg", data), path=f"{UPLOAD}?upload_id=x")
    (path,) = json.loads(body)
    assert status == 200 and pathlib.Path(path).name == "image.png"
    found = np.asarray(Image.open(path))
    np.testing.assert_array_equal(found, uploads.read_image(data, 1, 16)[..., 0])
    assert not [x for x in folder.rglob("*") if "secret" in str(x)]
    assert upload(port, ("../../../etc/passwd", data))[0] == 200
    assert {x.name for x in stored(folder)} == {"image.png"}


def test_what_is_too_large_is_refused_before_it_is_stored(served):
    port, folder = served
    before = stored(folder)
    status, body = upload(port, ("a.png", bytes(2 * MEGABYTE)))
    assert status == 413 and body == b"too large: at most 1.02 MB"
    status, body = upload(port, ("a.png", bytes(MEGABYTE + 9)))
    assert status == 413 and body == b"too large: at most 1 MB"
    status, _ = ask(port, "POST", "/gradio_api/queue/join", bytes(MEGABYTE))
    assert status == 413
    # Not even received.
    headers = {"Content-Length": str(1 << 40)}
    answer = ask(port, "POST", UPLOAD, bytes(5 * MEGABYTE), headers)
    assert answer is None or answer[0] == 413
    assert stored(folder) == before


def fuzzed(rng):
    """The body and headers of one hostile upload."""
    whole = encoded(photo(), str(rng.choice(uploads.FORMATS)))
    kind = rng.integers(9)
    name = str(rng.choice(["a.png", "../a", "a" * 300, "é\0.jpg", "", "C:\\x"]))
    if kind == 0:
        return form((name, rng.bytes(int(rng.integers(2000)))))
    if kind == 1:
        return form((name, whole[: rng.integers(len(whole))]))
    if kind == 2:
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(len(data), size=20)] = rng.integers(0, 256, 20)
        return form((name, data.tobytes()))
    if kind == 3:
        return form((name, bomb()))
    if kind == 4:
        return form((name, whole), (name, whole))
    if kind == 5:
        return form((name, whole), name="other")
    body, headers = form((name, whole))
    if kind == 6:
        return body, {"Content-Type": str(rng.choice(["text/plain", "multipart/x"]))}
    if kind == 7:
        return body[: rng.integers(len(body))], headers
    return bytes(1100 * 1024), headers


def resident():
    """Bytes of memory that this process has."""
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_a_thousand_bad_uploads_leave_the_server_up_and_its_memory_bounded(served):
    port, folder = served
    rng, answers = np.random.default_rng(5), []
    for i in range(1000):
        if i == 200:
            before = resident()
        answers.append(ask(port, "POST", UPLOAD, *fuzzed(rng)))
    assert None not in answers
    assert {status for status, _ in answers} <= {200, 400, 413}
    assert all(body.count(b"\n") == 0 for _, body in answers)
    assert resident() - before < 50 * MEGABYTE
    assert len(stored(folder)) <= uploads.KEPT
    assert ask(port, "GET", "/")[0] == 200
    assert upload(port, ("a.png", encoded(photo())))[0] == 200


def test_only_the_newest_uploads_are_kept(served, monkeypatch):
    port, folder = served
    monkeypatch.setattr(uploads, "KEPT", 3)
    for shade in range(5):
        image = np.full((16, 16), shade, np.uint8)
        path = json.loads(upload(port, ("a.png", encoded(image)))[1])[0]
        assert len(stored(folder)) <= 3 and pathlib.Path(path).exists()


# The page itself, as a browser talks to it.


def page_config(port):
    return json.loads(ask(port, "GET", "/config")[1])


def run_event(port, config, label, data, session):
    """All outputs that pressing a button gives, in order; raises on an error."""
    (button,) = (
        x["id"]
        for x in config["components"]
        if x["type"] == "button" and x["props"].get("value") == label
    )
    (index,) = (
        x["id"] for x in config["dependencies"] if [button, "click"] in x["targets"]
    )
    body = json.dumps(dict(data=data, fn_index=index, session_hash=session))
    headers = {"Content-Type": "application/json"}
    status, _ = ask(port, "POST", "/gradio_api/queue/join", body, headers)
    assert status == 200
    _, events = ask(port, "GET", f"/gradio_api/queue/data?session_hash={session}")
    found = [
        json.loads(x[6:]) for x in events.decode().split("\n") if x[:6] == "data: "
    ]
    return [x for x in found if x["msg"].startswith("process_")]


def test_two_users_generate_at_once(served, model):
    port, _ = served
    config, found = page_config(port), {}

    def user(seed):
        data = ["3, 7", "", 4, seed, "1", "0", "0.9", "1"]
        found[seed] = run_event(port, config, "Generate", data, f"user{seed}")

    threads = [threading.Thread(target=user, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, events in found.items():
        last = events[-1]
        assert last["msg"] == "process_completed" and last["success"], last
        images = model.sample(classes=[3, 7], num_samples=4, seed=seed, top_p=0.9)
        expected = [markup.source(image) for image in images]
        assert all(x in last["output"]["data"][1] for x in expected)


@pytest.mark.parametrize(
    "place, value, message",
    [(0, "12", "0..9"), (4, "hot", "temperature is 'hot'"), (6, "2", "top_p")],
)
def test_wrong_input_gives_a_clear_message(served, place, value, message):
    port, _ = served
    data = ["", "", 1, 0, "1", "0", "0.9", "1"]
    data[place] = value
    events = run_event(port, page_config(port), "Generate", data, f"bad{place}")
    assert not events[-1]["success"] and message in events[-1]["output"]["error"]


def test_the_page_loads_nothing_from_elsewhere(served):
    port, _ = served
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "fonts.googleapis" not in answer.read().decode()
    theme = ask(port, "GET", "/theme.css")[1].decode()
    assert not re.search(r"@import|url\([\"']?(https?:)?//", theme)


# The command.


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--port=70000"], "at most 65535"),
        (["--host=no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
        (["nowhere"], "nowhere does not exist"),
    ],
)
def test_wrong_flags_give_one_line(trained, flags, message, capsys):
    if flags[0].startswith("--"):
        flags = [str(trained), *flags]
    assert message in failing(capsys, ["demo", *flags], 1)


def test_a_port_that_is_taken_gives_one_line(trained, capsys):
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        line = failing(capsys, ["demo", str(trained), f"--port={port}"], 1)
    assert f"port {port}" in line and "--port" in line


def test_without_gradio_the_remedy_is_named(trained, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    line = failing(capsys, ["demo", str(trained), "--port=0"], 1)
    assert "pip install 'rq[demo]'" in line
