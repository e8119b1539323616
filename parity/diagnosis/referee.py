"""Single operations in numpy: the referee of replayed kernels, in float64, and what rounding does to them.

The shapes of the arrays are those of ``mlx_impl.replay``. M rows, K inputs, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from parity.dequantize import dequantize
from parity.stats import maximum_of

Array = np.ndarray
Arrays = Mapping[str, Array]
Options = Mapping[str, Any]

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


@dataclass(frozen=True)
class Rounding:
    """How an operation is rounded.

    Attributes:
        step: what happens to the result of each elementary step.
        factor: what happens to the factors of matrix products before they are multiplied.
        serial: sums are added one after the other instead of pairwise; of products only for small ones.
    """

    step: Callable[[Array], Array] = lambda x: x
    factor: Callable[[Array], Array] = lambda x: x
    serial: bool = False

    def __call__(self, x: Array) -> Array:
        """A result of an elementary step."""
        return self.step(x)

    def mean(self, x: Array) -> Array:
        """Mean over the last axis, which stays with length 1."""
        total = np.cumsum(x, axis=-1)[..., -1:] if self.serial else x.sum(-1, keepdims=True)
        return self.step(total / x.dtype.type(x.shape[-1]))

    def product(self, x: Array, weight: Array) -> Array:
        """x·weightᵀ; x: … M K, weight: … O K; added up serially only where both have two axes."""
        if not self.serial or x.ndim > 2:
            return self.step(self.factor(x) @ self.factor(weight).swapaxes(-1, -2))
        return self.step(np.cumsum(x[:, None] * weight[None], axis=-1)[..., -1])


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        compute: its result from arrays of one dtype.
        rows: array and axis along which results are independent of each other; None where there is none.
        columns: arrays and axes to cut for a part of the result's columns or heads, and that axis of the result.
        sizes: of its arrays, by the names of `parity.known_bugs.SIZES`.
    """

    compute: Callable[[Arrays, Options, Rounding], Array]
    rows: tuple[str, int] | None
    columns: tuple[tuple[tuple[str, int], ...], int] | None
    sizes: Callable[[Arrays], dict[str, int]]


def rounded(arrays: Arrays, dtype: np.dtype) -> dict[str, Array]:
    """Floating arrays as a dtype holds them, in float32; others as they are."""
    with np.errstate(over="ignore"):
        return {
            name: array if array.dtype.kind in "biu" else array.astype(np.float32).astype(dtype).astype(np.float32)
            for name, array in arrays.items()
        }


def exact(op: str, arrays: Arrays, options: Options, factor: Callable[[Array], Array] = lambda x: x) -> Array:
    """The result in float64.

    Args:
        factor: what happens to the factors of matrix products before they are multiplied.
    """
    return OPS[op].compute(_widened(arrays, np.float64), options, Rounding(factor=factor))


