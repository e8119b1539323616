"""Faults of the norms: LayerNorm of the blocks and the head, RMSNorm of the text, of q and of k.

B batch, N tokens, D width, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from parity.diagnosis.fault import fault
from parity.diagnosis.place import Array, Variants
from parity.diagnosis.recipes.transformer import EPS, TransformerPlace

LAYER = ("normed", "normed2", "norm_out")
QK = ("q", "k")
RMS = ("txt_norm", *QK)
EPSILONS = (0.0, 1e-12, 1e-10, 1e-8, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1.0)


def _mean(x: Array, axis: Any = -1) -> Array:
    return x.mean(axis, keepdims=True)


def _centred(x: Array, axis: Any = -1) -> Array:
    return x - _mean(x, axis)


def _square(x: Array, axis: Any = -1) -> Array:
    return _mean(x**2, axis)


def _norm(p: TransformerPlace, layer: Callable[[Array], Array], rms: Callable[[Array], Array]) -> TransformerPlace:
    """The place with another norm; `rms` without its weight, which is multiplied afterwards."""
    if p.kind in LAYER:
        return p.changed(layer_norm=lambda x, eps=EPS: layer(x))
    return p.changed(rms_norm=lambda x, weight, eps=EPS: rms(x) * weight)


@fault(
    "norm.eps", at=(*LAYER, *RMS), title="a norm has another epsilon than 1e-6", fix="eps = 1e-6, inside the root",
    seen="mlx-examples#1434",
)  # fmt: skip
def eps(p: TransformerPlace) -> Variants:
    """Other values, and outside of the root."""
    for value in EPSILONS:
        # As a default of the function, the value is the loop's at this point.
        if p.kind in LAYER:
            yield f"{value:g}", p.changed(layer_norm=lambda x, eps=EPS, value=value: p.layer_norm(x, value))
        else:
            yield f"{value:g}", p.changed(rms_norm=lambda x, w, eps=EPS, value=value: p.rms_norm(x, w, value))
    for value in (1e-6, 1e-5):
        yield (
            f"{value:g} added to the root",
            _norm(
                p,
                lambda x, value=value: _centred(x) / (np.sqrt(_square(_centred(x))) + value),
                lambda x, value=value: x / (np.sqrt(_square(x)) + value),
            ),
        )


@fault(
    "norm.rms_for_layer", at=LAYER, title="RMSNorm where LayerNorm belongs",
    fix="LayerNorm without weights: subtract the mean, then divide by the standard deviation",
)  # fmt: skip
def rms_for_layer(p: TransformerPlace) -> Variants:
    """The row's mean is left in."""
    yield "RMSNorm", p.changed(layer_norm=lambda x, eps=EPS: x / np.sqrt(_square(x) + eps))


@fault(
    "norm.rms_for_layer", at=RMS, title="LayerNorm where RMSNorm belongs",
    fix="RMSNorm: divide by the root of the mean square, subtract nothing",
)  # fmt: skip
def layer_for_rms(p: TransformerPlace) -> Variants:
    """The row's mean is taken out."""
    yield "LayerNorm", p.changed(rms_norm=lambda x, w, eps=EPS: p.layer_norm(x, eps) * w)


@fault("norm.unbiased", at=(*LAYER, *RMS), title="a norm divides the squares by n - 1", fix="variance with ddof = 0")
def unbiased(p: TransformerPlace) -> Variants:
    """Bessel's correction."""

    def bessel(x: Array) -> Array:
        return x.shape[-1] / (x.shape[-1] - 1)

    yield (
        "n - 1",
        _norm(
            p,
            lambda x: _centred(x) / np.sqrt(_square(_centred(x)) * bessel(x) + EPS),
            lambda x: x / np.sqrt(_square(x) * bessel(x) + EPS),
        ),
    )


def _axes(p: TransformerPlace) -> Iterator[tuple[str, Any]]:
    if p.kind in QK:
        yield from (("all channels of a token", (2, 3)), ("the heads", 2), ("the tokens", 1))
        yield from (("tokens and channels of a head", (1, 3)), ("a whole sample", (1, 2, 3)))
    else:
        yield from (("the tokens", 1), ("a whole sample", (1, 2)), ("the batch", 0))


