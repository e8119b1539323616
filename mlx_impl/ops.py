"""The arithmetic of the model: products, norms, activations, attention.

B batch, N queries, K keys, H heads, d head width, D width.

On the CPU, half-precision and quantized products go through float32 BLAS: widen, multiply, add
the bias, round once. That accumulates in float32 as the native kernels do, and is 35 to 80
times faster. On a GPU the native kernels are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import product

import mlx.core as mx

_LOG2_E = 1.4426950408889634
_HUGE = 1e38  # finite, so that a row without any key to attend to stays a number
_EXP2_LIMIT = 126.0
# Adding it rounds to a whole number, whose low bits then hold that number plus float32's exponent bias.
_ROUNDER = float(3 * 2**22 + 127)
# 2^f on ±½, from Chebyshev interpolation; error below 2e-9 of the value.
_EXP2 = (1.0, 0.6931471824645996, 0.2402265071868896, 0.05550327152013779, 0.009618056938052177)
_EXP2 += (0.0013400427997112274, 0.00015461444854736328)
_GROUP = 16
# Attention on the CPU passes over its scores a dozen times: so many of them at a time stay in its cache.
SCORES_LIMIT = 2**20
# Inputs of a quantized product that kernels on GPUs get right. Measured with MLX 0.32.4 on CUDA: of 64 inputs, as
# img_in has them, and 16 rows or more the product is zeros, at any bits; from 128 inputs on it is right.
_FEWEST_INPUTS = 128
# Bytes of a slice of a weight in float32, which stays in the second-level cache; not fewer rows than a product needs.
_SLICE = 2 << 20
_FEWEST_ROWS = 128


def on_cpu() -> bool:
    """Whether new arrays are computed on the CPU."""
    return mx.default_device().type == mx.DeviceType.cpu


def fused(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """One kernel on a GPU. On the CPU compiling would need a C++ compiler at run time and seconds for each shape."""
    compiled = mx.compile(function)

    @wraps(function)
    def call(*arrays: mx.array) -> mx.array:
        return (function if on_cpu() else compiled)(*arrays)

    return call


def linear(x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """x·weightᵀ + bias, in the dtype of `x`.

    Args:
        x: … I. weight: O I. bias: O.
    """
    if on_cpu() and not (x.dtype == weight.dtype == mx.float32):
        return _wide_linear(x, bias, weight.shape, lambda rows: weight[rows].astype(mx.float32))
    y = x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)
    return y.astype(x.dtype)


def _wide_linear(
    x: mx.array, bias: mx.array | None, shape: Sequence[int], wide: Callable[[slice], mx.array]
) -> mx.array:
    """x·weightᵀ + bias in float32, rounded to the dtype of `x`, a few rows of the weight at a time.

    A slice that was just widened is still in the cache when it is multiplied, and no whole weight
    is ever held in float32: widening costs 10 % of the product instead of 50 %.

    Args:
        shape: of the weight, O I.
        wide: some rows of it in float32.
    """
    outputs, inputs = shape
    full = x.astype(mx.float32)
    bias = None if bias is None else bias.astype(mx.float32)
    rows = max(_FEWEST_ROWS, _SLICE // (4 * inputs))

    def of_rows(part: slice) -> mx.array:
        return full @ wide(part).T if bias is None else mx.addmm(bias[part], full, wide(part).T)

    parts = [of_rows(slice(start, start + rows)) for start in range(0, outputs, rows)]
    return (parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)).astype(x.dtype)


def quantized_linear(
    x: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    bias: mx.array | None = None,
    *,
    group_size: int,
    bits: int,
    mode: str = "affine",
) -> mx.array:
    """x·dequantize(weight)ᵀ + bias, in the dtype of `x`.

    Args:
        x: … I. weight: O I·bits/32 packed uint32. scales, biases: O I/group_size. bias: O.
    """
    if on_cpu() or x.shape[-1] < _FEWEST_INPUTS:
        # Widening scales and biases first: the dequantized weight is not rounded to half precision.
        if mode == "affine":
            scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)

        def dequantized(rows: slice) -> mx.array:
            offsets = None if biases is None else biases[rows]
            return mx.dequantize(weight[rows], scales[rows], offsets, group_size=group_size, bits=bits, mode=mode)

        return _wide_linear(x, bias, (weight.shape[0], x.shape[-1]), dequantized)
    y = mx.quantized_matmul(x, weight, scales, biases, transpose=True, group_size=group_size, bits=bits, mode=mode)
    return (y if bias is None else y + bias).astype(x.dtype)


def matmul(a: mx.array, b: mx.array) -> mx.array:
    """a·b over the last two axes, in the dtype of `a`."""
    if on_cpu():
        return (a.astype(mx.float32) @ b.astype(mx.float32)).astype(a.dtype)
    return a @ b


def attention(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None, scale: float) -> mx.array:
    """softmax(q·kᵀ·scale)·v, scores and softmax in float32.

    Args:
        q: B H N d. k, v: B H K d.
        mask: B 1 1 K or B 1 N K bool, True for keys to attend to. A row without any gives zeros, as in torch.
        scale: 1/√d in this model.

    Returns:
        B H N d in the dtype of `q`.
    """
    if not on_cpu():
        joint = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
        # Without any key the kernels give the mean of all values.
        return joint if mask is None else mx.where(mx.any(mask, axis=-1, keepdims=True), joint, 0)
    (batch, heads, length, _), keys = q.shape, k.shape[2]
    if batch * heads * length * keys <= SCORES_LIMIT:
        return _attention(q, k, v, mask, scale)
    # A few heads of one sample at a time; of a long sequence one head, and a few of its queries.
    at_once, queries = max(1, SCORES_LIMIT // (length * keys)), max(1, SCORES_LIMIT // keys)
    done: list[mx.array] = []
    for b, head, start in product(range(batch), range(0, heads, at_once), range(0, length, queries)):
        one, its, rows = slice(b, b + 1), slice(head, head + at_once), slice(start, start + queries)
        some = q[one, its, rows]
        # Else MLX works on many of them at once.
        some = mx.depends(some, done[-1]) if done else some
        seen = mask if mask is None else mask[one, :, rows if mask.shape[2] > 1 else slice(None)]
        done.append(_attention(some, k[one, its], v[one, its], seen, scale).reshape(-1, v.shape[-1]))
    return mx.concatenate(done).reshape(batch, heads, length, -1)


def _attention(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None, scale: float) -> mx.array:
    """See `attention`; all scores at once."""
    scores = (q.astype(mx.float32) * (scale * _LOG2_E)) @ k.astype(mx.float32).swapaxes(-1, -2)
    if mask is not None:
        # Adding 0 and multiplying by 1 change no bit, so a full mask equals none.
        scores = scores + mx.where(mask, 0.0, -_HUGE)
    weights = _exp2(mx.maximum(scores - mx.max(scores, axis=-1, keepdims=True), -_EXP2_LIMIT))
    total = _sum(weights)
    if mask is not None:
        weights = weights * mask.astype(mx.float32)
        total = _sum(weights)
        total = mx.where(total == 0, 1.0, total)
    return ((weights @ v.astype(mx.float32)) / total).astype(q.dtype)


def layer_norm(x: mx.array, eps: float) -> mx.array:
    """(x - mean) / √(variance + eps) over the last axis, computed in float32."""
    if not on_cpu():
        return mx.fast.layer_norm(x, None, None, eps)
    wide = x.astype(mx.float32)
    wide = wide - _mean(wide)
    return (wide / mx.sqrt(_mean(wide * wide) + eps)).astype(x.dtype)


def rms_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    """x / √(mean square + eps) · weight over the last axis, computed in float32."""
    if not on_cpu():
        return mx.fast.rms_norm(x, weight, eps)
    wide = x.astype(mx.float32)
    return (wide / mx.sqrt(_mean(wide * wide) + eps) * weight.astype(mx.float32)).astype(x.dtype)


@fused
def silu(x: mx.array) -> mx.array:
    """x·sigmoid(x), computed in float32."""
    wide = x.astype(mx.float32)
    return _gated(wide, wide).astype(x.dtype)


@fused
def gelu_tanh(x: mx.array) -> mx.array:
    """The tanh approximation of GELU, computed in float32.

    0.5·x·(1 + tanh u) = x·sigmoid(2u) needs one exponential, and keeps its digits where tanh u is near -1.
    """
    wide = x.astype(mx.float32)
    return _gated(wide, wide * (1.5957691216057308 + 0.07135481282553481 * (wide * wide))).astype(x.dtype)


@fused
def modulate(x: mx.array, shift: mx.array, scale: mx.array) -> mx.array:
    """x·(1 + scale) + shift, rounded once to the dtype of `x`."""
    wide, shift, scale = (array.astype(mx.float32) for array in (x, shift, scale))
    return (wide * (1 + scale) + shift).astype(x.dtype)


@fused
def gated_add(x: mx.array, gate: mx.array, y: mx.array) -> mx.array:
    """x + gate·y, rounded once to the dtype of `x`."""
    wide, gate, y = (array.astype(mx.float32) for array in (x, gate, y))
    return (wide + gate * y).astype(x.dtype)


def _gated(x: mx.array, logit: mx.array) -> mx.array:
    """x·sigmoid(logit) in float32."""
    if not on_cpu():
        return x / (1 + mx.exp(-logit))
    return x / (1 + _exp2(mx.clip(logit * -_LOG2_E, -_EXP2_LIMIT, _EXP2_LIMIT)))


def _exp2(x: mx.array) -> mx.array:
    """2ˣ for float32 within ±126; not-a-number stays so.

    Built of multiplications and additions because the CPU's exponential takes 25 ns an element,
    six times as long. x splits into a whole number, which becomes the exponent's bits, and a
    remainder within ±½, for a polynomial that is good to half an ulp.
    """
    shifted = x + _ROUNDER
    remainder = x - (shifted - _ROUNDER)
    power = mx.array(_EXP2[-1], dtype=mx.float32)
    for coefficient in _EXP2[-2::-1]:
        power = power * remainder + coefficient
    return power * (shifted.view(mx.int32) << 23).view(mx.float32)


def _mean(x: mx.array) -> mx.array:
    """Mean over the last axis, which stays with length 1."""
    return _sum(x) / x.shape[-1]


def _sum(x: mx.array) -> mx.array:
    """Sum over the last axis, which stays with length 1, in groups of 16, then groups of groups.

    The CPU's own sum adds one after the other: over 3072 channels its rounding is 8 times torch's.
    """
    length = x.shape[-1]
    if length <= _GROUP:
        return mx.sum(x, axis=-1, keepdims=True)
    whole = length - length % _GROUP
    groups = (x if whole == length else x[..., :whole]).reshape(*x.shape[:-1], whole // _GROUP, _GROUP)
    total = _sum(mx.sum(groups, axis=-1))
    return total if whole == length else total + mx.sum(x[..., whole:], axis=-1, keepdims=True)
