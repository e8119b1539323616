"""Faults of quantized weights: unpacked with other parameters, or in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import ml_dtypes
import numpy as np

from parity.dequantize import unpack
from parity.diagnosis.fault import fault
from parity.diagnosis.place import Array, Place, Variants
from parity.layouts.entries import Place as Stored

_GROUPS = (16, 32, 64, 128)
_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class _Layer:
    """A quantized layer as it is stored."""

    words: Array
    scales: Array
    biases: Array
    bits: int
    group: int

    def codes(self) -> Array:
        """O I."""
        return unpack(self.words, self.bits)

    def restored(
        self, codes: Array, *, scales: Array | None = None, biases: Array | None = None, group: int = 0
    ) -> Array:
        """Weights from codes, each group of columns with a scale and a bias of its own."""
        scales = self.scales if scales is None else scales
        biases = self.biases if biases is None else biases
        which = np.minimum(np.arange(codes.shape[-1]) // (group or self.group), scales.shape[-1] - 1)
        return codes * scales[..., which] + biases[..., which]


Way = Callable[[_Layer], Array]


def _packed(p: Place) -> dict[str, _Layer]:
    """The quantized layers of a recipe."""
    weights, found = p.values.weights, {}
    for layer in p.layers():
        entry = getattr(weights, "entries", {}).get(f"{layer}.weight")
        if entry is None or entry.packing is None:
            continue
        packing = entry.packing
        words = weights.stored(Stored(entry.file, entry.name))
        scales, biases = (weights.stored(place).astype(np.float64) for place in (packing.scales, packing.biases))
        found[layer] = _Layer(words, scales, biases, packing.bits, packing.group_size)
    return found


def _tried(p: Place, ways: Callable[[_Layer], Mapping[str, Way]]) -> Variants:
    """Every way in which a layer can be read, in all layers of the place, and where there are several in each alone."""
    layers = _packed(p)
    if not layers:
        return
    for said, way in ways(next(iter(layers.values()))).items():
        yield said, _read(p, layers, way)
        for name, layer in layers.items() if len(layers) > 1 else ():
            yield f"{said} in {name.rpartition('.')[2]} alone", _read(p, {name: layer}, way)


def _read(p: Place, layers: Mapping[str, _Layer], way: Way) -> Place:
    keys = {f"{name}.weight": layer for name, layer in layers.items()}
    return p.changed(weight=lambda key: way(keys[key]) if key in keys else p.weight(key))


@fault(
    "quant.group_size", component="*", title="weights are dequantized with another group size",
    fix="take group_size from the shapes: inputs / scales.shape[-1] (64 in published 4-bit checkpoints)",
    seen="mflux files do not store it",
)  # fmt: skip
def group_size(p: Place) -> Variants:
    """Scales and biases of the wrong columns."""
    yield from _tried(p, lambda layer: {
        f"{other} for {layer.group}": lambda one, n=other: one.restored(one.codes(), group=n)
        for other in _GROUPS if other != layer.group
    })  # fmt: skip


@fault(
    "quant.bits", component="*", title="weights are dequantized with another number of bits",
    fix="take bits from the shapes: 32 · words / inputs, per layer (some layers are kept at 8 bits)",
    seen="mflux#517",
)  # fmt: skip
def bits(p: Place) -> Variants:
    """Codes cut at the wrong places, as many of them as there are columns; or only the low bits of each."""

    def ways(layer: _Layer) -> dict[str, Way]:
        def cut(one: _Layer, n: int) -> Array:
            columns = one.scales.shape[-1] * one.group
            return one.restored(np.resize(unpack(one.words, n), (*one.words.shape[:-1], columns)))

        found: dict[str, Way] = {
            f"{n} for {layer.bits}": lambda one, n=n: cut(one, n) for n in _BITS if n != layer.bits
        }
        low = range(1, layer.bits)
        return found | {
            f"the low {n} bits of {layer.bits}": lambda one, n=n: one.restored(one.codes() & ((1 << n) - 1))
            for n in low
        }

    yield from _tried(p, ways)


@fault(
    "quant.packing", component="*", title="packed codes are read in another order or with a sign",
    fix="codes follow each other from the lowest bits of each uint32, unsigned: (word >> bits·i) & mask",
)  # fmt: skip
def packing(p: Place) -> Variants:
    """Nibbles exchanged, words turned, signed codes, scales and biases exchanged."""
    yield from _tried(p, _packings)


def _packings(layer: _Layer) -> dict[str, Way]:
    half, per_word = 1 << (layer.bits - 1), 32 // layer.bits

    def signed(codes: Array) -> Array:
        return np.where(codes >= half, codes.astype(np.float64) - 2 * half, codes)

    def turned(codes: Array, run: int) -> Array:
        return codes.reshape(*codes.shape[:-1], -1, run)[..., ::-1].reshape(codes.shape)

    ways: dict[str, Way] = {
        "signed codes": lambda one: one.restored(signed(one.codes())),
        "signed codes that begin at zero": lambda one: one.restored(one.codes() ^ half),
        "codes with their middle taken away": lambda one: one.restored(one.codes().astype(np.float64) - half),
        "bytes of a word turned": lambda one: one.restored(unpack(one.words.byteswap(), one.bits)),
        "without biases": lambda one: one.restored(one.codes(), biases=one.biases * 0),
        "biases subtracted": lambda one: one.restored(one.codes(), biases=-one.biases),
        "scales and biases exchanged": lambda one: one.restored(one.codes(), scales=one.biases, biases=one.scales),
        "not scaled": lambda one: one.codes().astype(np.float64),
    }  # fmt: skip
    if 32 % layer.bits == 0:
        ways["highest bits first"] = lambda one: one.restored(turned(one.codes(), per_word))
        ways["neighbours exchanged"] = lambda one: one.restored(turned(one.codes(), 2))
    return ways


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
                            _with(p, f"{layer}.weight", partial(quantized, weight, n, group, dtype)),
                        )


def _with(p: Place, key: str, make: Callable[[], Array]) -> Place:
    return p.changed(weight=lambda name: make() if name == key else p.weight(name))


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
