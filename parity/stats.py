"""Measures of one array and of two, on numpy arrays, in float64.

Statistics of one array are blind to permutations, cosine is blind to scale, and a root mean
square is blind to a single wrong element in a large array: a verdict looks at several.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

QUANTILES = (0.5, 0.9, 0.99, 0.999)
# Histogram of log2 |x|: one bin a binade, 2^-40 … 2^40, with one more at each end.
HISTOGRAM_LOW, HISTOGRAM_HIGH = -40, 40
BINADES = HISTOGRAM_HIGH - HISTOGRAM_LOW + 2
_EDGES = np.ldexp(np.float32(1), np.arange(HISTOGRAM_LOW, HISTOGRAM_HIGH + 1)).astype(np.float32)
# Arrays are measured in slices of this many elements: they stay in the cache, a large array costs no second
# copy, and OpenBLAS computes a dot product of this length at once instead of waking its threads (50 times slower).
SLICE = 1 << 13


@dataclass(frozen=True)
class ArrayStats:
    """What one array looks like.

    Finite values only enter the figures from `min` to `histogram`; `nan`, `pos_inf` and
    `neg_inf` count the others. Figures of an array without a finite value are NaN.

    Attributes:
        headroom: the dtype's maximum over `absmax`; inf for an array of zeros.
        quantiles: of |x|, at `QUANTILES`; empty where not asked for.
        histogram: counts of log2 |x| a binade each, under- and overflow bins at the ends;
            zeros are not in it; empty where not asked for.
        chunks: [min, max] of equal parts of the last axis, where asked for.
    """

    shape: tuple[int, ...]
    dtype: str
    count: int
    min: float
    max: float
    mean: float
    std: float
    rms: float
    absmax: float
    absmax_at: tuple[int, ...]
    nan: int
    pos_inf: int
    neg_inf: int
    zeros: int
    headroom: float
    quantiles: tuple[float, ...] = ()
    histogram: tuple[int, ...] = ()
    chunks: tuple[tuple[float, float], ...] = ()

    def brief(self) -> dict[str, Any]:
        """The figures that go into ``parity.json``."""
        brief: dict[str, Any] = {
            key: getattr(self, key) for key in ("min", "max", "mean", "std", "rms", "absmax", "nan", "headroom")
        }
        brief["inf"] = self.pos_inf + self.neg_inf
        if self.chunks:
            brief["chunks"] = [list(pair) for pair in self.chunks]
        return brief


def float64(x: np.ndarray) -> np.ndarray:
    """`x` in float64, itself where it is that already; bfloat16 is widened by its bits, which is quicker."""
    if x.dtype == ml_dtypes.bfloat16:
        bits = np.ascontiguousarray(x).view(np.uint16).astype(np.uint32) << 16
        x = bits.view(np.float32)
    return x.astype(np.float64, copy=False)


def maximum_of(dtype: np.dtype) -> float:
    """Largest finite value of a dtype, bfloat16 included."""
    if dtype.kind in "biu":
        return 1.0 if dtype.kind == "b" else float(np.iinfo(dtype).max)
    return float(ml_dtypes.finfo(dtype).max)


def unit_roundoff(dtype: np.dtype) -> float:
    """Half the distance from 1 to the next number: the largest relative error of one rounding. 0 for integers."""
    if dtype.kind in "biu":
        return 0.0
    return float(ml_dtypes.finfo(dtype).eps) / 2


def describe(x: np.ndarray, *, chunks: int = 0, distribution: bool = True) -> ArrayStats:
    """Measure one array of any shape; integers and booleans as numbers.

    Args:
        x: the array.
        chunks: also take the ranges of that many equal parts of the last axis.
        distribution: also take quantiles and histogram, which cost as much as all the rest.

    Raises:
        ValueError: an array without elements.
    """
    if x.size == 0:
        raise ValueError(f"an array of shape {x.shape} has nothing to measure")
    sums = Sums()
    flat = x.reshape(-1)
    for start in range(0, x.size, SLICE):
        sums.take(float64(flat[start : start + SLICE]), start)
    return described(x, sums, chunks=chunks, distribution=distribution)


def described(x: np.ndarray, sums: Sums, *, chunks: int = 0, distribution: bool = False) -> ArrayStats:
    """`describe` of an array whose slices are in `sums`."""
    n = sums.count
    ordered = _sorted_magnitudes(x.reshape(-1)) if distribution and n else None
    return ArrayStats(
        shape=x.shape,
        dtype=x.dtype.name,
        count=x.size,
        min=sums.min if n else math.nan,
        max=sums.max if n else math.nan,
        mean=sums.mean if n else math.nan,
        std=math.sqrt(sums.centred / n) if n else math.nan,
        rms=math.sqrt(sums.square / n) if n else math.nan,
        absmax=sums.absmax if n else math.nan,
        absmax_at=tuple(int(i) for i in np.unravel_index(sums.absmax_at, x.shape)),
        nan=sums.nan,
        pos_inf=sums.pos_inf,
        neg_inf=sums.neg_inf,
        zeros=sums.zeros,
        headroom=(maximum_of(x.dtype) / sums.absmax if sums.absmax else math.inf) if n else math.nan,
        quantiles=() if ordered is None else _quantiles(ordered),
        histogram=() if ordered is None else _histogram(ordered),
        chunks=_chunk_ranges(x, chunks) if chunks and x.ndim and x.shape[-1] % chunks == 0 else (),
    )


@dataclass
class Sums:
    """Running figures of the finite values of an array's slices."""

    count: int = 0
    min: float = math.inf
    max: float = -math.inf
    mean: float = 0.0
    centred: float = 0.0  # sum of squares about the mean
    square: float = 0.0
    absmax: float = -1.0
    absmax_at: int = 0
    nan: int = 0
    pos_inf: int = 0
    neg_inf: int = 0
    zeros: int = 0

    def take(self, values: np.ndarray, start: int) -> bool:
        """Add one slice, whose first element is number `start` of the array; whether all of it is finite."""
        low, high = float(values.min()), float(values.max())  # a NaN or infinity shows here
        where = None
        if not (math.isfinite(low) and math.isfinite(high)):
            self.nan += int(np.isnan(values).sum())
            self.pos_inf += int((values == np.inf).sum())
            self.neg_inf += int((values == -np.inf).sum())
            where = np.flatnonzero(np.isfinite(values))
            values = values[where]
            if values.size == 0:
                return False
            low, high = float(values.min()), float(values.max())
        self.min, self.max = min(self.min, low), max(self.max, high)
        if max(-low, high) > self.absmax:
            at = int(values.argmin()) if -low > high else int(values.argmax())
            self.absmax, self.absmax_at = max(-low, high), start + (at if where is None else int(where[at]))
        self.zeros += values.size - int(np.count_nonzero(values))
        self.square += float(np.dot(values, values))
        mean = float(values.mean())
        centred = values - mean
        total = self.count + values.size
        # Chan, Golub and LeVeque's update: no cancellation where the mean is large.
        self.centred += float(np.dot(centred, centred)) + (mean - self.mean) ** 2 * self.count * values.size / total
        self.mean += (mean - self.mean) * values.size / total
        self.count = total
        return where is None


