# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stage 2: trains an RQ-Transformer on a frozen RQ-VAE's codes (section 3.2)."""

from __future__ import annotations

import copy
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rq.config import trained_positions
from rq.data.pixels import to_float
from rq.models import quantizer
from rq.models.build import rqvae_model, transformer_model
from rq.models.transformer import code_vectors
from rq.parallel import sharding
from rq.sampling import conditions
from rq.training import losses
from rq.training.stages.stage import Stage
from rq.training.train_state import TrainState


class TransformerStage(Stage):
    """Trains with soft targets and stochastic codes (paper section 3.2.3).

    The state holds the frozen codebook, so that a checkpoint of this stage has all that
    sampling codes needs; the optimizer does not update it.

    Attributes:
      frozen: variables of the RQ-VAEs that encode images in each step; {} if codes are
        stored.
    """

    name = "transformer"
    criterion = "cross_entropy"

    def __init__(
        self, config, mesh, eval_batches, rqvae_variables, null_text=None, source=None
    ):
        """See `Stage`.

        Batches have 'codes' and 'features', or 'image'; 'label', 'text' and
        'source_codes', or 'source', if the condition needs them; and for evaluation
        'mask'.

        Args:
          config, mesh, eval_batches: see `Stage`.
          rqvae_variables: variables of the trained RQ-VAE.
          null_text: see `conditions.null`.
          source: model and variables of the RQ-VAE of source images; None: they have
            none of their own.
        """
        super().__init__(config, mesh, eval_batches)
        self.model = transformer_model(config)
        self.null_cond = conditions.null(config, null_text)
        self.rqvae, self.rqvae_variables = rqvae_model(config), rqvae_variables
        self.source_rqvae, self._source_variables = source or (None, None)
        self._sizes = None if self.rqvae.shared_codebook else self.rqvae.sizes
        self.frozen = {}
        if config.transformer.online:  # each step encodes its images
            self.frozen = {"rqvae": rqvae_variables}
            if source is not None:
                self.frozen["source_rqvae"] = self._source_variables
        self._eval_step = jax.jit(self._cross_entropy)

    @property
    def codebooks(self) -> dict:
        """The model's collection 'codebook', with any of source images' own."""
        found = dict(self.rqvae_variables["codebook"])
        if self.source_rqvae is not None:
            found["source"] = self._source_variables["codebook"]["state"]
        return found

    def without_recomputation(self) -> TransformerStage:
        """See `Stage`; without remat, and with the loss of all positions at once."""
        with self.config.unlocked():
            config = self.config.copy_and_resolve_references()
        config.transformer.model.remat, config.transformer.loss.microbatches = "none", 1
        if config.transformer == self.config.transformer:
            return self
        plain = copy.copy(self)
        plain.config, plain.model = config, transformer_model(config)
        return plain

    def init(self, key) -> TrainState:
        """Returns a new state; traceable, so that it is created sharded."""
        init_key, state_key = jax.random.split(key)
        # They become constants of the traced program, which must be host arrays.
        codebook, frozen = jax.tree.map(np.asarray, (self.codebooks, self.frozen))
        codes = jnp.zeros((1, *self.model.code_shape), jnp.int32)
        variables = self.model.init(init_key, codes, None, code_vectors(codebook))
        return self.new_state(variables["params"], codebook, state_key, frozen=frozen)

    def encoded(self, frozen, batch) -> dict:
        """Returns the batch with 'codes' and 'features', encoded from any 'image'.

        And with 'source_codes', encoded from any 'source'.
        """
        if "image" not in batch:
            return batch
        if "source" in batch:
            own = self.source_rqvae is not None
            source_codes = (self.source_rqvae if own else self.rqvae).apply(
                frozen["source_rqvae" if own else "rqvae"],
                to_float(batch["source"]),
                method="codes",
            )
            batch = batch | {"source_codes": source_codes}
        codes, features = self.rqvae.apply(
            frozen["rqvae"], to_float(batch["image"]), method="codes_and_features"
        )
        return batch | {"codes": codes, "features": features}

    def codes(self, codebook, batch, key):
        """Returns the codes to train on: the stored ones, or stochastic codes."""
        options = self.config.transformer.loss
        if not options.stochastic_codes:
            return batch["codes"]
        return quantizer.quantize(
            batch["features"],
            codebook["state"],
            depth=self.rqvae.depth,
            sizes=self._sizes,
            temperature=options.temperature,
            stochastic=True,
            key=key,
        ).codes

    def _losses(self, codebook):
        """Returns the function of logits, codes and features that computes losses.

        Soft targets are of the residuals of the given codes, stochastic or nearest.
        """
        options = self.config.transformer.loss

        def one(logits, codes, features=None):
            if options.soft_targets:
                soft = quantizer.soft_codes(
                    features,
                    codes,
                    codebook["state"],
                    self._sizes,
                    options.temperature,
                )
                by_code = losses.soft_cross_entropy(logits, soft)
            else:
                by_code = losses.cross_entropy(logits, codes)
            if not options.z_weight:
                return {"codes": by_code}
            return {"codes": by_code, "z": losses.square_normalizer(logits)}

        return one

    def drawn_positions(self, batch: int, key) -> jax.Array | None:
        """Returns positions int32 `[B, T']` to train the head at; None: at all.

        Those of each image are drawn without replacement, all equally likely.
        """
        total, number = self.model.positions, trained_positions(self.config)
        if number == total:
            return None
        # By sorting, which does not mix images: each device sorts those that it holds.
        order = jax.random.uniform(key, (batch, total))
        order = sharding.constrain(order, "batch", None)
        return jnp.argsort(order, axis=1)[:, :number]

    def drawn_order(self, batch: int, step, key) -> jax.Array | None:
        """Returns the order int32 `[B, T]` in which each image is read; None: raster.

        Args:
          batch: B.
          step: of the training, on which the fraction of random orders may depend.
          key: random key.
        """
        part = self.config.transformer
        if part.order == "raster":
            return None
        order_key, choice_key = jax.random.split(key)
        # By sorting, which does not mix images: each device sorts those that it holds.
        order = jax.random.uniform(order_key, (batch, self.model.positions))
        order = jnp.argsort(sharding.constrain(order, "batch", None), axis=1)
        if part.order == "random":
            return order
        start, end = (fraction * self.steps for fraction in part.order_anneal)
        probability = jnp.clip((end - step) / max(end - start, 1.0), 0, 1)
        is_random = jax.random.bernoulli(choice_key, probability, (batch, 1))
        return jnp.where(is_random, order, jnp.arange(self.model.positions))

    def drawn_depths(self, batch: int, key) -> jax.Array | None:
        """Returns how many codes of each position the body reads; None: all.

        That is one number for each image, `[B]`. In models of any order it grows once
        within an image, after a number of positions in the order, `[B, T]`: what has
        been drawn when `sampling.levels` goes from one level to the next.
        """
        fraction, depth = self.config.transformer.depth_dropout, self.model.depth
        if not fraction:
            return None
        cut_key, depth_key = jax.random.split(key)
        cut = jax.random.bernoulli(cut_key, fraction, (batch,))
        drawn = jax.random.randint(depth_key, (batch,), 1, depth + 1)
        coarse = jnp.where(cut, drawn, depth)
        if not self.model.any_order:
            return coarse
        fine_key, number_key = jax.random.split(jax.random.fold_in(key, 0))
        fine = jax.random.randint(fine_key, (batch,), coarse, depth + 1)
        positions = self.model.positions
        number = jax.random.randint(number_key, (batch, 1), 0, positions + 1)
        is_coarse = jnp.arange(positions) < number
        return jnp.where(is_coarse, coarse[:, None], fine[:, None])

    def by_position(self, params, compute, outputs, *arrays, at=None):
        """Returns `compute(logits, *arrays)` at every position.

        The positions are split into `loss.microbatches`. Logits and soft targets, K
        numbers for each code, exist for one microbatch at a time; the backward pass
        recomputes them.

        Args:
          params: parameters of the model.
          compute: function that returns a tree of arrays `[B, T', ...]`.
          outputs: outputs of the model, `[B, T', D, M]`.
          *arrays: `[B, H, W, N]`.
          at: int32 `[B, T']`, the positions of the outputs; None: all.

        Returns:
          The tree with arrays `[B, T', ...]`.
        """
        microbatches = self.config.transformer.loss.microbatches

        def one(outputs, *arrays):
            logits = self.model.apply({"params": params}, outputs, method="logits")
            return compute(logits, *arrays)

        def split(x):  # along T, which is not sharded
            return jnp.moveaxis(x.reshape(len(x), microbatches, -1, *x.shape[2:]), 1, 0)

        def join(x):
            x = jnp.moveaxis(x, 0, 1)
            return x.reshape(len(x), -1, *x.shape[3:])

        flat = [x.reshape(len(x), -1, *x.shape[3:]) for x in arrays]
        if at is not None:
            flat = [jnp.take_along_axis(x, at[..., None], axis=1) for x in flat]
        if microbatches == 1:
            return one(outputs, *flat)
        split_arrays = jax.tree.map(split, (outputs, *flat))
        found = jax.lax.map(lambda x: jax.checkpoint(one)(*x), split_arrays)
        return jax.tree.map(join, found)

    def gradients(self, state: TrainState, batch, key):
        """Returns the gradients of a batch, the unchanged state, and metrics."""
        batch = self.encoded(state.frozen, batch)
        grads, metrics = jax.grad(self.loss, has_aux=True)(
            state.params, state.codebook, batch, key, state.step
        )
        return grads, state, metrics

    def loss(self, params, codebook, batch, key, step=0):
        """Returns the loss of a batch in nats per code, and metrics.

        With `loss.head_fraction` it is the mean over the drawn positions: its
        expectation, and that of its gradients, is the loss of all.
        """
        target_key, dropout_key = jax.random.split(key)
        codes = self.codes(codebook, batch, target_key)
        cond: Any = conditions.make(self.config, batch)
        if self.null_cond is not None:
            fraction = self.config.transformer.condition_dropout
            given = cond, self.null_cond, fraction, jax.random.fold_in(key, 2)
            lengths = conditions.part_lengths(self.config)
            if len(lengths) > 1:
                cond = conditions.leave_out_parts(*given, lengths)
            else:
                cond = conditions.leave_out(*given)
        at = self.drawn_positions(len(codes), jax.random.fold_in(key, 3))
        order = self.drawn_order(len(codes), step, jax.random.fold_in(key, 4))
        depths = self.drawn_depths(len(codes), jax.random.fold_in(key, 5))
        outputs, text_outputs = self.model.apply(
            {"params": params},
            codes,
            cond,
            code_vectors(codebook),
            deterministic=False,
            at=at,
            order=order,
            depths=depths,
            rngs={"dropout": dropout_key},
            method="outputs",
        )
        arrays = [codes]
        if self.config.transformer.loss.soft_targets:
            arrays.append(batch["features"])
        compute = self._losses(codebook)
        found = self.by_position(params, compute, outputs, *arrays, at=at)
        loss = jnp.mean(found["codes"])
        by_depth = jnp.mean(found["codes"], axis=(0, 1))
        metrics = {f"loss/depth_{d + 1}": by_depth[d] for d in range(self.model.depth)}
        if self.model.condition_length > 1:
            text_logits: Any = self.model.apply(
                {"params": params}, text_outputs, method="text_logits"
            )
            text = cond[:, 1 - self.model.condition_length :]
            text_loss = jnp.mean(losses.cross_entropy(text_logits, text))
            metrics |= {"loss/image": loss, "loss/text": text_loss}
            weight = self.config.transformer.text.weight
            loss = (1 - weight) * loss + weight * text_loss
        z_weight = self.config.transformer.loss.z_weight
        if z_weight:
            metrics["loss/z"] = jnp.mean(found["z"])
            loss += z_weight * metrics["loss/z"]
        metrics["loss"] = loss
        return loss, metrics

    def _cross_entropy(self, variables, frozen, batch):
        """Returns sums over images of cross entropy and hits `[D]`, and their number.

        The targets are the nearest codes.
        """
        batch = self.encoded(frozen, batch)
        params, codes = variables["params"], batch["codes"]
        outputs, _ = self.model.apply(
            {"params": params},
            codes,
            conditions.make(self.config, batch),
            code_vectors(variables["codebook"]),
            method="outputs",
        )

        def compute(logits, codes):
            hits = jnp.argmax(logits, axis=-1) == codes
            return losses.cross_entropy(logits, codes), hits.astype(jnp.float32)

        valid = batch["mask"][:, None]
        total, correct = (
            jnp.sum(jnp.mean(x, axis=1) * valid, axis=0)
            for x in self.by_position(params, compute, outputs, codes)
        )
        return total, correct, jnp.sum(valid)

    def evaluate(self, state: TrainState) -> dict:
        """Returns metrics of the nearest codes on the evaluation split.

        They are cross entropy in nats and accuracy by depth, and bits per image.
        """
        variables = state.model_variables()
        total: Any = 0.0
        correct: Any = 0.0
        images = 0
        for batch in self.eval_batches():
            with sharding.context(self.mesh):
                sharded = sharding.shard_batch(batch, self.mesh)
                sums = sharding.to_host(
                    self._eval_step(variables, self.frozen, sharded)
                )
            total, correct = total + sums[0], correct + sums[1]
            images += int(sums[2])
        total, correct = total / images, correct / images
        metrics = {}
        for d in range(self.model.depth):
            metrics[f"cross_entropy/depth_{d + 1}"] = float(total[d])
            metrics[f"accuracy/depth_{d + 1}"] = float(correct[d])
        metrics["cross_entropy"] = float(np.mean(total))
        bits = np.sum(total) * self.model.positions / math.log(2)
        metrics["bits_per_image"] = float(bits)
        return metrics
