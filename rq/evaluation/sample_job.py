# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Generates and measures thousands of samples, resumably.

A job's folder, named by a hash of all settings of its samples, has

    settings.json                  these settings
    samples.npz                    images and labels, in the format of ADM's evaluator
    features_NAME.npz              features of the samples, by a network
    metrics_NAME_REFERENCE_*.json  metrics against a reference, with all settings

and, while it runs, a file for each finished part. Sample i of a seed is the same on any
number of devices, so an interrupted job gives the same samples as any other. All
processes generate; process 0 writes.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from typing import Any

import jax
import numpy as np

import rq
from rq.config import ConfigError, SamplingConfig
from rq.evaluation import clip, feature_sets, image_files, pairs, sample_files
from rq.evaluation.chunks import Parts
from rq.evaluation.extractors import Extractor, Found
from rq.metrics.manifold import DENSITY_NEIGHBOURS, NEIGHBOURS
from rq.parallel import atomic_files, processes, run_lock
from rq.sampling import conditions, rejection
from rq.sampling.classifier import Classifier
from rq.sampling.sampler import compile_options

MANY = 16  # conditions that settings list
EVALUATIONS = "eval"  # folder in a run directory
SAMPLES, SETTINGS = "samples.npz", "settings.json"


class Job:
    """Generates samples, measures them, and stores both.

    Attributes:
      folder: folder of the job, WORKDIR/eval/NAME.
      settings: all settings of the samples, for JSON.
      texts: texts of the samples, repeated in turn; () if the model has none.
    """

    def __init__(
        self,
        experiment,
        number: int,
        config: SamplingConfig | None = None,
        *,
        classes=(),
        texts=(),
        keep: float = 1.0,
        classifier: Classifier | None = None,
        classifier_name: str = "",
    ):
        """Checks the arguments and names the job; computes nothing.

        Args:
          experiment: a `rq.experiment.Experiment` with both stages.
          number: number of samples.
          config: sampling options; the experiment's if None.
          classes, texts: see `conditions.parse`; if the model has text and none are
            given, the captions of the evaluation split.
          keep: fraction of each class that the classifier keeps; 1 for all.
          classifier: the experiment's own if None. Its weights are part of the job's
            name.
          classifier_name: its name in the settings.

        Raises:
          ConfigError: if classes, texts, options or the fraction are out of range, or
            the model does not have them.
        """
        if "://" in str(experiment.output_path):
            raise ConfigError(
                f"jobs need a local run directory, not {experiment.path}: copy it to "
                "a disk"
            )
        self._experiment, self._number = experiment, number
        if config is None:
            config = SamplingConfig(**experiment.config.sampling)
        self._config, options = config, config
        config = experiment.config
        needs, paired = conditions.NEEDS, config.data.source != "none"
        if "text" in needs[config.transformer.condition] and not (texts or paired):
            if classes:
                raise ConfigError(
                    "classes go with texts: give both, or neither for the captions of "
                    f"{config.data.eval_split}"
                )
            classes, texts = self._captions()
        if not paired:
            tokenizer = experiment.tokenizer
            self._asked = conditions.parse(config, tokenizer, classes, texts)
        elif classes or texts:
            raise ConfigError(
                "images are generated of the pairs of the evaluation split, with their "
                "own classes and texts: give none"
            )
        else:
            self._asked = pairs.asked(experiment, pairs.read(experiment, number))
        which = list(self._asked.names) if classes or texts else "all"
        self.texts = tuple(texts)
        self._among: Any = None  # `rejection.Candidates` if samples are ranked
        if keep != 1:
            rows = np.sort(self._rows(range(number)))
            self._among = rejection.make_candidates(self._asked, rows, keep)
            if classifier is None:
                classifier, classifier_name = experiment.classifier, "own"
        self._classifier: Any = classifier
        stage = experiment.transformer
        compile_options(options, stage.model, stage.null_cond)  # raises on bad options
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
                    "seed": options.seed,
                    "conditions": self._condition_settings(which),
                    "dtype": experiment.dtype or "as trained",
                    "keep": keep,
                    "judge": classifier_name,
                    "judge_weights": classifier.fingerprint
                    if keep != 1 and classifier is not None
                    else "",
                    "sampling": options.settings(),
                }
            )
        )
        self._text = json.dumps(self.settings, sort_keys=True)
        step = self.settings["checkpoints"]["transformer"]
        name = f"{step}_{hashlib.sha256(self._text.encode()).hexdigest()[:8]}"
        self.folder = pathlib.Path(experiment.output_path) / EVALUATIONS / name

    def _captions(self):
        """Returns classes and texts of the evaluation split's first captions."""
        config, labels, texts = self._experiment.config, [], []
        source = self._experiment.code_source(config.data.eval_split)
        for i in range(min(self._number, len(source))):
            example, lines = source.read(i)
            if lines:
                labels.append(int(example["label"]))
                texts.append(lines[0])
        labelled = "label" in conditions.NEEDS[config.transformer.condition]
        return tuple(labels) if labelled else (), tuple(texts)

    def _condition_settings(self, which) -> dict:
        """Returns the conditions for the settings: the first few, and a hash of all."""
        if self._asked.cond is None:
            return {"number": 1, "which": "all"}
        cond = np.ascontiguousarray(self._asked.cond)
        return {
            "number": len(cond),
            "which": which if len(which) <= MANY else [*which[:MANY], "..."],
            "sha256": hashlib.sha256(cond.tobytes()).hexdigest(),
        }

    def _rows(self, rows: range) -> np.ndarray:
        """Returns the index of each sample's condition."""
        return np.asarray(rows) % len(self._asked.labels)

    def sample(self) -> image_files.ImageSet:
        """Generates missing samples; returns all images.

        Raises:
          ConfigError: if another program is generating these samples.
        """
        path = self.folder / SAMPLES
        parts = Parts(self.folder, "samples", self._number, self._text)
        if not processes.broadcast(path.exists()):
            with run_lock.lock(self.folder):
                self._make_samples(path, parts)
        self._remove_parts(parts)  # of a killed process, too
        processes.barrier("samples are written")
        return image_files.ImageSet(path)

    def _make_samples(self, path: pathlib.Path, parts: Parts) -> None:
        processes.run_on_process_0(self._write_settings)
        if self._among is None:
            parts.make(self._draw)
        else:
            codes = self._draw_best()

            def decode(rows):
                part = codes[rows.start : rows.stop]
                images = self._experiment.sampler.decode(part, self._config, np.uint8)
                return {"images": np.concatenate(list(images))}

            parts.make(decode)

        def join():
            shape = next(parts.each())["images"].shape[1:]
            labels, _ = self._asked.at(self._rows(range(self._number)))
            first = 0
            with sample_files.npz(
                path, self._number, shape, labels_name="arr_1"
            ) as add:
                for part in parts.each():
                    images = part["images"]
                    add(images, labels[first : first + len(images)])
                    first += len(images)

        processes.run_on_process_0(join)

    def _remove_parts(self, parts: Parts) -> None:
        parts.remove()
        if self._among is not None:
            self._candidates().remove()

    def _write_settings(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_files.write_json(self.folder / SETTINGS, self.settings)

    def _draw(self, rows: range) -> dict[str, np.ndarray]:
        _, cond = self._asked.at(self._rows(rows))
        batches = self._experiment.sampler.batches(
            cond, len(rows), self._config, first=rows.start, dtype=np.uint8
        )
        return {"images": np.concatenate([images for images, _ in batches])}

    def _candidates(self) -> Parts:
        number = len(self._among.labels)
        return Parts(self.folder, "candidates", number, self._text)

    def _draw_best(self) -> np.ndarray:
        """Returns the codes of the samples to keep, int32 `[N, H, W, D]`.

        The classifier ranks all candidates of a class, over all parts.
        """
        parts = self._candidates()

        def score(rows):
            found = rejection.scored(
                self._experiment.sampler,
                self._among,
                rows,
                self._classifier,
                self._config,
            )
            codes, scores = map(np.concatenate, zip(*found, strict=True))
            small = np.min_scalar_type(max(self._experiment.sampler.model.sizes) - 1)
            return {"codes": codes.astype(small), "scores": scores}

        parts.make(score)
        scores = np.concatenate([part["scores"] for part in parts.each()])
        places = rejection.best(self._among, scores)
        # They are sorted by class; sample i is the next best of its class.
        order = np.argsort(self._rows(range(self._number)), kind="stable")
        of_sample = np.empty_like(places)
        of_sample[order] = places
        chosen = np.zeros(len(scores), bool)
        chosen[places] = True
        codes, start = [], 0
        for part in parts.each():
            codes.append(part["codes"][chosen[start : start + len(part["codes"])]])
            start += len(part["codes"])
        rank = np.cumsum(chosen) - 1  # index among the chosen
        return np.concatenate(codes)[rank[of_sample]].astype(np.int32)

    def features(self, extractor: Extractor) -> feature_sets.FeatureSet | None:
        """Returns the samples' features, extracted if missing; None if not process 0.

        Of more than `feature_sets.POOL` samples a subset is kept.
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
        with run_lock.lock(self.folder):
            found = self._make_features(extractor, samples, path, about, parts)
        parts.remove()
        return found

    def _make_features(self, extractor, samples, path, about, parts):
        batches = enumerate(samples.batches(parts.size))

        def extract(rows):
            images = next(x for i, x in batches if i * parts.size == rows.start)
            starts = range(0, len(images), feature_sets.BATCH)
            found = [extractor(images[i : i + feature_sets.BATCH]) for i in starts]
            fields = zip(Found._fields, zip(*found, strict=True), strict=True)
            return {k: np.concatenate(x) for k, x in fields if x[0] is not None}

        parts.make(extract)

        def join():
            batches = (
                Found(*(part.get(k) for k in Found._fields)) for part in parts.each()
            )
            result = feature_sets.collect(batches, self._number)
            feature_sets.save(path, result, about=about)
            return result

        return processes.run_on_process_0(join)

    def run(
        self,
        extractor: Extractor,
        reference: Any,
        name: str,
        source: str,
        network: clip.Clip | None = None,
    ) -> dict:
        """Returns the metrics of the samples, after generating what is missing.

        Also writes them as JSON.

        Args:
          extractor: from `rq.evaluation.extractors`.
          reference: a `feature_sets.FeatureSet`, needed in process 0.
          name: name of the reference.
          source: hash of the reference's images.
          network: for the CLIP score, if the model has texts.

        Returns:
          'metrics', 'settings' of the samples and 'evaluation', settings of the
          metrics; {} in other processes than 0.

        Raises:
          DataError: if the reference has other features.
        """
        clip_name = "none" if network is None else network.fingerprint
        origin = f"{extractor.fingerprint} {source} {clip_name}"
        file = self.folder / result_name(extractor, name, origin)
        processes.run_on_process_0(
            lambda: feature_sets.check(self._number, reference, extractor)
        )
        samples = self.sample()
        made: Any = self.features(extractor)

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
    """Returns a file name for metrics: 'metrics_inception-tf1_train_0123abcd.json'.

    Args:
      extractor: extractor of the features.
      reference: name or path of the reference.
      origin: all other settings, which are hashed.
    """
    stem = re.sub(r"\W+", "-", pathlib.Path(reference).stem)
    origin = hashlib.sha256(origin.encode()).hexdigest()[:8]
    return f"metrics_{extractor.name}_{stem}_{origin}.json"
