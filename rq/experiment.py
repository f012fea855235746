# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""A trained experiment, restored from its run directory: config, models, data.

experiment = Experiment("runs/digits")
asked = conditions.parse(experiment.config, classes=(3, 7))
for batch in draw(experiment.sampler, asked, 20, SamplingConfig(seed=1)):
    batch.images, batch.labels, batch.codes
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from rq import loaded_models
from rq.config import ConfigError, from_json
from rq.convert import saved_folder
from rq.data import given_codes, stored_codes
from rq.data.file_source import FileSource
from rq.models.build import feature_classifier, transformer_model
from rq.models.digest import digest
from rq.models.networks.feature_classifier import FeatureClassifier
from rq.models.unroll import unroll
from rq.parallel import processes, sharding
from rq.sampling import classifier, codec
from rq.sampling.trained_models import TrainedModels
from rq.training import checkpoint, checkpoint_files
from rq.training.stages import TransformerStage
from rq.training.train_state import TrainState

if TYPE_CHECKING:
    from rq.data import loader

# Methods that read data import the loader when they are called: Grain and TFDS take a
# third of a second, and sampling reads no data.

CONFIG = "config.json"
PATIENCE = 60.0  # seconds until a shared file system shows what process 0 has written


def finished(path: epath.Path, stage: str, config) -> bool:
    """Returns whether a stage ('features', 'rqvae', 'transformer') has all its steps.

    It looks at the files as this process sees them. With `checkpoint.fallback` a
    damaged last checkpoint does not count.
    """
    step = checkpoint.latest_step(path / stage)
    if step != config[stage].steps:
        return False
    if not config.checkpoint.fallback:  # damage is reported when it is read
        return True
    return checkpoint_files.find_damage(path / stage / str(step)) is None


def stored_config(path):
    """Returns the config of a run directory.

    Raises:
      FileNotFoundError: if nothing was trained there.
    """
    file = checkpoint.folder(path) / CONFIG
    if not file.exists():
        raise FileNotFoundError(
            f"{path} has no {CONFIG}: train there first, with "
            f"rq train --config=NAME --workdir={path}"
        )
    return from_json(file.read_text())


