"""Rounding of states: to the run's dtype, to the truth's, and by one unit in the last place at random."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from parity.components.base import DTYPES

# Tables and noise levels are constants of the model, not values with noise of their own.
CONSTANT = ("rope.", "sched.")


def jitter(state: Mapping[str, np.ndarray], key: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Move every floating value of a state by one unit in the last place, up or down at random.

    The timestep is moved in float32 only: one unit of a bfloat16 timestep is four radians of
    the fastest sinusoid, which is another timestep and not noise. Rotary tables and noise levels
    are constants of the model and stay.

    Args:
        state: arrays by name, in the dtype of the run.
        key: seeds the generator (case, draw, stage), so that a resumed run draws the same.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    draw = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    moved = {}
    for name, array in sorted(state.items()):  # a state read back from a file comes in another order
        constant = array.dtype not in DTYPES.values() or name.startswith(CONSTANT)
        if constant or (name == "timestep" and array.dtype != np.float32):
            moved[name] = array
        else:
            moved[name] = _one_ulp(array, draw)
    return moved


def _one_ulp(array: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Step the magnitude, as an integer, by ±1. Zeros and non-finite values stay."""
    integer = np.dtype(f"u{array.dtype.itemsize}")
    bits = np.ascontiguousarray(array).view(integer)
    magnitude = bits & integer.type(np.iinfo(integer).max >> 1)
    infinity = np.array(np.inf, np.float32).astype(array.dtype).view(integer)
    movable = (magnitude > 1) & (magnitude < infinity - 1)
    up = draw.integers(0, 2, array.shape, dtype=np.uint8).astype(bool)
    one = integer.type(1)
    return np.where(movable, np.where(up, bits + one, bits - one), bits).view(array.dtype)


def round_state(state: Mapping[str, np.ndarray], dtype: np.dtype) -> dict[str, np.ndarray]:
    """Widen or round the floating arrays of a state, constants only up to float64."""
    wide = dtype == np.float64
    return {
        name: array.astype(dtype)
        if array.dtype in (*DTYPES.values(), np.float64) and (wide or not name.startswith(CONSTANT))
        else array
        for name, array in state.items()
    }
