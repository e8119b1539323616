"""Statistics and sketch of an array from one pass over it, in slices that stay in the cache.

A dump of tensors may have gigabytes: its arrays are mapped, each page is looked at once and given back at once.
"""

from __future__ import annotations

import mmap

import numpy as np

from parity.sketch import Spec, Sum
from parity.stats import SLICE, ArrayStats, Sums, described, float64

# Elements after which the pages of a mapped array are given back.
_SPAN = 1 << 24


def measure(x: np.ndarray, *, chunks: int = 0, spec: Spec | None = None) -> tuple[ArrayStats, np.ndarray | None]:
    """Measure an array as `parity.stats.describe` does, without quantiles and histogram, and sketch it.

    Args:
        x: of any shape, not empty.
        chunks: also take the ranges of that many equal parts of the last axis.
        spec: which sketch to make; none where it is None.

    Returns:
        the statistics, and the sketch.
    """
    sums, flat = Sums(), x.reshape(-1)
    made = None if spec is None else Sum(x.size, spec)
    for start in range(0, x.size, SLICE):
        values = float64(flat[start : start + SLICE])
        finite = sums.take(values, start)
        if made is not None:
            made.add(values if finite else np.where(np.isfinite(values), values, 0.0))
        if start and start % _SPAN == 0:
            release(x)
    found = described(x, sums, chunks=chunks)
    release(x)
    return found, None if made is None else made.buckets


def release(x: np.ndarray) -> None:
    """Give back the memory of a mapped array's pages, which come again from the file when they are looked at."""
    if x.flags.writeable:  # a private map would lose what was written
        return
    base = x
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None) if not isinstance(base, memoryview) else base.obj
    if base is not None and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
