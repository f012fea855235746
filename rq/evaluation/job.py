# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Samples by the ten thousand, and their metrics, in parts that outlive a crash.

A job's folder has `settings.json`, a file for each part (images, labels and features)
while it runs, and then `samples.npz` and `result.json`. Sample i of a seed is the same
on any number of devices, so the parts of an interrupted job are those of one that was
not. All processes generate; the first one writes.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from rq import distributed, generate, sharding
from rq.config import ConfigError
from rq.data import images as image_data
from rq.data import stream
from rq.evaluation import image_files, measure
from rq.evaluation.extractors import Extractor, Found
from rq.stages import conditions

PART = 500  # samples in a part: what a crash may cost
KEEP = 50_000  # features of a reference that neighbourhoods are looked for in
SAMPLES, RESULT, SETTINGS = "samples.npz", "result.json", "settings.json"


@jax.jit
def _to_uint8(images):
    """As `rq.visualize.to_uint8`, on the devices."""
    return jnp.rint((jnp.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


class Job:
    """Generates, measures, and keeps.

    Attributes:
      folder: of the job: WORKDIR/eval/NAME.
      settings: everything that the samples follow from, JSON.
    """

    def __init__(
        self,
        experiment,
        number: int,
        *,
        classes=(),
        texts=(),
        seed: int = 0,
        batch_size: int | None = None,
        keep: float = 1.0,
        judge=None,
        judge_name: str = "",
        **changes: Any,
    ):
        """Plans it; arguments are those of `Experiment.sample`.

        Texts are the evaluation split's captions where none are given. `judge_name`
        tells the judge in the settings.

        Raises:
          ConfigError: on classes, texts or filters that the model does not have.
        """
        self._experiment, self._number = experiment, number
        self._seed, self._batch_size = seed, batch_size
        self._keep, self._judge, self._changes = keep, judge, changes
        config = experiment.config
        if "text" in conditions.NEEDS[config.transformer.condition] and not texts:
            classes, texts = self._captions()
        self._asked = generate.conditions_of(experiment, classes, texts)
        experiment.transformer.sampling_options(**changes)  # bad ones are told now
        changed = {name: x for name, x in changes.items() if x is not None}
        sampling = dict(config.sampling) | changed
        sampling.pop("batch_size")
        self.settings = json.loads(
            json.dumps(
                {
                    "checkpoints": {
                        name: experiment.step_of(name)
                        for name in ("rqvae", "transformer")
                    },
                    "weights": experiment.fingerprint["rqvae"],
                    "samples": number,
                    "seed": seed,
                    "classes": list(classes) or "all",
                    "texts": hashlib.sha256("\n".join(texts).encode()).hexdigest()
                    if texts
                    else "none",
                    "dtype": experiment.dtype or "as trained",
                    "keep": keep,
                    "judge": judge_name,
                    "sampling": sampling,
                }
            )
        )
        text = json.dumps(self.settings, sort_keys=True)
        step = self.settings["checkpoints"]["transformer"]
        name = f"{step}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        self.folder = pathlib.Path(experiment.path) / "eval" / name

    def _captions(self):
        config = self._experiment.config
        source = self._experiment.code_source(config.data.eval_split)
        found = [source.read(i) for i in range(min(self._number, len(source)))]
        found = [(int(e["label"]), lines[0]) for e, lines in found if lines]
        labelled = "label" in conditions.NEEDS[config.transformer.condition]
        labels, texts = zip(*found, strict=True)
        return (labels if labelled else ()), texts

    def run(self, extractor: Extractor, reference, name: str) -> dict:
        """Samples what is missing, and measures: what `result.json` has.

        In other processes than the first it may be what an earlier run measured.

        Args:
          extractor: of features, from `rq.evaluation.extractors`.
          reference: of the same features, in the first process.
          name: of the reference, noted with the settings.
        """
        result, samples = self.folder / RESULT, self.folder / SAMPLES
        about = {
            "reference": name,
            "features_sha256": extractor.fingerprint,
            "label": extractor.label,
        }
        known = json.loads(result.read_text()) if result.exists() else {}
        measured = known.get("evaluation") == about
        measured, drawn = distributed.agree([measured, samples.exists()])
        if measured:
            logging.info("%s has these samples and metrics", self.folder)
            return known
        if distributed.is_first():
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.settings, indent=2)
            (self.folder / SETTINGS).write_text(text + "\n")
        collector = measure.Collector()
        if drawn:
            self._measure_samples(extractor, collector)
        else:
            self._generate(extractor, collector)
        if distributed.is_first():
            found = measure.metrics(
                collector.reference(), reference, extractor.label, collector.logits
            )
            known = {"metrics": found, "settings": self.settings, "evaluation": about}
            if not drawn:
                self._finish()
            temporary = result.with_suffix(".tmp")
            temporary.write_text(json.dumps(known, indent=2) + "\n")
            temporary.replace(result)
        distributed.meet("the job is done")
        return known

    def _measure_samples(self, extractor, collector) -> None:
        """Samples that are there, in other features."""
        samples = image_files.ImageSet(self.folder / SAMPLES)
        collector.add_all(extractor, samples.batches(measure.BATCH))

    def _parts(self) -> list[range]:
        starts = range(0, self._number, PART)
        return [range(a, min(a + PART, self._number)) for a in starts]

    def _path(self, part: range) -> pathlib.Path:
        return self.folder / f"part_{part.start:08d}.npz"

    def _generate(self, extractor, collector) -> None:
        """All parts, those that are there from their files."""
        parts = self._parts()
        there = distributed.agree([self._usable(part, extractor) for part in parts])
        start, made = time.monotonic(), 0
        for part, usable in zip(parts, there, strict=True):
            if usable:
                if not distributed.is_first():
                    continue
                with np.load(self._path(part)) as file:
                    fields = {k: file[k] for k in Found._fields if k in file.files}
                collector.add(Found(**{"spatial": None} | fields))
                continue
            images, labels, found = self._draw(part, extractor)
            collector.add(found)
            if distributed.is_first():
                known = found._asdict()
                arrays = {k: x for k, x in known.items() if x is not None}
                temporary = self._path(part).with_suffix(".tmp.npz")
                np.savez(
                    temporary,
                    images=images,
                    labels=labels,
                    features_sha256=extractor.fingerprint,
                    **arrays,
                )
                temporary.replace(self._path(part))
            made += len(part)
            rate = made / (time.monotonic() - start)
            left = (self._number - part.stop) / rate
            logging.info(
                "samples %d/%d, %.3g a second, ETA %.0f s",
                part.stop, self._number, rate, left,
            )  # fmt: skip

    def _usable(self, part, extractor) -> bool:
        path = self._path(part)
        if not path.exists():
            return False
        with np.load(path) as file:
            return str(file["features_sha256"]) == extractor.fingerprint

    def _draw(self, part: range, extractor):
        """Images uint8, labels and features of one part."""
        asked = self._asked
        rows = np.arange(part.start, part.stop) % len(asked.labels)
        options = dict(seed=self._seed, batch_size=self._batch_size, **self._changes)
        cond = None if asked.cond is None else asked.cond[rows]
        labels = asked.labels[rows]
        if self._keep < 1:
            # Samples of a condition must follow each other there, and not here.
            order = np.argsort(rows, kind="stable")
            wanted = generate.Wanted(labels[order], cond[order])
            first = part.start * int(np.ceil(1 / self._keep))  # no candidate twice
            best, *_ = generate.sample_best(
                self._experiment,
                wanted,
                self._judge,
                self._keep,
                first=first,
                **options,
            )
            images = np.empty(best.shape, np.uint8)
            images[order] = np.asarray(_to_uint8(best))
            pieces = [extractor(x) for x in _split(images, measure.BATCH)]
        else:
            drawn = generate.draw(
                self._experiment, cond, len(part), first=part.start, **options
            )
            batches, pieces = [], []
            for batch, _ in drawn:
                batch = _to_uint8(batch)
                pieces.append(extractor(batch))
                batches.append(sharding.to_host(batch))
            images = np.concatenate(batches)[: len(part)]
        found = Found(
            *(
                None if field[0] is None else np.concatenate(field)[: len(part)]
                for field in zip(*pieces, strict=True)
            )
        )
        return images, labels, found

    def _finish(self) -> None:
        """Joins the parts to what ADM's evaluator reads, and removes them."""
        parts = self._parts()

        def images():
            for part in parts:
                with np.load(self._path(part)) as file:
                    yield file["images"]

        labels = []
        for part in parts:
            with np.load(self._path(part)) as file:
                labels.append(file["labels"])
                shape = file["images"].shape[1:]
        image_files.write(
            self.folder / SAMPLES,
            (self._number, *shape),
            images(),
            np.concatenate(labels),
        )
        for part in parts:
            self._path(part).unlink()


def _split(images, size):
    return np.split(images, np.arange(size, len(images), size))


def split_reference(experiment, extractor: Extractor, split: str, cache=None):
    """A split of the experiment's own data set, cropped at the centre, as a reference.

    Raises:
      DataError: where the data set or the split is missing.
    """
    with experiment.config.data.unlocked():
        data = experiment.config.data.copy_and_resolve_references()
    data.augment = "center"
    about = f"{image_data.fingerprint(data, split)} center {data.resolution}"

    def collect():
        collector = measure.Collector(KEEP)
        for batch in split_batches(data, split):
            collector.add_all(extractor, [batch])
        return collector.reference()

    return measure.cached(extractor, f"{about} {data.channels}", collect, cache)[0]


def split_batches(data, split: str):
    """uint8 images of a split, `[<= B, R, R, C]`."""
    source = image_data.source(data, split)
    for batch in stream.eval_batches(source, data, measure.BATCH):
        yield batch["image"][batch["mask"]]


def find_reference(experiment, extractor, name: str, cache=None) -> measure.Reference:
    """'train' or 'eval', splits of the experiment's; or a path."""
    data = experiment.config.data
    splits = {"train": data.train_split, "eval": data.eval_split}
    if name in splits:
        return split_reference(experiment, extractor, splits[name], cache)
    if not pathlib.Path(name).exists():
        raise ConfigError(f"--reference={name} is neither train, eval nor a file")
    return measure.reference(name, extractor, data.channels, cache)
