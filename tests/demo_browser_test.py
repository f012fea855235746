# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The web page in a real browser: headless Chromium, as Debian packages it.

RQ_SCREENSHOTS=1 renews the pictures of docs/demo.md, docs/images/demo_*.png.
"""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from program import ROOT, xla_flags

import rq

WHY = "pip install -e '.[demo-test]'"
playwright = pytest.importorskip("playwright.sync_api", reason=WHY)
pytest.importorskip("gradio", reason=WHY)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs the package chromium"),
]

MODEL = "digits"  # comes with the package
DESKTOP, PHONE = (1280, 640), (375, 812)
PATIENCE = 60_000  # milliseconds
START = "from rq.cli import program; program.main()"


@pytest.fixture(scope="module")
def address():
    """Where a process of its own serves the page."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(optimize=True),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", START, "demo", MODEL, "--port=0", "--max_upload_mb=1"],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            break
    else:
        pytest.fail("the page was not served")
    yield found[0]
    process.terminate()
    assert process.wait(30) is not None


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        made = running.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield made
        made.close()


class User:
    """A browser's page, as its user sees it."""

    def __init__(self, browser, address, size=DESKTOP):
        self.size, self.elsewhere, self.errors = size, [], []
        viewport = {"width": size[0], "height": size[1]}
        self.page = browser.new_context(viewport=viewport).new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._record)
        self.address = address
        self.page.goto(address)
        self.button("Generate").wait_for()

    def _record(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def tab(self, name):
        self.page.get_by_role("tab", name=name).click()

    def button(self, name):
        return self.page.get_by_role("button", name=name).filter(visible=True).first

    def field(self, label):
        return self.page.get_by_label(label).filter(visible=True).first

    def shown(self, selector):
        return self.page.locator(selector).filter(visible=True)

    def draw(self, button="Generate"):
        """Presses a button and returns the sources of the finished images."""
        self.button(button).click()
        self.shown(".rq-status[data-done=false]").or_(
            self.shown(".rq-status[data-done=true]")
        ).first.wait_for()
        return self.finished()

    def finished(self):
        self.shown(".rq-status[data-done=true]").wait_for()
        return self.sources()

    def sources(self):
        return [x.get_attribute("src") for x in self.shown(".rq-gallery img").all()]

    def upload(self, path):
        self.page.locator("input[type=file]").locator("visible=true").or_(
            self.page.get_by_role("tabpanel")
            .filter(visible=True)
            .locator("input[type=file]")
        ).first.set_input_files(path)

    def screenshot(self, name):
        """Renews a picture of the documentation where that is asked for."""
        assert (
            self.page.evaluate("document.documentElement.scrollWidth") <= (self.size[0])
        ), "the page is wider than the window"
        if os.environ.get("RQ_SCREENSHOTS"):
            width = "phone" if self.size == PHONE else "desktop"
            path = ROOT / f"docs/images/demo_{name}_{width}.png"
            self.page.evaluate("window.scrollTo(0, 0)")
            self.page.wait_for_timeout(500)
            self.page.screenshot(path=path, full_page=True)
            Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)

    def close(self):
        self.page.context.close()
        assert not self.elsewhere and not self.errors


WATCH = """() => {
    window.seen = [];
    const note = () => document.querySelectorAll(".rq-status span").forEach(
        x => window.seen.push(x.textContent));
    new MutationObserver(note).observe(
        document.body, {childList: true, subtree: true, characterData: true});
}"""


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def user(request, browser, address):
    made = User(browser, address, request.param)
    yield made
    made.close()


@pytest.fixture(scope="module")
def model():
    return rq.load(MODEL)


@pytest.fixture(scope="module")
def digit(model, tmp_path_factory):
    """A photograph of a digit, with a name that nobody should see."""
    path = tmp_path_factory.mktemp("photo") / "my secret.png"
    image = model.sample(classes=[7], num_samples=1, seed=5)[0, ..., 0]
    Image.fromarray(image).resize((320, 320), Image.Resampling.BICUBIC).save(path)
    return path


