"""Weights packed by ``mx.quantize``, numpy at the border. O outputs, I inputs."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .session import from_numpy, to_numpy
from .weights import mlx_dtype


def pack(weight: np.ndarray, bits: int, group_size: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One layer's weight, packed.

    Args:
        weight: O I; I is divisible by `group_size`.
        bits: of a code.
        group_size: inputs that share a scale and a bias.
        dtype: what the weight is rounded to first, and what scales and biases are in.

    Returns:
        words O I·bits/32 uint32, scales and biases O I/group_size.
    """
    packed = mx.quantize(from_numpy(weight).astype(mlx_dtype(dtype)), group_size=group_size, bits=bits)
    mx.eval(*packed)
    words, scales, biases = map(to_numpy, packed)
    return words, scales, biases


def restored(weight: np.ndarray, bits: int, group_size: int, dtype: str) -> np.ndarray:
    """What is left of a weight once it is packed: O I float32. See `pack`."""
    words, *affine = mx.quantize(from_numpy(weight).astype(mlx_dtype(dtype)), group_size=group_size, bits=bits)
    wide = (array.astype(mx.float32) for array in affine)
    return to_numpy(mx.dequantize(words, *wide, group_size=group_size, bits=bits))
