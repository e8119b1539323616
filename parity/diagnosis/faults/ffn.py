"""Faults of the feed-forward network and of the residual sums around it and around attention.

B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from parity.diagnosis.arithmetic import activations, rounded
from parity.diagnosis.fault import fault
from parity.diagnosis.place import Array, Variants, widened
from parity.diagnosis.recipes.transformer import FLOAT16_LIMIT, TransformerPlace
from parity.stats import unit_roundoff

FFN = ("ffn",)
SUMS = ("mid", "out")
BIG = ("ffn", "attn", "mid", "out", "modulated", "modulated2")
# Kind -> (what its sum starts from, what was made of that), as names of checkpoints of the block.
_BEFORE = {"mid": ("normed", "modulated"), "out": ("normed2", "modulated2")}


@fault(
    "ffn.activation", at=FFN, title="the feed-forward network has another activation than tanh GELU",
    fix="gelu(x, approximate='tanh') (MLX: nn.gelu_approx)",
)  # fmt: skip
def activation(p: TransformerPlace) -> Variants:
    """Others, none, and one that gates itself."""
    for name, function in activations(but="tanh GELU"):
        yield name, p.changed(gelu=function)
    yield "GELU twice", p.changed(gelu=lambda x: p.gelu(p.gelu(x)))
    yield "x · GELU(x)", p.changed(gelu=lambda x: x * p.gelu(x))
    yield "GELU behind net.2 instead of before it", p.changed(mlp=lambda x: p.gelu(_plain(p, x)))
    yield "GELU behind net.2 as well", p.changed(mlp=lambda x: p.gelu(p.mlp(x)))


def _plain(p: TransformerPlace, x: Array) -> Array:
    return p.changed(gelu=lambda hidden: hidden).mlp(x)


@fault(
    "ffn.wrong_input", at=FFN, title="the feed-forward network is fed another tensor",
    fix="ffn(modulate(norm2(hidden), shift2, scale2))",
)  # fmt: skip
def wrong_input(p: TransformerPlace) -> Variants:
    """Something that was made before."""
    for kind in ("normed2", "mid", "modulated", "normed", "attn"):
        yield kind, p.changed(mlp=lambda x, kind=kind: p.mlp(p.of(kind)))


@fault("ffn.missing", at=FFN, title="the feed-forward network is left out", fix="net.2(gelu(net.0.proj(x)))")
def bypassed(p: TransformerPlace) -> Variants:
    """Its input goes on."""
    yield "its input", p.changed(mlp=lambda x: x)
    yield "zeros", p.changed(mlp=lambda x: x * 0)


@fault("ffn.missing", at=("out",), title="the feed-forward network is not added", fix="hidden + gate2 * ffn")
def not_added(p: TransformerPlace) -> Variants:
    """The stream as attention left it."""
    yield "the stream as attention left it", p.changed(gated_add=lambda x, gate, y: x + 0 * y)


@fault("ffn.gate_missing", at=("out",), title="the feed-forward network is added without its gate",
       fix="hidden = hidden + gate2 * ffn")  # fmt: skip
def gate_missing(p: TransformerPlace) -> Variants:
    """x + y."""
    yield "x + ffn", p.changed(gated_add=lambda x, gate, y: x + y)


@fault(
    "residual.missing", at=SUMS, title="a residual is dropped, or taken from another tensor",
    fix="hidden = hidden + gate * update, with hidden as it was before the norm",
)  # fmt: skip
def residual_missing(p: TransformerPlace) -> Variants:
    """Dropped, taken after the norm or the modulation, or from the block's beginning."""
    yield "dropped", p.changed(gated_add=lambda x, gate, y: gate * y)
    for kind in _BEFORE[p.kind]:
        yield f"taken from {kind}", p.changed(gated_add=lambda x, gate, y, kind=kind: p.gated_add(p.of(kind), gate, y))
    if p.kind == "out":
        first = lambda x, gate, y: p.gated_add(p.entering(), gate, y)  # noqa: E731
        yield "taken from what entered the block", p.changed(gated_add=first)
        yield "taken from attention", p.changed(gated_add=lambda x, gate, y: p.gated_add(p.of("attn"), gate, y))
    yield "dropped, and no gate", p.changed(gated_add=lambda x, gate, y: y + 0 * gate)


