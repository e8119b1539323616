"""Count sketches: 2048 numbers of an array from which its distance to another array can be told.

Element i of an array, counted from 0 in row-major order, is added to one bucket with one sign:

    x = (i + seed · 0x9E3779B9) mod 2³²
    x = x xor (x >> 16);  x = x · 0x7FEB352D mod 2³²
    x = x xor (x >> 15);  x = x · 0x846CA68B mod 2³²
    x = x xor (x >> 16)
    bucket = x mod k,  sign = −1 where bit 31 of x is set, else +1

k is a power of two, 2048 by default; sums are float64, in order of i. Elements that are not finite are left
out. The mapping S is linear, so S(a) − S(b) = S(a − b), and ‖S(e)‖² is ‖e‖² on average, with a relative
standard deviation of at most √(2/k). tests/data/sketch.json has inputs and their buckets; docs/traces.md says more.

Unlike statistics, a sketch sees permutations; unlike a fold of every k-th element, errors that sit in one
channel spread over all buckets. (A. Charikar, K. Chen and M. Farach-Colton, 2002; the mixing function is
C. Wellons' lowbias32.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from parity.stats import SLICE, float64

BUCKETS, SEED = 2048, 0
# Buckets are kept in 16 bits together with the sign.
MOST_BUCKETS = 1 << 15
# A bucket that sticks out this many standard deviations of the others holds a single large error.
_STICKS_OUT = 7.0


@dataclass(frozen=True)
class Spec:
    """Which sketch: number of buckets k and seed.

    Raises:
        ValueError: k is no power of two from 2 to 32,768, or the seed no unsigned 32-bit number.
    """

    buckets: int = BUCKETS
    seed: int = SEED

    def __post_init__(self) -> None:
        if type(self.buckets) is not int or not 2 <= self.buckets <= MOST_BUCKETS or self.buckets & (self.buckets - 1):
            raise ValueError(f"{self.buckets!r} buckets, expected a power of two from 2 to {MOST_BUCKETS}")
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed {self.seed!r}, expected a whole number from 0 to 2^32 - 1")

    @property
    def half_width(self) -> float:
        """Relative half width of the 95 % interval of an estimated norm: 1.96 / √(2 k); 3.1 % by default."""
        return 1.96 / math.sqrt(2 * self.buckets)


DEFAULT = Spec()


def hashes(start: int, stop: int, seed: int) -> np.ndarray:
    """The 32-bit hash of each index from `start` to `stop`, uint32. Indices count modulo 2³²."""
    x = np.arange(start, stop, dtype=np.uint64).astype(np.uint32)
    x += np.uint32(seed * 0x9E3779B9 & 0xFFFFFFFF)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


# Spec -> what `places` has made so far: those of a smaller array are the first of a larger one's.
_made: dict[Spec, np.ndarray] = {}
_STEP = 1 << 16


def places(count: int, spec: Spec = DEFAULT) -> np.ndarray:
    """bucket + k · (sign is −1) of the first `count` indices, uint16; kept, since checkpoints share them."""
    have = _made.get(spec, np.empty(0, np.uint16))
    if have.size < count:
        found = np.empty(math.ceil(count / _STEP) * _STEP, np.uint16)
        found[: have.size] = have
        for start in range(have.size, found.size, _STEP):
            x = hashes(start, start + _STEP, spec.seed)
            found[start : start + _STEP] = (x & np.uint32(spec.buckets - 1)) + (x >> np.uint32(31)) * spec.buckets
        _made.clear()  # of one spec at a time
        _made[spec] = have = found
    return have[:count]


class Sum:
    """A sketch in the making: slices are added in the order of the array."""

    def __init__(self, count: int, spec: Spec = DEFAULT) -> None:
        self._places, self._spec, self._start = places(count, spec), spec, 0
        self._sums = np.zeros(2 * spec.buckets)

    def add(self, values: np.ndarray) -> None:
        """Add the next elements, float64 and finite (zero where they were not)."""
        at = self._places[self._start : self._start + values.size]
        self._sums += np.bincount(at, values, self._sums.size)
        self._start += values.size

    @property
    def buckets(self) -> np.ndarray:
        """float64, k."""
        return self._sums[: self._spec.buckets] - self._sums[self._spec.buckets :]


def sketch(x: np.ndarray, spec: Spec = DEFAULT) -> np.ndarray:
    """The sketch of an array of any shape: float64, k."""
    made, flat = Sum(x.size, spec), x.reshape(-1)
    for start in range(0, x.size, SLICE):
        values = float64(flat[start : start + SLICE])
        if not math.isfinite(float(np.dot(values, values))):
            values = np.where(np.isfinite(values), values, 0.0)
        made.add(values)
    return made.buckets


@dataclass(frozen=True)
class Estimate:
    """What two sketches say of the difference of their arrays.

    Attributes:
        norm: of the difference; relative half width of its 95 % interval is `Spec.half_width`.
        peak: size of a single error that sticks out of all others; None where none does.
    """

    norm: float
    peak: float | None


def difference(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Estimate the difference of two arrays from their sketches.

    A bucket that holds one large error beside the sum of many small ones sticks out of the others; its
    distance from them is the error, to their standard deviation.
    """
    apart = np.abs(a - b)
    norm = float(np.sqrt(np.dot(apart, apart)))
    if not math.isfinite(norm):
        return Estimate(norm, None)
    apart.sort()
    largest, others = float(apart[-1]), apart[: -max(1, apart.size // 100)]
    filled = others[others > 0]
    scale = float(np.sqrt(np.mean(filled * filled))) if filled.size else 0.0
    return Estimate(norm, largest if largest > _STICKS_OUT * scale and largest > 0 else None)
