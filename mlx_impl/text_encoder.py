"""Qwen2.5-VL's language model as Qwen-Image's text encoder. Attribute names equal the checkpoint's keys.

B prompts, N tokens, D width, H heads of queries, K heads of keys and values, d head width, F width inside the MLP.

Equal to the language model of transformers 5.24's ``Qwen2_5_VLForConditionalGeneration``, up to the final norm; the
output layer ``lm_head`` is not needed. Where transformers rounds to the model's dtype, this does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from parity.tap import scope, tap

from . import ops
from .mrope import rotary_table, rotate
from .qwen2_layers import RMSNorm
from .text_config import TextEncoderConfig
from .weights import Shards, load_part, mlx_dtype

# Of the language model's keys; the vision tower's have another one.
PREFIX = "model"


class Linear(nn.Module):
    """x·weightᵀ + bias. weight: O I, bias: O or none."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, inputs))
        if bias:
            self.bias = mx.zeros((outputs,))

    def __call__(self, x: mx.array) -> mx.array:
        return ops.linear(x, self.weight, self.get("bias"))


class Embedding(nn.Module):
    """Rows of a table. weight: V D."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = mx.zeros((count, width))

    def __call__(self, ids: mx.array) -> mx.array:
        return self.weight[ids]


class Attention(nn.Module):
    """Attention of H queries to K keys, each shared by H/K of them."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_width
        self.q_proj = Linear(width, width, bias=True)
        self.k_proj = Linear(width, config.num_key_value_heads * head, bias=True)
        self.v_proj = Linear(width, config.num_key_value_heads * head, bias=True)
        self.o_proj = Linear(width, width)
        self._head, self._shared = head, config.num_attention_heads // config.num_key_value_heads

    def __call__(self, x: mx.array, table: mx.array, mask: mx.array) -> mx.array:
        """Output after its projection, B N D.

        Args:
            x: B N D.
            table: B N d/2 2.
            mask: B or 1, 1, N, N bool, True where a query (third axis) attends to a key.
        """
        heads = (*x.shape[:2], -1, self._head)
        q = tap("q", rotate(self.q_proj(x).reshape(heads), table))
        k = tap("k", rotate(self.k_proj(x).reshape(heads), table))
        v = tap("v", self.v_proj(x).reshape(heads))
        q, k, v = (array.swapaxes(1, 2) for array in (q, k, v))
        if ops.on_cpu():  # the GPU's kernel shares keys itself
            k, v = (mx.repeat(array, self._shared, axis=1) for array in (k, v))
        joint = ops.attention(q, k, v, mask, self._head**-0.5)
        return self.o_proj(joint.swapaxes(1, 2).reshape(x.shape))


class MLP(nn.Module):
    """down(silu(gate(x))·up(x))."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(tap("gated", ops.silu(self.gate_proj(x)) * self.up_proj(x)))


class DecoderLayer(nn.Module):
    """One layer: attention, then the MLP, each behind a norm and beside a residual."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, x: mx.array, table: mx.array, mask: mx.array) -> mx.array:
        """The residual after the layer, B N D; arguments as for `Attention`."""
        normed = tap("normed", self.input_layernorm(x))
        x = tap("mid", x + tap("attn", self.self_attn(normed, table, mask)))
        normed = tap("normed2", self.post_attention_layernorm(x))
        return tap("out", x + tap("ffn", self.mlp(normed)))