class Experiment(TrainedModels):
    """Opens a run directory; models are loaded when they are first used.

    Attributes:
      path: the run directory.
      config: the stored config, or the one given in its place.
      mesh, dtype: see `TrainedModels`.
    """

    def __init__(
        self,
        path,
        mesh=None,
        step: str | int = "latest",
        dtype: str | None = None,
        config=None,
    ):
        """Opens a run directory.

        Args:
          path: of the run directory.
          mesh: of the devices; all of them if None.
          step: checkpoint of the last stage: 'latest', 'best' (if `checkpoint.best` was
            set in training) or a number.
          dtype: precision of the transformer's weights and products, see
            `rq.models.unroll.unroll`; as in training if None.
          config: the stored config with overrides; the stored one if None.

        Raises:
          FileNotFoundError: if nothing was trained there.
        """
        config = stored_config(path) if config is None else config
        super().__init__(checkpoint.folder(path), config, mesh, dtype)
        self._step = step

    def finished(self, stage: str) -> bool:
        """Returns, in all processes, whether process 0 finds all steps of a stage."""
        return bool(processes.broadcast(finished(self.path, stage, self.config)))

    @property
    def output_path(self) -> epath.Path:
        """Folder of what commands write: the run directory."""
        return self.path

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of 'rqvae' and 'transformer' that have a checkpoint."""
        stages = ("rqvae", "transformer")
        found = (checkpoint.find_step(self.path / stage) for stage in stages)
        return tuple(s for s, n in zip(stages, found, strict=True) if n is not None)

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
        """Returns a hash that identifies the checkpoint a stage is restored from."""
        return checkpoint.identity(self.path / stage, self.step_of(stage))

    def stored(self, stage: str, where=None, dtype: str | None = None) -> dict:
        """Returns 'params', 'codebook', 'ema' and 'frozen' of a stage as stored.

        Args:
          stage: 'features', 'rqvae' or 'transformer'.
          where, dtype: see `checkpoint.load_model`.
        """
        directory, step = self.path / stage, self.step_of(stage)
        return checkpoint.load_model(directory, stage, step, where, dtype)[0]

    def _state(self, stage: str) -> TrainState:
        """Restores the model of a stage, without its optimizer."""
        where, dtype = sharding.replicated(self.mesh), None
        if stage == "transformer":
            # int8 is made from the weights as they are stored.
            dtype = None if self.dtype == "int8" else self.dtype
            trained = self.transformer_stage()
            boxed = jax.eval_shape(trained.init, jax.random.key(0))
            params = sharding.state_shardings(boxed, self.mesh).params
            where = dict.fromkeys(checkpoint.MODEL, where)
            where |= {"params": params, "ema": params}
        step, key = jnp.zeros((), jnp.int32), jax.random.key(0)
        model = self.stored(stage, where, dtype)
        return TrainState(step=step, opt_state={}, key=key, **model)

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
        """The trained RQ-VAE's `params` and `codebook`; {} of another tokenizer."""
        if not self.has_rqvae:
            codebook = given_codes.stored_codebook(self.path / "codes")
            return {"params": {}, "codebook": {"state": codebook}}
        return self.rqvae_state.model_variables()

    @functools.cached_property
    def fingerprint(self) -> dict:
        """Identifies the trained RQ-VAE, so that codes are never used with another.

        And any source images, and the RQ-VAE of their own.
        """
        if not self.has_rqvae:
            codebook = self.rqvae_variables["codebook"]["state"]
            return given_codes.fingerprint(codebook.embedding)
        found, data = {"rqvae": digest(self.rqvae_variables)}, self.config.data
        if data.source != "none":
            found["source"] = data.source + (", swapped" if data.swap_pairs else "")
            if self.config.transformer.source_rqvae:
                found["source_rqvae"] = digest(self.source_models.rqvae_variables)
        return found

    def open_source_models(self) -> loaded_models.LoadedModels:
        """See `TrainedModels`; they are in the run directory."""
        folder = loaded_models.find_folder(self.path / saved_folder.SOURCE)
        return loaded_models.from_saved(folder, mesh=self.mesh)

    @property
    def source_rqvae(self):
        """Model and variables of the RQ-VAE of source images; None: none of its own."""
        if not self.config.transformer.source_rqvae:
            return None
        return self.source_models.rqvae, self.source_models.rqvae_variables

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

    def image_batches(self, images=None) -> loader.Pass:
        """Returns images in order for evaluation, as `rq.data.loader.in_order` does.

        Args:
          images: an image file or a folder of them, cropped at the centre; the
            evaluation split if None.

        Raises:
          DataError: if no image can be read.
        """
        from rq.data import loader, sources

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
        codes, variables = [], self.rqvae_variables
        for batch in self.image_batches(images):
            with sharding.context(self.mesh):
                local = {name: batch[name] for name in ("image", "mask")}
                batch = sharding.shard_batch(local, self.mesh)
                found = codec.encode(self.rqvae, variables, batch["image"])
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
        if self.dtype is None:
            return state
        params = state.model_variables()["params"]
        _, params = unroll(transformer_model(self.config), params, self.dtype)
        return dataclasses.replace(state, params=params, ema={})

    @property
    def transformer_variables(self) -> dict:
        """The trained RQ-Transformer's `params` and `codebook`."""
        return self.transformer_state.model_variables()

    @functools.cached_property
    def transformer(self) -> TransformerStage:
        """Stage 2, evaluated on the whole evaluation split."""
        stage = self.transformer_stage()
        if self.dtype is not None:
            stage.model = self.decoder
        return stage

    def transformer_stage(self, limit: int = 0) -> TransformerStage:
        """Returns stage 2, evaluated on `limit` batches of that split; 0: all."""
        data, part = self.config.data, self.config.transformer

        def eval_batches():
            from rq.data import loader

            source = self.code_source(data.eval_split)
            tokens = self.tokens(0.0)
            return loader.in_order(
                source,
                data,
                part.batch_size,
                limit,
                tokens,
                mesh=self.mesh,
                paired=True,
            )

        null_text = None if self.tokenizer is None else self.tokenizer.null
        return TransformerStage(
            self.config,
            self.mesh,
            eval_batches,
            self.rqvae_variables,
            null_text,
            self.source_rqvae,
        )

    def code_source(self, split: str):
        """Opens stage 2's data of a split: stored codes, or images if it is `online`.

        Raises:
          DataError: if they are missing or damaged.
        """
        if self.config.transformer.online:
            from rq.data import sources

            return sources.open_split(self.config.data, split, paired=True)
        directory = self.path / "codes" / split
        patience = 0.0 if processes.is_process_0() else PATIENCE
        return stored_codes.CodeSource(directory, self.fingerprint, patience)

    def tokens(self, dropout: float) -> loader.Tokens | None:
        """Returns the loader's function of captions to tokens; None without text."""
        if (tokenizer := self.tokenizer) is None:
            return None
        return lambda captions, rng: tokenizer.choose(captions, dropout, rng)

    @functools.cached_property
    def classifier(self) -> classifier.Classifier:
        """The feature network, as a classifier that ranks samples."""
        if self.config.features.objective != "class":
            raise ConfigError(
                f"{self.path} has a feature network that does not know the classes "
                "(features.objective): pass a converted ResNet with --classifier"
            )
        return classifier.Classifier(*self.feature_classifier())
