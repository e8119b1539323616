"""Faults of joint attention: scores, mask, order of the streams, layout of the heads, projections around it.

B batch, N tokens, S text tokens, D width, H heads, d head width. Queries and keys have text first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from scipy.special import softmax

from parity.diagnosis.fault import fault
from parity.diagnosis.place import Array, Variants
from parity.diagnosis.recipes.transformer import TransformerPlace

ATTN = ("attn",)
SCALE = "scores · head_width ** -0.5, once"
KEY_MASK = "mask = concatenate([text_mask, ones(image)], axis=1)[:, None, None, :], True for keys to attend to"


@fault("attention.scale_missing", at=ATTN, title="attention scores are not scaled", fix=SCALE, seen="the guide")
def scale_missing(p: TransformerPlace) -> Variants:
    """Scores as the products come."""
    yield "factor 1", p.changed(score_scale=lambda width: 1.0)


@fault("attention.scale_wrong", at=ATTN, title="attention scores have another factor than 1/√d", fix=SCALE)
def scale_wrong(p: TransformerPlace) -> Variants:
    """Twice, of another width, or its inverse."""
    heads = p.heads
    for detail, scale in (
        ("1/d", lambda d: 1 / d),
        ("√d", lambda d: d**0.5),
        ("d", lambda d: float(d)),
        ("d^-1/4", lambda d: d**-0.25),
        ("d^-3/4", lambda d: d**-0.75),
        ("1/√D of the whole width", lambda d: (d * heads) ** -0.5),
        ("1/√H of the number of heads", lambda d: heads**-0.5),
        ("1/√(d/2)", lambda d: (d / 2) ** -0.5),
        ("1/√(2d)", lambda d: (d * 2) ** -0.5),
        ("1/√(3d)", lambda d: (d * 3) ** -0.5),
        ("1/(√d · ln 2)", lambda d: d**-0.5 / np.log(2)),
        ("-1/√d", lambda d: -(d**-0.5)),
    ):
        yield detail, p.changed(score_scale=scale)
    for width in (32, 64, 80, 96, 128, 256, 3072):
        if width * heads != p.entering().shape[-1]:
            yield f"1/√{width}", p.changed(score_scale=lambda d, width=width: width**-0.5)


@fault("attention.scale_wrong", at=("q", "k"), title="q or k is scaled before attention scales", fix=SCALE)
def scaled_before(p: TransformerPlace) -> Variants:
    """The whole factor or its root."""
    yield "times 1/√d", p.changed(head=lambda kind: (x := p.head(kind)) * x.shape[-1] ** -0.5)
    yield "times d^-1/4", p.changed(head=lambda kind: (x := p.head(kind)) * x.shape[-1] ** -0.25)


def _text_mask(p: TransformerPlace) -> Array | None:
    """B S, True for what counts; None where everything does."""
    mask = p.mask()
    text = None if mask is None else mask[:, : p.entering("txt").shape[1]]
    return None if text is None or text.all() else text


def _with_text(p: TransformerPlace, change: Callable[[Array], Array]) -> TransformerPlace:
    """The place with another mask of the text."""

    def mask() -> Array:
        whole, text = p.mask(), p.entering("txt").shape[1]
        return np.concatenate([change(whole[:, :text]), whole[:, text:]], axis=1)

    return p.changed(mask=mask)


@fault(
    "attention.mask_missing", at=ATTN, title="padded text keys are attended to", fix=KEY_MASK, seen="diffusers#12294"
)
def mask_missing(p: TransformerPlace) -> Variants:
    """No mask."""
    if _text_mask(p) is not None:
        yield "no mask", p.changed(mask=lambda: None)


# What kernels give for a query that sees no key.
_NOTHING_SEEN: dict[str, Callable[[Array, Array], Array]] = {
    "NaN": lambda joint, v: np.full_like(joint, np.nan),
    "0": lambda joint, v: np.zeros_like(joint),
    "the mean of all values": lambda joint, v: np.broadcast_to(v.mean(axis=1, keepdims=True), joint.shape),
}


def _blind(p: TransformerPlace, rows: Array, fill: Callable[[Array, Array], Array]) -> TransformerPlace:
    """The place where some queries, B N, see no key."""

    def attend(q: Array, k: Array, v: Array) -> Array:
        joint = p.attend(q, k, v)
        return np.where(rows[:, :, None, None], fill(joint, v), joint)

    return p.changed(attend=attend)


@fault("attention.mask_inverted", at=ATTN, title="the attention mask is taken the other way round", fix=KEY_MASK)
def mask_inverted(p: TransformerPlace) -> Variants:
    """Of the text, of everything, or added with the wrong sign."""
    text = _text_mask(p)
    if text is None:
        return
    yield "text inverted, image kept", _with_text(p, np.logical_not)
    turned = p.changed(mask=lambda: ~p.mask())
    none_left = np.broadcast_to(text.all(axis=1)[:, None], p.mask().shape)
    for name, fill in _NOTHING_SEEN.items():
        yield f"all inverted, {name} where no key is left", _blind(turned, none_left, fill)
    added = lambda scores: scores + np.where(p.mask(), 0.0, 1e9)[:, None, None, :]  # noqa: E731
    yield "a large number added on padding", p.changed(scores_mask=added)


@fault("attention.mask_wrong", at=ATTN, title="the attention mask is applied in another way", fix=KEY_MASK)
def mask_wrong(p: TransformerPlace) -> Variants:
    """Added or multiplied as numbers, of other keys, of another sample."""
    text = _text_mask(p)
    if text is None:
        return
    keys = lambda: p.mask()[:, None, None, :].astype(float)  # noqa: E731
    yield "0 and 1 added to the scores", p.changed(scores_mask=lambda scores: scores + keys())
    yield "-1 added to padding's scores", p.changed(scores_mask=lambda scores: scores + keys() - 1)
    yield "scores multiplied by 0 and 1", p.changed(scores_mask=lambda scores: scores * keys())
    unmasked = p.changed(scores_mask=lambda scores: scores)
    yield "probabilities multiplied by it", unmasked.changed(probabilities=lambda s: p.probabilities(s) * keys())
    lengths, index = text.sum(axis=1, keepdims=True), np.arange(text.shape[1])
    for detail, other in (
        ("padding taken to be on the left", text[:, ::-1]),
        ("one token too many", index < lengths + 1),
        ("one token too few", index < lengths - 1),
        ("the first sample's for all", np.broadcast_to(text[:1], text.shape)),
        ("the last sample's for all", np.broadcast_to(text[-1:], text.shape)),
        ("the next sample's", np.roll(text, -1, axis=0)),
    ):
        # All true is `attention.mask_missing`.
        if not other.all() and not np.array_equal(other, text):
            yield detail, _with_text(p, lambda mask, other=other: other)
    if p.stream == "txt":
        for name, fill in _NOTHING_SEEN.items():
            detail = f"on queries instead of keys, {name} where no key is left"
            yield detail, _blind(p.changed(mask=lambda: None), ~p.mask(), fill)


@fault(
    "attention.row_all_masked", at=ATTN, title="queries that are padding see no key",
    fix="mask keys only, or replace the rows of fully masked queries by zeros", seen="mlx#2406",
)  # fmt: skip
def row_all_masked(p: TransformerPlace) -> Variants:
    """What kernels give where nothing is left to attend to."""
    if _text_mask(p) is not None and p.stream == "txt":
        for name, fill in _NOTHING_SEEN.items():
            yield name, _blind(p, ~p.mask(), fill)


@fault("attention.causal", at=ATTN, title="attention is causal", fix="no causal mask: every query sees every token")
def causal(p: TransformerPlace) -> Variants:
    """Over all tokens, in either order of the streams, or among the text."""
    text, image = p.entering("txt").shape[1], p.entering("img").shape[1]
    index = np.arange(text + image)
    swapped = np.where(index < text, index + image, index - text)

    def only(seen: Array) -> TransformerPlace:
        return p.changed(scores_mask=lambda scores: np.where(seen, p.scores_mask(scores), -np.inf))

    yield "text first", only(index[:, None] >= index)
    yield "image first", only(swapped[:, None] >= swapped)
    yield "the future only", only(index[:, None] <= index)
    if text > 1 and p.stream == "txt":
        yield "among text tokens", only((index[:, None] >= index) | (index >= text))
    if image > 1 and p.stream == "img":
        yield "among image tokens", only((index[:, None] >= index) | (index[:, None] < text))


@fault(
    "attention.not_joint", at=ATTN, title="the streams do not attend to each other as they should",
    fix="one attention over the keys of both streams",
)  # fmt: skip
def not_joint(p: TransformerPlace) -> Variants:
    """Only to itself, or only to the other."""
    of_text = np.arange(sum(p.entering(s).shape[1] for s in ("txt", "img"))) < p.entering("txt").shape[1]
    same = of_text[:, None] == of_text
    for detail, seen in (("own stream only", same), ("other stream only", ~same)):
        only = lambda scores, seen=seen: np.where(seen, p.scores_mask(scores), -np.inf)  # noqa: E731
        yield detail, p.changed(scores_mask=only)


@fault(
    "attention.stream_order", at=ATTN, title="the streams are joined, masked or split in different orders",
    fix="text first everywhere: concatenate([text, image]), mask alike, split at the number of text tokens",
)  # fmt: skip
def stream_order(p: TransformerPlace) -> Variants:
    """Every inconsistent choice; all image first alike is no fault."""
    masks = ("", "mask", "keys and values") if _text_mask(p) is not None else ("",)
    for queries, split, mask in product((False, True), (False, True), masks):
        if not mask and queries == split:
            continue
        parts = [name for name, on in (("queries", queries), ("split", split), (mask, mask)) if on]
        changed = p.changed(joined=_joined(p, "q")) if queries else p
        changed = changed.changed(own_rows=_own_rows(p)) if split else changed
        changed = changed.changed(mask=_image_first(p)) if mask == "mask" else changed
        changed = changed.changed(joined=_joined(changed, "kv")) if mask == "keys and values" else changed
        yield f"image first in {' and '.join(parts)}", changed
    yield "image first in keys alone", p.changed(joined=_joined(p, "k"))
    yield "image first in values alone", p.changed(joined=_joined(p, "v"))


def _joined(p: TransformerPlace, image_first: str) -> Callable[[str], Array]:
    def joined(kind: str) -> Array:
        if kind not in image_first:
            return p.joined(kind)
        return np.concatenate([p.of(kind, "img"), p.of(kind, "txt")], axis=1)

    return joined


def _own_rows(p: TransformerPlace) -> Callable[[Array], Array]:
    image = p.entering("img").shape[1]
    return lambda joint: joint[:, :image] if p.stream == "img" else joint[:, image:]


def _image_first(p: TransformerPlace) -> Callable[[], Array]:
    return lambda: np.roll(p.mask(), -p.entering("txt").shape[1], axis=1)


@fault(
    "attention.heads_layout", at=("q", "k", "v"), title="heads and head width are exchanged in a reshape",
    fix="x.reshape(batch, tokens, heads, head_width), then transpose",
)  # fmt: skip
def heads_layout(p: TransformerPlace) -> Variants:
    """Where the heads are made."""
    for detail, change in _layouts(p):
        yield detail, p.changed(to_heads=change)


def _layouts(p: TransformerPlace) -> Iterator[tuple[str, Callable[[Array], Array]]]:
    heads = p.heads

    def by_width(x: Array) -> Array:
        return x.reshape(*x.shape[:2], -1, heads).swapaxes(-1, -2)

    def unmoved(x: Array) -> Array:
        return x.reshape(len(x), heads, x.shape[1], -1).swapaxes(1, 2)

    yield "[tokens, head_width, heads]", by_width
    yield "[heads, tokens, head_width] without a transpose", unmoved


@fault(
    "attention.heads_layout", at=ATTN, title="heads are merged in another order",
    fix="transpose to [batch, tokens, heads, head_width], then reshape to [batch, tokens, width]",
)  # fmt: skip
def heads_merged(p: TransformerPlace) -> Variants:
    """Where the heads are merged."""

    def joint_unmoved(q: Array, k: Array, v: Array) -> Array:
        joint = p.attend(q, k, v)
        return joint.swapaxes(1, 2).reshape(joint.shape)

    yield "[tokens, head_width, heads]", p.changed(from_heads=lambda x: p.from_heads(x.swapaxes(-1, -2)))
    yield (
        "[heads, tokens, head_width] without a transpose",
        p.changed(from_heads=lambda x: x.swapaxes(1, 2).reshape(*x.shape[:2], -1)),
    )
    yield "[heads, tokens of both streams, head_width] without a transpose", p.changed(attend=joint_unmoved)


@fault("attention.kv_swapped", at=ATTN, title="keys and values are exchanged", fix="softmax(q·kᵀ)·v")
def kv_swapped(p: TransformerPlace) -> Variants:
    """Exchanged, or one taken for both."""
    yield "k and v exchanged", p.changed(attend=lambda q, k, v: p.attend(q, v, k))
    yield "k as values too", p.changed(attend=lambda q, k, v: p.attend(q, k, k))
    yield "v as keys too", p.changed(attend=lambda q, k, v: p.attend(q, v, v))


@fault("attention.qkv_order", at=ATTN, title="queries are exchanged with keys or values", fix="softmax(q·kᵀ)·v")
def qkv_order(p: TransformerPlace) -> Variants:
    """Other orders."""
    yield "q and k exchanged", p.changed(attend=lambda q, k, v: p.attend(k, q, v))
    yield "q and v exchanged", p.changed(attend=lambda q, k, v: p.attend(v, k, q))
    yield "k, v, q", p.changed(attend=lambda q, k, v: p.attend(k, v, q))
    yield "v, q, k", p.changed(attend=lambda q, k, v: p.attend(v, q, k))
    yield "q as keys too", p.changed(attend=lambda q, k, v: p.attend(q, q, v))
    yield "k as queries too", p.changed(attend=lambda q, k, v: p.attend(k, k, v))
    yield "q as values too", p.changed(attend=lambda q, k, v: p.attend(q, k, q))


_SOFTMAX: dict[str, Callable[[Array], Array]] = {
    "over the queries": lambda scores: softmax(scores, axis=-2),
    "over the heads": lambda scores: softmax(scores, axis=1),
    "over all scores of a head": lambda scores: softmax(scores, axis=(-2, -1)),
    "left out": lambda scores: np.where(np.isneginf(scores), 0.0, scores),
    "left out, scores over the number of keys": lambda s: np.where(np.isneginf(s), 0.0, s) / s.shape[-1],
    "sigmoid instead": lambda scores: 0.5 * (1 + np.tanh(0.5 * scores)),
    "with 1 added to the sum": lambda scores: _softmax_plus_one(scores),
    "to base 2": lambda scores: softmax(scores * np.log(2), axis=-1),
    "not divided by its sum": lambda scores: np.exp(scores - scores.max(-1, keepdims=True)),
    "twice": lambda scores: softmax(softmax(scores, axis=-1), axis=-1),
}


def _softmax_plus_one(scores: Array) -> Array:
    top = np.maximum(scores.max(-1, keepdims=True), 0.0)
    parts = np.exp(scores - top)
    return parts / (parts.sum(-1, keepdims=True) + np.exp(-top))


@fault("attention.softmax", at=ATTN, title="the softmax of attention is another one", fix="softmax(scores, axis=-1)")
def softmax_of(p: TransformerPlace) -> Variants:
    """Over another axis, left out, of another form."""
    for detail, probabilities in _SOFTMAX.items():
        yield detail, p.changed(probabilities=probabilities)


@fault(
    "attention.out_proj_swapped", at=ATTN, title="attention's output goes through the other stream's projection",
    fix="image: to_out.0, text: to_add_out",
)  # fmt: skip
def out_proj_swapped(p: TransformerPlace) -> Variants:
    """Image and text exchanged."""
    other = p.projection("attn", p.other_stream)
    yield f"{other.rpartition('attn.')[2]}", p.changed(linear=lambda x, layer: p.linear(x, other))


@fault("attention.out_proj_missing", at=ATTN, title="attention's output is not projected", fix="to_out.0, to_add_out")
def out_proj_missing(p: TransformerPlace) -> Variants:
    """As the heads were merged, or projected twice."""
    yield "not projected", p.changed(linear=lambda x, layer: x)
    yield "projected twice", p.changed(linear=lambda x, layer: p.linear(p.linear(x, layer), layer))


@fault("attention.missing", at=("mid",), title="attention is not added to the stream", fix="hidden + gate1 * attn")
def missing(p: TransformerPlace) -> Variants:
    """The stream as it entered."""
    yield "the stream as it entered", p.changed(gated_add=lambda x, gate, y: x + 0 * y)