@fault(
    "norm.axis", at=(*LAYER, *RMS), title="a norm is taken over another axis",
    fix="over the channels of one token; of one head in q and k",
)  # fmt: skip
def axis(p: TransformerPlace) -> Variants:
    """Tokens, samples, and for q and k the whole width."""
    for name, over in _axes(p):
        yield (
            f"over {name}",
            _norm(
                p,
                lambda x, over=over: _centred(x, over) / np.sqrt(_square(_centred(x, over), over) + EPS),
                lambda x, over=over: x / np.sqrt(_square(x, over) + EPS),
            ),
        )


_FORMULAS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "divided by the variance": (
        lambda x: _centred(x) / (_square(_centred(x)) + EPS),
        lambda x: x / (_square(x) + EPS),
    ),
    "divided by the length of the row": (
        lambda x: _centred(x) / np.sqrt((_centred(x) ** 2).sum(-1, keepdims=True) + EPS),
        lambda x: x / np.sqrt((x**2).sum(-1, keepdims=True) + EPS),
    ),
    "divided by the mean magnitude": (
        lambda x: _centred(x) / (_mean(np.abs(_centred(x))) + EPS),
        lambda x: x / (_mean(np.abs(x)) + EPS),
    ),
    "multiplied by the root": (
        lambda x: _centred(x) * np.sqrt(_square(_centred(x)) + EPS),
        lambda x: x * np.sqrt(_square(x) + EPS),
    ),
}
_LAYER_FORMULAS: dict[str, Callable[[Array], Array]] = {
    "only the mean taken out": _centred,
    "mean out, divided by the root mean square before that": lambda x: _centred(x) / np.sqrt(_square(x) + EPS),
    "mean taken out after the division by the root mean square": lambda x: _centred(x / np.sqrt(_square(x) + EPS)),
    "mean added": lambda x: (x + _mean(x)) / np.sqrt(_square(_centred(x)) + EPS),
}


@fault(
    "norm.formula", at=(*LAYER, *RMS), title="a norm is computed by another formula",
    fix="(x - mean) / sqrt(variance + eps); RMSNorm: x / sqrt(mean(x²) + eps) · weight",
)  # fmt: skip
def formula(p: TransformerPlace) -> Variants:
    """Parts left out or exchanged."""
    for detail, (layer, rms) in _FORMULAS.items():
        yield detail, _norm(p, layer, rms)
    if p.kind in LAYER:
        for detail, layer in _LAYER_FORMULAS.items():
            yield detail, p.changed(layer_norm=lambda x, eps=EPS, layer=layer: layer(x))


@fault("norm.missing", at=LAYER, title="a LayerNorm is left out", fix="LayerNorm without weights, eps 1e-6")
def missing(p: TransformerPlace) -> Variants:
    """Its input goes on as it is."""
    yield "not normalized", p.changed(layer_norm=lambda x, eps=EPS: x)


@fault(
    "norm.missing", at=("modulated", "modulated2"), title="a LayerNorm is left out", fix="modulate the norm's output"
)
def not_used(p: TransformerPlace) -> Variants:
    """What was normalized is not what is modulated."""
    entering, last = ("entering", p.entering) if p.kind == "modulated" else ("mid", lambda: p.of("mid"))
    yield f"{entering} is modulated", p.changed(modulate=lambda x, shift, scale: p.modulate(last(), shift, scale))


@fault(
    "norm.wrong_input", at=("normed2", "modulated", "modulated2"),
    title="a norm is taken of another tensor", fix="norm1 of what enters the block, norm2 of what attention leaves",
)  # fmt: skip
def wrong_input(p: TransformerPlace) -> Variants:
    """The other norm of the block, or norm after the modulation."""
    if p.kind == "normed2":
        yield "of what enters the block", p.changed(layer_norm=lambda x, eps=EPS: p.layer_norm(p.entering(), eps))
        yield "of attention alone", p.changed(layer_norm=lambda x, eps=EPS: p.layer_norm(p.of("attn"), eps))
    if p.kind == "modulated2":
        first = lambda x, shift, scale: p.modulate(p.of("normed"), shift, scale)  # noqa: E731
        yield "the first norm is modulated", p.changed(modulate=first)
    if p.kind in ("modulated", "modulated2"):
        source = p.entering if p.kind == "modulated" else (lambda: p.of("mid"))
        yield (
            "the norm is taken after the modulation",
            p.changed(modulate=lambda x, shift, scale: p.layer_norm(p.modulate(source(), shift, scale))),
        )


