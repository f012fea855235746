# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Samples by the ten thousand, and their metrics, in parts that outlive a crash.

A job's folder, named by all that its samples follow from, has

    settings.json                all of that
    samples.npz                  images and labels, as ADM's evaluator reads them
    features_NAME.npz            of the samples, in a network's features
    metrics_NAME_REFERENCE_*.json
                                 against a reference, with everything that it came from

and, while it runs, a file for each part of what it is at. Sample i of a seed is the
same on any number of devices, so the parts of an interrupted job are those of one that
was not. All processes generate; the first one writes.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rq
from rq.config import ConfigError
from rq.data import pixels
from rq.evaluation import clip, feature_sets, image_files
from rq.evaluation.chunks import Parts
from rq.evaluation.extractors import Extractor, Found
from rq.metrics.manifold import DENSITY_NEIGHBOURS, NEIGHBOURS
from rq.parallel import atomic_files, processes, sharding
from rq.sampling import conditions, sampler

MANY = 16  # conditions that settings list
EVALUATIONS = "eval"  # folder of a workdir
SAMPLES, SETTINGS = "samples.npz", "settings.json"


@jax.jit
def _to_uint8(images):
    """As `rq.visualize.to_uint8`, on the devices; and whether all were finite."""
    return pixels.to_uint8(images), jnp.isfinite(images).all()


