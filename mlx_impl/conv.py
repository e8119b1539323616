"""Convolutions on channels-last arrays, and work on pictures in stripes of rows.

B batch, T frames, N pictures, H W their height and width, C I channels in, O channels out, k kernel.

MLX's convolution on the CPU multiplies without BLAS, and over three axes it gathers 27 copies of its input at once.
Here patches are gathered for a few rows at a time and multiplied through BLAS: as fast as torch, in bounded memory.
Half precision goes through float32 and is rounded once. On a GPU the native kernels are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from . import ops

Pair = tuple[int, int]

# Values of gathered patches in one product; MLX may hold some twenty of them at a time.
_PATCHES = 1 << 19
# Values of a stripe whose intermediate results stay in the CPU's cache.
_STRIPE = 1 << 17


def conv3d(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    *,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[Pair] = ((0, 0), (0, 0), (0, 0)),
) -> mx.array:
    """Convolve over frames, rows and columns.

    Args:
        x: B T H W I.
        weight: O kT kH kW I. bias: O.
        stride: of frames, rows and columns.
        padding: zeros before and after each of the three.

    Returns:
        B T' H' W' O in the dtype of `x`.
    """
    if ops.on_cpu():
        return _by_patches(x, weight, bias, stride, padding)
    return _native(x, weight, bias, stride, padding)


def conv2d(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[Pair] = ((0, 0), (0, 0)),
) -> mx.array:
    """Convolve over rows and columns. x: N H W I, weight: O kH kW I, bias: O; the rest as in `conv3d`."""
    if weight.shape[1:3] == (1, 1) and tuple(stride) == (1, 1):
        return ops.linear(x, weight[:, 0, 0], bias)
    if ops.on_cpu():
        return _by_patches(x[:, None], weight[:, None], bias, (1, *stride), ((0, 0), *padding))[:, 0]
    return _native(x, weight, bias, stride, padding)


def in_stripes(function: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    """function(x), for a function of every pixel alone. On the CPU a few rows at a time, which is twice as fast.

    Args:
        x: … H W C.
    """
    height = x.shape[-3]
    rows = max(1, _STRIPE * height // max(1, x.size))
    if not ops.on_cpu() or rows >= height:
        return function(x)
    return mx.concatenate([function(x[..., r : r + rows, :, :]) for r in range(0, height, rows)], axis=-3)


def _native(x: mx.array, weight: mx.array, bias: mx.array, stride: Sequence[int], padding: Sequence[Pair]) -> mx.array:
    before, after = zip(*padding, strict=True)
    return mx.conv_general(x, weight, stride=stride, padding=(before, after)) + bias


def _by_patches(
    x: mx.array, weight: mx.array, bias: mx.array, stride: Sequence[int], padding: Sequence[Pair]
) -> mx.array:
    """The convolution as products of gathered patches, a stripe of output rows at a time."""
    outputs, *kernel, _ = weight.shape
    frames, height, width = (
        (n + sum(p) - k) // s + 1 for n, p, k, s in zip(x.shape[1:4], padding, kernel, stride, strict=True)
    )
    columns = weight.reshape(outputs, -1).astype(mx.float32).T
    bias = bias.astype(mx.float32)
    rows = max(1, _PATCHES // (len(x) * frames * width * columns.shape[0]))
    in_frames, (top, _), in_columns = padding
    stripes = []
    for first in range(0, height, rows):
        count = min(rows, height - first)
        # Input rows that the stripe sees, counted without the padding.
        low = first * stride[1] - top
        high = low + (count - 1) * stride[1] + kernel[1]
        seen = x[:, :, max(low, 0) : min(high, x.shape[2])].astype(mx.float32)
        outside = (max(-low, 0), max(high - x.shape[2], 0))
        seen = mx.pad(seen, ((0, 0), in_frames, outside, in_columns, (0, 0)))
        patches = _patches(seen, kernel, stride, (frames, count, width))
        y = mx.addmm(bias, patches.reshape(-1, columns.shape[0]), columns)
        stripes.append(y.reshape(len(x), frames, count, width, outputs).astype(x.dtype))
    return mx.concatenate(stripes, axis=2)


def _patches(x: mx.array, kernel: Sequence[int], stride: Sequence[int], out: Sequence[int]) -> mx.array:
    """A view of B T H W C with a patch for each place of the output: B T' H' W' kT kH kW C."""
    batch, *_, channels = x.shape
    steps = [1]
    for n in x.shape[:0:-1]:
        steps.insert(0, steps[0] * n)
    per_picture, *per_axis, per_channel = steps
    moved = [step * s for step, s in zip(per_axis, stride, strict=True)]
    return mx.as_strided(x, (batch, *out, *kernel, channels), (per_picture, *moved, *per_axis, per_channel))
