"""Faults of the time embedding: the sinusoid of 1000·t and the two layers behind it.

B batch (2B with zero_cond_t). The sinusoid is B 256: cosines, then sines, at 128 frequencies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parity.diagnosis.arithmetic import NARROW, activations, rounded, rounded_like
from parity.diagnosis.estimates import period_of, time_scale_of
from parity.diagnosis.fault import fault
from parity.diagnosis.place import Array, Variants
from parity.diagnosis.recipes.transformer import TransformerPlace

PROJ = ("time.proj",)
SINUSOID = "angle = 1000 · t · 10000 ** -(arange(128) / 128); concatenate([cos(angle), sin(angle)])"
LAYERS = "temb = linear_2(silu(linear_1(sinusoid)))"
_SCALES = (1.0, 1e6, 10.0, 100.0, 250.0, 500.0, 999.0, 1001.0, 2000.0, 4000.0, 10000.0, 0.001)
_PERIODS = (100.0, 1000.0, 2000.0, 5000.0, 1e5, 1e6, 5e5, 256.0, 128.0, 20000.0)


def _with(p: TransformerPlace, **options: float) -> TransformerPlace:
    """The sinusoid with other options."""
    return p.changed(sinusoid=lambda timestep, **more: p.sinusoid(timestep, **(options | more)))


def _then(p: TransformerPlace, change: Callable[[Array], Array]) -> TransformerPlace:
    return p.changed(sinusoid=lambda timestep, **options: change(p.sinusoid(timestep, **options)))


@fault(
    "time.scale", at=PROJ, title="the timestep is not multiplied by 1000, or twice, or by something else",
    fix=SINUSOID, seen="mflux@acfc448",
)  # fmt: skip
def scale(p: TransformerPlace) -> Variants:
    """Usual factors, and whichever the candidate's slowest channel shows of different timesteps.

    Of a single timestep any function of it looks like another factor.
    """
    several = len(np.unique(p.timestep())) > 1
    found = time_scale_of(p.values.candidate.get(p.name), p.timestep()) if several else None
    listed = found is None or any(abs(found / one - 1) < 1e-3 for one in (*_SCALES, 1000.0))
    for factor in (*_SCALES, *(() if listed else (found,))):
        yield f"{factor:g}·t", _with(p, scale=factor)


@fault(
    "time.halves", at=PROJ, title="sine and cosine halves of the time embedding are exchanged", fix=SINUSOID,
    seen="flashinfer#3819",
)  # fmt: skip
def halves(p: TransformerPlace) -> Variants:
    """Sine first, or interleaved."""
    yield "sine first", _then(p, lambda x: np.roll(x, x.shape[-1] // 2, axis=-1))
    pairs = lambda x: x.reshape(len(x), 2, -1)  # noqa: E731
    yield "cosine and sine interleaved", _then(p, lambda x: pairs(x).swapaxes(1, 2).reshape(x.shape))
    yield "sine and cosine interleaved", _then(p, lambda x: pairs(x)[:, ::-1].swapaxes(1, 2).reshape(x.shape))
    yield "cosine twice", _then(p, lambda x: np.concatenate([x[:, : x.shape[1] // 2]] * 2, axis=-1))
    yield "sine twice", _then(p, lambda x: np.concatenate([x[:, x.shape[1] // 2 :]] * 2, axis=-1))


@fault("time.freq_shift", at=PROJ, title="the time embedding has other frequencies", fix=SINUSOID)
def freq_shift(p: TransformerPlace) -> Variants:
    """downscale_freq_shift 1, other periods, and whichever the candidate's slowest channel shows."""
    found = period_of(p.values.candidate.get(p.name), p.timestep())
    listed = found is None or any(abs(found / one - 1) < 1e-3 for one in (*_PERIODS, 10000.0))
    yield "downscale_freq_shift 1", _with(p, shift=1.0)
    for period in (*_PERIODS, *(() if listed else (found,))):
        yield f"max period {period:g}", _with(p, period=period)
    yield "downscale_freq_shift -1", _with(p, shift=-1.0)
    yield "exponents over 256", _with(p, shift=-128.0)
    yield "exponents over 64", _with(p, shift=64.0)
    yield "frequencies reversed", _then(p, lambda x: np.concatenate([h[:, ::-1] for h in np.split(x, 2, axis=1)], 1))
    yield "2π times as fast", _with(p, scale=2000 * np.pi)


@fault(
    "time.dtype", at=PROJ, title="the time embedding is rounded where the reference's is not",
    fix="timestep in the hidden dtype, then 1000·t, frequencies and sinusoid in float32", seen="mold#811",
)  # fmt: skip
def dtype(p: TransformerPlace) -> Variants:
    """Timestep, 1000·t, frequencies, angles or sinusoid in half precision."""
    for narrow in NARROW:
        for step in ("timestep", "1000·t", "frequencies", "angles", "sinusoid", "all"):
            yield f"{step} in {narrow}", p.changed(sinusoid=_sinusoid_in(p, narrow, step))


