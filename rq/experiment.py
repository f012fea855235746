# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""A trained experiment, restored from its workdir alone: sample, reconstruct, evaluate.

experiment = Experiment("runs/digits")
images, labels, codes = experiment.sample(num_samples=20, classes=(3, 7), seed=1)
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from rq.config import ConfigError, from_json
from rq.data import DataError, loader, sources, stored_codes, text
from rq.data.file_source import FileSource
from rq.data.pixels import to_float
from rq.models import RQVAE
from rq.models.build import feature_classifier, rqvae_model
from rq.models.digest import digest
from rq.models.networks.feature_classifier import FeatureClassifier
from rq.parallel import processes, sharding
from rq.sampling import classifier, inpainting, likelihood, sampler
from rq.sampling.inpainting import Given
from rq.training import checkpoint
from rq.training.stages import TransformerStage
from rq.training.train_state import TrainState

CONFIG = "config.json"
PATIENCE = 60.0  # seconds until a shared file system shows what process 0 has written


def finished(path: epath.Path, stage: str, config) -> bool:
    """Returns whether a stage ('features', 'rqvae', 'transformer') has all its steps.

    As this process sees the files. With `checkpoint.fallback` a damaged last checkpoint
    does not count.
    """
    step = checkpoint.latest_step(path / stage)
    if step != config[stage].steps:
        return False
    if not config.checkpoint.fallback:  # damage is reported when it is read
        return True
    return checkpoint.find_damage(path / stage / str(step)) is None


def stored_config(path):
    """Returns the config of a run directory.

    Raises:
      FileNotFoundError: where nothing was ever trained there.
    """
    file = checkpoint.folder(path) / CONFIG
    if not file.exists():
        raise FileNotFoundError(
            f"{path} has no {CONFIG}: train there first, with "
            f"rq train --config=configs/... --workdir={path}"
        )
    return from_json(file.read_text())


