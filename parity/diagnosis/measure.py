"""How far a prediction is from what a candidate made, and the noise to judge it by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parity.stats import unit_roundoff


@dataclass(frozen=True)
class Residual:
    """A difference: relative RMSE, and the largest absolute one."""

    rms: float
    peak: float


FAR = Residual(np.inf, np.inf)


def residual(value: np.ndarray, prediction: np.ndarray) -> Residual:
    """What is left of a value when a prediction is taken away, relative to the prediction's rms.

    Where the prediction is not finite the value must be so as well, in the same way; only the others are measured.
    """
    if value.shape != prediction.shape:
        return FAR
    value, prediction = value.astype(np.float64), prediction.astype(np.float64)  # of masks and ids as well
    if not value.size:
        return Residual(0.0, 0.0)
    norm = float(np.linalg.norm(prediction))
    if not np.isfinite(norm):
        finite = np.isfinite(prediction)
        if not np.array_equal(value[~finite], prediction[~finite], equal_nan=True):
            return FAR
        value, prediction = value[finite], prediction[finite]
        if not value.size:
            return Residual(0.0, 0.0)
        norm = float(np.linalg.norm(prediction))
    difference = value - prediction
    far = float(np.linalg.norm(difference))
    if not np.isfinite(far):
        return FAR
    return Residual(0.0 if far == 0 else far / norm if norm else np.inf, float(np.abs(difference).max()))


def resolution(dtype: np.dtype, value: np.ndarray) -> Residual:
    """The least noise that rounding to a dtype leaves."""
    roundoff = unit_roundoff(dtype)
    finite = value[np.isfinite(value)]
    return Residual(roundoff / 2, roundoff * float(np.abs(finite).max()) if finite.size else 0.0)


def larger(*ones: Residual) -> Residual:
    """The larger of each figure."""
    return Residual(max(one.rms for one in ones), max(one.peak for one in ones))


def excess(found: Residual, floor: Residual) -> float:
    """A difference in units of the noise, on the scale of a verdict's excess.

    A single element counts for four times less, as in `parity.verdict.Thresholds`: an extreme varies more
    than a mean.
    """
    return max(_over(found.rms, floor.rms), _over(found.peak, floor.peak) / 4)


def _over(found: float, floor: float) -> float:
    if np.isnan(found):
        return float("inf")
    return found / floor if floor else (0.0 if found == 0 else float("inf"))
