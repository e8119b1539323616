"""Arithmetic that faults have in common: activations, rounding to a narrower type, flat readings of a view."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import permutations

import ml_dtypes
import numpy as np
from scipy.special import erf, expit

from parity.diagnosis.place import Array

NARROW = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


def _gelu_with(constant: float) -> Callable[[Array], Array]:
    return lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + constant * x**3)))


def _silu(x: Array) -> Array:
    return x * expit(x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "no activation": lambda x: x,
    "exact GELU": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "tanh GELU": _gelu_with(0.044715),
    "quick GELU": lambda x: x * expit(1.702 * x),
    "SiLU": _silu,
    "SiLU twice": lambda x: _silu(_silu(x)),
    "ReLU": lambda x: np.maximum(x, 0.0),
    "squared ReLU": lambda x: np.maximum(x, 0.0) ** 2,
    "leaky ReLU": lambda x: np.where(x > 0, x, 0.01 * x),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "sigmoid": expit,
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(0.0, x),
    "Mish": lambda x: x * np.tanh(np.logaddexp(0.0, x)),
    "tanh GELU without its cubic term": _gelu_with(0.0),
}


def activations(*, but: str) -> Iterator[tuple[str, Callable[[Array], Array]]]:
    """All of them except the right one."""
    return ((name, function) for name, function in ACTIVATIONS.items() if name != but)


def rounded(x: Array, dtype: str) -> Array:
    """float64 values as ``bfloat16`` or ``float16`` holds them, infinite beyond its range."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32).astype(NARROW[dtype]).astype(np.float64)


def rounded_like(x: Array, dtype: str, candidate: Array | None) -> Array:
    """The same, where a value so near to the middle between two that noise decides falls as the candidate's did.

    Args:
        x: exact values.
        dtype: ``bfloat16`` or ``float16``.
        candidate: of the same shape; None, or one of another shape, decides nothing.
    """
    near = rounded(x, dtype)
    if candidate is None or candidate.shape != x.shape:
        return near
    candidate = candidate.astype(np.float64)
    # float32's noise, in which the value was made before it was rounded.
    slack = 4 * np.finfo(np.float32).eps * np.maximum(np.abs(x), 1.0)
    on_grid = rounded(candidate, dtype) == candidate
    as_near = np.abs(candidate - x) <= np.abs(near - x) + slack
    return np.where(on_grid & as_near, candidate, near)


def flat_readings(shape: tuple[int, ...]) -> Iterator[tuple[str, Callable[[Array], Array]]]:
    """Every way in which a transposed view of an array can be taken for a contiguous one of its shape.

    Two for each permutation of the axes: the memory is the transposed array's and is read as the plain one's, or
    the reverse.
    """
    axes = [i for i, size in enumerate(shape) if size > 1]
    sizes = tuple(shape[i] for i in axes)
    for order in permutations(range(len(axes))):
        if list(order) == sorted(order):
            continue
        whole = list(range(len(shape)))
        for slot, i in zip(axes, order, strict=True):
            whole[slot] = axes[i]
        shown = ", ".join(map(str, whole))
        yield f"axes ({shown}) written, read as if in order", _written(sizes, order)
        if tuple(sizes[i] for i in order) != sizes:
            yield f"written in order, read as axes ({shown})", _read(sizes, order)


def _written(sizes: tuple[int, ...], order: tuple[int, ...]) -> Callable[[Array], Array]:
    return lambda x: x.reshape(sizes).transpose(order).reshape(x.shape)


def _read(sizes: tuple[int, ...], order: tuple[int, ...]) -> Callable[[Array], Array]:
    moved, back = tuple(sizes[i] for i in order), tuple(np.argsort(order))
    return lambda x: x.reshape(moved).transpose(back).reshape(x.shape)
