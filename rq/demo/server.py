# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Serves the page: an application of a model, and the server that runs it."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from rq.config import ConfigError
from rq.demo import markup, uploads
from rq.demo.actions import Actions
from rq.demo.batches import Batches
from rq.demo.previews import Previews
from rq.library import Model

# What the page may load: nothing from elsewhere. Gradio evaluates templates.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)


@contextlib.contextmanager
def application(
    model: Model, *, batch_size: int, max_images: int, max_upload: int
) -> Iterator[Any]:
    """Yields the ASGI application of a model; uploads are deleted in the end.

    Args:
      model: to show.
      batch_size: samples that are drawn at once.
      max_images: that a user may ask for at once.
      max_upload: bytes of an uploaded file.

    Raises:
      ConfigError: if Gradio is missing.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rq_demo_"))
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            import fastapi
            import gradio

            from rq.demo import page
        except ImportError as error:
            raise ConfigError(
                f"rq demo needs Gradio, and {error.name} is missing: pip install "
                "'rq[demo]'"
            ) from None
        previews, batches = Previews(model.models, batch_size), None
        if "transformer" in model.stages:
            batches = Batches(model.models, previews)
            stack.callback(batches.close)
        actions = Actions(model, previews, batches, max_images)
        _compile(actions)
        name = pathlib.Path(model.models.path).name
        app = gradio.mount_gradio_app(
            fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            page.build(actions, name),
            path="/",
            max_file_size=max_upload,
            footer_links=[],
            run_history=False,
            show_error=True,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            theme=page.THEME,
            head=markup.style_sheet(actions.rqvae.image_shape),
        )
        data = model.config.data
        read = functools.partial(
            uploads.read_image, channels=data.channels, resolution=data.resolution
        )
        yield _with_policy(uploads.Guard(app, read, max_upload, folder))


def _compile(actions: Actions) -> None:
    """Runs every program once, so that the first user need not wait for it."""
    config = actions.model.config
    if config.data.source != "none":
        raise ConfigError(
            f"rq demo has no place for source images ({config.data.source}): use rq "
            "sample --source=IMAGE"
        )
    condition = config.transformer.condition
    actions.reconstruct(np.zeros((*actions.rqvae.image_shape[:2], 3), np.uint8))
    if "transformer" in actions.model.stages:
        for _ in actions.sample("", "a" if "text" in condition else "", 1, {}):
            pass


def _with_policy(app):
    """Returns the application with a header that keeps browsers from other hosts."""

    async def wrapped(scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = message | {"headers": [*message["headers"], policy]}
            await send(message)

        await app(scope, receive, send_with_policy)

    return wrapped


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens.

    Raises:
      ConfigError: if the address is not of this machine, or taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error}; choose others with --host "
            "and --port"
        ) from None


def serve(app, listening: socket.socket) -> None:
    """Runs an application until the process is interrupted."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
    uvicorn.Server(config).run(sockets=[listening])