def _sorted_magnitudes(flat: np.ndarray) -> np.ndarray:
    """|x| of the finite values, ascending, in float32 (which numpy sorts fastest)."""
    magnitude = np.abs(flat.astype(np.float32))
    magnitude.sort()
    return magnitude[: np.searchsorted(magnitude, np.inf)]


def _quantiles(ordered: np.ndarray) -> tuple[float, ...]:
    """Nearest-rank quantiles: values that occur."""
    if not ordered.size:
        return (math.nan,) * len(QUANTILES)
    return tuple(float(ordered[max(0, math.ceil(q * ordered.size) - 1)]) for q in QUANTILES)


def _histogram(ordered: np.ndarray) -> tuple[int, ...]:
    first = np.searchsorted(ordered, np.float32(0), side="right")
    return tuple(np.diff(np.searchsorted(ordered, _EDGES), prepend=first, append=ordered.size).tolist())


def binades(x: np.ndarray) -> tuple[int, ...]:
    """`ArrayStats.histogram` of an array alone, from the exponents of its float32, without sorting."""
    counts = np.zeros(256, np.int64)
    zeros, flat = 0, x.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, flat.size, SLICE):
            bits = flat[start : start + SLICE].astype(np.float32).view(np.uint32) & np.uint32(0x7FFFFFFF)
            counts += np.bincount(bits >> 23, minlength=256)
            zeros += bits.size - int(np.count_nonzero(bits))
    counts[0] -= zeros  # what is left there is subnormal
    # Exponent e holds 2^(e - 127) up to twice that; 255 is not finite.
    low, high = 127 + HISTOGRAM_LOW, 127 + HISTOGRAM_HIGH
    return (int(counts[:low].sum()), *counts[low:high].tolist(), int(counts[high:255].sum()))


