"""What one way of computing an operation is worth: held against float64, in units of what rounding alone does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parity.diagnosis import referee
from parity.diagnosis.referee import Array, Arrays, Options
from parity.diagnosis.ways import Way, few, row_axis, sampled
from parity.stats import unit_roundoff

# An error so many times what rounding alone makes is wrong. Of clean operations on MLX's CPU kernels, over operations,
# dtypes, sizes and 80 seeds, the worst reached 2.9 (even seeds, which this was chosen on) and 2.5 (odd seeds).
LIMIT = 8.0
# Largest relative error that a shorter mantissa or accumulator makes, and how uneven it may lie over rows and columns.
_NOISE = {"float32": 0.02, "bfloat16": 0.3, "float16": 0.1}
_UNEVEN = 6.0
ACCUMULATOR = "an accumulator or mantissa of less precision"
_MANTISSAS = {"TF32 (factors of 10 bits)": 10, "bfloat16 (factors of 7 bits)": 7}


@dataclass(frozen=True)
class Measured:
    """One way and what came of it.

    Attributes:
        error: relative RMSE against float64; inf where values are not finite that should be.
        floor: the same of rounding alone.
        excess: how far the worst row or column is off, in units of the worst one of rounding alone.
        failed: the library's words where it refused.
        mode: the shorter mantissa or accumulator that explains the error; empty where none does.
        pattern: what is wrong with it: which rows and columns, zeros, not finite.
        made: the result, of the rows the referee looked at; None where there is none.
    """

    way: Way
    error: float = 0.0
    floor: float = 0.0
    excess: float = 0.0
    failed: str = ""
    mode: str = ""
    pattern: Mapping[str, Any] = field(default_factory=dict)
    made: Array | None = None

    @property
    def wrong(self) -> bool:
        """Whether it is off by more than rounding."""
        return not self.failed and not self.excess <= LIMIT


@dataclass(frozen=True)
class Judge:
    """The referee's result of one operation in one dtype, and what rounding alone makes of it.

    Attributes:
        arrays: as the dtype holds them.
        some: of the rows that are looked at.
        rows: which these are; None for all.
        exact: the result of these in float64.
        floors: of each legitimate rounding, see `floor`.
    """

    op: str
    arrays: Arrays
    some: Arrays
    options: Options
    dtype: str
    rows: Array | None
    exact: Array
    floors: tuple[tuple[float, float, float], ...]

    @classmethod
    def of(cls, op: str, arrays: Arrays, options: Options, dtype: str) -> Judge | None:
        """None where the values do not fit into the dtype, so that overflow would be right.

        Args:
            arrays: in any dtype; they are rounded to this one.
        """
        held = referee.DTYPES[dtype]
        if not all(referee.fits(one, held) for one in _floating(arrays)):
            return None
        arrays = referee.rounded(arrays, held)
        some, rows = sampled(op, arrays)
        exact = referee.exact(op, some, options)
        if not referee.fits(exact, held):
            return None
        floors = [_profile(run, exact, op) for run in referee.rounding_runs(op, some, options, held)]
        part = few(op, some)
        serial = referee.rounding_runs(op, part, options, held, serial=True)
        floors += [_profile(run, referee.exact(op, part, options), op) for run in serial]
        return cls(op, arrays, some, options, dtype, rows, exact, tuple(floors))

    @property
    def floor(self) -> tuple[float, float, float]:
        """Relative RMSE of the whole, of the worst row and of the worst column, of rounding alone."""
        least = unit_roundoff(referee.DTYPES[self.dtype]) / 2
        return tuple(max(least, *(one[i] for one in self.floors)) for i in range(3))  # type: ignore[return-value]

    def __call__(self, way: Way, made: Array | str) -> Measured:
        """Judge what one way made."""
        if isinstance(made, str):
            return Measured(way, failed=made)
        if made.shape != self.exact.shape:
            return Measured(way, failed=f"a result of shape {made.shape}, expected {self.exact.shape}")
        made = made.astype(np.float64)
        found = _profile(made, self.exact, self.op)
        excess = max(one / floor for one, floor in zip(found, self.floor, strict=True))
        one = Measured(way, found[0], self.floor[0], excess, made=made)
        return replace(one, mode=self._mode(made, found), pattern=self._pattern(made)) if one.wrong else one

    def _mode(self, made: Array, found: tuple[float, float, float]) -> str:
        """The shorter mantissa that explains an error, if one does."""
        if not found[0] <= _NOISE[self.dtype] or not self._even(made):
            return ""
        if self.dtype == "float32":
            for name, mantissa in _MANTISSAS.items():
                for truncate in (False, True):
                    expected = referee.exact(self.op, self.some, self.options, referee.shorter(mantissa, truncate))
                    if _profile(made, expected, self.op)[0] < found[0] / 3:
                        return name
        return ACCUMULATOR

    def _even(self, made: Array) -> bool:
        """Whether an error lies over all rows and columns alike, as rounding does."""
        for axes in _profile_axes(self.op, made.ndim):
            error = np.sqrt(np.mean((made - np.where(np.isnan(self.exact), made, self.exact)) ** 2, axis=axes))
            if error.size > 1 and not float(error.max()) <= _UNEVEN * float(np.median(error)):
                return False
        return True

    def _pattern(self, made: Array) -> dict[str, Any]:
        difference = np.abs(made - self.exact)
        scale = float(np.sqrt(np.nanmean(self.exact**2))) or 1.0
        bad = ~(difference <= max(self.floor[1], self.floor[2]) * LIMIT * 4 * scale) & np.isfinite(self.exact)
        found: dict[str, Any] = {"share": float(bad.mean())}
        if made.size and not np.count_nonzero(made):
            found["zeros"] = True
        if not np.isfinite(made[np.isfinite(self.exact)]).all():
            found["not_finite"] = int((~np.isfinite(made) & np.isfinite(self.exact)).sum())
        if self.op == "sdpa" or made.ndim == 2:
            axis = row_axis(self.op)
            rows = np.flatnonzero(bad.any(tuple(i for i in range(made.ndim) if i != axis)))
            rows = rows if self.rows is None else self.rows[rows]
            if rows.size:
                found["rows"] = [int(rows.min()), int(rows.max())]
        return found


def _floating(arrays: Arrays) -> list[Array]:
    return [one for one in arrays.values() if one.dtype.kind not in "biu"]


def _profile_axes(op: str, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes to average over for a row's error, and for a column's."""
    axis = row_axis(op)
    return tuple(i for i in range(ndim) if i != axis), tuple(range(ndim - 1))


def _profile(made: Array, exact: Array, op: str) -> tuple[float, float, float]:
    """Error of the whole, of the worst row and of the worst column, over the exact result's rms.

    What the referee has as NaN is not looked at; what is not finite besides makes it inf.
    """
    seen = np.isfinite(exact)
    if not seen.any():
        return 0.0, 0.0, 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(seen, made.astype(np.float64) - exact, 0.0)
    if not np.isfinite(difference).all():
        return np.inf, np.inf, np.inf
    scale = float(np.sqrt(np.mean(exact[seen] ** 2)))
    by_row, by_column = (float(np.sqrt(np.mean(difference**2, axis=a)).max()) for a in _profile_axes(op, made.ndim))
    whole = float(np.sqrt(np.mean(difference**2)))
    return tuple(0.0 if one == 0 else one / scale if scale else np.inf for one in (whole, by_row, by_column))  # type: ignore[return-value]
