"""Recipes of Qwen2.5-VL's language model as the pipelines' text encoder, float64, as transformers computes it.

B prompts, N tokens with template and padding, S tokens behind the template's prefix, D = J width, H heads of queries,
K of keys and values, d head width. Rows of padding tokens are zeros in all checkpoints but `text.prompt_embeds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit, softmax

from parity.diagnosis.place import Array, Place

# Tokens of each template's prefix, which are dropped; in the order of `parity.components.text.TEMPLATES`.
PREFIX = (34, 64, 64)
# Values of config keys that files leave out.
_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "mrope_section": (16, 24, 24)}


class TextPlace(Place):
    """A checkpoint of the text encoder."""

    component: ClassVar[str] = "text"

    @staticmethod
    def state_key(name: str) -> str:
        """See `Place.state_key`."""
        if name == "text.embed" or name.endswith(".out"):
            return "hidden"
        return {"text.rope": "rope.text"}.get(name, name.removeprefix("text."))

    # What a recipe is made of.

    @cached_property
    def text_config(self) -> Mapping[str, Any]:
        """Of the language model."""
        return self.config.get("text_config") or self.config

    @cached_property
    def rope_config(self) -> Mapping[str, Any]:
        """``rope_theta`` and ``mrope_section``, by whichever key they are written."""
        config = self.text_config
        given = config.get("rope_parameters") or config.get("rope_scaling") or {}
        return _DEFAULTS | {k: v for k, v in {**config, **given}.items() if k in ("rope_theta", "mrope_section")}

    @property
    def scope(self) -> str:
        """``text.layer.07``."""
        return f"text.layer.{self.block:02d}"

    def of(self, kind: str) -> Array:
        """A checkpoint of the same layer."""
        return self.values[f"{self.scope}.{kind}"]

    def entering(self) -> Array:
        """The residual as it enters the layer, or the last norm, B N D."""
        return self.values[self.values.graph.parents[f"{self.scope}.normed" if self.stream else "text.norm"][0]]

    def key(self, layer: str) -> str:
        """Canonical prefix of a layer's part."""
        return f"model.layers.{self.block}.{layer}"

    def mask(self) -> Array:
        """B N, True for tokens that count."""
        return self.values["text.mask"] != 0

    def ids(self) -> Array:
        """B N; the truth's own, since there is no tokenizer here."""
        return self.values.truth["text.ids"]

    def own_mask(self) -> Array:
        """B N; of other ids than the truth's, those behind which there are only zeros, as padding is shown."""
        ids = self.values["text.ids"]
        if np.array_equal(ids, self.values.truth["text.ids"]):
            return self.values.truth["text.mask"]
        return np.cumsum((ids != 0)[:, ::-1], axis=1)[:, ::-1] > 0

    def counting(self, x: Array) -> Array:
        """Zeros in the rows of padding tokens, B N …."""
        return np.where(self.mask().reshape(*x.shape[:2], *[1] * (x.ndim - 2)), x, 0)

    def silu(self, x: Array) -> Array:
        """x·sigmoid(x)."""
        return x * expit(x)

    @property
    def eps(self) -> float:
        """Of the norms."""
        return float(self.text_config.get("rms_norm_eps", _DEFAULTS["rms_norm_eps"]))

    def rms_norm(self, x: Array, layer: str) -> Array:
        """Over the last axis."""
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.eps) * self.weight(f"{layer}.weight")

    def sections(self) -> tuple[int, ...]:
        """Pairs of a head that turn with frame, row and column."""
        return tuple(self.rope_config["mrope_section"])

    def positions(self) -> Array:
        """B 3 N."""
        return self.values["text.position_ids"]

    def frequencies(self) -> Array:
        """Of the pairs, d/2."""
        pairs = sum(self.rope_config["mrope_section"])
        return float(self.rope_config["rope_theta"]) ** -(np.arange(pairs) / pairs)

    def axes(self) -> Array:
        """Which of the three positions each pair turns with, d/2."""
        return np.repeat(np.arange(len(self.sections())) % 3, self.sections())

    def rotary(self) -> Array:
        """Table, B N d/2 2 (cos, sin)."""
        angle = self.positions()[:, self.axes()].swapaxes(1, 2) * self.frequencies()
        return np.stack([np.cos(angle), np.sin(angle)], axis=-1)

    def rotate(self, x: Array, table: Array) -> Array:
        """Pairs (x0, x_d/2), (x1, x_d/2+1), …. x: B N H d."""
        cos, sin = table[:, :, None, :, 0], table[:, :, None, :, 1]
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def heads(self, kind: str) -> int:
        """H, or K for keys and values."""
        return int(self.text_config["num_attention_heads" if kind == "q" else "num_key_value_heads"])

    def head(self, kind: str) -> Array:
        """q, k or v, B N heads d."""
        x = self.linear(self.of("normed"), self.key(f"self_attn.{kind}_proj"))
        x = x.reshape(*x.shape[:2], self.heads(kind), -1)
        return x if kind == "v" else self.rotate(x, self.values["text.rope"])

    def shared(self, x: Array) -> Array:
        """Keys or values once for each head of queries: a run of heads shares one."""
        return np.repeat(x, self.heads("q") // x.shape[2], axis=2)

    def attends(self) -> Array:
        """B queries keys, True where a query looks."""
        length = self.mask().shape[1]
        return np.tri(length, dtype=bool) & self.mask()[:, None, :]

    def score_scale(self, width: int) -> float:
        """What scores are multiplied by."""
        return width**-0.5

    def attend(self, q: Array, k: Array, v: Array) -> Array:
        """Attention, B N H d."""
        scores = np.einsum("bqhd,bkhd->bhqk", q, self.shared(k), optimize=True) * self.score_scale(q.shape[-1])
        attends = self.attends()
        # A query that may look nowhere is one of padding, whose row is not kept.
        attends = attends | ~attends.any(-1, keepdims=True)
        scores = np.where(attends[:, None], scores, -np.inf)
        return np.einsum("bhqk,bkhd->bqhd", softmax(scores, axis=-1), self.shared(v), optimize=True)

    def gated(self, x: Array) -> Array:
        """silu(gate)·up."""
        return self.silu(self.linear(x, self.key("mlp.gate_proj"))) * self.linear(x, self.key("mlp.up_proj"))

    def embedded(self) -> Array:
        """Rows of the table, with picture features in the places of picture tokens, B N D."""
        ids = self.values["text.ids"]
        rows = self.weight("model.embed_tokens.weight")[ids]
        features = self.optional("image_features")
        if features is not None:
            rows[ids == self.config["image_token_id"]] = features
        return rows

    def sequence(self) -> Array:
        """B 3 N: the number of the column on all three axes."""
        batch, length = self.mask().shape
        return np.broadcast_to(np.arange(length), (batch, 3, length))

    def given_positions(self) -> Array:
        """Positions as the case asks for them; those of pictures' rows and columns are the truth's."""
        of_pictures = self.optional("positions")
        if of_pictures is not None and of_pictures.item():
            return self.values.truth[self.name]
        return self.sequence() * self.mask()[:, None]

    # What is taken of the last hidden state.

    def template(self) -> int:
        """Index into `parity.components.text.TEMPLATES`."""
        return int(self.fed("template").item())

    def drop(self) -> int:
        """Tokens of the template's prefix."""
        return PREFIX[self.template()]

    def longest(self) -> int | None:
        """S at most; the editing templates do not heed it."""
        longest = self.optional("max_sequence_length")
        return None if self.template() else 1024 if longest is None else int(longest.item())

    def hidden(self) -> Array:
        """What the prompt embeddings are taken of, B N J."""
        return self.values["text.norm"]

    def taken(self, rows: Array) -> Array:
        """Rows of one prompt that count, n J or n, without the prefix."""
        return rows[self.drop() :]

    def padded(self, prompts: list[Array]) -> Array:
        """Stacked, with zeros behind the shorter ones, cut to the longest that may be."""
        length = max(len(one) for one in prompts)
        stacked = [np.concatenate([one, np.zeros((length - len(one), *one.shape[1:]), one.dtype)]) for one in prompts]
        return np.stack(stacked)[:, : self.longest()]

    def extracted(self) -> Array:
        """B S J."""
        hidden, mask = self.hidden(), self.mask()
        return self.padded([self.taken(rows[counts]) for rows, counts in zip(hidden, mask, strict=True)])

    def extracted_mask(self) -> Array:
        """B S bool."""
        return self.padded([self.taken(np.ones(counts.sum(), bool)) for counts in self.mask()])

    # Recipes.

    def recipe(self) -> Array:
        """See `Place.recipe`."""
        made = self._RECIPES[self.kind](self)
        return made if self.kind in _WHOLE else self.counting(made)

    def layers(self) -> tuple[str, ...]:
        """See `Place.layers`."""
        if not self.stream:
            return ()
        parts = {"q": ("self_attn.q_proj",), "k": ("self_attn.k_proj",), "v": ("self_attn.v_proj",),
                 "attn": ("self_attn.o_proj",), "gated": ("mlp.gate_proj", "mlp.up_proj"),
                 "ffn": ("mlp.down_proj",)}  # fmt: skip
        return tuple(self.key(part) for part in parts.get(self.kind, ()))

    def _attn(self) -> Array:
        joint = self.attend(self.of("q"), self.of("k"), self.of("v"))
        return self.linear(joint.reshape(*joint.shape[:2], -1), self.key("self_attn.o_proj"))

    _RECIPES: ClassVar = {
        "text.ids": lambda p: p.ids(),
        "text.mask": lambda p: p.own_mask(),
        "text.position_ids": lambda p: p.given_positions(),
        "text.embed": lambda p: p.embedded(),
        "text.rope": lambda p: p.rotary(),
        "normed": lambda p: p.rms_norm(p.entering(), p.key("input_layernorm")),
        "q": lambda p: p.head("q"),
        "k": lambda p: p.head("k"),
        "v": lambda p: p.head("v"),
        "attn": _attn,
        "mid": lambda p: p.entering() + p.of("attn"),
        "normed2": lambda p: p.rms_norm(p.of("mid"), p.key("post_attention_layernorm")),
        "gated": lambda p: p.gated(p.of("normed2")),
        "ffn": lambda p: p.linear(p.of("gated"), p.key("mlp.down_proj")),
        "out": lambda p: p.of("mid") + p.of("ffn"),
        "text.norm": lambda p: p.rms_norm(p.entering(), "model.norm"),
        "text.prompt_embeds": lambda p: p.extracted(),
        "text.prompt_mask": lambda p: p.extracted_mask(),
    }


# Without zeros in rows of padding, or of another shape than B N ….
_WHOLE = ("text.ids", "text.mask", "text.position_ids", "text.prompt_embeds", "text.prompt_mask")