class Qwen2_5_VLTextModel(nn.Module):
    """The encoder. Call it whole, or `embed`, `layer` and `final` one at a time."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._config = config

    @property
    def config(self) -> TextEncoderConfig:
        """The config the model was made from."""
        return self._config

    def __call__(
        self, ids: np.ndarray, mask: np.ndarray, position_ids: np.ndarray, image_features: mx.array | None = None
    ) -> mx.array:
        """The hidden state after the final norm, transformers' ``hidden_states[-1]``.

        Args:
            ids: B N integers.
            mask: B N, nonzero for tokens that count.
            position_ids: B 3 N.
            image_features: n D, for all picture tokens of the batch in order; without them a picture token is
                a word like any other, as in transformers.

        Returns:
            B N D. Rows whose mask is not set are of no meaning.

        Raises:
            ValueError: token ids outside the vocabulary, or features that do not fit the picture tokens.
        """
        hidden, table = self.embed(ids, position_ids, image_features)
        attends = attention_mask(mask)
        for index in range(len(self.layers)):
            hidden = self.layer(index, hidden, table, attends)
        return self.final(hidden)

    def embed(
        self, ids: np.ndarray, position_ids: np.ndarray, image_features: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """Embeddings with picture features in their places, B N D, and the rotary table, B N d/2 2."""
        config = self._config
        if ids.min() < 0 or ids.max() >= config.vocab_size:
            raise ValueError(f"token ids {ids.min()} … {ids.max()} leave the vocabulary of {config.vocab_size}")
        hidden = self.embed_tokens(mx.array(ids))
        if image_features is not None:
            places = np.flatnonzero(ids == config.image_token_id)
            if image_features.shape != (len(places), config.hidden_size):
                raise ValueError(
                    f"picture features of shape {image_features.shape} for {len(places)} picture tokens "
                    f"of width {config.hidden_size}"
                )
            rows = hidden.reshape(-1, config.hidden_size)
            rows[mx.array(places)] = image_features.astype(hidden.dtype)
            hidden = rows.reshape(hidden.shape)
        table = rotary_table(position_ids, config.mrope_section, config.rope_theta, hidden.dtype)
        with scope("text"):
            return tap("embed", hidden), tap("rope", table)

    def layer(self, index: int, hidden: mx.array, table: mx.array, mask: mx.array) -> mx.array:
        """The residual after layer `index`, B N D.

        Args:
            hidden: B N D.
            table: B N d/2 2.
            mask: of `attention_mask`.
        """
        with scope(f"text.layer.{index:02d}"):
            return self.layers[index](hidden, table, mask)

    def final(self, hidden: mx.array) -> mx.array:
        """The final norm, B N D."""
        with scope("text"):
            return tap("norm", self.norm(hidden))


def attention_mask(mask: np.ndarray) -> mx.array:
    """B 1 N N bool: a token attends to itself and to those before it that count.

    Args:
        mask: B N, nonzero for tokens that count.
    """
    causal = np.tri(mask.shape[1], dtype=bool)
    return mx.array(causal & mask.astype(bool)[:, None, None, :])


class TextCheckpoint(Shards):
    """The language model's config and weights in a ``text_encoder`` folder, read a part at a time.

    Args:
        root: the folder above it, of the whole model.

    Raises:
        WeightsError: it is not there, or damaged.
        ValueError: a config that this model cannot follow, or keys of another model.
    """

    def __init__(self, root: str | Path) -> None:
        super().__init__(Path(root), "text_encoder")
        self.check_strangers(PREFIX)
        try:
            self.config = TextEncoderConfig.from_dict(self.settings)
        except ValueError as error:
            raise ValueError(f"{self.folder}/config.json: {error}") from None
        self._check_layers()

    def load(self, module: nn.Module, part: str, dtype: mx.Dtype, hold: mx.Dtype | None = None) -> None:
        """Load ``embed_tokens``, ``layers.N`` or ``norm``; see `weights.load_part`."""
        load_part(module, self, f"{PREFIX}.{part}", dtype, hold or dtype)

    def _check_layers(self) -> None:
        """Each part is loaded strictly; here are the keys that belong to none."""
        parts = ("embed_tokens", "norm", *(f"layers.{index}" for index in range(self.config.num_hidden_layers)))
        known = tuple(f"{PREFIX}.{part}." for part in parts)
        others = tuple(f"{prefix}." for prefix in ("lm_head", "visual"))
        if strangers := [key for key in self.keys if not key.startswith(known + others)]:
            raise ValueError(f"{self.folder}: keys that the model does not have: {', '.join(sorted(strangers)[:8])}")


class StreamedTextEncoder:
    """The encoder with one layer in memory at a time; called like `Qwen2_5_VLTextModel`.

    Args:
        root: the folder of the whole model.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
    """

    def __init__(self, root: str | Path, dtype: str = "bfloat16") -> None:
        self._checkpoint, self._dtype = TextCheckpoint(root), mlx_dtype(dtype)
        self.config = self._checkpoint.config

    def __call__(
        self, ids: np.ndarray, mask: np.ndarray, position_ids: np.ndarray, image_features: mx.array | None = None
    ) -> mx.array:
        """See `Qwen2_5_VLTextModel.__call__`."""
        # Lazy zeros: nothing is allocated before a part is loaded.
        model = Qwen2_5_VLTextModel(self.config)
        with self._part(model, "embed_tokens"):
            hidden, table = model.embed(ids, position_ids, image_features)
            mx.eval(hidden, table)
        attends = attention_mask(mask)
        for index in range(len(model.layers)):
            with self._part(model, f"layers.{index}"):
                hidden = model.layer(index, hidden, table, attends)
                mx.eval(hidden)
        with self._part(model, "norm"):
            hidden = model.final(hidden)
            mx.eval(hidden)
        return hidden

    @contextmanager
    def _part(self, model: Qwen2_5_VLTextModel, part: str) -> Iterator[None]:
        self._checkpoint.load(module_of(model, part), part, self._dtype)
        try:
            yield
        finally:
            free(model, part)


def module_of(model: Qwen2_5_VLTextModel, part: str) -> nn.Module:
    """The module behind ``embed_tokens``, ``layers.N`` or ``norm``."""
    name, _, index = part.partition(".")
    return model[name][int(index)] if index else model[name]


def free(model: Qwen2_5_VLTextModel, part: str) -> None:
    """Put lazy zeros in the place of a part's weights."""
    module = module_of(model, part)
    module.update(tree_map(lambda array: mx.zeros(array.shape), module.parameters()))
    mx.clear_cache()


def load_text_encoder(root: str | Path, dtype: str = "bfloat16") -> Qwen2_5_VLTextModel:
    """The whole encoder with its weights in memory.

    Args:
        root: the folder of the whole model, with ``text_encoder`` in it.
        dtype: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        ValueError: missing, extra or misshaped arrays, an unknown dtype or config key.
        WeightsError: config or shards are not there, or damaged.
    """
    wanted = mlx_dtype(dtype)
    checkpoint = TextCheckpoint(root)
    model = Qwen2_5_VLTextModel(checkpoint.config)
    for part in ("embed_tokens", *(f"layers.{index}" for index in range(len(model.layers))), "norm"):
        checkpoint.load(module_of(model, part), part, wanted)
    return model