class Experiment:
    """What a workdir holds; models are loaded when they are first asked for.

    Attributes:
      path: the workdir.
      config: the one it was trained with, or that given in its place.
      mesh: the devices in use.
      dtype: of the transformer's weights, None: as they are stored.
    """

    def __init__(
        self,
        path,
        mesh=None,
        step: str | int = "latest",
        dtype: str | None = None,
        config=None,
    ):
        """Opens a workdir.

        Args:
          path: of the workdir.
          mesh: of all devices where None.
          step: of the last stage's checkpoint: 'latest', 'best' (of those evaluated,
            where `checkpoint.best` was set) or a number.
          dtype: of the transformer's weights, as they are stored where None; 'bfloat16'
            takes half the memory.
          config: the stored one with overrides; None: as it is stored.

        Raises:
          FileNotFoundError: where nothing was ever trained there.
        """
        self.path = checkpoint.folder(path)
        self._step, self.dtype = step, dtype
        self.config = stored_config(path) if config is None else config
        self.mesh = sharding.make_mesh() if mesh is None else mesh

    def finished(self, stage: str) -> bool:
        """Returns whether a stage has all its steps, in all processes as process 0."""
        return bool(processes.broadcast(finished(self.path, stage, self.config)))

    @functools.cached_property
    def _last_stage(self) -> str:
        """The last stage that was trained, whose checkpoint `step` chooses."""
        for stage in ("transformer", "rqvae"):
            if checkpoint.find_step(self.path / stage) is not None:
                return stage
        return "features"

    def step_of(self, stage: str) -> int | str:
        """Returns the step of the checkpoint that a stage is restored from."""
        step = self._step if stage == self._last_stage else "latest"
        known = checkpoint.find_step(self.path / stage, step)
        return step if known is None else known

    def identity(self, stage: str) -> str:
        """Of the checkpoint that a stage is restored from; another one has another."""
        return checkpoint.identity(self.path / stage, self.step_of(stage))

    def _state(self, stage: str) -> TrainState:
        """The last checkpoint's model, without its optimizer."""
        where, dtype = sharding.replicated(self.mesh), None
        if stage == "transformer":
            dtype = self.dtype
            boxed = jax.eval_shape(self.transformer.init, jax.random.key(0))
            params = sharding.state_shardings(boxed, self.mesh).params
            where = dict.fromkeys(checkpoint.MODEL, where)
            where |= {"params": params, "ema": params}
        directory, step = self.path / stage, self.step_of(stage)
        model, _ = checkpoint.load_model(directory, stage, step, where, dtype)
        return TrainState(
            step=jnp.zeros((), jnp.int32), opt_state={}, key=jax.random.key(0), **model
        )

    @functools.cached_property
    def rqvae_state(self) -> TrainState:
        """The trained RQ-VAE."""
        return self._state("rqvae")

    @functools.cached_property
    def features_state(self) -> TrainState:
        """The trained feature network."""
        return self._state("features")

    @property
    def rqvae_variables(self) -> dict:
        """The trained RQ-VAE's `params` and `codebook`."""
        return self.rqvae_state.model_variables()

    @functools.cached_property
    def fingerprint(self) -> dict:
        """Identifies the trained RQ-VAE, so that codes are never used with another."""
        return {"rqvae": digest(self.rqvae_variables)}

    @functools.cached_property
    def rqvae(self) -> RQVAE:
        """The RQ-VAE; its weights are `rqvae_variables`."""
        return rqvae_model(self.config)

    def feature_classifier(self) -> tuple[FeatureClassifier, dict]:
        """Returns the trained feature network, to measure with, and its parameters.

        Raises:
          ConfigError: if stage 'features' was not trained.
        """
        if not self.finished("features"):
            raise ConfigError(
                f"{self.path} has no feature network of its own: train one with the "
                "command that trained it and --config.stages=features, or name the "
                "weights of another network (--inception, --classifier)"
            )
        params = self.features_state.model_variables()["params"]
        return feature_classifier(self.config).clone(precision="highest"), params

    def image_batches(self, images=None) -> Iterator[dict]:
        """Returns images in order for evaluation, as `rq.data.loader.in_order` yields.

        Args:
          images: an image file or a folder of them, cropped at the centre; the
            evaluation split if None.

        Raises:
          DataError: if no image can be read.
        """
        data = self.config.data
        if images is None:
            source = sources.open_split(data, data.eval_split)
        else:
            source = self._files(images)
            with data.unlocked():
                data = data.copy_and_resolve_references()
            data.augment = "center"
        return loader.in_order(
            source, data, self.config.rqvae.batch_size, mesh=self.mesh
        )

    def _files(self, images):
        return FileSource(images, self.config.data.channels)

    def codes_of(self, images) -> np.ndarray:
        """Returns the codes of an image file or folder, int32 `[N, h, w, D]`."""

        @jax.jit
        def encode(variables, images):
            return self.rqvae.apply(variables, to_float(images), method="codes")

        codes = []
        for batch in self.image_batches(images):
            with sharding.context(self.mesh):
                local = {name: batch[name] for name in ("image", "mask")}
                batch = sharding.shard_batch(local, self.mesh)
                found = encode(self.rqvae_variables, batch["image"])
                found, mask = sharding.to_host((found, batch["mask"]))
            codes.append(found[mask])
        return np.concatenate(codes)

    @functools.cached_property
    def transformer_state(self) -> TrainState:
        """The trained transformer.

        Raises:
          CheckpointError: if it was trained on the codes of another RQ-VAE.
        """
        state = self._state("transformer")
        theirs = state.codebook["state"].embedding
        ours = self.rqvae_variables["codebook"]["state"].embedding
        if theirs.shape != ours.shape or not bool(jnp.all(theirs == ours)):
            raise checkpoint.CheckpointError(
                f"{self.path}: the transformer of step {self.step_of('transformer')} "
                "has another codebook than the RQ-VAE of step "
                f"{self.step_of('rqvae')}: train it again, or restore the RQ-VAE that "
                "it was trained on"
            )
        return state

    @functools.cached_property
    def transformer(self) -> TransformerStage:
        """Stage 2 over the evaluation split."""
        return self.transformer_stage()

    def transformer_stage(self, limit: int = 0) -> TransformerStage:
        """Stage 2 over so many batches of the evaluation split; 0: all."""
        data, part = self.config.data, self.config.transformer

        def eval_batches():
            source = self.code_source(data.eval_split)
            tokens = self.tokens(0.0)
            return loader.in_order(
                source, data, part.batch_size, limit, tokens, mesh=self.mesh
            )

        null_text = None if self.tokenizer is None else self.tokenizer.null
        return TransformerStage(
            self.config, self.mesh, eval_batches, self.rqvae_variables, null_text
        )

    def code_source(self, split: str):
        """What stage 2 reads of a split: stored codes, or images where it is `online`.

        Raises:
          DataError: where they are missing or damaged.
        """
        if self.config.transformer.online:
            return sources.open_split(self.config.data, split)
        directory = self.path / "codes" / split
        patience = 0.0 if processes.is_process_0() else PATIENCE
        return stored_codes.CodeSource(directory, self.fingerprint, patience)

    @functools.cached_property
    def tokenizer(self) -> text.TextTokenizer | None:
        """Of the captions; None where the condition has no text.

        Raises:
          DataError: where it is missing, or has more tokens than the config.
        """
        options = self.config.transformer.text
        if "text" not in self.config.transformer.condition:
            return None
        path = self.path / text.FILE
        tokenizer = text.load(path, options.length)
        if tokenizer.vocab_size > options.vocab_size:
            raise DataError(
                f"{path} has {tokenizer.vocab_size} tokens, more than "
                f"transformer.text.vocab_size = {options.vocab_size}"
            )
        return tokenizer

    def tokens(self, dropout: float) -> loader.Tokens | None:
        """What the stream makes text of: captions to tokens; None without text."""
        if self.tokenizer is None:
            return None
        return lambda captions, rng: self.tokenizer.choose(captions, dropout, rng)

    def sample(
        self,
        num_samples: int,
        classes: tuple[int, ...] = (),
        texts: tuple[str, ...] = (),
        *,
        seed: int = 0,
        batch_size: int | None = None,
        given: Given | None = None,
        keep: float = 1.0,
        judge: classifier.Classifier | None = None,
        **changes,
    ):
        """Generates images.

        Args:
          num_samples: in all.
          classes: where the model has classes; all of them where empty.
          texts: where it has text; with classes as well, a class or a text for each.
          seed: sample i of a seed is the same whatever the batch size.
          batch_size: the config's where None.
          given: a code map of which a part stays, see `given`.
          keep: share of each class that is kept, by how sure a classifier is of the
            class: rejection sampling, where below 1.
          judge: that classifier, see `rq.sampling.classifier`; `classifier` where None.
          **changes: of other fields of the config's section `sampling`: temperature,
            top_k, top_p, min_p, guidance (a number, or one for each depth) and
            guidance_schedule; the config's where None.

        Returns:
          images float32 `[N, R, R, C]` in [-1, 1]; labels int32 `[N]`, the class of
          each, or the place of its text (zeros without either), in the order given;
          codes int32 `[N, H, W, D]`.

        Raises:
          ConfigError: on classes, texts or filters that the model does not have, or a
            missing classifier.
        """
        wanted = sampler.wanted(self, num_samples, classes, texts)
        options = dict(seed=seed, batch_size=batch_size, given=given, **changes)
        if keep == 1:
            images, codes = sampler.sample(self, wanted, **options)
            return images, wanted.labels, codes
        judge = judge or self.classifier
        return sampler.sample_best(self, wanted, judge, keep, **options)[:3]

    @functools.cached_property
    def classifier(self) -> classifier.Classifier:
        """The feature network, as a classifier that ranks samples."""
        if self.config.features.objective != "class":
            raise ConfigError(
                f"{self.path} has a feature network that does not know the classes "
                "(features.objective); name torchvision's with --classifier"
            )
        return classifier.Classifier(*self.feature_classifier())

    def rank(self, images, classes=(), texts=()) -> list[dict]:
        """Exact likelihoods of image files, under each of several conditions.

        Args:
          images: a file or folder; cropped at the centre.
          classes, texts: the conditions, as in `sample`.

        Returns:
          for each file 'file' and 'conditions', the likeliest first: 'class' and
          'text' as the model has them, 'log_likelihood' of all codes in nats, and
          'bits_per_code', by depth.

        Raises:
          ConfigError: on conditions that the model does not have.
          DataError: where there is no image that can be read.
        """
        source, stage = self._files(images), self.transformer
        asked = sampler.conditions_of(self, classes, texts)
        variables = self.transformer_state.model_variables()
        codes = self.codes_of(images)
        batch_size = min(self.config.sampling.batch_size, len(codes))
        found = []
        for start in range(0, len(codes), batch_size):
            part = codes[start : start + batch_size]
            by_condition = sharding.to_host(
                likelihood.by_condition(
                    stage.model,
                    variables["params"],
                    variables["codebook"]["state"].embedding,
                    np.resize(part, (batch_size, *part.shape[1:])),  # one shape
                    asked.cond,
                )
            )
            found.append(by_condition[: len(part)])
        found = np.concatenate(found)
        return [
            {"file": str(path), "conditions": asked.ranked(one, stage.model.positions)}
            for path, one in zip(source.paths, found, strict=True)
        ]

    def given(self, path, mask: str = "bottom", keep_depth: int = 0) -> Given:
        """What `sample` completes: the codes of an image, and which of them stay.

        Args:
          path: an image file, cropped at the centre; or codes, .npy or .npz.
          mask: where to draw anew, see `rq.sampling.inpainting.read_mask`.
          keep_depth: depths that stay there as well.

        Raises:
          ConfigError: on a mask or codes that do not fit.
          DataError: where the image cannot be read.
        """
        rows, columns, depth = shape = self.rqvae.code_shape
        keep = inpainting.make_keep(
            inpainting.read_mask(mask, rows, columns), depth, keep_depth
        )
        if pathlib.Path(path).suffix in inpainting.NUMPY:
            codes = inpainting.read_codes(path, shape, max(self.rqvae.num_codes))
        else:
            codes = self.codes_of(path)[0]
        return Given(codes, keep)