@fault("residual.twice", at=SUMS, title="a residual is added twice", fix="hidden = hidden + gate * update, once")
def residual_twice(p: TransformerPlace) -> Variants:
    """The stream, the update, or what entered the block."""
    yield "the stream", p.changed(gated_add=lambda x, gate, y: x + p.gated_add(x, gate, y))
    yield "the update", p.changed(gated_add=lambda x, gate, y: p.gated_add(p.gated_add(x, gate, y), gate, y))
    if p.kind == "out":
        yield "what entered the block", p.changed(gated_add=lambda x, gate, y: p.gated_add(p.entering() + x, gate, y))


@fault(
    "ffn.clamped", at=BIG, title="large values are clamped", fix="no clamp: activations of millions are normal here",
    seen="the guide",
)  # fmt: skip
def clamped(p: TransformerPlace) -> Variants:
    """At the candidate's own extremes, where several of its values meet them; or inside the network."""
    value = p.values.candidate.get(p.name)
    if value is not None and value.size and np.isfinite(value.astype(np.float64)).all():
        value = value.astype(np.float64)
        low, high = float(value.min()), float(value.max())
        bottom, top = ((value == bound).sum() > 1 for bound in (low, high))
        if bottom and top:
            said = f"±{high:.3g}" if low == -high else f"{low:.3g} and {high:.3g}"
            yield f"at {said}", _then(p, lambda x: np.clip(x, low, high))
        elif top:
            yield f"at {high:.3g} from above", _then(p, lambda x: np.minimum(x, high))
        elif bottom:
            yield f"at {low:.3g} from below", _then(p, lambda x: np.maximum(x, low))
    if p.kind == "ffn":
        for bound in (FLOAT16_LIMIT, 10000.0, 1000.0, 100.0, 50.0, 30.0, 20.0, 10.0, 6.0, 5.0, 1.0):
            for where, clip in (("before", _clip_before), ("behind", _clip_behind)):
                yield f"at ±{bound:g} {where} the activation", p.changed(gelu=clip(p, bound))


def _then(p: TransformerPlace, change: Callable[[Array], Array]) -> TransformerPlace:
    return p.changed(recipe=lambda: change(p.recipe()))


def _clip_before(p: TransformerPlace, bound: float) -> Callable[[Array], Array]:
    return lambda x: p.gelu(np.clip(x, -bound, bound))


def _clip_behind(p: TransformerPlace, bound: float) -> Callable[[Array], Array]:
    return lambda x: np.clip(p.gelu(x), -bound, bound)


