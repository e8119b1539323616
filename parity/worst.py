"""The elements of a checkpoint that are furthest from the truth, to look at: ``worst`` of a row.

They are looked for only where the figures are beyond a match already, so that a run at parity does not
pay for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from parity.stats import SLICE, Error, float64
from parity.verdict import DEFAULT

MOST = 5
# [index along each axis, the candidate's value, the truth's]
Element = tuple[list[int], float, float]


def of_measured(value: np.ndarray, truth: np.ndarray, error: Error, floor: Mapping[str, Any]) -> list[Element] | None:
    """The worst elements where the error is no match, else None.

    Args:
        value, truth: of one shape, with elements.
        error: of one against the other.
        floor: `parity.floor.floor_of` there; of values that must be equal, zeros.
    """
    limit, peak = DEFAULT.match * floor["floor"], DEFAULT.peak_match * floor["peak_floor"]
    # Written so that NaN, on either side, is beyond the limit.
    if error.rel_rmse <= limit and error.max_abs <= peak:
        return None
    return elements(value, truth) or None


def elements(value: np.ndarray, truth: np.ndarray, most: int = MOST) -> list[Element]:
    """Up to `most` elements with the largest error, largest first; equal ones in order of their index.

    An element that is not finite where the truth is comes before all others; elements that agree, as NaN
    and NaN or equal infinities do, are left out.

    Raises:
        ValueError: the shapes differ.
    """
    if value.shape != truth.shape:
        raise ValueError(f"shapes {value.shape} and {truth.shape} differ")
    flat, right = value.reshape(-1), truth.reshape(-1)
    found: list[tuple[float, int]] = []
    least = 0.0
    for start in range(0, flat.size, SLICE):
        off = _off(float64(flat[start : start + SLICE]), float64(right[start : start + SLICE]))
        # Once enough are found, most slices of a large array have nothing larger.
        if off.max() <= least:
            continue
        near = np.argsort(-off, kind="stable")[:most]
        found = sorted([*found, *((float(-off[i]), start + int(i)) for i in near if off[i] > 0)])[:most]
        if len(found) == most:
            least = -found[-1][0]
    return [(_index(i, value.shape), float(flat[i]), float(right[i])) for _, i in found]


def _off(value: np.ndarray, truth: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(value - truth)
    off[np.isnan(off)] = math.inf
    off[(value == truth) | (np.isnan(value) & np.isnan(truth))] = 0.0
    return off


def _index(flat: int, shape: tuple[int, ...]) -> list[int]:
    return [int(i) for i in np.unravel_index(flat, shape)]
