"""Faults of LoRAs: not applied, scaled otherwise, lost in the rounding of a fused weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from parity.diagnosis.arithmetic import NARROW, rounded
from parity.diagnosis.fault import fault
from parity.diagnosis.place import Array, Place, Variants
from parity.diagnosis.weights import LowRank


def _scaled(p: Place, factor: Callable[[LowRank], float]) -> Place:
    return p.changed(low_rank=lambda layer: [replace(one, scale=factor(one)) for one in p.low_rank(layer)])


def _worn(p: Place) -> list[LowRank]:
    return [one for layer in p.layers() for one in p.low_rank(layer)]


@fault(
    "lora.not_applied", component="*", title="a LoRA's pairs are not applied to this layer",
    fix="bind every pair of the file to a layer, and fail when a key is left over",
)  # fmt: skip
def not_applied(p: Place) -> Variants:
    """The layer alone."""
    if _worn(p):
        yield "no pair applied", _scaled(p, lambda _: 0.0)


@fault(
    "lora.scale", component="*", title="a LoRA is applied with another scale",
    fix="scale = alpha / rank · the user's factor (alpha is a tensor of the file; rank is A's first dimension)",
)  # fmt: skip
def scale(p: Place) -> Variants:
    """Alpha or rank ignored, the root of the rank, the user's factor forgotten or counted twice."""
    if not _worn(p):
        return
    yield "alpha / rank ignored", _scaled(p, lambda one: one.user)
    yield "rank ignored", _scaled(p, lambda one: (one.alpha or 1.0) * one.user)
    yield "1 / rank", _scaled(p, lambda one: one.user / len(one.down))
    yield "alpha / √rank", _scaled(p, lambda one: (one.alpha or len(one.down)) / len(one.down) ** 0.5 * one.user)
    yield "alpha / rank twice", _scaled(p, lambda one: one.scale**2 / one.user if one.user else 0.0)
    if any(one.user != 1 for one in _worn(p)):
        yield "the user's factor forgotten", _scaled(p, lambda one: one.scale / one.user if one.user else 0.0)
        yield "the user's factor twice", _scaled(p, lambda one: one.scale * one.user)
    yield "subtracted", _scaled(p, lambda one: -one.scale)
    for number in (0.5, 2.0, 4.0, 8.0, 16.0, 0.25, 0.125):
        yield f"{number:g} times as much", _scaled(p, lambda one, by=number: one.scale * by)


@fault(
    "lora.lost_in_precision", component="*", title="a LoRA is fused into a weight too coarse to hold it",
    fix="keep the LoRA as a side path, or fuse in float32 before anything is rounded or quantized",
)  # fmt: skip
def lost_in_precision(p: Place) -> Variants:
    """Added to the weight, and the sum rounded."""
    if not _worn(p):
        return
    for dtype in NARROW:

        def fused(key: str, dtype: str = dtype) -> Array:
            weight = p.weight(key)
            layer = key.removesuffix(".weight")
            if key == layer or layer not in p.layers():
                return weight
            delta = sum(one.scale * (one.up @ one.down) for one in p.low_rank(layer))
            return rounded(weight + delta, dtype)

        yield f"the fused weight is rounded to {dtype}", p.changed(weight=fused, low_rank=lambda _: [])
