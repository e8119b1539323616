"""Recipes of the Qwen-Image transformer, float64, as diffusers 0.42.1 computes it.

B batch, N tokens of one stream, L image tokens, S text tokens, D width, H heads, d head width.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from scipy.special import expit, softmax

from parity.diagnosis.place import Array, Place
from parity.names import block_stage

EPS = 1e-6
MAX_POSITION = 4096
FLOAT16_LIMIT = 65504.0
# Names of a stream's projections in a block's attention.
_PROJECTION = {
    "img": {"q": "to_q", "k": "to_k", "v": "to_v", "attn": "to_out.0"},
    "txt": {"q": "add_q_proj", "k": "add_k_proj", "v": "add_v_proj", "attn": "to_add_out"},
}
_QK_NORM = {"img": {"q": "norm_q", "k": "norm_k"}, "txt": {"q": "norm_added_q", "k": "norm_added_k"}}
_TIME = "time_text_embed.timestep_embedder"
_OUTER_LAYER = {
    "img_in": "img_in", "txt_in": "txt_in", "time.linear_1": f"{_TIME}.linear_1", "temb": f"{_TIME}.linear_2",
    "norm_out.mod": "norm_out.linear", "final": "proj_out",
}  # fmt: skip


class TransformerPlace(Place):
    """A checkpoint of the transformer."""

    component: ClassVar[str] = "transformer"

    @staticmethod
    def state_key(name: str) -> str:
        """See `Place.state_key`."""
        if name in ("temb", "rope.img", "rope.txt"):
            return name
        if name in ("img_in", "txt_in"):
            return name[:3]
        stream, _, kind = name.rpartition(".")
        if kind == "out":
            return stream[-3:]
        raise KeyError(name)

    # What a recipe is made of.

    @property
    def scope(self) -> str:
        """``block.07.img``."""
        return f"{block_stage(self.block)}.{self.stream}"

    @property
    def other_stream(self) -> str:
        """The stream that this one is not."""
        return "txt" if self.stream == "img" else "img"

    def of(self, kind: str, stream: str | None = None) -> Array:
        """A checkpoint of the same block and stream, or of the named stream."""
        return self.values[f"{block_stage(self.block)}.{stream or self.stream}.{kind}"]

    def entering(self, stream: str | None = None) -> Array:
        """A stream as it enters the block, B N D."""
        return self.fed(stream or self.stream)

    def temb(self) -> Array:
        """B D, of both halves 2B D with zero_cond_t."""
        return self.values["temb"]

    def key(self, layer: str) -> str:
        """Canonical prefix of a block's layer."""
        return f"transformer_blocks.{self.block}.{layer}"

    def projection(self, kind: str, stream: str | None = None) -> str:
        """Canonical prefix of the layer that makes q, k, v, or attention's output."""
        return self.key(f"attn.{_PROJECTION[stream or self.stream][kind]}")

    def qk_weight(self, kind: str, stream: str | None = None) -> Array:
        """Weight of the norm of q or k, d."""
        return self.weight(self.key(f"attn.{_QK_NORM[stream or self.stream][kind]}.weight"))

    @property
    def heads(self) -> int:
        """H."""
        return int(self.config["num_attention_heads"])

    def silu(self, x: Array) -> Array:
        """x·sigmoid(x)."""
        return x * expit(x)

    def gelu(self, x: Array) -> Array:
        """The tanh approximation."""
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def layer_norm(self, x: Array, eps: float = EPS) -> Array:
        """Without weights, over the last axis."""
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)

    def rms_norm(self, x: Array, weight: Array, eps: float = EPS) -> Array:
        """Over the last axis."""
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight

    def modulate(self, x: Array, shift: Array, scale: Array) -> Array:
        """(1 + scale)·x + shift."""
        return self.held(x * self.held(1 + scale)) + shift

    def chunks(self, mod: Array) -> list[Array]:
        """The six parts of a block's modulation vector, each to be broadcast over tokens: shift, scale, gate, twice."""
        return [self.per_token(chunk) for chunk in np.split(mod, 6, axis=-1)]

    def per_token(self, chunk: Array) -> Array:
        """B 1 D; with zero_cond_t B L D from 2B D: the second half for tokens of condition pictures."""
        if not (self.config.get("zero_cond_t") and self.stream == "img"):
            return chunk[:, None]
        now, zero = np.split(chunk, 2)
        shapes = self.fed("img_shapes")
        made = int(np.prod(shapes[0]))
        total = int(np.prod(shapes, axis=-1).sum())
        condition = (np.arange(total) >= made)[None, :, None]
        return np.where(condition, zero[:, None], now[:, None])

    def gated_add(self, x: Array, gate: Array, y: Array) -> Array:
        """x + gate·y."""
        return x + self.held(gate * y)

    def qk_norm(self, x: Array, kind: str) -> Array:
        """RMSNorm of each head of q or k, B N H d."""
        return self.rms_norm(x, self.qk_weight(kind))

    def rotate(self, x: Array, table: Array) -> Array:
        """Interleaved pairs as complex numbers. x: B N H d. table: N d/2 2, (cos, sin)."""
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        cos, sin = table[:, None, :, 0], table[:, None, :, 1]
        real, imaginary = pairs[..., 0], pairs[..., 1]
        return np.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], axis=-1).reshape(x.shape)

    def table(self) -> Array:
        """Rotary table of the stream's tokens, N d/2 2."""
        return self.values[f"rope.{self.stream}"]

    def to_heads(self, x: Array) -> Array:
        """B N D to B N H d."""
        return x.reshape(*x.shape[:2], self.heads, -1)

    def from_heads(self, x: Array) -> Array:
        """B N H d to B N D."""
        return x.reshape(*x.shape[:2], -1)

    def head(self, kind: str) -> Array:
        """q, k or v of one stream, B N H d."""
        x = self.to_heads(self.linear(self.of("modulated"), self.projection(kind)))
        return x if kind == "v" else self.rotate(self.held(self.qk_norm(x, kind)), self.table())

    def joined(self, kind: str) -> Array:
        """q, k or v of both streams, text first, B N H d."""
        return np.concatenate([self.of(kind, "txt"), self.of(kind, "img")], axis=1)

    def mask(self) -> Array | None:
        """B keys, True for those that count, text first; None where all do."""
        of_text = self.optional("prompt_mask")
        if of_text is None:
            return None
        return np.concatenate([of_text != 0, np.ones(self.entering("img").shape[:2], bool)], axis=1)

    def score_scale(self, width: int) -> float:
        """What scores are multiplied by."""
        return width**-0.5

    def scores_mask(self, scores: Array) -> Array:
        """Scores, B H queries keys, with -inf where a query may not look."""
        mask = self.mask()
        return scores if mask is None else np.where(mask[:, None, None, :], scores, -np.inf)

    def probabilities(self, scores: Array) -> Array:
        """Over the keys."""
        return softmax(scores, axis=-1)

    def products(self, q: Array, k: Array) -> Array:
        """Scores before they are scaled, B H queries keys."""
        dtype = np.float64 if self.values.noisy is None else np.float32
        return np.einsum("bqhd,bkhd->bhqk", q.astype(dtype, copy=False), k.astype(dtype, copy=False), optimize=True)

    def attend(self, q: Array, k: Array, v: Array) -> Array:
        """Attention, B N H d."""
        scores = self.products(q, k) * self.score_scale(q.shape[-1])
        return np.einsum("bhqk,bkhd->bqhd", self.probabilities(self.scores_mask(scores)), v, optimize=True)

    def own_rows(self, joint: Array) -> Array:
        """Rows of the stream in what attention gives."""
        text = self.entering("txt").shape[1]
        return joint[:, text:] if self.stream == "img" else joint[:, :text]

    def mlp(self, x: Array) -> Array:
        """The feed-forward network."""
        here = self.key(f"{self.stream}_mlp.net")
        return self.linear(self.held(self.gelu(self.linear(x, f"{here}.0.proj"))), f"{here}.2")

    def timestep(self) -> Array:
        """B, 0…1; with zero_cond_t followed by as many zeros."""
        given = self.fed("timestep")
        return np.concatenate([given, given * 0]) if self.config.get("zero_cond_t") else given

    def sinusoid(self, timestep: Array, *, scale: float = 1000.0, shift: float = 0.0, period: float = 10000.0) -> Array:
        """Cosines, then sines, at 128 frequencies, B 256."""
        frequency = self.single(np.exp(-math.log(period) * np.arange(128) / (128 - shift)))
        angle = self.single(scale * timestep[:, None] * frequency)
        return np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)

    def first_frame(self, index: int) -> int:
        """Frame at which a picture begins: its index; with use_layer3d_rope the last one, the condition, is at -1."""
        layered = self.config.get("use_layer3d_rope") and index == len(self.fed("img_shapes")) - 1
        return -1 if layered else index

    def rows(self, height: int) -> Array:
        """Positions of a picture's rows, centred on zero."""
        return np.arange(height) - (height - height // 2)

    def columns(self, width: int) -> Array:
        """Positions of a picture's columns, centred on zero."""
        return np.arange(width) - (width - width // 2)

    def image_positions(self) -> Array:
        """(frame, row, column) of each image token, L 3."""
        return np.concatenate(
            [
                grid(self.first_frame(index), frames, self.rows(h), self.columns(w))
                for index, (frames, h, w) in enumerate(self.fed("img_shapes").tolist())
            ]
        )

    def text_start(self) -> int:
        """Position of the first text token."""
        shapes = self.fed("img_shapes").tolist()
        behind = max(max(h // 2, w // 2) for _, h, w in shapes)
        return max(behind, len(shapes) - 1) if self.config.get("use_layer3d_rope") else behind

    def text_length(self) -> int:
        """S."""
        return self.fed("prompt_embeds").shape[1]

    def text_positions(self) -> Array:
        """S 3."""
        return np.repeat(self.text_start() + np.arange(self.text_length())[:, None], 3, axis=1)

    def frequencies(self, theta: float = 10000.0) -> list[Array]:
        """Of the three axes."""
        return [theta ** -(np.arange(0, axis, 2) / axis) for axis in self.config["axes_dims_rope"]]

    def rotary(self, positions: Array) -> Array:
        """Table of some positions, N d/2 2."""
        parts = [np.outer(positions[:, i], self.single(f)) for i, f in enumerate(self.frequencies())]
        angle = self.single(np.concatenate(parts, axis=1))
        return np.stack([np.cos(angle), np.sin(angle)], axis=-1)

    # Recipes.

    def recipe(self) -> Array:
        """See `Place.recipe`."""
        return self._RECIPES[self.kind](self)

    def layers(self) -> tuple[str, ...]:
        """See `Place.layers`."""
        if self.kind in _OUTER_LAYER:
            return (_OUTER_LAYER[self.kind],)
        if self.kind in ("q", "k", "v", "attn"):
            return (self.projection(self.kind),)
        here = self.key(self.stream or "")
        return {"mod": (f"{here}_mod.1",), "ffn": (f"{here}_mlp.net.0.proj", f"{here}_mlp.net.2")}.get(self.kind, ())

    def _mod(self) -> Array:
        temb = self.temb()
        if self.config.get("zero_cond_t") and self.stream == "txt":
            temb = np.split(temb, 2)[0]
        return self.linear(self.held(self.silu(temb)), self.layers()[0])

    def _modulated(self) -> Array:
        shift, scale, *_ = self.chunks(self.of("mod"))
        return self.modulate(self.of("normed"), shift, scale)

    def _modulated2(self) -> Array:
        _, _, _, shift, scale, _ = self.chunks(self.of("mod"))
        return self.modulate(self.of("normed2"), shift, scale)

    def _attn(self) -> Array:
        joint = self.values.shared.get(f"{self.block}.joint") if self.plain else None
        if joint is None:
            joint = self.attend(self.joined("q"), self.joined("k"), self.joined("v"))
        if self.plain:
            self.values.shared[f"{self.block}.joint"] = joint  # both streams take their rows of it
        return self.linear(self.held(self.from_heads(self.own_rows(joint))), self.projection("attn"))

    def _mid(self) -> Array:
        return self.gated_add(self.entering(), self.chunks(self.of("mod"))[2], self.of("attn"))

    def _out(self) -> Array:
        return self.gated_add(self.of("mid"), self.chunks(self.of("mod"))[5], self.of("ffn"))

    def _temb(self) -> Array:
        temb = self.linear(self.values["time.silu"], self.layers()[0])
        more = self.optional("additional_t_cond")
        return temb if more is None else temb + self.weight("time_text_embed.addition_t_embedding.weight")[more]

    def _norm_out_mod(self) -> Array:
        temb = self.temb()
        temb = np.split(temb, 2)[0] if self.config.get("zero_cond_t") else temb
        return self.linear(self.held(self.silu(temb)), self.layers()[0])

    def final_chunks(self, mod: Array) -> list[Array]:
        """Scale and shift of the last norm, each B 1 D."""
        return [chunk[:, None] for chunk in np.split(mod, 2, axis=-1)]

    def _norm_out(self) -> Array:
        scale, shift = self.final_chunks(self.values["norm_out.mod"])
        return self.modulate(self.held(self.layer_norm(self.fed("img"))), shift, scale)

    _RECIPES: ClassVar = {
        "img_in": lambda p: p.linear(p.fed("latents"), "img_in"),
        "txt_norm": lambda p: p.rms_norm(p.fed("prompt_embeds"), p.weight("txt_norm.weight")),
        "txt_in": lambda p: p.linear(p.values["txt_norm"], "txt_in"),
        "time.proj": lambda p: p.sinusoid(p.timestep()),
        "time.linear_1": lambda p: p.linear(p.values["time.proj"], p.layers()[0]),
        "time.silu": lambda p: p.silu(p.values["time.linear_1"]),
        "temb": _temb,
        "rope.img": lambda p: p.rotary(p.image_positions()),
        "rope.txt": lambda p: p.rotary(p.text_positions()),
        "mod": _mod,
        "normed": lambda p: p.layer_norm(p.entering()),
        "modulated": _modulated,
        "q": lambda p: p.head("q"),
        "k": lambda p: p.head("k"),
        "v": lambda p: p.head("v"),
        "attn": _attn,
        "mid": _mid,
        "normed2": lambda p: p.layer_norm(p.of("mid")),
        "modulated2": _modulated2,
        "ffn": lambda p: p.mlp(p.of("modulated2")),
        "out": _out,
        "norm_out.mod": _norm_out_mod,
        "norm_out": _norm_out,
        "final": lambda p: p.linear(p.values["norm_out"], "proj_out"),
    }


def grid(frame: int, frames: int, rows: Array, columns: Array) -> Array:
    """(frame, row, column) of each token of one picture, row by row, tokens 3."""
    axes = (np.arange(frame, frame + frames), rows, columns)
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
