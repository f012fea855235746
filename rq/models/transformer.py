# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""RQ-Transformer (paper section 3.2): a body over positions, a head over depth.

    u_t = PE_T(t) + sum_d e(S_{t-1,d})           u_1: the condition
    h   = body(u_1 .. u_T)                       causal over positions
    v_1 = PE_D(1) + h_t,  v_d = PE_D(d) + sum_{i<d} e(S_{t,i})
    p(S_{t,d} | ..) = softmax(classifier(head(v_1 .. v_D)))   causal over depth

With `any_order`, beyond the paper, t counts positions in an order that is given, and
each u_t also says which position comes next, as in RAR (Yu et al. 2024). With a source
image the body first reads its codes, one token a position, before the condition; and,
where both grids are equal, each u_t has the one at the position that it predicts:

    PE_S(t) + s_t,  s_t = sum_d e(source_{t,d});  u_t + s_t

Legend: B batch, H W code grid, T = H W positions, D depth, K codes, C code vector,
M width, N heads, F head dimension, L layers, S condition length, P = T' positions of
the source image (0: none).

Dtypes: parameters float32; matrix products in `dtype`; layer norms, softmax and logits
in float32.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rq.models import quantizer
from rq.models.autoencoder import uniform_fan_in
from rq.models.projection import product
from rq.models.stack import Stack, StackConfig, linear, norm
from rq.parallel import sharding

MASKED_LOGIT = -1e6  # of codes that a smaller codebook does not have


class Codebooks(NamedTuple):
    """Code vectors of both images, where the source image has its own.

    Attributes:
      target: `[K, C]` or `[D, K, C]`.
      source: of the same forms.
    """

    target: jax.Array
    source: jax.Array


CodeVectors = jax.Array | Codebooks


def code_vectors(collection) -> CodeVectors:
    """Returns the code vectors that the transformer takes, of its `codebook`s."""
    target = collection["state"].embedding
    if "source" not in collection:
        return target
    return Codebooks(target, collection["source"].embedding)


def abstract_codebook(model: RQTransformer):
    """Returns shapes of code vectors that a model can be initialised with."""

    def vectors(length):
        return jax.ShapeDtypeStruct((1, length), jnp.float32)

    target = vectors(model.input_dim)
    if not model.source_shape:
        return target
    return Codebooks(target, vectors(model.source_dim))


def at_positions(x: jax.Array, order: jax.Array | None) -> jax.Array:
    """Returns rows `[B, ..., M]` of x `[B, T, M]` at positions int32 `[B, ...]`.

    All of them, as they are, where `order` is None.
    """
    if order is None:
        return x
    rows = jnp.take_along_axis(x, order.reshape(len(x), -1, 1), axis=1)
    return rows.reshape(*order.shape, x.shape[-1])


