"""Single numbers read off a candidate's value, to be put to the test by an experiment: nothing is proven by them.

N tokens, d head width. Tables are N d/2 2, (cos, sin).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parity.diagnosis.place import Array

# Text positions are looked for in this range.
_FURTHEST = 1 << 13


def _phasors(table: Array | None, width: int | None = None) -> Array | None:
    """The table as complex numbers; None where it is no rotary table."""
    if table is None or table.ndim != 3 or table.shape[-1] != 2 or (width and table.shape[1] != width):
        return None
    table = table.astype(np.float64)
    return table[..., 0] + 1j * table[..., 1] if np.isfinite(table).all() else None


def start_of(table: Array | None, frequencies: Sequence[Array]) -> int | None:
    """The whole number whose angles the first row of a text table has; None where none has."""
    speeds = np.concatenate(list(frequencies))
    found = _phasors(table, len(speeds))
    if found is None or not len(found):
        return None
    starts = np.arange(-_FURTHEST, _FURTHEST)
    off = np.abs(np.exp(1j * np.outer(starts, speeds)) - found[0]).max(axis=1)
    best = int(off.argmin())
    return int(starts[best]) if off[best] < 0.05 else None


def _turns(table: Array | None, positions: Array, axis: int) -> Array | None:
    """By how much each channel turns from one token to the next, where the position on an axis goes up by one."""
    found = _phasors(table)
    if found is None or len(found) != len(positions):
        return None
    steps = np.flatnonzero(np.diff(positions[:, axis]) == 1)
    return np.angle((found[steps + 1] * found[steps].conj()).sum(axis=0)) if len(steps) else None


def speed_of(table: Array | None, positions: Array) -> float | None:
    """Angle of the fastest channel for one step; 1 in a right table. None where it cannot be read off."""
    width = 0 if table is None or table.ndim != 3 else table.shape[1]
    for axis in (2, 1, 0):
        turns = _turns(table, positions, axis)
        # The fastest channel of an axis turns most.
        if turns is not None and width and (fastest := float(np.abs(turns).max())) > 1e-6:
            return float(f"{fastest:.5g}")
    return None


def base_of(table: Array | None, positions: Array, axes: Sequence[int]) -> float | None:
    """Base of a table's frequencies; None where it cannot be read off."""
    cuts = np.cumsum([0, *axes]) // 2
    for axis in (2, 1):
        turns = _turns(table, positions, axis)
        width = int(axes[axis])
        if turns is None or len(turns) != cuts[-1] or width < 4:
            continue
        own = turns[cuts[axis] : cuts[axis + 1]]
        # The fastest of the rest is told most sharply.
        if own[1] > 0:
            return float(f"{own[1] ** (-width / 2):.5g}")
    return None


def _slowest(sinusoid: Array | None, timestep: Array) -> tuple[float, float] | None:
    """(timestep, angle of the slowest channel) of the sample with the largest timestep."""
    if sinusoid is None or sinusoid.ndim != 2 or sinusoid.shape[1] % 2 or len(sinusoid) != len(timestep):
        return None
    row = int(np.argmax(timestep))
    time, last = float(timestep[row]), sinusoid.shape[1] // 2 - 1
    if time <= 0:
        return None
    angle = float(np.arctan2(float(sinusoid[row, -1]), float(sinusoid[row, last])))
    return (time, angle) if angle > 0 else None


def time_scale_of(sinusoid: Array | None, timestep: Array) -> float | None:
    """What timesteps were multiplied by, at the model's frequencies; None where it cannot be read off. B 256, B."""
    found = _slowest(sinusoid, timestep)
    return None if found is None else float(f"{found[1] / found[0] * 10000 ** (127 / 128):.5g}")


def period_of(sinusoid: Array | None, timestep: Array) -> float | None:
    """Longest period of a sinusoid of 1000·t; None where it cannot be read off. B 256, B."""
    found = _slowest(sinusoid, timestep)
    return None if found is None else float(f"{(1000 * found[0] / found[1]) ** (128 / 127):.5g}")