@fault(
    "ffn.fp16_overflow", at=BIG, title="values beyond the range of half precision became infinite",
    fix="compute in bfloat16 or float32, or scale net.2 (1/128) and to_out (1/32) as stable-diffusion.cpp does",
    seen="sd.cpp#968, sd.cpp#1249",
)  # fmt: skip
def fp16_overflow(p: TransformerPlace) -> Variants:
    """Of the result, or in the network's hidden layer; only where the candidate is not finite."""
    value = p.values.candidate.get(p.name)
    if value is None or np.isfinite(value.astype(np.float64)).all():
        return
    yield "the result", _then(p, lambda x: _settled(p, _overflowing(x), x))
    yield "the result, rounded", _then(p, lambda x: _settled(p, _half(x), x))
    if p.kind == "ffn":
        yield "the hidden layer", p.changed(gelu=lambda x: p.gelu(_overflowing(x)))
        yield "the hidden layer, rounded", p.changed(gelu=lambda x: p.gelu(_half(x)))
        yield "behind the activation", p.changed(gelu=lambda x: _overflowing(p.gelu(x)))
        yield "behind the activation, rounded", p.changed(gelu=lambda x: _half(p.gelu(x)))
        yield (
            "hidden layer and result",
            _then(p.changed(gelu=lambda x: _overflowing(p.gelu(_overflowing(x)))), _overflowing),
        )
    if p.kind in ("ffn", "attn"):
        whole = p.changed(linear=lambda x, layer: _half(p.linear(_half(x), layer)), gelu=lambda x: _half(p.gelu(x)))
        yield "all in half precision", whole
        raw = p.changed(linear=lambda x, layer: _overflowing(p.linear(_overflowing(x), layer) - _bias(p, layer)) + _bias(p, layer))  # fmt: skip # noqa: E501
        yield "a product before its bias", raw
        for factor in (2.0**power for power in range(-7, 11) if power):
            yield f"the result times {factor:g}, rounded", _then(p, _half_scaled(factor))
            if p.kind == "ffn":
                half = _half_scaled(factor)
                yield f"behind the activation, times {factor:g}", p.changed(gelu=lambda x, h=half: h(p.gelu(x)))
    if p.kind in SUMS:
        yield "the gated update", p.changed(gated_add=lambda x, gate, y: x + _overflowing(gate * y))
        yield (
            "the sum in half precision",
            p.changed(
                gated_add=lambda x, gate, y: _settled(p, _half(_half(x) + _half(gate * y)), x, gate * y, x + gate * y)
            ),
        )


def _settled(p: TransformerPlace, made: Array, *sums: Array) -> Array:
    """What was made, where noise decides whether a value overflows as the candidate has it.

    Args:
        made: with infinities.
        sums: exact values that overflowed where they were too large.
    """
    value = p.values.candidate.get(p.name)
    if value is None or value.shape != made.shape:
        return made
    slack = FLOAT16_LIMIT * 4 * max(unit_roundoff(value.dtype), 1e-6)
    near = np.any([np.abs(np.abs(one) - FLOAT16_LIMIT) < slack for one in sums], axis=0)
    value = widened(value)
    # Infinities of both signs add up to NaN.
    as_either = (
        (np.isnan(value) & (len(sums) > 1))
        | (value == np.copysign(np.inf, sums[-1]))
        | (np.abs(value - sums[-1]) < slack)
    )
    return np.where(near & as_either, value, made)


def _overflowing(x: Array) -> Array:
    # Halfway to the next value that half precision does not have.
    return np.where(np.abs(x) >= FLOAT16_LIMIT + 16, np.copysign(np.inf, x), x)


def _half(x: Array) -> Array:
    return rounded(x, "float16")


def _half_scaled(factor: float) -> Callable[[Array], Array]:
    """Half precision of what was scaled by a power of two and is scaled back."""
    return lambda x: _half(x * factor) / factor


def _bias(p: TransformerPlace, layer: str) -> Array | float:
    found = p.bias(layer)
    return 0.0 if found is None else found


@fault(
    "ffn.not_rescaled", at=("ffn", "attn"), title="a factor that keeps values small is not undone",
    fix="multiply by the inverse of the factor that the weight or the input was scaled with", seen="sd.cpp#1249",
)  # fmt: skip
def not_rescaled(p: TransformerPlace) -> Variants:
    """Usual factors, on the result and on the last product before its bias."""
    last = p.layers()[-1]
    for factor in (1 / 128, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 2.0, 4.0, 8.0, 16.0, 32.0, 128.0):
        said = f"{factor:g}" if factor >= 1 else f"1/{1 / factor:g}"
        yield f"{said}, bias and all", _then(p, lambda x, factor=factor: x * factor)

        def linear(x: Array, layer: str, factor: float = factor) -> Array:
            return p.linear(x * factor if layer == last else x, layer)

        if p.bias(last) is not None:
            yield f"{said}, without the bias", p.changed(linear=linear)
