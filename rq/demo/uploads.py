# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Keeps uploads small, harmless and nameless.

Every body that is posted is bounded. An uploaded image is decoded here, to the few
pixels that the model sees; only those are stored, as a PNG with a name of our own. What
the user has sent, its name included, never reaches the disk.
"""

from __future__ import annotations

import asyncio
import io
import os
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from rq.config.image_shape import Resolution
from rq.data import DataError, augment
from rq.data.damage import DecodeError, check_intact
from rq.data.decode import decode

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
MAX_PIXELS = 1 << 24  # of an image: 50 MB decoded
MAX_JSON = 1 << 18  # bytes of other bodies
KEPT = 200  # images that are stored at most
PARALLEL = 4  # uploads in memory at once
PATIENCE = 60.0  # seconds for one body to arrive


def read_image(data: bytes, channels: int, resolution: Resolution) -> np.ndarray:
    """Returns an uploaded image as the model sees it, uint8 `[H, W, C]`.

    Args:
      data: a file's bytes.
      channels: C, 1 or 3.
      resolution: side or (height, width), that the image is resized to cover; the
        centre is cropped.

    Raises:
      DataError: on anything that is not a whole image of `FORMATS` and of at most
        `MAX_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            size = header.width * header.height
    except Image.DecompressionBombError:
        size = 2 * MAX_PIXELS
    except Exception:  # its readers raise many kinds on damaged bytes
        raise DataError(f"not an image; send {', '.join(FORMATS)}") from None
    if size > MAX_PIXELS:
        raise DataError(f"too many pixels: the limit is {MAX_PIXELS:,}")
    try:
        pixels = decode(data, channels)
        check_intact(data)
    except DecodeError as error:
        raise DataError(f"a damaged image: {error}") from None
    return augment.center(pixels, resolution, None)


class Refused(Exception):
    """A body that is not accepted: an HTTP status and a message for the user."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Guard:
    """ASGI middleware that bounds bodies and replaces uploads, see the module."""

    def __init__(self, app: Callable, read: Callable, max_bytes: int, folder):
        """Takes the application.

        Args:
          app: of Gradio.
          read: function of bytes that returns uint8 pixels, or raises DataError.
          max_bytes: of an uploaded file.
          folder: where Gradio stores uploads.
        """
        self._app, self._read, self._max_bytes = app, read, max_bytes
        self._folder = pathlib.Path(folder)
        self._places = asyncio.Semaphore(PARALLEL)

    async def __call__(self, scope, receive, send):
        """Handles a request as ASGI prescribes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].rstrip("/")
        if path.endswith("/upload_progress"):
            done = b'data: {"msg": "done"}\n\n'
            await _respond(send, 200, done, b"text/event-stream")
            return
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        is_upload = path.endswith("/upload")
        try:
            if is_upload:
                async with self._places:
                    scope, body = await self._replaced(scope, receive)
            else:
                body = await _read_body(scope, receive, MAX_JSON)
        except Refused as error:
            await _respond(send, error.status, str(error).encode())
            return
        await self._app(scope, _replayed(body, receive), send)

    async def _replaced(self, scope, receive) -> tuple[dict, bytes]:
        """Returns an upload's scope and body, as if the user had sent our file.

        Raises:
          Refused: if it is too large, or no image.
        """
        # A little more, for the lines around the file.
        body = await _read_body(scope, receive, self._max_bytes + (1 << 14))
        data = await _only_file(scope, body)
        if len(data) > self._max_bytes:
            raise Refused(413, _too_large(self._max_bytes))
        try:
            pixels = await asyncio.to_thread(self._read, data)
        except DataError as error:
            raise Refused(400, str(error)) from None
        await asyncio.to_thread(_prune, self._folder)
        file, boundary = io.BytesIO(), os.urandom(16).hex().encode()
        Image.fromarray(pixels.squeeze()).save(file, format="PNG")
        body = (
            b"--%b\r\n"
            b'Content-Disposition: form-data; name="files"; filename="image.png"\r\n'
            b"Content-Type: image/png\r\n\r\n"
            b"%b\r\n"
            b"--%b--\r\n"
        ) % (boundary, file.getvalue(), boundary)
        replaced = {
            b"content-type": b"multipart/form-data; boundary=" + boundary,
            b"content-length": str(len(body)).encode(),
        }
        dropped = (*replaced, b"transfer-encoding")
        headers = [x for x in scope["headers"] if x[0].lower() not in dropped]
        # Without the query, by which Gradio would keep track of the progress.
        return scope | {
            "headers": headers + [*replaced.items()],
            "query_string": b"",
        }, body


async def _read_body(scope, receive, limit: int) -> bytes:
    """Returns a request's body.

    Raises:
      Refused: if it has more bytes than `limit`, or takes longer than `PATIENCE`.
    """
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    too_large = not declared.isdigit() or int(declared) > limit
    body, more, size = bytearray(), True, 0
    try:
        async with asyncio.timeout(PATIENCE):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the connection was closed")
                size += len(message.get("body", b""))
                too_large = too_large or size > limit
                # Browsers only read an answer when they have sent all, so some of what
                # is too large is received, and dropped.
                if too_large and size > 4 * limit:
                    raise Refused(413, _too_large(limit))
                if too_large:
                    body.clear()
                else:
                    body += message.get("body", b"")
                more = message.get("more_body", False)
    except TimeoutError:
        raise Refused(408, "the upload took too long") from None
    if too_large:
        raise Refused(413, _too_large(limit))
    return bytes(body)


def _too_large(limit: int) -> str:
    return f"too large: at most {limit / 2**20:.3g} MB"


async def _only_file(scope, body: bytes) -> bytes:
    """Returns the bytes of the one file in a form."""
    from starlette.formparsers import MultiPartException
    from starlette.requests import Request

    try:
        request = Request(scope, _replayed(body, None))
        async with request.form(max_files=1, max_fields=4) as form:
            files = [x for x in form.getlist("files") if not isinstance(x, str)]
            if len(files) == 1:
                return await files[0].read()
    except (MultiPartException, KeyError, ValueError, UnicodeError):
        pass
    except Exception as error:  # Starlette's own error of HTTP
        if getattr(error, "status_code", 500) >= 500:
            raise
    raise Refused(400, "not a form with one file")


def _replayed(body: bytes, receive):
    """Returns an ASGI `receive` that has this body, then what `receive` has."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay():
        if messages:
            return messages.pop()
        return await receive()

    return replay


async def _respond(
    send, status: int, body: bytes, kind: bytes = b"text/plain; charset=utf-8"
) -> None:
    headers = [(b"content-type", kind)]
    if status == 413:  # the rest of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _prune(folder: pathlib.Path) -> None:
    """Deletes all stored images but the newest `KEPT`."""
    files = [(x.stat().st_mtime, x) for x in folder.glob("*/image.png")]
    for _, path in sorted(files)[: max(0, len(files) - KEPT + 1)]:
        path.unlink(missing_ok=True)
        try:
            path.parent.rmdir()
        except OSError:
            pass
