"""Faults of the modulation: which part of the vector is taken as what, and what is done with it.

B batch, N tokens, D width. A block's vector has six chunks of D; the last norm's has two.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

from parity.diagnosis.arithmetic import activations
from parity.diagnosis.fault import fault
from parity.diagnosis.place import Array, Variants
from parity.diagnosis.recipes.transformer import TransformerPlace

CHUNKS = ("shift1", "scale1", "gate1", "shift2", "scale2", "gate2")
# Kind -> chunks that it takes.
ROLES = {"modulated": (0, 1), "modulated2": (3, 4), "mid": (2,), "out": (5,)}
MODULATED = ("modulated", "modulated2", "norm_out")
SCALED_AND_SHIFTED = "x * (1 + scale) + shift"


@fault(
    "modulation.order", at=tuple(ROLES),
    title="the chunks of the modulation vector are taken in another order",
    fix="shift1, scale1, gate1, shift2, scale2, gate2 = split(mod, 6, axis=-1)",
    seen="the guide",
)  # fmt: skip
def order(p: TransformerPlace) -> Variants:
    """Every choice of chunks, and vectors read with the chunks interleaved."""
    roles = ROLES[p.kind]
    for sources in product(range(6), repeat=len(roles)):
        if sources != roles:
            yield _said(sources), p.changed(chunks=_taken(p, dict(zip(roles, sources, strict=True))))
    for name, reading in _readings(p):
        for sources in dict.fromkeys((roles, roles[::-1])):
            taken = _taken(p, dict(zip(roles, sources, strict=True)), reading)
            yield f"{_said(sources)}, read as {name}", p.changed(chunks=taken)


def _said(sources: tuple[int, ...]) -> str:
    names = [CHUNKS[i] for i in sources]
    return f"{names[0]} as gate" if len(names) == 1 else f"{names[0]} as shift, {names[1]} as scale"


def _taken(
    p: TransformerPlace, sources: dict[int, int], reading: Callable[[Array], Array] = lambda mod: mod
) -> Callable[[Array], list[Array]]:
    def chunks(mod: Array) -> list[Array]:
        parts = p.chunks(reading(mod))
        return [parts[sources.get(i, i)] for i in range(6)]

    return chunks


def _readings(p: TransformerPlace) -> list[tuple[str, Callable[[Array], Array]]]:
    """Layouts that the vector does not have."""
    heads = p.heads

    def read(shape: tuple[int, ...], axes: tuple[int, ...]) -> Callable[[Array], Array]:
        return lambda mod: mod.reshape(len(mod), *shape).transpose(0, *axes).reshape(mod.shape)

    return [
        ("[D, 6]", read((-1, 6), (2, 1))),
        ("[2, D, 3]", read((2, -1, 3), (1, 3, 2))),
        ("[D, 2, 3]", read((-1, 2, 3), (2, 3, 1))),
        ("[D, 3, 2]", read((-1, 3, 2), (3, 2, 1))),
        ("[3, D, 2]", read((3, -1, 2), (3, 1, 2))),
        ("[heads, 6, d]", read((heads, 6, -1), (2, 1, 3))),
    ]


@fault(
    "norm_out.order", at=("norm_out",),
    title="the last norm takes shift first where scale comes first",
    fix="scale, shift = split(mod, 2, axis=-1)",
    seen="the guide; mold#73",
)  # fmt: skip
def last_order(p: TransformerPlace) -> Variants:
    """Both halves in each role, and interleaved."""
    names = ("scale", "shift")
    for sources in ((1, 0), (0, 0), (1, 1)):
        detail = f"{names[sources[0]]} as scale, {names[sources[1]]} as shift"
        yield detail, p.changed(final_chunks=_last_taken(p, sources, lambda mod: mod))
    interleaved = lambda mod: mod.reshape(len(mod), -1, 2).swapaxes(1, 2).reshape(mod.shape)  # noqa: E731
    for sources in ((0, 1), (1, 0)):
        detail = f"{names[sources[0]]} as scale, {names[sources[1]]} as shift, read as [D, 2]"
        yield detail, p.changed(final_chunks=_last_taken(p, sources, interleaved))


def _last_taken(
    p: TransformerPlace, sources: tuple[int, int], reading: Callable[[Array], Array]
) -> Callable[[Array], list[Array]]:
    def chunks(mod: Array) -> list[Array]:
        parts = p.final_chunks(reading(mod))
        return [parts[i] for i in sources]

    return chunks


@fault(
    "modulation.one_plus_missing", at=MODULATED,
    title="the scale is applied without the 1 that belongs to it", fix=SCALED_AND_SHIFTED,
)  # fmt: skip
def one_plus_missing(p: TransformerPlace) -> Variants:
    """scale·x + shift."""
    yield "scale·x + shift", p.changed(modulate=lambda x, shift, scale: x * scale + shift)


@fault(
    "modulation.shift_missing", at=MODULATED, title="the shift of the modulation is left out",
    fix=SCALED_AND_SHIFTED, seen="mold#5",
)  # fmt: skip
def shift_missing(p: TransformerPlace) -> Variants:
    """(1 + scale)·x."""
    yield "(1 + scale)·x", p.changed(modulate=lambda x, shift, scale: p.modulate(x, shift * 0, scale))


@fault(
    "modulation.scale_missing", at=MODULATED, title="the scale of the modulation is left out",
    fix=SCALED_AND_SHIFTED,
)  # fmt: skip
def scale_missing(p: TransformerPlace) -> Variants:
    """x + shift."""
    yield "x + shift", p.changed(modulate=lambda x, shift, scale: p.modulate(x, shift, scale * 0))


@fault("modulation.missing", at=MODULATED, title="the norm is not modulated at all", fix=SCALED_AND_SHIFTED)
def missing(p: TransformerPlace) -> Variants:
    """Only the norm."""
    yield "only the norm", p.changed(modulate=lambda x, shift, scale: x)


@fault(
    "modulation.gate_missing", at=("mid",), title="attention is added without its gate",
    fix="hidden = hidden + gate1 * attn", seen="mold#5",
)  # fmt: skip
def gate_missing(p: TransformerPlace) -> Variants:
    """x + y."""
    yield "x + attn", p.changed(gated_add=lambda x, gate, y: x + y)


_FORMULAS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "(1 + scale)·(x + shift)": lambda x, shift, scale: (1 + scale) * (x + shift),
    "scale·(x + shift)": lambda x, shift, scale: scale * (x + shift),
    "(1 + scale)·x - shift": lambda x, shift, scale: x * (1 + scale) - shift,
    "(1 - scale)·x + shift": lambda x, shift, scale: x * (1 - scale) + shift,
    "(2 + scale)·x + shift": lambda x, shift, scale: x * (2 + scale) + shift,
    "(1 + scale)·x + (1 + shift)": lambda x, shift, scale: x * (1 + scale) + 1 + shift,
    "scale·x + (1 + shift)": lambda x, shift, scale: x * scale + 1 + shift,
    "(1 + scale + shift)·x": lambda x, shift, scale: x * (1 + scale + shift),
    "x + scale + shift": lambda x, shift, scale: x + scale + shift,
    "x / (1 + scale) + shift": lambda x, shift, scale: x / (1 + scale) + shift,
    "exp(scale)·x + shift": lambda x, shift, scale: x * np.exp(scale) + shift,
    "(1 + tanh(scale))·x + shift": lambda x, shift, scale: x * (1 + np.tanh(scale)) + shift,
    "modulated twice": lambda x, shift, scale: (x * (1 + scale) + shift) * (1 + scale) + shift,
}
_GATED: dict[str, Callable[[Array, Array, Array], Array]] = {
    "x + (1 + gate)·y": lambda x, gate, y: x + (1 + gate) * y,
    "x - gate·y": lambda x, gate, y: x - gate * y,
    "gate·x + y": lambda x, gate, y: gate * x + y,
    "gate·(x + y)": lambda x, gate, y: gate * (x + y),
    "(1 - gate)·x + gate·y": lambda x, gate, y: (1 - gate) * x + gate * y,
    "x + tanh(gate)·y": lambda x, gate, y: x + np.tanh(gate) * y,
    "x + sigmoid(gate)·y": lambda x, gate, y: x + 0.5 * (1 + np.tanh(0.5 * gate)) * y,
    "x + gate²·y": lambda x, gate, y: x + gate**2 * y,
    "x + gate + y": lambda x, gate, y: x + gate + y,
    "x + gate": lambda x, gate, y: x + gate + 0 * y,
}


@fault("modulation.formula", at=MODULATED, title="scale and shift are combined in another way", fix=SCALED_AND_SHIFTED)
def formula(p: TransformerPlace) -> Variants:
    """Other signs and orders."""
    for detail, function in _FORMULAS.items():
        yield detail, p.changed(modulate=function)


@fault(
    "modulation.formula", at=("mid", "out"), title="the gate is applied in another way",
    fix="hidden = hidden + gate * update",
)  # fmt: skip
def gate_formula(p: TransformerPlace) -> Variants:
    """Other signs and orders."""
    for detail, function in _GATED.items():
        yield detail, p.changed(gated_add=function)


@fault(
    "modulation.stream_swapped", at=tuple(ROLES), title="a stream is modulated with the other stream's vector",
    fix="img with the chunks of img_mod, txt with those of txt_mod",
)  # fmt: skip
def stream_swapped(p: TransformerPlace) -> Variants:
    """The vector of the other stream, in each half of zero_cond_t's batch where there is one."""

    def other(_: Array) -> list[Array]:
        theirs = p.of("mod", p.other_stream)
        batch = len(p.entering())
        if len(theirs) == batch and p.stream == "img":
            return [chunk[:, None] for chunk in np.split(theirs, 6, axis=-1)]
        return p.chunks(theirs[:batch])

    yield f"{p.other_stream}_mod", p.changed(chunks=other)


@fault(
    "modulation.silu_missing", at=("mod", "norm_out.mod"), title="the conditioning is not passed through SiLU",
    fix="mod = linear(silu(temb))",
)  # fmt: skip
def silu_missing(p: TransformerPlace) -> Variants:
    """Without it, and behind the linear layer instead of before."""
    yield "linear(temb)", p.changed(silu=lambda x: x)
    plain = p.changed(silu=lambda x: x)
    yield "silu(linear(temb))", plain.changed(linear=lambda x, layer: p.silu(p.linear(x, layer)))


@fault(
    "modulation.activation", at=("mod", "norm_out.mod"),
    title="the conditioning is passed through another activation than SiLU", fix="mod = linear(silu(temb))",
)  # fmt: skip
def activation(p: TransformerPlace) -> Variants:
    """Other activations, and SiLU on both sides of the linear layer."""
    for name, function in activations(but="SiLU"):
        if name != "no activation":
            yield name, p.changed(silu=function)
    yield "silu(linear(silu(temb)))", p.changed(linear=lambda x, layer: p.silu(p.linear(x, layer)))