@fault(
    "norm.weight_plus_one", at=RMS, title="the norm's weight is applied as 1 + weight",
    fix="multiply by the weight as it is stored",
)  # fmt: skip
def weight_plus_one(p: TransformerPlace) -> Variants:
    """As in Gemma."""
    yield "1 + weight", p.changed(rms_norm=lambda x, w, eps=EPS: p.rms_norm(x, 1 + w, eps))


@fault(
    "weights.missing", at=RMS, title="a norm's weight was never loaded",
    fix="load the checkpoint strictly, and multiply by the norm's weight",
)  # fmt: skip
def weight_missing(p: TransformerPlace) -> Variants:
    """All ones instead."""
    yield "no weight of the norm", p.changed(rms_norm=lambda x, w, eps=EPS: p.rms_norm(x, w * 0 + 1, eps))


@fault("norm.weight_misplaced", at=RMS, title="the norm's weight is applied elsewhere", fix="normalize, then multiply")
def weight_misplaced(p: TransformerPlace) -> Variants:
    """Twice, or before the norm."""
    yield "weight²", p.changed(rms_norm=lambda x, w, eps=EPS: p.rms_norm(x, w**2, eps))
    yield "weight before the norm", p.changed(rms_norm=lambda x, w, eps=EPS: p.rms_norm(x * w, w * 0 + 1, eps))


@fault(
    "norm.txt_missing", at=("txt_norm", "txt_in"), title="the RMSNorm of the prompt embeddings is left out",
    fix="txt_in(txt_norm(prompt_embeds))",
)  # fmt: skip
def txt_missing(p: TransformerPlace) -> Variants:
    """The prompt embeddings as they came."""
    if p.kind == "txt_norm":
        yield "prompt_embeds as they came", p.changed(rms_norm=lambda x, w, eps=EPS: x)
    else:
        yield "txt_in of prompt_embeds", p.changed(linear=lambda x, layer: p.linear(p.fed("prompt_embeds"), layer))


@fault("norm.qk_missing", at=QK, title="the norm of q or k is left out", fix="rotate(norm_q(to_q(x)), table)")
def qk_missing(p: TransformerPlace) -> Variants:
    """Rotated as projected; or only its weight applied."""
    yield "not normalized", p.changed(qk_norm=lambda x, kind: x)
    yield "only the weight applied", p.changed(qk_norm=lambda x, kind: x * p.qk_weight(kind))


@fault(
    "norm.qk_after_rope", at=QK, title="q or k is normalized after the rotation", fix="rotate(norm_q(to_q(x)), table)"
)
def qk_after_rope(p: TransformerPlace) -> Variants:
    """The weight then meets rotated channels."""
    plain = p.changed(qk_norm=lambda x, kind: x)
    yield "norm(rotate(x))", plain.changed(rotate=lambda x, table: p.qk_norm(p.rotate(x, table), p.kind))
    yield "norm before and after", p.changed(rotate=lambda x, table: p.qk_norm(p.rotate(x, table), p.kind))


@fault(
    "norm.qk_swapped", at=QK, title="q or k is normalized with another norm's weight",
    fix="image: norm_q, norm_k; text: norm_added_q, norm_added_k",
)  # fmt: skip
def qk_swapped(p: TransformerPlace) -> Variants:
    """Of the other stream, of the other projection, of both."""
    across = "k" if p.kind == "q" else "q"
    for detail, kind, stream in (
        ("the other stream's", p.kind, p.other_stream),
        (f"that of {across}", across, p.stream),
        (f"the other stream's of {across}", across, p.other_stream),
    ):
        yield detail, p.changed(qk_weight=lambda _kind, _s=None, kind=kind, stream=stream: p.qk_weight(kind, stream))


@fault("norm.v_normed", at=("v",), title="v is normalized as q and k are", fix="v = to_v(x), without a norm")
def v_normed(p: TransformerPlace) -> Variants:
    """With either weight, and without one."""
    for kind in QK:
        yield f"with the weight of {kind}", p.changed(head=lambda of, kind=kind: p.qk_norm(p.head(of), kind))
    yield "without a weight", p.changed(head=lambda of: p.rms_norm(p.head(of), np.ones(1)))