def rounding_runs(op: str, arrays: Arrays, options: Options, dtype: np.dtype, *, serial: bool = False) -> list[Array]:
    """Legitimate results in a dtype: float32 throughout and rounded once, and rounded after each elementary step.

    Args:
        arrays: as the dtype holds them.
        serial: instead the one in which sums are added one after the other in float32; for few rows and columns.
    """

    def step(x: Array) -> Array:
        return x.astype(dtype).astype(np.float32)

    single = _widened(arrays, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        roundings = (Rounding(serial=True),) if serial else (Rounding(), Rounding(step))
        return [step(OPS[op].compute(single, options, one)) for one in roundings]


def shorter(mantissa: int, truncate: bool) -> Callable[[Array], Array]:
    """Gives an array a shorter mantissa, as a matrix unit of lower precision takes its factors.

    Args:
        mantissa: bits behind the point: 10 for TF32 and half precision, 7 for bfloat16.
        truncate: cut off instead of rounding to nearest.
    """
    low = 23 - mantissa

    def cut(array: Array) -> Array:
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        carry = np.uint32(0 if truncate else 1 << (low - 1))
        kept = (bits + carry) & np.uint32(0xFFFFFFFF << low & 0xFFFFFFFF)
        return kept.view(np.float32).astype(array.dtype)

    return cut


def fits(array: Array, dtype: np.dtype) -> bool:
    """Whether all finite values of an array are within a dtype's range."""
    finite = array[np.isfinite(array)]
    return not finite.size or float(np.abs(finite).max()) <= maximum_of(dtype)


def cost(op: str, arrays: Arrays) -> int:
    """About how many multiplications an operation takes."""
    sizes = OPS[op].sizes(arrays)
    if "scores" in sizes:
        return 2 * sizes["scores"] * arrays["q"].shape[-1]
    if op == "conv":
        return sizes["elements"] * math.prod(arrays["weight"].shape[:3])
    return sizes["rows"] * sizes["inputs"] * sizes.get("outputs", 1)


def _widened(arrays: Arrays, dtype: type) -> dict[str, Array]:
    return {name: one if one.dtype.kind in "biu" else one.astype(dtype) for name, one in arrays.items()}


def _affine(y: Array, a: Arrays, r: Rounding) -> Array:
    return r(y + a["bias"]) if "bias" in a else y


def _linear(a: Arrays, _: Options, r: Rounding) -> Array:
    return _affine(r.product(a["x"], a["weight"]), a, r)


def _quantized_linear(a: Arrays, o: Options, r: Rounding) -> Array:
    # Codes times scales are exact in float64 and within one rounding in float32.
    weight = dequantize(a["weight"], a["scales"], a["biases"], o["bits"], o["group_size"])
    if a["x"].dtype == np.float64:
        weight = _dequantized64(a, o)
    return _affine(r.product(a["x"], r(weight)), a, r)


def _dequantized64(a: Arrays, o: Options) -> Array:
    ones, none = np.ones(a["scales"].shape, np.float32), np.zeros(a["scales"].shape, np.float32)
    codes = dequantize(a["weight"], ones, none, o["bits"], o["group_size"]).astype(np.float64)
    grouped = codes.reshape(*codes.shape[:-1], -1, o["group_size"])
    return (grouped * a["scales"][..., None] + a["biases"][..., None]).reshape(codes.shape)


def _layer_norm(a: Arrays, o: Options, r: Rounding) -> Array:
    centred = r(a["x"] - r.mean(a["x"]))
    return r(centred / r(np.sqrt(r.mean(centred * centred) + a["x"].dtype.type(o["eps"]))))


def _rms_norm(a: Arrays, o: Options, r: Rounding) -> Array:
    root = r(np.sqrt(r.mean(a["x"] * a["x"]) + a["x"].dtype.type(o["eps"])))
    return r(r(a["x"] / root) * a["weight"])


def _sdpa(a: Arrays, o: Options, r: Rounding) -> Array:
    """Rows without any key to attend to are NaN: libraries agree on nothing there."""
    scores = r.product(r(a["q"] * a["q"].dtype.type(o["scale"])), a["k"])
    with np.errstate(invalid="ignore"):
        if "mask" in a:
            scores = np.where(a["mask"], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights = r(weights / weights.sum(-1, keepdims=True))
    return r.product(weights, a["v"].swapaxes(-1, -2))


def _gelu(a: Arrays, _: Options, r: Rounding) -> Array:
    x = a["x"]
    inner = r(r(x + r(0.044715 * x * x * x)) * x.dtype.type(math.sqrt(2 / math.pi)))
    # 0.5·(1 + tanh u) as a logistic function keeps its digits where tanh u is near -1.
    with np.errstate(over="ignore"):
        return r(x * r(1 / (1 + np.exp(-2 * inner))))


def _conv(a: Arrays, o: Options, r: Rounding) -> Array:
    x, weight, stride, pad = a["x"], a["weight"], o["stride"], o["padding"]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    _, kh, kw, _ = weight.shape
    height, width = ((n - k) // stride + 1 for n, k in zip(x.shape[1:3], (kh, kw), strict=True))
    y = np.zeros((x.shape[0], height, width, weight.shape[0]), x.dtype)
    for i in range(kh):
        for j in range(kw):
            part = x[:, i : i + height * stride : stride, j : j + width * stride : stride]
            y += r.factor(part) @ r.factor(weight[:, i, j]).T
    return _affine(r(y), a, r)


def _of_matrix(a: Arrays) -> dict[str, int]:
    rows, inputs = a["x"].shape
    found = {"rows": rows, "inputs": inputs, "elements": a["x"].size}
    if a.get("weight") is not None and a["weight"].ndim == 2:
        found |= {"outputs": a["weight"].shape[0], "products": rows * a["weight"].shape[0]}
    return found


def _of_attention(a: Arrays) -> dict[str, int]:
    batch, heads, queries, _ = a["q"].shape
    keys = a["k"].shape[2]
    return {"rows": queries, "keys": keys, "scores": batch * heads * queries * keys, "elements": a["q"].size}


def _of_picture(a: Arrays) -> dict[str, int]:
    batch, height, width, inputs = a["x"].shape
    return {"rows": batch * height * width, "inputs": inputs, "outputs": len(a["weight"]), "elements": a["x"].size}


_OUTPUTS = ((("weight", 0), ("scales", 0), ("biases", 0), ("bias", 0)), -1)
_HEADS = ((("q", 1), ("k", 1), ("v", 1), ("mask", 1)), 1)
OPS = {
    "linear": Op(_linear, ("x", 0), _OUTPUTS, _of_matrix),
    "quantized_linear": Op(_quantized_linear, ("x", 0), _OUTPUTS, _of_matrix),
    "layer_norm": Op(_layer_norm, ("x", 0), None, _of_matrix),
    "rms_norm": Op(_rms_norm, ("x", 0), None, _of_matrix),
    "sdpa": Op(_sdpa, ("q", 2), _HEADS, _of_attention),
    "gelu": Op(_gelu, ("x", 0), ((("x", 1),), -1), _of_matrix),
    "conv": Op(_conv, ("x", 0), _OUTPUTS, _of_picture),
}
