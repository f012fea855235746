# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The page's layout, in Gradio."""

from __future__ import annotations

import contextlib
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import gradio as gr

from rq.config import ConfigError, SamplingConfig
from rq.data import DataError
from rq.demo.actions import Actions, Shown
from rq.demo.batches import Busy

HERE = pathlib.Path(__file__).parent
# Fonts of the reader's system: the page loads nothing from elsewhere.
THEME = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)
WAITING = 64  # users whose requests are open at once
_CELLS = """
<div class="rq-mask">${value.image ? `<div class="rq-board">
<img src="${value.image}" alt="image to complete" draggable="false">
<div class="rq-cells" style="grid-template-columns: repeat(${value.columns}, 1fr)">
${[...value.cells].map((x) => `<b class="${x === "1" ? "on" : ""}"></b>`).join("")}
</div></div>` : "<p class=\\"rq-message\\">There is no image yet.</p>"}</div>
"""
_PRIVATE: dict[str, Any] = dict(api_visibility="private", show_progress="hidden")
_REGIONS = {
    "bottom half": "bottom",
    "right half": "right",
    "centre": "center",
    "all": "all",
    "nothing": "",
}


def _html(value: Any = None, **options: Any) -> gr.HTML:
    """Returns a place for HTML that our own rules alone style."""
    return gr.HTML(value, apply_default_css=False, **options)


@contextlib.contextmanager
def _messages():
    """Shows errors that are for the user, without a traceback in the log."""
    try:
        yield
    except (Busy, ConfigError, DataError) as error:
        raise gr.Error(str(error), print_exception=False) from None


def _shown(function: Callable) -> Callable:
    @functools.wraps(function)
    def answer(*args):
        with _messages():
            return function(*args)

    return answer


class _Sampling:
    """The inputs of a tab that samples, and its results."""

    def __init__(self, actions: Actions, shown: gr.State, button: str):
        self._actions, self._shown = actions, shown
        config = actions.model.config
        condition = config.transformer.condition
        defaults = SamplingConfig(**config.sampling)
        self.classes = gr.Textbox(
            label="Classes",
            info=f"0 to {config.data.num_classes - 1}, separated by commas; empty: all",
            visible="class" in condition,
        )
        self.texts = gr.Textbox(
            label="Texts", info="one a line", lines=2, visible="text" in condition
        )
        self.number = gr.Slider(
            1, actions.max_images, min(8, actions.max_images), step=1, label="Number"
        )
        self.seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        # As the config has them, one value or one for each depth.
        with gr.Accordion("Sampling options", open=False):
            self.options = {
                name: gr.Textbox(
                    ", ".join(f"{x:g}" for x in getattr(defaults, name)),
                    label=label,
                    info=info,
                    visible=visible,
                )
                for name, label, info, visible in (
                    ("temperature", "Temperature", "below 1: surer", True),
                    ("top_k", "Top-k", "likeliest codes to draw from; 0: all", True),
                    ("top_p", "Top-p", "their total probability; 1: all", True),
                    (
                        "guidance",
                        "Guidance",
                        "above 1: follows the condition more closely",
                        config.transformer.condition_dropout > 0,
                    ),
                )
            }
            gr.Markdown("One value, or one for each depth, separated by commas.")
        with gr.Row():
            self.run = gr.Button(button, variant="primary", min_width=100)
            self.stop = gr.Button("Stop", min_width=100)

    def results(self) -> None:
        """Makes the places of results, in another column than the inputs."""
        depth = self._actions.depth
        self.status = _html()
        self.gallery = _html()
        self.depth = gr.Slider(1, depth, depth, step=1, label="Decoded up to depth")

    def connect(self, extra: list, wanted: Callable) -> None:
        """Connects the buttons.

        Args:
          extra: more inputs.
          wanted: function of their values and of the arguments of `Actions.sample`,
            that yields updates.
        """
        names, fixed = list(self.options), [self.classes, self.texts, self.number]
        depth = self._actions.depth
        own = gr.State()

        def draw(classes, texts, number, seed, *rest):
            options = dict(zip(names, map(_numbers, rest, names), strict=False))
            options["seed"] = _numbers(seed, "seed")[0]
            with _messages():
                for update in wanted(
                    *rest[len(names) :], classes, texts, number, options
                ):
                    done = update.shown
                    kept = (done, done) if done else (gr.skip(), gr.skip())
                    yield update.status, update.gallery, depth, *kept

        event = self.run.click(
            draw,
            [*fixed, self.seed, *self.options.values(), *extra],
            [self.status, self.gallery, self.depth, own, self._shown],
            concurrency_limit=WAITING,
            **_PRIVATE,
        )
        self.stop.click(
            lambda: "",
            None,
            self.status,
            cancels=[event],
            queue=False,
            **_PRIVATE,
        )
        self.depth.input(
            _shown(self._actions.at_depth),
            [own, self.depth],
            self.gallery,
            trigger_mode="always_last",
            **_PRIVATE,
        )


def _numbers(value, name: str) -> tuple:
    """Returns the values of an option that a user has entered."""
    kind = int if name in ("top_k", "seed") else float
    words = str(value).replace(",", " ").split()
    try:
        if not words:
            raise ValueError
        return tuple(kind(word) for word in words)
    except ValueError:
        raise gr.Error(
            f"{name} is {str(value)[:40]!r}: a number", print_exception=False
        ) from None


