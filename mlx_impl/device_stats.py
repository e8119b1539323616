"""Statistics of an MLX array on the device it lives on, lazily: nothing is evaluated yet."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from . import ops


def lazy(x: mx.array) -> mx.array:
    """min, max, mean and rms of an array, as four float32 numbers on its device.

    A NaN anywhere makes mean and rms NaN.
    """
    wide = x.astype(mx.float32).reshape(-1)
    # The inner product is one BLAS call on a CPU, and one slow block of threads on a GPU.
    square = mx.inner(wide, wide) / wide.size if ops.on_cpu() else mx.mean(mx.square(wide))
    return mx.stack([mx.min(wide), mx.max(wide), mx.mean(wide), mx.sqrt(square)])


def collect(values: Mapping[str, mx.array]) -> dict[str, tuple[float, ...]]:
    """Evaluate what `lazy` gave, in one go."""
    table = mx.stack(list(values.values())).tolist()
    return {name: tuple(row) for name, row in zip(values, table, strict=True)}
