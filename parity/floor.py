"""The floor of one checkpoint: how far the reference's own runs are from the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from parity.stats import Error, unit_roundoff

# A value that must be equal bit for bit has no noise.
EXACT: dict[str, Any] = {"floor": 0.0, "floor_by": "exact", "peak_floor": 0.0}


def floor_of(runs: Mapping[str, Error], expected: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """``floor``, ``floor_by`` and ``peak_floor`` of a row.

    Args:
        runs: label of each run of the reference (``rounding``, ``jitter.N``, ``precision.NAME``) -> its error.
        expected: the reference's array in the run's dtype.
        truth: the same in the truth's dtype.
    """
    roundoff = unit_roundoff(expected.dtype)
    floor_by, floor = _largest(runs, roundoff / 2)
    largest = float(np.abs(truth).max())
    return {
        "floor": floor,
        "floor_by": floor_by,
        # One rounding is off by up to one unit roundoff of the largest value.
        "peak_floor": max(roundoff * largest, *(run.max_abs for run in runs.values())),
    }


def _largest(runs: Mapping[str, Error], resolution: float) -> tuple[str, float]:
    """Which run is furthest from truth. NaN, of a run that is not finite, wins."""
    worst, by = resolution, "resolution"
    for label, one in runs.items():
        if math.isnan(one.rel_rmse) or one.rel_rmse > worst:
            kind, _, detail = label.partition(".")
            worst, by = one.rel_rmse, f"precision:{detail}" if kind == "precision" else kind
            if math.isnan(worst):
                break
    return by, worst