def build(actions: Actions, name: str) -> gr.Blocks:
    """Returns the page.

    Args:
      actions: what its buttons do.
      name: of the model.
    """
    with gr.Blocks(title=f"rq: {name}", analytics_enabled=False) as page:
        gr.Markdown(f"# {name}\n{_summary(actions)}")
        shown = gr.State()  # the images that the user has seen last
        with gr.Tabs():
            with gr.Tab("Generate"):
                _generate_tab(actions, shown)
            with gr.Tab("Reconstruct"):
                _reconstruct_tab(actions, shown)
            with gr.Tab("Complete"):
                _complete_tab(actions, shown)
            with gr.Tab("Codes"):
                _codes_tab(actions, shown)
    return page.queue(max_size=4 * WAITING, default_concurrency_limit=4)


def _summary(actions: Actions) -> str:
    sizes, (height, width, channels) = actions.rqvae.sizes, actions.rqvae.image_shape
    colour = "grey" if channels == 1 else "colour"
    rows, columns, depth = actions.rqvae.code_shape
    bits = rows * columns * sum(map(math.log2, sizes))
    return (
        f"{height} × {width} {colour} images as {rows} × {columns} × {depth} "
        f"codes of {' or '.join(map(str, sorted(set(sizes))))}: {bits:,.0f} "
        "bits an image."
    )


def _generate_tab(actions: Actions, shown: gr.State) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            sampling = _Sampling(actions, shown, "Generate")
        with gr.Column(scale=2, min_width=300):
            sampling.results()
    sampling.connect([], actions.sample)


def _upload() -> gr.Image:
    return gr.Image(
        label="Image",
        type="numpy",
        sources=["upload", "clipboard"],
        buttons=[],
        height=240,
        elem_classes="rq-upload",
    )


def _reconstruct_tab(actions: Actions, shown: gr.State) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            image = _upload()
        with gr.Column(scale=2, min_width=300):
            found = _html()

    def reconstruct(pixels):
        if pixels is None:
            return "", gr.skip()
        return actions.reconstruct(pixels)

    image.change(_shown(reconstruct), image, [found, shown], api_visibility="private")


def _complete_tab(actions: Actions, shown: gr.State) -> None:
    empty = {
        "image": "",
        "columns": actions.width,
        "cells": actions.region(""),
    }
    base = gr.State()
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            image = _upload()
            with gr.Row():
                take = gr.Button("Take a generated image", min_width=140)
                which = gr.Number(
                    1, label="Number", precision=0, minimum=1, min_width=80
                )
            gr.Markdown("Draw over what is to be made anew:")
            mask = _html(
                empty,
                html_template=_CELLS,
                js_on_load=(HERE / "mask.js").read_text(),
                elem_id="mask",
            )
            region = gr.Dropdown(list(_REGIONS), label="or mark", value="nothing")
            keep_depth = gr.Slider(
                0, actions.depth - 1, 0, step=1, label="Depths to keep there"
            )
        with gr.Column(scale=2, min_width=300):
            sampling = _Sampling(actions, shown, "Complete")
            sampling.results()

    def uploaded(pixels):
        if pixels is None:
            return None, empty
        codes = actions.encode(pixels)
        return codes, empty | {"image": actions.picture(codes)}

    def taken(seen: Shown | None, number):
        if seen is None:
            raise ConfigError("there is none: generate images first")
        if number not in range(1, len(seen.codes) + 1):
            raise ConfigError(f"image {number} of {len(seen.codes)}")
        codes = seen.codes[int(number) - 1]
        return codes, empty | {"image": actions.picture(codes)}

    def marked(name, value):
        return value | {"cells": actions.region(_REGIONS.get(name, ""))}

    def complete(codes, value, depths, *asked):
        cells = value.get("cells") if isinstance(value, dict) else None
        yield from actions.complete(codes, str(cells), depths, *asked)

    image.change(_shown(uploaded), image, [base, mask], **_PRIVATE)
    take.click(_shown(taken), [shown, which], [base, mask], **_PRIVATE)
    region.input(_shown(marked), [region, mask], mask, **_PRIVATE)
    sampling.connect([base, mask, keep_depth], complete)


def _codes_tab(actions: Actions, shown: gr.State) -> None:
    with gr.Row():
        number = gr.Number(1, label="Image", precision=0, minimum=1, min_width=100)
        middle = actions.height // 2 + 1, actions.width // 2 + 1
        row = gr.Slider(
            1, actions.height, middle[0], step=1, label="Row", min_width=140
        )
        column = gr.Slider(
            1, actions.width, middle[1], step=1, label="Column", min_width=140
        )
    table = _html(actions.codes(None, 1, 1, 1))
    inputs = [shown, number, row, column]
    show = _shown(actions.codes)
    for component in (number, row, column):
        component.input(show, inputs, table, trigger_mode="always_last", **_PRIVATE)

    def restart(seen):
        return 1, actions.codes(seen, 1, *middle), *middle

    shown.change(restart, shown, [number, table, row, column], **_PRIVATE)
