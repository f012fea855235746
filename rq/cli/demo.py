# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shows a model on a web page.

    rq demo runs/digits --port=7860

Samples to watch while they are drawn, reconstructions by depth, completion with a drawn
mask, and codes. MODEL is a run directory, a saved model or a folder of the authors'
checkpoints. Several users are served with one compiled program. Needs Gradio: pip
install 'rq[demo]'. Only this machine can open the page, unless --host says otherwise:
anyone who reaches it can use it.
"""

from __future__ import annotations

from absl import logging

import rq
from rq.cli import compilation_cache, run_flags
from rq.cli.flag import Flag
from rq.config import ConfigError
from rq.demo import server

POSITIONAL = "model"
FLAGS = (
    Flag("model", "what to show; --model= may be omitted", "digits"),
    Flag("host", "address to listen on; 0.0.0.0: all", "127.0.0.1"),
    Flag("port", "port to listen on", 7860, int, minimum=0),
    Flag("batch_size", "images drawn at once, of all users", 16, int, minimum=1),
    Flag("max_images", "images that a user may ask for at once", 16, int, minimum=1),
    Flag("max_upload_mb", "megabytes of an uploaded file", 10, int, minimum=1),
    run_flags.STEP,
    run_flags.DTYPE,
)


def run(values) -> None:
    """Serves the page until it is interrupted."""
    if values.port > 65535:
        raise ConfigError(f"--port={values.port}: at most 65535")
    compilation_cache.enable()
    model = rq.load(values.model, step=values.step, dtype=values.dtype)
    with server.listen(values.host, values.port) as listening:
        limits = dict(
            batch_size=values.batch_size,
            max_images=values.max_images,
            max_upload=values.max_upload_mb * 2**20,
        )
        with server.application(model, **limits) as app:
            host, port = listening.getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            logging.info("the page is at http://%s:%d", host, port)
            server.serve(app, listening)
