# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes the metrics of a stage to Weights & Biases, through CLU's interface.

Only `rq.training.metric_writer` imports it, if `log.wandb` is set: the package is
optional. Each stage is a run there; those of a run directory are in one group.
"""

from __future__ import annotations

import html
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
import wandb
from absl import logging
from clu import metric_writers

from rq.config import ConfigError

STEP = "step"  # the x axis of all curves
MAX_BINS = 512  # of a histogram there


class WandbWriter(metric_writers.MetricWriter):
    """Writes to a run of Weights & Biases, the same one after an interruption.

    The run's id is in WORKDIR/wandb/STAGE.id. Steps are logged as a value: unlike the
    service's own count, they may go back to those of the last checkpoint.
    """

    def __init__(self, project: str, workdir, stage: str):
        """Opens or resumes the run.

        Args:
          project: name of the project there.
          workdir: the run directory, an `epath.Path`.
          stage: name of the stage.

        Raises:
          ConfigError: if the service refuses, for example without a login.
        """
        file = workdir / "wandb" / f"{stage}.id"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(secrets.token_hex(4))
        is_local = "://" not in str(workdir)
        try:
            self._run = wandb.init(
                project=project,
                id=file.read_text().strip(),
                resume="allow",
                name=f"{workdir.name}/{stage}",
                group=workdir.name,
                job_type=stage,
                dir=str(workdir) if is_local else None,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"log.wandb={project!r}: {error}; log in with `wandb login`, set "
                "WANDB_MODE=offline, or leave log.wandb out"
            ) from error
        self._run.define_metric("*", step_metric=STEP)
        if self._run.offline:
            folder = pathlib.Path(self._run.dir).parent
            logging.info("Weights & Biases: offline; to upload: wandb sync %s", folder)
        else:
            logging.info("Weights & Biases: %s", self._run.url)

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if values:
            self._run.log({**values, STEP: step})

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes numbers."""
        self._log(step, {name: float(x) for name, x in scalars.items()})

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes images `[N, H, W, C]` or `[H, W, C]`."""
        found = {}
        for name, value in images.items():
            value = value if value.ndim == 4 else value[None]
            found[name] = [wandb.Image(one) for one in value]
        self._log(step, found)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts, in a font of fixed width."""
        self._log(
            step,
            {k: wandb.Html(f"<pre>{html.escape(v)}</pre>") for k, v in texts.items()},
        )

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, np.ndarray],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        """Writes histograms of arrays."""
        found = {}
        for name, value in arrays.items():
            bins = min((num_buckets or {}).get(name) or 30, MAX_BINS)
            found[name] = wandb.Histogram(np.asarray(value).tolist(), num_bins=bins)
        self._log(step, found)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the settings of the run; later ones replace them."""
        self._run.config.update(dict(hparams), allow_val_change=True)

    def _refuse(self, *args, **options) -> None:
        raise NotImplementedError("training writes no videos, sounds or raw summaries")

    write_videos = write_audios = write_summaries = _refuse

    def flush(self) -> None:
        """Does nothing: the package sends everything in the background."""

    def close(self) -> None:
        """Waits until everything is sent, and ends the run."""
        self._run.finish()
