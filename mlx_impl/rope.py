"""Positions: the timestep's sinusoid, the rotary tables, and the rotation.

B batch, N tokens, L image tokens, S text tokens, H heads, d head width.

Tables are (cos, sin) in float32, N d/2 2, from float32 angles as in the reference. They are
made on the host, once for the same shapes: no GPU of MLX rounds cosines better, and for 4096
tokens they take 10 ms, as long as two blocks do on a fast GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import mlx.core as mx
import numpy as np

from . import ops

THETA = 10000
MAX_POSITION = 4096
TIME_CHANNELS = 256
TIME_SCALE = 1000.0

Shape = tuple[int, int, int]


def timestep_sinusoid(timestep: mx.array) -> mx.array:
    """Cosines, then sines, of 1000·t at 128 frequencies (diffusers' ``get_timestep_embedding``).

    Args:
        timestep: B, in 0…1, of any dtype.

    Returns:
        B 256, float32 in every dtype.
    """
    half = TIME_CHANNELS // 2
    exponent = -math.log(THETA) * np.arange(half, dtype=np.float32) / np.float32(half)
    # Exponentials and powers here are rounded from float64: numpy's float32 ones differ between machines.
    frequency = mx.array(np.exp(exponent.astype(np.float64)).astype(np.float32))
    angle = TIME_SCALE * (timestep.astype(mx.float32)[:, None] * frequency)
    return mx.concatenate([mx.cos(angle), mx.sin(angle)], axis=-1)


def rotary_tables(
    img_shapes: Sequence[Shape], text_length: int, axes: Sequence[int], *, layered: bool = False
) -> tuple[mx.array, mx.array]:
    """Rotary tables of the image and text tokens, rows and columns centred on zero.

    Args:
        img_shapes: (frames, height, width) in tokens of each picture of one sample; picture i
            starts at frame i.
        text_length: S. Text starts behind the largest half side, on all three axes.
        axes: widths of the frame, row and column parts; their sum is d.
        layered: ``QwenEmbedLayer3DRope`` instead of ``QwenEmbedRope``: the last picture is the
            condition, at frame -1.

    Returns:
        L d/2 2 and S d/2 2, (cos, sin), float32.

    Raises:
        ValueError: a position outside the 4096 of the model, an odd axis, a shape that is none.
    """
    return _tables(tuple(map(tuple, img_shapes)), text_length, tuple(axes), layered)


@lru_cache(maxsize=8)
def _tables(
    img_shapes: tuple[Shape, ...], text_length: int, axes: tuple[int, ...], layered: bool
) -> tuple[mx.array, mx.array]:
    if any(axis % 2 for axis in axes):
        raise ValueError(f"axes_dims_rope {axes}: each axis must be even")
    if not img_shapes or any(len(shape) != 3 or min(shape) < 1 for shape in img_shapes):
        raise ValueError(f"img_shapes {list(img_shapes)}: expected at least one (frames, h, w), each at least 1")
    last = len(img_shapes) - 1
    text_start = max(max(height // 2, width // 2) for _, height, width in img_shapes)
    pictures = []
    for index, (frames, height, width) in enumerate(img_shapes):
        condition = layered and index == last
        if condition and frames != 1:
            raise ValueError(f"img_shapes {list(img_shapes)}: the condition (the last) has {frames} frames, expected 1")
        pictures.append(_grid(-1 if condition else index, frames, height, width))
    if layered:
        text_start = max(text_start, last)
    text = np.repeat(np.arange(text_start, text_start + text_length)[:, None], 3, axis=1)
    image = np.concatenate(pictures)
    for name, positions in (("image", image), ("text", text)):
        _check_positions(name, positions, img_shapes, text_length)
    frequencies = [_frequencies(axis) for axis in axes]
    return _table(image, frequencies), _table(text, frequencies)


def rotate(x: mx.array, table: mx.array) -> mx.array:
    """Rotate interleaved pairs (x0, x1), (x2, x3), … as complex numbers, in float32.

    Args:
        x: B N H d.
        table: N d/2 2, (cos, sin), float32.

    Returns:
        B N H d in the dtype of `x`.

    Raises:
        ValueError: the table is of another length or width.
    """
    if table.shape != (x.shape[1], x.shape[3] // 2, 2):
        raise ValueError(f"rotary table of shape {table.shape} for {x.shape[1]} tokens of head width {x.shape[3]}")
    if not ops.on_cpu():
        # Strided halves cost a GPU more than the arithmetic does.
        turned = x.astype(mx.float32).view(mx.complex64) * table.view(mx.complex64).swapaxes(1, 2)
        return turned.view(mx.float32).astype(x.dtype)
    # The reference multiplies complex numbers; these are its products and sums, at half the time on a CPU.
    pairs = x.astype(mx.float32).reshape(*x.shape[:-1], -1, 2)
    real, imaginary = pairs[..., 0], pairs[..., 1]
    cos, sin = table[:, None, :, 0], table[:, None, :, 1]
    turned = mx.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def _grid(frame: int, frames: int, height: int, width: int) -> np.ndarray:
    """Positions (frame, row, column) of each token of one picture, row-major."""
    axes = (
        np.arange(frame, frame + frames),
        np.arange(height) - (height - height // 2),
        np.arange(width) - (width - width // 2),
    )
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def _check_positions(name: str, positions: np.ndarray, img_shapes: Sequence[Shape], text_length: int) -> None:
    if positions.size and (positions.max() >= MAX_POSITION or positions.min() < -MAX_POSITION):
        raise ValueError(
            f"{name} positions {positions.min()}…{positions.max()} leave -{MAX_POSITION}…{MAX_POSITION - 1} "
            f"(pictures {list(img_shapes)}, {text_length} text tokens): use smaller pictures or a shorter prompt"
        )


def _frequencies(axis: int) -> np.ndarray:
    """Rounded to float32 at every step, as the reference computes them."""
    exponent = np.arange(0, axis, 2, dtype=np.float32) / np.float32(axis)
    return np.float32(1) / np.power(float(THETA), exponent.astype(np.float64)).astype(np.float32)


def _table(positions: np.ndarray, frequencies: Sequence[np.ndarray]) -> mx.array:
    parts = [np.outer(positions[:, i].astype(np.float32), f) for i, f in enumerate(frequencies)]
    # Rounded once from float64: the angle's own rounding is the reference's, the cosine's is nobody's.
    angle = np.concatenate(parts, axis=1).astype(np.float64)
    return mx.array(np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32))
