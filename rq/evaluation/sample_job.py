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

import jax
import numpy as np

import rq
from rq.config import ConfigError, SamplingConfig
from rq.evaluation import clip, feature_sets, image_files, sample_files
from rq.evaluation.chunks import Parts
from rq.evaluation.extractors import Extractor, Found
from rq.metrics.manifold import DENSITY_NEIGHBOURS, NEIGHBOURS
from rq.parallel import atomic_files, processes, run_lock
from rq.sampling import conditions, rejection
from rq.sampling.classifier import Classifier
from rq.sampling.sampler import compile_options

MANY = 16  # conditions that settings list
EVALUATIONS = "eval"  # folder of a workdir
SAMPLES, SETTINGS = "samples.npz", "settings.json"


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
        config: SamplingConfig | None = None,
        *,
        classes=(),
        texts=(),
        keep: float = 1.0,
        classifier: Classifier | None = None,
        classifier_name: str = "",
    ):
        """Plans it.

        Args:
          experiment: a `rq.experiment.Experiment` with both stages.
          number: of samples.
          config: how they are drawn; the experiment's where None.
          classes, texts: see `conditions.parse`; the evaluation split's captions where
            the model has text and none are given.
          keep: fraction of each class that the classifier keeps; 1: all.
          classifier: the experiment's own where None. Its weights are part of the job's
            name.
          classifier_name: what the settings call it.

        Raises:
          ConfigError: on classes, texts, options or a fraction that the model does not
            have or that cannot be.
        """
        if "://" in str(experiment.path):
            raise ConfigError(
                f"samples are kept on a disk, not in {experiment.path}: copy the "
                "workdir there"
            )
        self._experiment, self._number = experiment, number
        if config is None:
            config = SamplingConfig(**experiment.config.sampling)
        self._config, options = config, config
        config = experiment.config
        if "text" in conditions.NEEDS[config.transformer.condition] and not texts:
            if classes:
                raise ConfigError(
                    "classes go with texts: give both, or neither for the captions of "
                    f"{config.data.eval_split}"
                )
            classes, texts = self._captions()
        tokenizer = experiment.tokenizer
        self._asked = conditions.parse(config, tokenizer, classes, texts)
        which = list(self._asked.names) if classes or texts else "all"
        self.texts = tuple(texts)
        self._among = None
        if keep != 1:
            rows = np.sort(self._rows(range(number)))
            self._among = rejection.make_candidates(self._asked, rows, keep)
            if classifier is None:
                classifier, classifier_name = experiment.classifier, "own"
        self._classifier = classifier
        stage = experiment.transformer
        compile_options(options, stage.model, stage.null_cond)  # refuses bad ones now
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
                    "judge_weights": "" if keep == 1 else classifier.fingerprint,
                    "sampling": options.settings(),
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

    def _condition_settings(self, which) -> dict:
        """Returns what samples are of: the first of many, and a hash of all."""
        if self._asked.cond is None:
            return {"number": 1, "which": "all"}
        cond = np.ascontiguousarray(self._asked.cond)
        return {
            "number": len(cond),
            "which": which if len(which) <= MANY else [*which[:MANY], "..."],
            "sha256": hashlib.sha256(cond.tobytes()).hexdigest(),
        }

    def _rows(self, rows: range) -> np.ndarray:
        """Returns which condition each sample has."""
        return np.asarray(rows) % len(self._asked.labels)

    def sample(self) -> image_files.ImageSet:
        """Draws what is missing; returns the images.

        Raises:
          ConfigError: if another program is drawing these samples.
        """
        path = self.folder / SAMPLES
        parts = Parts(self.folder, "samples", self._number, self._text)
        if not processes.broadcast(path.exists()):
            with run_lock.lock(self.folder):
                self._make_samples(path, parts)
        self._remove_parts(parts)  # a kill may have left some
        processes.barrier("the samples are there")
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
                return self._as_part(images, rows)

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
        text = json.dumps(self.settings, indent=2) + "\n"
        (self.folder / SETTINGS).write_text(text)

    def _draw(self, rows: range) -> dict[str, np.ndarray]:
        _, cond = self._asked.at(self._rows(rows))
        drawn = self._experiment.sampler.batches(
            cond, len(rows), self._config, first=rows.start, dtype=np.uint8
        )
        return self._as_part((images for images, _ in drawn), rows)

    def _as_part(self, batches, rows: range) -> dict[str, np.ndarray]:
        return {"images": np.concatenate(list(batches))}

    def _candidates(self) -> Parts:
        number = len(self._among.labels)
        return Parts(self.folder, "candidates", number, self._text)

    def _draw_best(self) -> np.ndarray:
        """Codes of the samples that are kept, int32 `[N, H, W, D]`.

        Ranked over all candidates of a class, in whatever parts they were drawn.
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
        with run_lock.lock(self.folder):
            found = self._make_features(extractor, samples, path, about, parts)
        parts.remove()
        return found

    def _make_features(self, extractor, samples, path, about, parts):
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

        return processes.run_on_process_0(join)

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