def _chunk_ranges(x: np.ndarray, chunks: int) -> tuple[tuple[float, float], ...]:
    parts = np.split(float64(x).reshape(-1, x.shape[-1]), chunks, axis=1)
    return tuple((float(part.min()), float(part.max())) for part in parts)


@dataclass(frozen=True)
class Distance:
    """How far an array is from another of its shape.

    Attributes:
        rmse: root mean square of the difference.
        rel_rmse: `rmse` over the other's rms; inf where that is zero and the difference is not.
        max_abs: largest absolute difference.
        max_at: where.
        cosine: of the two as vectors; NaN where one of them is zero.
        psnr: 20 log10(peak-to-peak of the other / rmse) in dB; inf for equal arrays.
    """

    rmse: float
    rel_rmse: float
    max_abs: float
    max_at: tuple[int, ...]
    cosine: float
    psnr: float


@dataclass(frozen=True)
class Error:
    """The two figures of a difference that verdicts use; see `Distance`."""

    rel_rmse: float
    max_abs: float


def error(x: np.ndarray, truth: np.ndarray) -> Error:
    """Relative RMSE and largest absolute difference of `x` from `truth`, of one shape.

    Non-finite values make both figures non-finite; nothing is left out.
    """
    square = norm = largest = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for a, t in _slices(x, truth):
            difference = a - t
            square += float(np.dot(difference, difference))
            norm += float(np.dot(t, t))
            largest = _larger(largest, max(float(difference.max()), -float(difference.min())))
    # A NaN anywhere is in the sum of squares, wherever Python's max has put it.
    largest = math.nan if math.isnan(square) else largest
    return Error(_ratio(math.sqrt(square), math.sqrt(norm)), largest)


def distance(x: np.ndarray, other: np.ndarray) -> Distance:
    """All measures of two arrays of one shape.

    Raises:
        ValueError: the shapes differ, or there is nothing to compare.
    """
    square = norm_x = norm_o = dot = 0.0
    largest, largest_at, start = -1.0, 0, 0
    low, high = math.inf, -math.inf
    with np.errstate(invalid="ignore", over="ignore"):
        for a, o in _slices(x, other):
            difference = a - o
            square += float(np.dot(difference, difference))
            norm_x += float(np.dot(a, a))
            norm_o += float(np.dot(o, o))
            dot += float(np.dot(a, o))
            np.abs(difference, out=difference)
            at = int(difference.argmax())  # the first NaN, if there is one
            if math.isnan(difference[at]) or difference[at] > largest:
                largest, largest_at = _larger(largest, float(difference[at])), start + at
            low, high = min(low, float(o.min())), max(high, float(o.max()))
            start += a.size
    rmse = math.sqrt(square / x.size) if not math.isnan(square) else math.nan
    norm = math.sqrt(norm_x) * math.sqrt(norm_o)
    return Distance(
        rmse=rmse,
        rel_rmse=_ratio(rmse, math.sqrt(norm_o / x.size)),
        max_abs=largest,
        max_at=tuple(int(i) for i in np.unravel_index(largest_at, x.shape)),
        cosine=dot / norm if 0 < norm < math.inf else math.nan,
        psnr=_psnr(high - low, rmse),
    )


def mismatches(x: np.ndarray, other: np.ndarray) -> int:
    """How many values of two arrays of one shape differ. NaN equals NaN; 0 equals -0."""
    with np.errstate(invalid="ignore"):
        return sum(int(np.count_nonzero((a != o) & ~(np.isnan(a) & np.isnan(o)))) for a, o in _slices(x, other))


def _slices(x: np.ndarray, other: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if x.shape != other.shape:
        raise ValueError(f"shapes {x.shape} and {other.shape} differ")
    if x.size == 0:
        raise ValueError(f"arrays of shape {x.shape} have nothing to compare")
    x, other = x.reshape(-1), other.reshape(-1)
    for start in range(0, x.size, SLICE):
        yield float64(x[start : start + SLICE]), float64(other[start : start + SLICE])


def _larger(a: float, b: float) -> float:
    """The larger one; NaN wins, where Python's max would lose it."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def _ratio(a: float, b: float) -> float:
    if b == 0:
        return 0.0 if a == 0 else math.inf if not math.isnan(a) else math.nan
    return a / b


def _psnr(peak: float, rmse: float) -> float:
    if not (math.isfinite(peak) and math.isfinite(rmse)):
        return math.nan
    if rmse == 0:
        return math.inf
    return 20 * math.log10(peak / rmse) if peak > 0 else -math.inf
