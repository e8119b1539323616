"""LoRA as a side path: y = base(x) + scale·(x·Aᵀ)·Bᵀ, on plain and on quantized layers.

The base weights stay as they are. A LoRA's delta is about 1e-4 of them, below half a unit in the last place of
bfloat16: added to a bfloat16 or packed weight most of it would be rounded away.

The factors are held as the reference holds them: alpha / rank goes into A, in the dtype of the file, and both are
then rounded to the model's dtype. The user's scale and that of an adapter's config stay outside.

B batch, N tokens, I inputs, O outputs, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from parity.layouts.lora import Adapter, Pair, bind_file

from . import ops
from .layers import Linear, QuantizedLinear, owner_of


class SidePath(NamedTuple):
    """One LoRA on one layer. down: r I. up: O r. scale: what the product is multiplied by."""

    down: mx.array
    up: mx.array
    scale: float

    def __call__(self, x: mx.array) -> mx.array:
        """scale·(x·Aᵀ)·Bᵀ, B N O in the dtype of `x`, rounded after each of the three products."""
        return ops.linear(ops.linear(x, self.down), self.up) * self.scale


class Adapted(nn.Module):
    """A linear layer with side paths.

    Args:
        base: plain or quantized.
        sides: added in this order, each sum rounded.
    """

    def __init__(self, base: nn.Module, sides: Sequence[SidePath]) -> None:
        super().__init__()
        self.base = base
        self._sides = tuple(sides)  # the underscore keeps them out of the parameters

    def __call__(self, x: mx.array) -> mx.array:
        y = self.base(x)
        for side in self._sides:
            y = y + side(x)
        return y


class Adapters:
    """The LoRAs of one model: where their factors are, and which layers they go to.

    Args:
        adapters: files with the user's scales.
        model: without side paths yet; its layers say which names and shapes there are.

    Raises:
        LoraError: a file is damaged or of another model.
    """

    def __init__(self, adapters: Sequence[Adapter], model: nn.Module) -> None:
        shapes = linear_shapes(model) if adapters else {}
        self._bound = [(adapter, bind_file(adapter.path, shapes)) for adapter in adapters]

    def __bool__(self) -> bool:
        return bool(self._bound)

    def attach(self, model: nn.Module, dtype: mx.Dtype, hold: mx.Dtype, prefixes: Sequence[str] = ("",)) -> None:
        """Put side paths on layers whose base weights are loaded.

        Args:
            model: the whole model.
            dtype: of the values that will come.
            hold: dtype the factors are rounded to first.
            prefixes: of the names of the layers that are meant; by default all of them.
        """
        sides: dict[str, list[SidePath]] = {}
        for adapter, binding in self._bound:
            stored = mx.load(str(adapter.path))
            for layer, pair in binding.pairs.items():
                if any(f"{layer}.".startswith(f"{prefix}." if prefix else "") for prefix in prefixes):
                    down, up = (factor.astype(hold).astype(dtype) for factor in _factors(stored, pair))
                    sides.setdefault(layer, []).append(SidePath(down, up, adapter.scale * pair.multiplier))
        mx.eval([[side.down, side.up] for of_layer in sides.values() for side in of_layer])
        for layer, of_layer in sides.items():
            owner, name = owner_of(model, layer)
            owner[name] = Adapted(owner[name], of_layer)


def linear_shapes(model: nn.Module) -> Mapping[str, tuple[int, int]]:
    """Name -> (outputs, inputs) of every linear layer, packed or not."""
    return {name: shape for name, layer in model.named_modules() if (shape := _shape(layer)) is not None}


def _shape(layer: nn.Module) -> tuple[int, int] | None:
    if isinstance(layer, QuantizedLinear):
        return layer.scales.shape[0], layer.scales.shape[1] * layer.group_size
    return tuple(layer.weight.shape) if isinstance(layer, Linear) else None


def _factors(stored: Mapping[str, mx.array], pair: Pair) -> Iterator[mx.array]:
    """A and B in the file's dtype, with alpha / rank in them."""
    alpha = pair.rank if pair.alpha is None else stored[pair.alpha].astype(mx.float32).item()
    for key, part in zip((pair.down, pair.up), _split(alpha / pair.rank), strict=True):
        factor = stored[key]
        # Through float32: a number beside a bfloat16 array would be rounded to bfloat16 before the product.
        yield (factor.astype(mx.float32) * part).astype(factor.dtype)


def _split(scale: float) -> tuple[float, float]:
    """A scale shared out to A and B as diffusers does, lest A fall below float16's smallest numbers."""
    down, up = scale, 1.0
    while down * 2 < up:
        down, up = down * 2, up / 2
    return down, up
