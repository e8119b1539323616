"""How a quantized layer is packed, found from its shapes and its true input width.

MLX stores neither bits nor group size. A row of `columns` uint32 words with `groups` scales may be read in more than
one way: 4 bits in groups of 64 take the same shapes as 8 bits in groups of 32. Only the width decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from parity.safetensors_header import Tensor, shown

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
_SCALES = ("F32", "F16", "BF16")


class Reading(NamedTuple):
    """One way to read packed shapes; `width` is the layer's input width that follows from it."""

    bits: int
    group_size: int
    width: int


def readings(columns: int, groups: int) -> tuple[Reading, ...]:
    """All ways to read rows of `columns` uint32 words with `groups` scales."""
    found = []
    for bits in BITS:
        width, rest = divmod(32 * columns, bits)
        if not rest and groups and width % groups == 0 and width // groups in GROUPS:
            found.append(Reading(bits, width // groups, width))
    return tuple(found)


def packed_shape(shape: tuple[int, ...], bits: int, group_size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the words and of the scales of a layer of `shape`; the width must divide by the group size."""
    return (*shape[:-1], shape[-1] * bits // 32), (*shape[:-1], shape[-1] // group_size)


def packing_problem(layer: str, parts: Mapping[str, Tensor]) -> str | None:
    """Why a layer with scales is no affine quantized one, or None.

    Args:
        layer: its name, for the message.
        parts: last part of the name (``weight``, ``scales``, ``biases``) -> tensor.
    """
    layer = shown(layer)
    weight, scales, biases = (parts.get(part) for part in ("weight", "scales", "biases"))
    if scales is None:
        return f"{layer} has biases of a quantized layer, but no scales"
    if scales.dtype == "U8":
        return (
            f"{layer} is quantized with scales of 8 bits (mxfp4, mxfp8 or nvfp4); only MLX's affine mode, with scales "
            "and biases, is read: quantize the original weights again in that mode"
        )
    if weight is None or biases is None:
        return f"{layer} has scales, but no {'weight' if weight is None else 'biases'}"
    if weight.dtype != "U32" or scales.dtype not in _SCALES or biases.dtype != scales.dtype:
        found = f"{weight.dtype} with scales {scales.dtype} and biases {biases.dtype}"
        return f"{layer} is {found}, expected U32 with both of one of {', '.join(_SCALES)}"
    same_rows = len(weight.shape) >= 2 and weight.shape[:-1] == scales.shape[:-1]
    if not same_rows or biases.shape != scales.shape:
        shapes = f"{list(weight.shape)} with scales {list(scales.shape)} and biases {list(biases.shape)}"
        return f"{layer} is {shapes}, expected the same rows in all three"
    return None


def choose(layer: str, weight: Tensor, scales: Tensor, width: int) -> Reading | str:
    """The reading that a layer's true input width leaves, or a sentence on why there is none."""
    possible = readings(weight.shape[-1], scales.shape[-1])
    fitting = [one for one in possible if one.width == width]
    if fitting:
        return fitting[0]
    shapes = f"{list(weight.shape)} with scales {list(scales.shape)}"
    if not possible:
        groups = ", ".join(map(str, GROUPS))
        return f"{shown(layer)} is {shapes}, which no packing of 2 to 8 bits in groups of {groups} gives"
    would = " or ".join(f"{one.width} at {one.bits} bits" for one in possible)
    return f"{shown(layer)} is {shapes}: an input width of {would}, expected {width}"