def test_generate_and_look_at_every_depth(user):
    user.field("Classes").fill("3, 7")
    user.field("Seed").fill("1")
    user.page.evaluate(WATCH)  # the page itself, for it may be done at once
    user.button("Generate").click()
    images = user.finished()
    seen = user.page.evaluate("window.seen")
    assert any("row" in text for text in seen), seen  # pictures while it samples
    assert len(images) == len(set(images)) == 8
    assert "images/s" in user.shown(".rq-status span").inner_text()
    user.screenshot("generate")
    depth = user.page.get_by_label("number input for Decoded up to depth").filter(
        visible=True
    )
    depth.fill("1")
    depth.press("Enter")
    user.page.wait_for_function(
        "before => document.querySelector('.rq-gallery img').src !== before",
        arg=images[0],
    )
    coarse = user.sources()
    assert len(coarse) == 8 and not set(coarse) & set(images)


def test_upload_shows_every_depth_and_a_bad_one_a_message(user, digit, tmp_path):
    user.tab("Reconstruct")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"this is no image")
    user.upload(bad)
    toast = user.page.get_by_text("not an image; send")
    toast.wait_for()
    user.page.get_by_role("button", name="Close").filter(visible=True).last.click()
    large = tmp_path / "large.png"
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)
    Image.fromarray(noise).save(large)
    user.upload(large)
    user.page.get_by_text(re.compile("maximum|too large")).first.wait_for()
    user.page.reload()
    user.tab("Reconstruct")
    user.upload(digit)
    user.shown(".rq-gallery figcaption").get_by_text("depth 4").wait_for()
    captions = user.shown(".rq-gallery figcaption").all_inner_texts()
    assert len(captions) == 5 and "512 bits" in captions[-1] and "dB" in captions[-1]
    assert "secret" not in user.page.content()
    user.screenshot("reconstruct")
    user.tab("Codes")
    user.shown(".rq-codes").wait_for()
    assert user.shown(".rq-codes .rq-boxed").count() == 8
    before = user.shown(".rq-code").all_inner_texts()
    row = user.page.get_by_label("number input for Row").filter(visible=True)
    row.fill("2")
    row.press("Enter")
    user.page.wait_for_function(
        "before => document.querySelector('.rq-code').innerText !== before[0]",
        arg=before,
    )
    user.screenshot("codes")


def test_draw_a_mask_and_complete(user):
    before = user.draw()
    user.tab("Complete")
    user.button("Take a generated image").click()
    cells = user.shown("#mask b")
    cells.first.wait_for()
    assert cells.count() == 16

    def middle(i):
        box = cells.nth(i).bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    user.page.locator("#mask").scroll_into_view_if_needed()
    user.page.mouse.move(*middle(8))
    user.page.mouse.down()
    for i in (11, 15, 12):
        user.page.mouse.move(*middle(i), steps=8)
    user.page.mouse.up()
    assert user.shown("#mask b.on").count() == 8
    user.field("Seed").fill("5")  # of the same seed and class, it would be the same
    after = user.draw("Complete")
    assert len(after) == 8 and not set(after) & set(before)
    assert user.shown("#mask b.on").count() == 8
    user.screenshot("complete")


def test_two_users_at_once_get_what_each_would_get_alone(browser, address):
    users = [User(browser, address) for _ in range(2)]
    alone = {}
    for seed, user in enumerate(users):
        user.field("Seed").fill(str(10 + seed))
        alone[seed] = user.draw()
    for user in users:
        user.page.reload()
        user.button("Generate").wait_for()
    for seed, user in enumerate(users):
        user.field("Seed").fill(str(10 + seed))
    for user in users:
        user.button("Generate").click()
    for seed, user in enumerate(users):
        assert user.finished() == alone[seed]
        user.close()


def test_a_reload_while_it_samples_leaves_the_page_working(user):
    user.button("Generate").click()
    user.page.reload()
    user.button("Generate").wait_for()
    assert not user.sources()
    assert len(user.draw()) == 8
