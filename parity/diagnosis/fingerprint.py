"""What relates a candidate's value to what the reference makes of its parents: relations, each with what it leaves.

A fingerprint names no cause. It is what is said of a divergence that no fault of the catalogue makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any

import numpy as np

from parity.diagnosis.arithmetic import NARROW, rounded
from parity.diagnosis.evidence import Local, Stage
from parity.diagnosis.measure import excess, residual
from parity.diagnosis.place import Array, widened

# A relation is worth telling if it leaves less than this share of the difference.
TELLING = 0.5
# Rows or channels that a search for a permutation looks at: it compares all pairs.
_MOST = 4096
_MARKS = 6

# (sentence, prediction)
Relation = tuple[str, Array]


def fingerprint(one: Local, stage: Stage) -> list[dict[str, Any]]:
    """Relations that leave the least, nearest first.

    Returns:
        each with ``relation`` (a sentence), ``residual`` (relative RMSE it leaves) and ``exact`` (met to rounding).
    """
    if one.expected is None:
        return []
    value = widened(one.value)
    marks = [_mark(text, np.nan, exact=False) for text in _plain(value, one.expected)]
    if value.dtype.kind != "f" or value.shape != one.expected.shape or not np.isfinite(value).all():
        return marks
    with np.errstate(all="ignore"):
        found = []
        for text, prediction in _relations(value, one.expected, stage, one):
            left = residual(value, prediction)
            if left.rms < TELLING * one.found.rms:
                found.append(_mark(text, left.rms, exact=excess(left, one.floor) <= 3))
        marks += [_mark(text, np.nan, exact=False) for text in _where(value, one)]
    return sorted(found, key=lambda mark: mark["residual"])[:_MARKS] + marks


def _mark(text: str, left: float, *, exact: bool) -> dict[str, Any]:
    return {"relation": text, "residual": left, "exact": exact}


def _plain(value: Array, expected: Array) -> Iterator[str]:
    """What needs no computation."""
    if value.shape != expected.shape:
        yield f"shape {value.shape}, expected {expected.shape}"
        if value.size == expected.size:
            yield "as many elements in another shape"
        return
    if value.dtype.kind != "f":
        yield f"{int((value != expected).sum()):,} of {value.size:,} values differ"
        return
    bad = ~np.isfinite(value)
    if bad.any():
        yield f"{int(np.isnan(value).sum()):,} NaN and {int(np.isinf(value).sum()):,} infinite of {value.size:,} values"
    elif not value.any():
        yield "all zeros"
    elif value.size > 1 and float(np.ptp(value)) == 0:
        yield f"one constant, {value.flat[0]:.6g}"


def _relations(c: Array, r: Array, stage: Stage, one: Local) -> Iterator[Relation]:
    yield from _affine(c, r)
    yield from _rearranged(c, r)
    yield from _moved(c, r)
    yield from ((f"rounded to {dtype}", rounded(r, dtype)) for dtype in NARROW)
    top, bottom = float(c.max()), float(c.min())
    yield f"clamped to {bottom:.4g} … {top:.4g}", np.clip(r, bottom, top)
    for name in stage.values.graph.names_of(stage.values.stage):
        if name != one.name and name in stage.values and stage.values.captured[name].shape == c.shape:
            yield f"it is the value of {name}", stage.values[name]


def _affine(c: Array, r: Array) -> Iterator[Relation]:
    """Scales and offsets, of all together and of each channel."""
    power = float((r * r).sum())
    if power:
        scale = float((c * r).sum()) / power
        yield f"{scale:.6g} times the reference's", scale * r
    offset = float((c - r).mean())
    yield f"the reference's and {offset:.4g} more everywhere", r + offset
    if r.size > 2 and float(r.std()):
        slope = float(np.cov(r.ravel(), c.ravel())[0, 1] / r.var(ddof=1))
        yield f"{slope:.4g} times the reference's and an offset", slope * (r - r.mean()) + c.mean()
    rows = int(np.prod(r.shape[:-1]))
    if r.ndim > 1 and rows >= 8:
        flat_c, flat_r = c.reshape(rows, -1), r.reshape(rows, -1)
        shift = (flat_c - flat_r).mean(0)
        yield "a constant of its own added to each channel", (flat_r + shift).reshape(r.shape)
        spread = flat_r - flat_r.mean(0)
        slopes = (spread * flat_c).sum(0) / np.where((s := (spread**2).sum(0)) == 0, 1, s)
        yield "each channel has a scale and an offset of its own", (slopes * spread + flat_c.mean(0)).reshape(r.shape)
        scales = (flat_c * flat_r).sum(1, keepdims=True) / np.maximum((flat_r**2).sum(1, keepdims=True), 1e-300)
        yield "each row has a scale of its own", (scales * flat_r).reshape(r.shape)


def _rearranged(c: Array, r: Array) -> Iterator[Relation]:
    """The same values at other places."""
    for axes in permutations(range(r.ndim)):
        if axes != tuple(range(r.ndim)) and np.prod([r.shape[a] for a in axes]) == c.size:
            turned = r.transpose(axes)
            if turned.shape == c.shape:
                yield f"its axes are exchanged to {axes}", turned
            else:
                yield f"a view with axes {axes} was read as a flat buffer", turned.reshape(c.shape)
    if r.ndim == 4:  # B N H d
        b, n, h, d = r.shape
        yield "heads and head width are exchanged", r.reshape(b, n, d, h).swapaxes(2, 3)
    for axis, what in ((-1, "channels"), (-2, "rows")):
        if r.ndim >= -axis and 1 < r.shape[axis] <= _MOST:
            order = _order(np.moveaxis(c, axis, 0), np.moveaxis(r, axis, 0))
            if order is not None and not np.array_equal(order, np.arange(len(order))):
                yield f"{what} permuted: {_spell(order)}", np.take(r, order, axis)


def _order(c: Array, r: Array) -> Array | None:
    """Index into r's first axis that is nearest to each entry of c's; None where it is no permutation."""
    c, r = c.reshape(len(c), -1), r.reshape(len(r), -1)
    far = (c**2).sum(1)[:, None] + (r**2).sum(1)[None] - 2 * c @ r.T
    order = far.argmin(1)
    return order if len(set(order.tolist())) == len(order) else None


def _spell(order: Array) -> str:
    """The rule of a permutation, or its beginning."""
    n = len(order)
    shift = int(order[0])
    if np.array_equal(order, (np.arange(n) + shift) % n):
        return f"rolled by {shift}" if 2 * shift != n else "halves exchanged"
    if np.array_equal(order, np.arange(n)[::-1]):
        return "reversed"
    for parts in range(2, min(n, 129)):
        if n % parts == 0:
            across = np.arange(n).reshape(parts, -1)
            if np.array_equal(order, across.T.ravel()):
                return f"interleaved from {parts} parts"
            blocks = order.reshape(parts, -1)
            if np.array_equal(blocks, across[blocks[:, 0] * parts // n]):
                return f"{parts} chunks in the order {(blocks[:, 0] * parts // n).tolist()[:12]}"
    return f"{order[:8].tolist()} …"


def _moved(c: Array, r: Array) -> Iterator[Relation]:
    """Rows that start too early or late; the rest is left as it is."""
    if r.ndim < 2:
        return
    n = r.shape[1] if r.ndim > 2 else r.shape[0]
    axis = 1 if r.ndim > 2 else 0
    for by in (*range(-4, 0), *range(1, 5)):
        if abs(by) < n:
            yield f"rows rolled by {by}", np.roll(r, by, axis)
    yield "negated", -r


def _where(c: Array, one: Local) -> Iterator[str]:
    """Which rows, channels or samples the difference is in, if not in all of them."""
    off = np.abs(c - one.expected) > max(one.floor.peak, 1e-300) * 4
    names = {3: ("sample", "row", "channel"), 4: ("sample", "row", "head", "channel"), 2: ("row", "channel")}
    for axis, what in enumerate(names.get(c.ndim, ())):
        others = tuple(a for a in range(c.ndim) if a != axis)
        hit = np.flatnonzero(off.any(axis=others))
        if 0 < len(hit) < c.shape[axis]:
            yield f"only in {what}{'s' if len(hit) > 1 else ''} {_range(hit)} of {c.shape[axis]}"


def _range(hit: Array) -> str:
    if len(hit) == 1:
        return str(hit[0])
    if hit[-1] - hit[0] + 1 == len(hit):
        return f"{hit[0]} to {hit[-1]}"
    return f"{', '.join(map(str, hit[:6]))}{' …' if len(hit) > 6 else ''} ({len(hit)})"
