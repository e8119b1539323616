"""Faults of quantized weights: unpacked with other parameters, or in another order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np

from parity.dequantize import unpack
from parity.diagnosis.fault import fault
from parity.diagnosis.place import Array, Place, Variants

_GROUPS = (16, 32, 64, 128)
_BITS = (2, 3, 4, 5, 6, 8)


def _packed(p: Place) -> Iterator[tuple[str, Array, Array, Array, int, int]]:
    """(layer, words, scales, biases, bits, group size) of the quantized layers of a recipe."""
    weights = p.values.weights
    for layer in p.layers():
        entry = getattr(weights, "entries", {}).get(f"{layer}.weight")
        if entry is None or entry.packing is None:
            continue
        packing = entry.packing
        words = weights.stored(type(packing.scales)(entry.file, entry.name))
        scales, biases = (weights.stored(place).astype(np.float64) for place in (packing.scales, packing.biases))
        yield layer, words, scales, biases, packing.bits, packing.group_size


def _with(p: Place, layer: str, make: Callable[[], Array]) -> Place:
    key = f"{layer}.weight"
    return p.changed(weight=lambda name: make() if name == key else p.weight(name))


def _restored(codes: Array, scales: Array, biases: Array, group: int) -> Array:
    """Weights from codes, each group of columns with its own scale and bias."""
    columns = codes.shape[-1]
    which = np.minimum(np.arange(columns) // group, scales.shape[-1] - 1)
    return codes * scales[..., which] + biases[..., which]


@fault(
    "quant.group_size", component="*", title="weights are dequantized with another group size",
    fix="take group_size from the shapes: inputs / scales.shape[-1] (64 in published 4-bit checkpoints)",
    seen="mflux files do not store it",
)  # fmt: skip
def group_size(p: Place) -> Variants:
    """Scales and biases of the wrong columns."""
    for layer, words, scales, biases, bits, group in _packed(p):
        for other in _GROUPS:
            if other != group:
                yield (
                    f"{other} for {group}",
                    _with(
                        p, layer, lambda w=words, s=scales, b=biases, n=bits, o=other: _restored(unpack(w, n), s, b, o)
                    ),
                )


@fault(
    "quant.bits", component="*", title="weights are dequantized with another number of bits",
    fix="take bits from the shapes: 32 · words / inputs, per layer (some layers are kept at 8 bits)",
    seen="mflux#517",
)  # fmt: skip
def bits(p: Place) -> Variants:
    """Codes cut at the wrong places; as many of them as there are columns."""
    for layer, words, scales, biases, own, group in _packed(p):
        columns = scales.shape[-1] * group
        for other in _BITS:
            if other != own:
                yield f"{other} for {own}", _with(
                    p, layer, lambda w=words, s=scales, b=biases, n=other, c=columns, g=group: _restored(
                        np.resize(unpack(w, n), (*w.shape[:-1], c)) if n else w, s, b, g)
                )  # fmt: skip


@fault(
    "quant.packing", component="*", title="packed codes are read in another order or with a sign",
    fix="codes follow each other from the lowest bits of each uint32, unsigned: (word >> bits·i) & mask",
)  # fmt: skip
def packing(p: Place) -> Variants:
    """Nibbles exchanged, words turned, signed codes, scales and biases exchanged."""
    for layer, words, scales, biases, n, group in _packed(p):
        per_word = 32 // n

        def turned(w: Array, n: int = n, per: int = per_word) -> Array:
            codes = unpack(w, n)
            return codes.reshape(*codes.shape[:-1], -1, per)[..., ::-1].reshape(codes.shape)

        def swapped(w: Array, n: int = n) -> Array:
            codes = unpack(w, n)
            return codes.reshape(*codes.shape[:-1], -1, 2)[..., ::-1].reshape(codes.shape)

        def signed(w: Array, n: int = n) -> Array:
            codes = unpack(w, n).astype(np.float64)
            return np.where(codes >= 1 << (n - 1), codes - (1 << n), codes)

        def centred(w: Array, n: int = n) -> Array:
            return unpack(w, n).astype(np.float64) - (1 << (n - 1))

        ways: dict[str, Callable[[Array], Array]] = {
            "signed codes": signed, "codes with their middle taken away": centred,
            "bytes of a word turned": lambda w, n=n: unpack(w.byteswap(), n),
        }  # fmt: skip
        if 32 % n == 0:
            ways |= {"highest bits first": turned, "neighbours exchanged": swapped}
        for said, read in ways.items():
            yield said, _with(p, layer, lambda w=words, s=scales, b=biases, g=group, r=read: _restored(r(w), s, b, g))
        plain = {
            "without biases": lambda w=words, s=scales, b=biases, g=group, n=n: _restored(unpack(w, n), s, b * 0, g),
            "biases subtracted": lambda w=words, s=scales, b=biases, g=group, n=n: _restored(unpack(w, n), s, -b, g),
            "scales and biases exchanged": lambda w=words, s=scales, b=biases, g=group, n=n: _restored(
                unpack(w, n), b, s, g),
            "not scaled": lambda w=words, n=n: unpack(w, n).astype(np.float64),
        }  # fmt: skip
        for said, make in plain.items():
            yield said, _with(p, layer, make)


@fault(
    "quant.modulation_low_bits", at=("mod", "norm_out.mod"), title="modulation is quantized to few bits",
    fix="keep `*_mod` (and norm_out) at 8 bits or in bfloat16", seen="mflux#484",
)  # fmt: skip
def modulation_low_bits(p: Place) -> Variants:
    """The layer's weight as MLX's affine quantization leaves it, at each width and group."""
    for layer in p.layers():
        weight = p.weight(f"{layer}.weight")
        for n in (2, 3, 4, 5, 6, 8):
            for group in (32, 64, 128):
                if weight.shape[1] % group == 0:
                    for said, dtype in (("", np.float32), (", scales in bfloat16", ml_dtypes.bfloat16)):
                        yield (
                            f"{n} bits, group {group}{said}",
                            _with(p, layer, lambda w=weight, n=n, g=group, d=dtype: quantized(w, n, g, d)),
                        )


def quantized(weight: Array, bits: int, group: int, dtype: type = np.float32) -> Array:
    """What affine quantization of a weight, O I, leaves of it, as `mlx.core.quantize` does it: in float32.

    The edge of a group that is further from zero is met exactly; a bias is there only where it is not zero.

    Args:
        dtype: of the stored scales and biases.
    """
    grouped = weight.astype(np.float32).reshape(len(weight), -1, group)
    low, high = grouped.min(-1, keepdims=True), grouped.max(-1, keepdims=True)
    levels = np.float32((1 << bits) - 1)
    scale = np.maximum((high - low) / levels, np.float32(1e-7))
    from_low = np.abs(low) > np.abs(high)
    scale = np.where(from_low, scale, -scale)
    edge = np.where(from_low, low, high)
    steps = np.rint(edge / scale)
    scale = np.where(steps != 0, edge / np.where(steps == 0, np.float32(1), steps), scale)
    bias = np.where(steps != 0, edge, np.float32(0))
    codes = np.clip(np.rint((grouped - bias) / scale), 0, levels)
    scale, bias = (x.astype(dtype).astype(np.float32) for x in (scale, bias))
    return (codes * scale + bias).reshape(weight.shape).astype(np.float64)