class Job:
    """Generates, measures, and keeps.

    Attributes:
      folder: of the job: WORKDIR/eval/NAME.
      settings: everything that the samples follow from, JSON.
      texts: of each sample in turn, where the model has texts.
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
        tells the judge in the settings. Its weights are part of the job's name.

        Raises:
          ConfigError: on classes, texts, filters or a share to keep that the model does
            not have or that cannot be.
        """
        if "://" in str(experiment.path):
            raise ConfigError(
                f"samples are kept on a disk, not in {experiment.path}: copy the "
                "workdir there"
            )
        if keep != 1 and judge is None:
            judge, judge_name = experiment.classifier, "own"
        self._experiment, self._number = experiment, number
        self._seed, self._batch_size = seed, batch_size
        changes = {
            name: (x,) if isinstance(x, int | float) else x
            for name, x in changes.items()
        }
        self._judge, self._changes = judge, changes
        config = experiment.config
        if "text" in conditions.NEEDS[config.transformer.condition] and not texts:
            if classes:
                raise ConfigError(
                    "classes go with texts: give both, or neither for the captions of "
                    f"{config.data.eval_split}"
                )
            classes, texts = self._captions()
        self._asked = sampler.conditions_of(experiment, classes, texts)
        which = list(self._asked.names) if classes or texts else "all"
        self.texts = tuple(texts)
        self._among = None
        if keep != 1:
            rows = np.sort(self._rows(range(number)))
            wanted = sampler.Wanted(self._asked.labels[rows], self._cond(rows))
            self._among = sampler.candidates(experiment, wanted, keep)
        experiment.transformer.sampling_options(**changes)  # bad ones are told now
        changed = {name: x for name, x in changes.items() if x is not None}
        sampling = dict(config.sampling) | changed
        del sampling["batch_size"], sampling["seed"]
        self.settings = json.loads(
            json.dumps(
                {
                    "checkpoints": {
                        name: experiment.step_of(name)
                        for name in ("rqvae", "transformer")
                    },
                    "weights": experiment.fingerprint
                    | {"transformer": experiment.identity("transformer")},
                    "samples": number,
                    "seed": seed,
                    "conditions": self._told_conditions(which),
                    "dtype": experiment.dtype or "as trained",
                    "keep": keep,
                    "judge": judge_name,
                    "judge_weights": "" if keep == 1 else judge.fingerprint,
                    "sampling": sampling,
                }
            )
        )
        self._text = json.dumps(self.settings, sort_keys=True)
        step = self.settings["checkpoints"]["transformer"]
        name = f"{step}_{hashlib.sha256(self._text.encode()).hexdigest()[:8]}"
        self.folder = pathlib.Path(experiment.path) / EVALUATIONS / name

    def _captions(self):
        """Classes and texts of the evaluation split's first captions."""
        config, labels, texts = self._experiment.config, [], []
        source = self._experiment.code_source(config.data.eval_split)
        for i in range(min(self._number, len(source))):
            example, lines = source.read(i)
            if lines:
                labels.append(int(example["label"]))
                texts.append(lines[0])
        labelled = "label" in conditions.NEEDS[config.transformer.condition]
        return tuple(labels) if labelled else (), tuple(texts)

    def _told_conditions(self, which) -> dict:
        """Of what samples are drawn, in turn: of many the first, and a hash of all."""
        if self._asked.cond is None:
            return {"number": 1, "which": "all"}
        cond = np.ascontiguousarray(self._asked.cond)
        return {
            "number": len(cond),
            "which": which if len(which) <= MANY else [*which[:MANY], "..."],
            "sha256": hashlib.sha256(cond.tobytes()).hexdigest(),
        }

    def _rows(self, rows: range) -> np.ndarray:
        """Which condition each sample has."""
        return np.asarray(rows) % len(self._asked.labels)

    def _cond(self, rows: np.ndarray) -> np.ndarray | None:
        return None if self._asked.cond is None else self._asked.cond[rows]

    def sample(self) -> image_files.ImageSet:
        """Draws what is missing; the images."""
        path = self.folder / SAMPLES
        parts = Parts(self.folder, "samples", self._number, self._text)
        if processes.broadcast(path.exists()):
            self._remove_parts(parts)  # a kill may have left some
            return image_files.ImageSet(path)
        processes.run_on_process_0(self._write_settings)
        if self._among is None:
            parts.make(self._draw)
        else:
            codes = self._draw_best()

            def decode(rows):
                part = codes[rows.start : rows.stop]
                drawn = sampler.decode(self._experiment, part, self._batch_size)
                return self._as_part(drawn, rows)

            parts.make(decode)

        def join():
            shape = next(parts.each())["images"].shape[1:]
            image_files.write(
                path,
                (self._number, *shape),
                (part["images"] for part in parts.each()),
                self._asked.labels[self._rows(range(self._number))],
            )

        processes.run_on_process_0(join)
        self._remove_parts(parts)
        processes.barrier("the samples are there")
        return image_files.ImageSet(path)

    def _remove_parts(self, parts: Parts) -> None:
        parts.remove()
        if self._among is not None:
            self._candidates().remove()

    def _write_settings(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.settings, indent=2) + "\n"
        (self.folder / SETTINGS).write_text(text)

    def _draw(self, rows: range) -> dict[str, np.ndarray]:
        drawn = sampler.draw(
            self._experiment,
            self._cond(self._rows(rows)),
            len(rows),
            first=rows.start,
            seed=self._seed,
            batch_size=self._batch_size,
            **self._changes,
        )
        return self._as_part((images for images, _ in drawn), rows)

    def _as_part(self, batches, rows: range) -> dict[str, np.ndarray]:
        images = []
        for batch in batches:
            drawn, finite = sharding.to_host(_to_uint8(batch))
            if not np.all(finite):
                raise ConfigError(f"samples {rows}: pixels that are not finite")
            images.append(drawn)
        return {"images": np.concatenate(images)[: len(rows)]}

    def _candidates(self) -> Parts:
        number = len(self._among.labels)
        return Parts(self.folder, "candidates", number, self._text)

    def _draw_best(self) -> np.ndarray:
        """Codes of the samples that are kept, int32 `[N, H, W, D]`.

        Ranked over all candidates of a class, in whatever parts they were drawn.
        """
        parts = self._candidates()

        def score(rows):
            codes, scores = sampler.draw_scored(
                self._experiment,
                self._among,
                rows,
                self._judge,
                seed=self._seed,
                batch_size=self._batch_size,
                **self._changes,
            )
            return {"codes": codes.astype(np.uint16), "scores": scores}

        parts.make(score)
        scores = np.concatenate([part["scores"] for part in parts.each()])
        places = sampler.best(self._among, scores)
        # They are by class; sample i is the next best of its class.
        order = np.argsort(self._rows(range(self._number)), kind="stable")
        of_sample = np.empty_like(places)
        of_sample[order] = places
        chosen = np.zeros(len(scores), bool)
        chosen[places] = True
        codes, start = [], 0
        for part in parts.each():
            codes.append(part["codes"][chosen[start : start + len(part["codes"])]])
            start += len(part["codes"])
        rank = np.cumsum(chosen) - 1  # among those chosen
        return np.concatenate(codes)[rank[of_sample]].astype(np.int32)

    def features(self, extractor: Extractor) -> feature_sets.FeatureSet | None:
        """Of the samples, extracted where they are not kept; in the first process.

        Of more than `measure.POOL` some features stay, see `measure.kept`.
        """
        path = self.folder / f"features_{extractor.name}.npz"
        about = f"{extractor.fingerprint} {self._text}"

        parts = Parts(self.folder, path.stem, self._number, about)
        found = processes.run_on_process_0(
            lambda: feature_sets.load_if_whole(path, about)
        )
        if processes.broadcast(found is not None):
            parts.remove()
            return found
        samples = self.sample()

        batches = enumerate(samples.batches(parts.size))

        def extract(rows):
            images = next(x for i, x in batches if i * parts.size == rows.start)
            pieces = [extractor(x) for x in _split(images, feature_sets.BATCH)]
            fields = zip(Found._fields, zip(*pieces, strict=True), strict=True)
            return {k: np.concatenate(x) for k, x in fields if x[0] is not None}

        parts.make(extract)

        def join():
            collector = feature_sets.Collector(self._number)
            for part in parts.each():
                collector.add(Found(*(part.get(k) for k in Found._fields)))
            result = collector.result()
            feature_sets.save(path, result, about=about)
            return result

        found = processes.run_on_process_0(join)
        parts.remove()
        return found

    def run(
        self,
        extractor: Extractor,
        reference: feature_sets.FeatureSet | None,
        name: str,
        source: str,
        network: clip.Clip | None = None,
    ) -> dict:
        """Samples and extracts what is missing, and measures: what the JSON has.

        Args:
          extractor: of features, from `rq.evaluation.extractors`.
          reference: of the same features, in the first process.
          name: of the reference.
          source: hash of what it is of.
          network: for the CLIP score, where the model has texts.

        Returns:
          'metrics', 'settings' of the samples and 'evaluation', what the metrics are
          of; in the first process, {} in others.

        Raises:
          DataError: where the reference does not fit the features.
        """
        clip_name = "none" if network is None else network.fingerprint
        origin = f"{extractor.fingerprint} {source} {clip_name}"
        file = self.folder / result_name(extractor, name, origin)
        processes.run_on_process_0(
            lambda: feature_sets.check(self._number, reference, extractor)
        )
        samples = self.sample()
        made = self.features(extractor)

        def finish():
            found = feature_sets.metrics(made, reference, extractor.label)
            if network is not None:
                batches = samples.batches(feature_sets.BATCH)
                found["CLIP score"] = clip.score(network, batches, self.texts)
            known = {
                "metrics": found,
                "settings": self.settings,
                "evaluation": {
                    "label": extractor.label,
                    "features": extractor.name,
                    "features_sha256": extractor.fingerprint,
                    "reference": name,
                    "reference_sha256": source,
                    "reference_images": reference.gaussian.number,
                    "reference_pool": 0
                    if reference.pool is None
                    else len(reference.pool),
                    "clip_sha256": clip_name,
                    "neighbours": [NEIGHBOURS, DENSITY_NEIGHBOURS],
                    "rq": rq.__version__,
                    "jax": jax.__version__,
                    "device": jax.devices()[0].device_kind,
                },
            }
            atomic_files.write_json(file, known)
            return known

        return processes.run_on_process_0(finish) or {}


def result_name(extractor: Extractor, reference: str, origin: str) -> str:
    """Of the file of metrics: 'metrics_inception-tf1_train_0123abcd.json'.

    Args:
      extractor: of the features.
      reference: its name or path.
      origin: all else that other metrics have another of.
    """
    stem = re.sub(r"\W+", "-", pathlib.Path(reference).stem)
    origin = hashlib.sha256(origin.encode()).hexdigest()[:8]
    return f"metrics_{extractor.name}_{stem}_{origin}.json"


def _split(images, size):
    return np.split(images, np.arange(size, len(images), size))
