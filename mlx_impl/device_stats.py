"""Statistics of an MLX array on the device it lives on, lazily: nothing is evaluated yet."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx


def lazy(x: mx.array) -> mx.array:
    """min, max, mean and rms of an array, as four float32 numbers on its device.

    A NaN anywhere makes mean and rms NaN.
    """
    wide = x.astype(mx.float32).reshape(-1)
    rms = mx.sqrt(mx.inner(wide, wide) / wide.size)
    return mx.stack([mx.min(wide), mx.max(wide), mx.mean(wide), rms])


def collect(values: Mapping[str, mx.array]) -> dict[str, tuple[float, ...]]:
    """Evaluate what `lazy` gave, in one go."""
    table = mx.stack(list(values.values())).tolist()
    return {name: tuple(row) for name, row in zip(values, table, strict=True)}