class RQTransformer(nn.Module):
    """Predicts each code from those before it; has single steps for decoding.

    The embeddings of codes come from the RQ-VAE's frozen codebook, an argument of every
    call (`[K, C]`, or `[D, K, C]` where depths have codebooks of their own), through
    learned linear maps; or from learned tables. Those of a source image always come
    from its codebook: that of the target, or its own (`Codebooks`).

    Attributes:
      code_shape: (H, W, D).
      num_codes: one codebook size, or one for each depth.
      input_dim: C of the codebook.
      num_conditions: classes, or the text vocabulary, or 1: a start token alone.
      condition_length: S; text where it is above 1.
      source_shape: (H', W', D') of the source image's codes; None: no source image.
      source_dim: C of its codebook.
      width: M, of the body and the head.
      body, head: their layers.
      shared_token_embedding: one learned table for all depths (where tables are used).
      shared_classifier: one classifier for all depths.
      body_from_codebook, head_from_codebook: embeddings from the codebook.
      cumulative_head: the head sees sums of code vectors over depth.
      embedding_dropout: on the body's inputs.
      any_order: whether positions may come in any order, not only row by row.
      remat: 'none', 'full', or 'dots' (keeps matrix products), for training.
      dtype: of matrix products.
      precision: None: for training; otherwise for decoding with weights of that
        precision ('float32', 'bfloat16' or 'int8'), see `rq.models.unroll`.
    """

    code_shape: tuple[int, int, int]
    num_codes: tuple[int, ...]
    input_dim: int
    width: int
    body: StackConfig
    head: StackConfig
    num_conditions: int = 1
    condition_length: int = 1
    source_shape: tuple[int, int, int] | None = None
    source_dim: int = 0
    shared_token_embedding: bool = True
    shared_classifier: bool = True
    body_from_codebook: bool = True
    head_from_codebook: bool = True
    cumulative_head: bool = True
    embedding_dropout: float = 0.0
    any_order: bool = False
    remat: str = "none"
    dtype: Any = "float32"
    precision: str | None = None

    @property
    def depth(self) -> int:
        """D, codes at each position."""
        return self.code_shape[2]

    @property
    def positions(self) -> int:
        """T = H W."""
        return self.code_shape[0] * self.code_shape[1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes at each depth."""
        return self.num_codes * (self.depth // len(self.num_codes))

    @property
    def source_length(self) -> int:
        """P, 0 without a source image."""
        return math.prod(self.source_shape[:2]) if self.source_shape else 0

    @property
    def prefix_length(self) -> int:
        """P + S, the body's inputs up to that which predicts the first position."""
        return self.source_length + self.condition_length

    def setup(self):
        width, depth, num_codes = self.width, self.depth, max(self.num_codes)
        dtype = jnp.dtype(self.dtype)
        small, unit = nn.initializers.normal(0.02), nn.initializers.normal(1.0)

        def parameter(name, init, shape, axes):
            init = nn.with_logical_partitioning(init, axes)
            return self.param(name, init, shape, jnp.float32)

        self.condition_positions = parameter(
            "condition_positions",
            small,
            (self.condition_length, width),
            ("positions", "embed"),
        )
        self.body_positions = parameter(
            "body_positions", small, (self.positions, width), ("positions", "embed")
        )
        self.head_positions = parameter(
            "head_positions", small, (depth, width), ("depth", "embed")
        )
        if self.any_order:  # zeros: raster order starts as a model without them
            self.target_positions = parameter(
                "target_positions",
                nn.initializers.zeros,
                (self.positions, width),
                ("positions", "embed"),
            )
        self.condition_embedding = parameter(
            "condition_embedding",
            unit,
            (self.num_conditions, width),
            ("condition", "embed"),
        )

        def from_codebook(fan_in):
            axes = ("latent", "embed")
            return linear(width, axes, dtype, fan_in=fan_in, precision=self.precision)

        if self.body_from_codebook:
            self.body_input = from_codebook(self.input_dim)
        if self.head_from_codebook:
            self.head_input = from_codebook(self.input_dim)
        if self.source_shape:
            self.source_input = from_codebook(self.source_dim)
            self.source_positions = parameter(
                "source_positions",
                small,
                (self.source_length, width),
                ("positions", "embed"),
            )
            # In place of codes that are left out.
            self.source_absent = parameter("source_absent", unit, (width,), ("embed",))
        if not (self.body_from_codebook and self.head_from_codebook):
            shape, axes = (num_codes, width), ("vocab", "embed")
            if not self.shared_token_embedding:
                shape, axes = (depth, *shape), ("depth", *axes)
            init = unit if self.shared_token_embedding else small
            self.token_embedding = parameter("token_embedding", init, shape, axes)

        stack = dict(dtype=dtype, remat=self.remat, precision=self.precision)
        self.body_stack = Stack(self.body, **stack)
        self.head_stack = Stack(self.head, **stack)
        self.input_dropout = nn.Dropout(self.embedding_dropout)

        self.classifier_norm = norm(self.head.norm, decoding=bool(self.precision))
        shape, axes = (width, num_codes), ("embed", "vocab")
        init, bias_init = uniform_fan_in(width), uniform_fan_in(width)
        if not self.shared_classifier:
            shape, axes = (depth, *shape), ("depth", *axes)
            init, bias_init = small, nn.initializers.zeros
        outputs, names = (*shape[:-2], shape[-1]), (*axes[:-2], axes[-1])
        self.classifier_bias = parameter("classifier_bias", bias_init, outputs, names)
        if self.precision is None:
            self.classifier_kernel = parameter("classifier_kernel", init, shape, axes)
        else:
            init = nn.with_logical_partitioning(
                nn.initializers.zeros, (*names, "embed")
            )
            self.classifier_weight = self.param(
                "classifier_weight", init, (*outputs, width), jnp.dtype(self.precision)
            )
            self.classifier_scale = None
        if self.precision == "int8":
            self.classifier_scale = parameter(
                "classifier_scale", nn.initializers.ones, outputs, names
            )
        if self.condition_length > 1:
            self.condition_norm = norm(self.body.norm)
            self.condition_classifier = linear(
                self.num_conditions, ("embed", "vocab"), jnp.float32, fan_in=width
            )

    def __call__(
        self,
        codes: jax.Array,
        cond: jax.Array | None = None,
        codebook: CodeVectors | None = None,
        *,
        deterministic: bool = True,
        condition_logits: bool = False,
        order: jax.Array | None = None,
    ):
        """Returns teacher-forced logits.

        Args:
          codes: int32 `[B, h, W, D]`; the first h <= H rows, and maybe fewer than the
            model's D depths, the first ones.
          cond: int32 `[B]` class, `[B, S]` text tokens; None: the start token. With a
            source image `[B, P D' + S]`, its codes first; -1 where it is left out.
          codebook: code vectors `[K, C]` or `[D, K, C]`, where embeddings come from it;
            `Codebooks` where the source image has its own.
          deterministic: no dropout; otherwise `rngs={"dropout": key}`.
          condition_logits: also returns the text's next-token logits
            `[B, S - 1, num_conditions]`.
          order: int32 `[B, T]`, in which order the body reads the positions of each
            image; None: row by row.

        Returns:
          float32 logits `[B, h, W, D, K]`, in their places whatever the order.

        Raises:
          ValueError: on codes that do not fit `code_shape`, a missing codebook, or an
            order for a model without `any_order`.
        """
        x_BTDM, text_BSM = self.outputs(
            codes, cond, codebook, deterministic=deterministic, order=order
        )
        logits = self.logits(x_BTDM).reshape(*codes.shape, -1)
        has_text = self.condition_length > 1
        if has_text and (condition_logits or self.is_initializing()):
            text_logits = self.text_logits(text_BSM)
        if not condition_logits:
            return logits
        if not has_text:
            raise ValueError("no text, no next-token logits of it")
        return logits, text_logits

    def outputs(
        self,
        codes,
        cond=None,
        codebook=None,
        *,
        deterministic=True,
        at=None,
        order=None,
        depths=None,
    ):
        """Returns the head's outputs `[B, T, D, M]` and the text's `[B, S - 1, M]`.

        Args:
          codes, cond, codebook, deterministic, order: see `__call__`.
          at: int32 `[B, T']`, positions of each image at which alone the head runs;
            its outputs are then `[B, T', D, M]`. None: all.
          depths: see `body_inputs`.
        """
        batch, rows, columns, depth = codes.shape
        fits = columns == self.code_shape[1] and 1 <= depth <= self.depth
        if not fits or rows > self.code_shape[0]:
            raise ValueError(f"codes {codes.shape[1:]}, the model's {self.code_shape}")
        codes_BTD = codes.reshape(batch, rows * columns, depth)
        positions = codes_BTD.shape[1]

        x_BSM = self.body_inputs(codes_BTD, cond, codebook, order, depths)
        x_BSM = self.input_dropout(x_BSM, deterministic=deterministic)
        x_BSM = sharding.constrain(x_BSM, "batch", None, None)
        x_BSM, _ = self.body_stack(
            x_BSM.astype(self.dtype), deterministic=deterministic
        )
        context_BTM = x_BSM[:, self.prefix_length - 1 :]
        if order is not None:
            back_BT = jnp.argsort(order, axis=1)
            context_BTM = jnp.take_along_axis(context_BTM, back_BT[..., None], axis=1)

        if at is not None:
            context_BTM, codes_BTD = (
                jnp.take_along_axis(x, at[..., None], axis=1)
                for x in (context_BTM, codes_BTD)
            )
            positions = at.shape[1]
        vectors = quantizer.embed(codes_BTD, self.head_table(codebook))
        vectors = vectors.astype(jnp.float32)
        if self.head_from_codebook and self.cumulative_head:
            vectors = jnp.cumsum(vectors, axis=-2)
        x_BTDM = jnp.concatenate(
            [context_BTM[:, :, None], self.head_tokens(vectors[:, :, :-1])], axis=2
        )
        # Added in float32 and rounded once, as `depth_codes` does.
        x_BTDM = x_BTDM.astype(jnp.float32) + self.head_positions[:depth]
        x_BTDM = x_BTDM.reshape(batch * positions, depth, self.width)
        x_BTDM, _ = self.head_stack(
            x_BTDM.astype(self.dtype), deterministic=deterministic
        )
        x_BTDM = x_BTDM.reshape(batch, positions, depth, self.width)
        return x_BTDM, x_BSM[:, self.source_length : self.prefix_length - 1]

    def logits(self, x_BTDM):
        """Returns float32 logits `[B, T, D, K]` of head outputs `[B, T, D, M]`."""
        logits = self.classify(x_BTDM)
        return sharding.constrain(logits, "batch", None, None, "vocab")

    def text_logits(self, x_BSM):
        """Returns next-token logits `[B, S - 1, num_conditions]` of body outputs."""
        return self.condition_classifier(self.condition_norm(x_BSM))

    # Embeddings. The body's tokens sum over depth after the linear map, so that its
    # bias counts D times; the head's are summed (where they are) before it.

    def body_inputs(self, codes_BTD, cond, codebook, order=None, depths=None):
        """Returns the body's inputs `[B, P + S - 1 + T, M]`, float32.

        Args:
          codes_BTD: row by row; of the last position in the order they are not read.
          cond, codebook, order: see `__call__`.
          depths: int32, how many codes of each position are read, `[B]`, or `[B, T]`
            in the order; None: all.

        Raises:
          ValueError: on an order for a model without `any_order`.
        """
        batch, positions, _ = codes_BTD.shape
        if order is None:
            places: Any = np.s_[:positions]
        else:
            self._check_any_order()
            places = order
            codes_BTD = jnp.take_along_axis(codes_BTD, order[..., None], axis=1)
        tokens_BTM = self.body_tokens(codes_BTD, codebook, depths)
        tokens_BTM += self.body_positions[places]
        prefix_BSM = self.prefix_tokens(cond, batch, codebook)
        x_BSM = jnp.concatenate([prefix_BSM, tokens_BTM[:, :-1]], axis=1)
        if self.any_order:
            x_BSM = x_BSM.at[:, -positions:].add(self.target_positions[places])
        hints_BTM = self.source_hints(cond, batch, codebook)
        if hints_BTM is not None:
            hints_BTM = at_positions(hints_BTM[:, :positions], order)
            x_BSM = x_BSM.at[:, -positions:].add(hints_BTM)
        return x_BSM

    def _check_any_order(self):
        if not self.any_order:
            raise ValueError("the model reads positions row by row: no other order")

    def prefix_tokens(self, cond, batch: int, codebook):
        """Returns input tokens `[B, P + S, M]` of a condition, see `__call__`."""
        source, cond = self._split(cond, batch)
        tokens_BSM = self.condition_embedding[cond] + self.condition_positions
        if not self.source_shape:
            return tokens_BSM
        tokens_BPM = self.source_tokens(source, codebook) + self.source_positions
        return jnp.concatenate([tokens_BPM, tokens_BSM], axis=1)

    def _split(self, cond, batch: int):
        """Returns the codes of the source `[B, P D']` and the rest `[B, S]`."""
        codes = self.source_length * (self.source_shape or (0, 0, 0))[2]
        if cond is None:
            source = jnp.full((batch, codes), -1, jnp.int32)
            return source, jnp.zeros((batch, self.condition_length), jnp.int32)
        cond = cond.reshape(batch, codes + self.condition_length)
        return cond[:, :codes], cond[:, codes:]

    def source_hints(self, cond, batch: int, codebook):
        """Returns what is added to the input that predicts each position `[B, T, M]`.

        That is the source's token there, if the grids are equal; otherwise None.
        """
        if not self.source_shape or self.source_shape[:2] != self.code_shape[:2]:
            return None
        return self.source_tokens(self._split(cond, batch)[0], codebook)

    def source_tokens(self, source, codebook):
        """Returns tokens `[B, P, M]` of a source image's codes, without position."""
        codes = source.reshape(len(source), self.source_length, -1)
        if isinstance(codebook, Codebooks):
            table = codebook.source
        else:
            table = self._table(codebook)
        vectors = quantizer.embed(jnp.maximum(codes, 0), jnp.asarray(table))
        tokens = jnp.sum(self.source_input(vectors), axis=-2).astype(jnp.float32)
        absent = jnp.any(codes < 0, axis=-1, keepdims=True)
        return jnp.where(absent, self.source_absent, tokens)

    def body_tokens(self, codes, codebook, depths=None):
        """Returns input tokens `[..., M]` of codes `[..., D]`, without position.

        Args:
          codes: int32; D may be smaller than the model's.
          codebook: see `__call__`.
          depths: see `body_inputs`; codes are then `[B, T, D]`.
        """
        if self.body_from_codebook:
            vectors = quantizer.embed(codes, self._table(codebook))
            tokens = self.body_input(vectors)
        else:
            tokens = quantizer.embed(codes, self.token_embedding)
        if depths is not None:
            depths = depths.reshape(len(codes), -1, 1)
            is_read = jnp.arange(codes.shape[-1]) < depths
            tokens = jnp.where(is_read[..., None], tokens, 0)
        return jnp.sum(tokens, axis=-2)

    def head_tokens(self, vectors):
        """Returns head tokens `[..., M]` of code vectors or embeddings `[..., C]`."""
        return self.head_input(vectors) if self.head_from_codebook else vectors

    def _table(self, codebook):
        if codebook is None:
            raise ValueError("embeddings come from the codebook, but none was given")
        if isinstance(codebook, Codebooks):
            codebook = codebook.target
        return jnp.asarray(codebook)

    def head_table(self, codebook):
        if self.head_from_codebook:
            return self._table(codebook)
        return self.token_embedding

    def classify(self, x, depth=None):
        """Returns float32 logits of outputs `[..., D, M]`, or `[..., M]` at a depth."""
        by_depth = not self.shared_classifier
        x = self.classifier_norm(x).astype(self.dtype)

        def at_depth(parameter):
            if not by_depth:
                return parameter
            return parameter[: x.shape[-2]] if depth is None else parameter[depth]

        if self.precision is None:
            kernel = self.classifier_kernel.astype(self.dtype)
            equation = "...m,mk->...k"
            if by_depth:
                equation = "...dm,dmk->...dk" if depth is None else equation
            logits = jnp.einsum(
                equation, x, at_depth(kernel), preferred_element_type=jnp.float32
            )
        else:
            weights = (self.classifier_weight, self.classifier_scale)
            multiply = product
            if by_depth and depth is None:
                multiply = jax.vmap(product, (-2, 0, 0), -2)
            logits = multiply(x, *jax.tree.map(at_depth, weights))
        logits += at_depth(self.classifier_bias)
        if len(set(self.sizes)) == 1:
            return logits
        sizes = jnp.asarray(self.sizes)
        sizes = sizes[: x.shape[-2]] if depth is None else sizes[depth]
        exists = jnp.arange(logits.shape[-1]) < sizes[..., None]
        return jnp.where(exists, logits, MASKED_LOGIT)