def _sinusoid_in(p: TransformerPlace, narrow: str, step: str) -> Callable[..., Array]:
    def sinusoid(timestep: Array, **options: Any) -> Array:
        def maybe(x: Array, name: str) -> Array:
            # float32 up to what is rounded further: noise would tip an angle to the next value.
            return rounded(x, narrow) if step in (name, "all") else x.astype(np.float32).astype(np.float64)

        given = {"scale": 1000.0, "shift": 0.0, "period": 10000.0} | options
        if step == "sinusoid":
            return rounded_like(p.sinusoid(timestep, **options), narrow, p.values.candidate.get(p.name))
        exponent = -np.log(given["period"]) * np.arange(128) / (128 - given["shift"])
        frequency = maybe(np.exp(exponent), "frequencies")
        scaled = maybe(maybe(timestep, "timestep") * given["scale"], "1000·t")
        angle = maybe(scaled[:, None] * frequency, "angles")
        made = np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)
        return rounded_like(made, narrow, p.values.candidate.get(p.name)) if step == "all" else made

    return sinusoid


@fault(
    "time.dtype", at=("time.linear_1",), title="the sinusoid is rounded before the first layer",
    fix="sinusoid in the hidden dtype, no narrower",
)  # fmt: skip
def input_dtype(p: TransformerPlace) -> Variants:
    """To half precision."""
    for narrow in NARROW:
        yield f"in {narrow}", p.changed(linear=lambda x, layer, narrow=narrow: p.linear(rounded(x, narrow), layer))


@fault("time.integer", at=PROJ, title="the timestep is made a whole number", fix=SINUSOID)
def integer(p: TransformerPlace) -> Variants:
    """1000·t cut off, rounded, or t itself."""
    for detail, whole in (
        ("1000·t cut off", lambda t: np.floor(1000 * t + 1e-9) / 1000),
        ("1000·t rounded", lambda t: np.rint(1000 * t) / 1000),
        ("1000·t rounded up", lambda t: np.ceil(1000 * t - 1e-9) / 1000),
        ("t cut off", np.floor),
        ("t rounded", np.rint),
    ):
        given = p.timestep()
        if not np.allclose(whole(given), given, rtol=0, atol=1e-7):
            yield detail, p.changed(timestep=lambda whole=whole: whole(p.timestep()))


@fault("time.reversed", at=PROJ, title="time runs the other way", fix="timestep = sigma, 1 for noise")
def reversed_(p: TransformerPlace) -> Variants:
    """1 - t, or the sign."""
    yield "1 - t", p.changed(timestep=lambda: 1 - p.timestep())
    if p.config.get("zero_cond_t"):
        yield "1 - t, not of conditions", p.changed(timestep=lambda: np.where(p.timestep() == 0, 0, 1 - p.timestep()))
    yield "-t", p.changed(timestep=lambda: -p.timestep())


@fault("time.silu_missing", at=("time.silu", "temb"), title="SiLU between the two time layers is left out", fix=LAYERS)
def silu_missing(p: TransformerPlace) -> Variants:
    """What linear_1 gave goes on."""
    if p.kind == "time.silu":
        yield "linear_1 goes on", p.changed(silu=lambda x: x)
    else:
        yield "linear_2(linear_1)", p.changed(linear=lambda x, layer: p.linear(p.values["time.linear_1"], layer))


@fault(
    "time.linear_order", at=("time.linear_1", "temb"),
    title="the time embedding's layers and activation are in another order",
    fix=LAYERS,
)  # fmt: skip
def linear_order(p: TransformerPlace) -> Variants:
    """SiLU before the first layer, behind the second, or both sides of it."""
    first = lambda x, layer: p.linear(p.values["time.linear_1"], layer)  # noqa: E731
    if p.kind == "temb":
        yield "silu(linear_2(linear_1))", p.changed(linear=lambda x, layer: p.silu(first(x, layer)))
        yield "linear_2(silu(silu(linear_1)))", p.changed(linear=lambda x, layer: p.linear(p.silu(x), layer))
        yield "linear_2 twice", p.changed(linear=lambda x, layer: p.linear(p.linear(x, layer), layer))
        yield "without linear_2", p.changed(linear=lambda x, layer: x)
    else:
        yield "linear_1(silu(sinusoid))", p.changed(linear=lambda x, layer: p.linear(p.silu(x), layer))
    yield "SiLU behind it as well", p.changed(linear=lambda x, layer: p.silu(p.linear(x, layer)))


@fault("time.activation", at=("time.silu",), title="the time embedding has another activation than SiLU", fix=LAYERS)
def activation(p: TransformerPlace) -> Variants:
    """Other activations."""
    for name, function in activations(but="SiLU"):
        if name != "no activation":
            yield name, p.changed(silu=function)
