"""Faults of the text encoder: attention, rotary positions, norms, and which hidden state is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations

import ml_dtypes
import numpy as np
from scipy.special import erf

from parity.diagnosis.faults.inside import component_fault
from parity.diagnosis.place import Array, Variants
from parity.diagnosis.recipes.text import TextPlace

_text_fault = partial(component_fault, component="text")
_EARLIER = "mask = causal & padding: each token attends to itself and to those before it that are no padding"
_NUMBERED = "every token has the number of its column, on all three axes; rows and columns only where the case says so"
_SECTIONS = "the first mrope_section[0] pairs turn with the frame, the next with the row, the last with the column"
_TABLE = "rows of embed_tokens by token id, picture features in the places of picture tokens, not scaled"
_NORMS = ("normed", "normed2", "text.norm")
_ROPE = ("text.rope",)


@_text_fault("text.causal_mask", at=("attn",), title="the text encoder attends to other tokens than earlier ones",
            fix=_EARLIER)  # fmt: skip
def causal_mask(p: TextPlace) -> Variants:
    def look(where: Callable[[Array], Array]) -> TextPlace:
        return p.changed(attends=lambda: where(np.ones((len(p.mask()), *[p.mask().shape[1]] * 2), bool)))

    yield "padding alone, not causal", look(lambda all_: all_ & p.mask()[:, None, :])
    yield "no mask", look(lambda all_: all_)
    yield "causal alone, padding attended to", look(lambda all_: all_ & np.tri(all_.shape[1], dtype=bool))
    yield (
        "later tokens instead of earlier ones",
        look(lambda all_: all_ & np.tri(all_.shape[1], dtype=bool).T & p.mask()[:, None, :]),
    )
    yield (
        "only earlier tokens, not itself",
        look(lambda all_: all_ & np.tri(all_.shape[1], k=-1, dtype=bool) & p.mask()[:, None, :]),
    )
    yield "one token too far", look(lambda all_: all_ & np.tri(all_.shape[1], k=1, dtype=bool) & p.mask()[:, None, :])
    yield "padding inverted", look(lambda all_: all_ & np.tri(all_.shape[1], dtype=bool) & ~p.mask()[:, None, :])
    yield "added as 0 and 1 instead of 0 and -inf", p.changed(attend=lambda q, k, v: _soft_mask(p, q, k, v))
    for window in (16, 32, 64, 128, 256, 512, 1024):
        if window < p.mask().shape[1]:
            yield (
                f"a sliding window of {window}",
                look(lambda all_, w=window: p.attends() & ~np.tri(all_.shape[1], k=-w, dtype=bool)),
            )


def _soft_mask(p: TextPlace, q: Array, k: Array, v: Array) -> Array:
    scores = np.einsum("bqhd,bkhd->bhqk", q, p.shared(k), optimize=True) * p.score_scale(q.shape[-1])
    scores = scores + p.attends()[:, None]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), p.shared(v), optimize=True)


@_text_fault("text.kv_repeat", at=("attn",), title="keys and values are shared among heads in another order",
            fix="repeat_interleave: query head h uses key head h // (H/K)")  # fmt: skip
def kv_repeat(p: TextPlace) -> Variants:
    groups = p.heads("q") // p.heads("k")
    if groups == 1:
        return

    def tiled(x: Array) -> Array:
        return np.tile(x, (1, 1, groups, 1))

    yield "tiled: query head h uses key head h % K", p.changed(shared=tiled)
    yield "keys alone are tiled", _by_call(p, tiled, 0)
    yield "values alone are tiled", _by_call(p, tiled, 1)
    yield "all heads use the first", p.changed(shared=lambda x: np.repeat(x[:, :, :1], p.heads("q"), axis=2))
    yield "in reverse", p.changed(shared=lambda x: p.shared(x[:, :, ::-1]))


def _by_call(p: TextPlace, way: Callable[[Array], Array], which: int) -> TextPlace:
    """Keys (0) or values (1) alone shared in another way."""

    def attend(q: Array, k: Array, v: Array) -> Array:
        one = p.changed(shared=lambda x: x)
        return one.attend(q, *(way(x) if i == which else p.shared(x) for i, x in enumerate((k, v))))

    return p.changed(attend=attend)


@_text_fault("attention.scale_missing", at=("attn",), title="scores are not divided by the root of the head width",
            fix="scores / sqrt(head width), before the softmax", seen="the guide")  # fmt: skip
def scale_missing(p: TextPlace) -> Variants:
    yield "no scale", p.changed(score_scale=lambda width: 1.0)


@_text_fault("attention.scale_wrong", at=("attn",), title="scores have another scale",
            fix="scores / sqrt(head width), before the softmax")  # fmt: skip
def scale_wrong(p: TextPlace) -> Variants:
    width = p.of("q").shape[-1]
    heads = p.heads("q")
    for what, value in {
        "1/d": 1 / width, "1/√D": (width * heads) ** -0.5, "√d": width**0.5, "1/√H": heads**-0.5,
        "1/√(d/2)": (width / 2) ** -0.5, "1/√(2d)": (2 * width) ** -0.5, "applied twice, 1/d²": width**-2.0,
    }.items():  # fmt: skip
        yield what, p.changed(score_scale=lambda _, v=value: v)


@_text_fault("attention.kv_swapped", at=("attn",), title="keys and values are exchanged",
            fix="softmax(q·kᵀ)·v")  # fmt: skip
def kv_swapped(p: TextPlace) -> Variants:
    yield "k for v and v for k", p.changed(attend=lambda q, k, v: p.attend(q, v, k))


@_text_fault("attention.heads_layout", at=("attn",), title="heads and head width are exchanged in a reshape",
            fix="B N H d before the output projection: heads outside, their channels inside")  # fmt: skip
def joint_layout(p: TextPlace) -> Variants:
    yield "d H for H d", p.changed(attend=lambda q, k, v: _transposed(p.attend(q, k, v)))
    yield "H N d read as N H d", p.changed(attend=lambda q, k, v: _reread(p.attend(q, k, v)))


def _transposed(x: Array) -> Array:
    return x.swapaxes(2, 3).reshape(x.shape)


def _reread(x: Array) -> Array:
    return x.swapaxes(1, 2).reshape(x.shape)


@_text_fault("attention.heads_layout", at=("q", "k", "v"), title="heads and head width are exchanged in a reshape",
            fix="B N (H d) to B N H d: heads outside, their channels inside")  # fmt: skip
def head_layout(p: TextPlace) -> Variants:
    def split(way: Callable[[Array, int], Array]) -> TextPlace:
        return p.changed(linear=lambda x, layer: way(p.linear(x, layer), p.heads(p.kind)).reshape(*x.shape[:2], -1))

    yield "d H for H d", split(lambda y, heads: y.reshape(*y.shape[:2], -1, heads).swapaxes(2, 3))
    yield "read as H N d", split(lambda y, heads: y.reshape(len(y), heads, y.shape[1], -1).swapaxes(1, 2))


@_text_fault("weights.bias_missing", at=("q", "k", "v"), title="the bias of queries, keys or values is not added",
            fix="q_proj, k_proj and v_proj have biases; o_proj and the MLP have none")  # fmt: skip
def bias_missing(p: TextPlace) -> Variants:
    yield "no bias", p.changed(bias=lambda layer: None)


@_text_fault("rope.missing", at=("q", "k"), title="queries or keys are not rotated",
            fix="rotate q and k of every layer by the table, v not")  # fmt: skip
def rope_missing(p: TextPlace) -> Variants:
    yield "not rotated", p.changed(rotate=lambda x, table: x)
    yield "rotated twice", p.changed(rotate=lambda x, table: p.rotate(p.rotate(x, table), table))


@_text_fault("rope.pairing", at=("q", "k"), title="other channels of a head are rotated together",
            fix="pairs are (x0, x_d/2), (x1, x_d/2+1), …: rotate_half", seen="vllm-metal#44")  # fmt: skip
def rope_pairing(p: TextPlace) -> Variants:
    def interleaved(x: Array, table: Array) -> Array:
        width = x.shape[-1]
        order = np.arange(width).reshape(-1, 2).T.ravel()
        return p.rotate(x[..., order], table)[..., np.argsort(order)]

    yield "interleaved: (x0, x1), (x2, x3), …", p.changed(rotate=interleaved)
    yield "half of the head only", p.changed(rotate=lambda x, table: np.concatenate(
        [p.rotate(x[..., : x.shape[-1] // 2], table[:, :, : x.shape[-1] // 4]), x[..., x.shape[-1] // 2 :]], axis=-1
    ))  # fmt: skip


@_text_fault("rope.sign", at=("q", "k"), title="the rotation goes the other way",
            fix="first·cos - second·sin, second·cos + first·sin")  # fmt: skip
def rope_sign(p: TextPlace) -> Variants:
    yield "minus the angle", p.changed(rotate=lambda x, table: p.rotate(x, table * np.array([1, -1])))
    yield "cosines and sines exchanged", p.changed(rotate=lambda x, table: p.rotate(x, table[..., ::-1]))


@_text_fault("text.mrope", at=_ROPE, title="channels of a head turn with other positions than frame, row and column",
            fix=_SECTIONS)  # fmt: skip
def mrope(p: TextPlace) -> Variants:
    axes, pairs = p.axes(), len(p.axes())
    ways = {"frame for all": np.zeros(pairs, int), "row for all": np.ones(pairs, int),
            "column for all": np.full(pairs, 2), "frame, row, column, frame, …": np.arange(pairs) % 3,
            "equal sections": np.arange(pairs) * 3 // pairs}  # fmt: skip
    for order in permutations(range(3)):
        if order != (0, 1, 2):
            said = ", ".join(("frame", "row", "column")[axis] for axis in order)
            ways[f"in the order {said}"] = np.array(order)[axes]
    doubled = np.repeat(np.arange(2 * len(p.sections())) % 3, p.sections() * 2)
    ways["sections counted over both halves"] = doubled[: 2 * pairs : 2]
    for sections in ((16, 24, 24), (24, 20, 20), (11, 11, 10), (8, 12, 12), tuple(reversed(p.sections()))):
        if sum(sections) == pairs:
            ways[f"sections {' '.join(map(str, sections))}"] = np.repeat(np.arange(3), sections)
    for what, way in ways.items():
        if not np.array_equal(way, axes):
            yield what, p.changed(axes=lambda w=way: w)


@_text_fault("text.mrope", at=_ROPE, title="positions of the tokens are others",
            fix=_NUMBERED)  # fmt: skip
def positions(p: TextPlace) -> Variants:
    for what, way in _positions(p, p.mask()):
        yield what, p.changed(positions=lambda w=way: w)


@_text_fault("text.mrope", at=("text.position_ids",), title="positions of the tokens are others",
            fix=_NUMBERED)  # fmt: skip
def position_ids(p: TextPlace) -> Variants:
    for what, way in _positions(p, p.mask()):
        yield what, p.changed(given_positions=lambda w=way: w * p.mask()[:, None])


def _positions(p: TextPlace, mask: Array) -> Iterator[tuple[str, Array]]:
    own = p.given_positions() if p.kind == "text.position_ids" else p.positions()
    counted = np.cumsum(mask, axis=1)[:, None] * np.ones((1, 3, 1), int)
    yield "from 1", own + 1
    yield "all 0", own * 0
    yield "the same for all", own * 0 + 1
    yield "padding not counted", counted - 1
    yield "padding not counted, from 1", counted
    yield "backwards", own[:, :, ::-1]
    yield "the frame's for all three", np.repeat(own[:, :1], 3, axis=1)
    yield "the row's for all three", np.repeat(own[:, 1:2], 3, axis=1)
    yield "rows and columns 0", own * np.array([1, 0, 0])[:, None]
    yield "one after the other, pictures too", np.broadcast_to(np.arange(own.shape[2]), own.shape)
    for drop in (34, 64):
        yield f"counted from behind the prefix of {drop}", np.maximum(own - drop, 0)
        yield f"counted from {drop}", own + drop
    for first, second in ((0, 1), (0, 2), (1, 2)):
        order = [0, 1, 2]
        order[first], order[second] = order[second], order[first]
        if not np.array_equal(own[:, order], own):
            yield f"axes {first} and {second} exchanged", own[:, order]
    yield "rounded to bfloat16", own.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


@_text_fault("rope.theta", at=_ROPE, title="rotary frequencies have another base",
            fix="rope_theta of the config, 1e6")  # fmt: skip
def theta(p: TextPlace) -> Variants:
    pairs = len(p.axes())
    exponent = np.arange(pairs) / pairs
    for base in (1e4, 5e5, 1e5, 1e6, 1e7, 256.0):
        if base != float(p.rope_config["rope_theta"]):
            yield f"{base:g}", p.changed(frequencies=lambda b=base: b**-exponent)
    own = float(p.rope_config["rope_theta"])
    yield "exponents of d - 2", p.changed(frequencies=lambda: own ** -(np.arange(pairs) / max(pairs - 1, 1)))
    yield "exponents of half the width", p.changed(frequencies=lambda: own ** (-2 * exponent))
    yield "in reverse", p.changed(frequencies=lambda: p.frequencies()[::-1])


@_text_fault("rope.low_precision", at=_ROPE, title="the rotary table is computed in low precision",
            fix="positions, angles, cosines and sines in float32", seen="ComfyUI#9441")  # fmt: skip
def rope_low_precision(p: TextPlace) -> Variants:
    for name, dtype in (("bfloat16", np.dtype(ml_dtypes.bfloat16)), ("float16", np.dtype(np.float16))):

        def low(x: Array, d: np.dtype = dtype) -> Array:
            return np.asarray(x).astype(d).astype(np.float64)

        def angles(low: Callable[[Array], Array] = low) -> Array:
            angle = low(low(p.positions()[:, p.axes()].swapaxes(1, 2)) * low(p.frequencies()))
            return np.stack([np.cos(angle), np.sin(angle)], axis=-1)

        yield f"angles in {name}", p.changed(rotary=angles)
        yield f"frequencies in {name}", p.changed(frequencies=lambda low=low: low(p.frequencies()))
        yield f"positions in {name}", p.changed(positions=lambda low=low: low(p.positions()))
        yield f"table in {name}", p.changed(rotary=lambda low=low: low(p.rotary()))


@_text_fault("norm.eps", at=_NORMS, title="a norm has another epsilon", fix="rms_norm_eps of the config, 1e-6",
            seen="mlx-examples#1434")  # fmt: skip
def eps(p: TextPlace) -> Variants:
    for value in (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-12):
        if value != p.eps:
            yield f"{value:g}", _with_eps(p, value)


def _with_eps(p: TextPlace, value: float) -> TextPlace:
    return p.changed(rms_norm=lambda x, layer: (
        x / np.sqrt((x**2).mean(-1, keepdims=True) + value) * p.weight(f"{layer}.weight")
    ))  # fmt: skip


@_text_fault("norm.rms_for_layer", at=_NORMS, title="another norm than RMSNorm",
            fix="x / sqrt(mean(x²) + eps) · weight, over the last axis")  # fmt: skip
def rms_for_layer(p: TextPlace) -> Variants:
    yield "LayerNorm", p.changed(rms_norm=lambda x, layer: p.rms_norm(x - x.mean(-1, keepdims=True), layer))
    yield "eps added behind the root", p.changed(rms_norm=lambda x, layer: (
        x / (np.sqrt((x**2).mean(-1, keepdims=True)) + p.eps) * p.weight(f"{layer}.weight")
    ))  # fmt: skip
    yield "1 + weight", p.changed(rms_norm=lambda x, layer: (
        p.rms_norm(x, layer) + x / np.sqrt((x**2).mean(-1, keepdims=True) + p.eps)
    ))  # fmt: skip
    yield "no weight", p.changed(rms_norm=lambda x, layer: x / np.sqrt((x**2).mean(-1, keepdims=True) + p.eps))
    yield "sum for mean", p.changed(rms_norm=lambda x, layer: (
        x / np.sqrt((x**2).sum(-1, keepdims=True) + p.eps) * p.weight(f"{layer}.weight")
    ))  # fmt: skip
    if p.kind != "text.norm":
        yield "no norm", p.changed(rms_norm=lambda x, layer: x)


@_text_fault("weights.swapped", at=("normed", "normed2"), title="the two norms of a layer have each other's weights",
            fix="input_layernorm before attention, post_attention_layernorm before the MLP")  # fmt: skip
def norms_swapped(p: TextPlace) -> Variants:
    names = {"input_layernorm": "post_attention_layernorm", "post_attention_layernorm": "input_layernorm"}

    def other(x: Array, layer: str) -> Array:
        before, _, name = layer.rpartition(".")
        return p.rms_norm(x, f"{before}.{names[name]}")

    yield "the other norm of the layer", p.changed(rms_norm=other)
    yield "the final norm's", p.changed(rms_norm=lambda x, layer: p.rms_norm(x, "model.norm"))


@_text_fault("ffn.activation", at=("gated",), title="another activation in the MLP",
            fix="silu(gate_proj(x))·up_proj(x)")  # fmt: skip
def activation(p: TextPlace) -> Variants:
    def tanh_gelu(x: Array) -> Array:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    ways: dict[str, Callable[[Array], Array]] = {
        "GELU, exact": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))), "GELU, tanh": tanh_gelu,
        "quick GELU": lambda x: x / (1 + np.exp(-1.702 * x)), "ReLU": lambda x: np.maximum(x, 0),
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "none": lambda x: x, "tanh": np.tanh,
    }  # fmt: skip
    for what, way in ways.items():
        yield what, p.changed(silu=way)


@_text_fault("ffn.gate_up_swapped", at=("gated",), title="gate and up projection of the MLP are exchanged or left out",
            fix="silu(gate_proj(x))·up_proj(x)")  # fmt: skip
def gate_up(p: TextPlace) -> Variants:
    def part(name: str, x: Array) -> Array:
        return p.linear(x, p.key(f"mlp.{name}_proj"))

    yield "exchanged", p.changed(gated=lambda x: p.silu(part("up", x)) * part("gate", x))
    yield "gate left out", p.changed(gated=lambda x: part("up", x))
    yield "up left out", p.changed(gated=lambda x: p.silu(part("gate", x)))
    yield "activation behind the product", p.changed(gated=lambda x: p.silu(part("gate", x) * part("up", x)))
    yield "added", p.changed(gated=lambda x: p.silu(part("gate", x)) + part("up", x))


@_text_fault("residual.missing", at=("mid", "out"), title="a residual is dropped or taken elsewhere",
            fix="mid = entering + attn(norm(entering)); out = mid + mlp(norm(mid))")  # fmt: skip
def residual_missing(p: TextPlace) -> Variants:
    added, normed = ("attn", "normed") if p.kind == "mid" else ("ffn", "normed2")
    yield "dropped", p.changed(recipe=lambda: p.of(added))
    yield "the norm for the residual", p.changed(recipe=lambda: p.of(normed) + p.of(added))
    yield "nothing added", p.changed(recipe=lambda: p.recipe() - p.of(added))
    if p.kind == "out":
        yield (
            "what entered the layer for the residual",
            p.changed(recipe=lambda: p.counting(p.entering() + p.of("ffn"))),
        )


@_text_fault("text.embedding", at=("text.embed",), title="token embeddings are others",
            fix=_TABLE)  # fmt: skip
def embedding(p: TextPlace) -> Variants:
    width = p.text_config["hidden_size"]
    yield "times √D", p.changed(embedded=lambda: p.embedded() * width**0.5)
    yield "ids one too high", p.changed(embedded=lambda: p.weight("model.embed_tokens.weight")[
        np.minimum(p.values["text.ids"] + 1, len(p.weight("model.embed_tokens.weight")) - 1)])  # fmt: skip
    yield "of the output layer", p.changed(embedded=lambda: p.weight("lm_head.weight")[p.values["text.ids"]])
    if p.optional("image_features") is not None:
        places, features = p.values["text.ids"] == p.config["image_token_id"], p.fed("image_features")

        def placed(rows: Array) -> Array:
            made = p.embedded()
            made[places] = rows
            return made

        yield (
            "no picture features",
            p.changed(embedded=lambda: p.weight("model.embed_tokens.weight")[p.values["text.ids"]]),
        )
        yield "picture features added", p.changed(embedded=lambda: placed(
            p.weight("model.embed_tokens.weight")[p.values["text.ids"]][places] + features))  # fmt: skip
        yield "picture features backwards", p.changed(embedded=lambda: placed(features[::-1]))


@_text_fault("text.hidden_layer", at=("text.norm", "text.prompt_embeds"), title="another hidden state is taken",
            fix="the last hidden state behind the final norm: hidden_states[-1]")  # fmt: skip
def hidden_layer(p: TextPlace) -> Variants:
    if p.kind == "text.norm":
        yield "before the final norm", p.changed(rms_norm=lambda x, layer: x)
        yield "normed twice", p.changed(rms_norm=lambda x, layer: p.rms_norm(p.rms_norm(x, layer), layer))
        yield (
            "with the first layer's norm",
            p.changed(rms_norm=lambda x, layer: p.rms_norm(x, "model.layers.0.input_layernorm")),
        )
        return
    outs = [name for name in p.values.graph.parents if name.endswith(".out")]
    yield "before the final norm", p.changed(hidden=lambda: p.counting(p.values[outs[-1]]))
    for back, name in enumerate(reversed(outs[:-1]), 2):
        if not _known(p, name):
            break
        yield f"hidden_states[-{back}], not normed", p.changed(hidden=lambda n=name: p.counting(p.values[n]))
        yield f"hidden_states[-{back}], normed", p.changed(hidden=lambda n=name: p.rms_norm(p.values[n], "model.norm"))


def _known(p: TextPlace, name: str) -> bool:
    """Whether an earlier layer's output is at hand; of the stages, only the last one's state is."""
    return p.values.stage == "" or name in p.values.captured or p.values.graph.stage[name] == p.values.stage
