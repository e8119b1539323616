"""What signs alone say of a checkpoint that no experiment explains: a broken kernel, other weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from parity.diagnosis.backend import check
from parity.diagnosis.evidence import IMPOSSIBLE, Local
from parity.diagnosis.fault import by_code
from parity.diagnosis.place import Array, Place, widened
from parity.diagnosis.result import Cause
from parity.diagnosis.ways import Backend
from parity.known_bugs import Bug

# A kernel's tile is not smaller, and begins at a multiple of it.
_TILE = 8
# Cosine below which two arrays of many elements have nothing to do with each other, in standard deviations.
_UNRELATED = 3.5


def signs(one: Local, backends: Sequence[Backend] = (), bugs: Sequence[Bug] = ()) -> list[Cause]:
    """Causes that are likely or possible; none where nothing speaks for one.

    Args:
        one: a wrong checkpoint without an explanation.
        backends: libraries on which the products of this place are made once more.
        bugs: known ones of the candidate's library.
    """
    if one.expected is None or one.value.shape != one.expected.shape or not one.place.layers():
        return []
    found = _replayed(one, backends, bugs)
    if found:
        return found
    if tile := _tile(one):
        cause = _cause("backend.kernel", "likely", one)
        cause.details.append(f"right but for {tile}")
        return [cause]
    if _unrelated(one):
        cause = _cause("weights.random", "possible", one)
        cause.details.append("what it computes has nothing to do with what these weights would give")
        return [cause]
    return []


def _cause(code: str, confidence: str, one: Local) -> Cause:
    fault = by_code(code)
    evidence: dict[str, Any] = {"excess": one.excess, "checkpoints": 1}
    return Cause(code, fault.title, fault.fix, fault.seen, confidence, [one.name], [], evidence)


def _tile(one: Local) -> str:
    """Rows or channels that a tile of a kernel could be, where all others are right; empty if there are none."""
    value, expected = widened(one.value), one.expected
    shape = (-1, int(np.prod(value.shape[2:]))) if value.ndim > 2 else value.shape
    off = ~(np.abs(value - expected).reshape(shape) <= 6 * max(one.floor.peak, 1e-300))
    for axis, what in ((0, "rows"), (1, "channels")):
        hit = np.flatnonzero(off.any(axis=1 - axis))
        count = off.shape[axis]
        whole = len(hit) and hit[-1] - hit[0] + 1 == len(hit)
        # Nearly all of a tile is wrong: a single element of it may agree by chance.
        dense = whole and off.take(hit, axis).mean() > 0.9
        ends = len(hit) and (hit[-1] + 1 == count or (hit[-1] + 1) % _TILE == 0)
        if dense and ends and _TILE <= len(hit) < count and hit[0] % _TILE == 0:
            return f"{what} {hit[0]} to {hit[-1]} of {count}"
    return ""


def _unrelated(one: Local) -> bool:
    """Whether value and expectation are uncorrelated, each of them of many different numbers."""
    a, b = widened(one.value).ravel(), one.expected.ravel()
    if not np.isfinite(a).all() or a.size < 256 or not a.std() or not b.std():
        return False
    cosine = float(np.corrcoef(a, b)[0, 1])
    return abs(cosine) * np.sqrt(a.size / max(1, one.value.shape[-2] if one.value.ndim > 2 else 1)) < _UNRELATED


def _replayed(one: Local, backends: Sequence[Backend], bugs: Sequence[Bug]) -> list[Cause]:
    """What the candidate's library makes of the place's products, in other ways as well."""
    found = []
    for layer, x in _products(one.place) if backends else ():
        arrays = {"x": x.reshape(-1, x.shape[-1]).astype(np.float32)}
        arrays["weight"] = one.place.weight(f"{layer}.weight").astype(np.float32)
        if (bias := one.place.bias(layer)) is not None:
            arrays["bias"] = bias.astype(np.float32)
        dtype = str(one.value.dtype)
        for finding in check("linear", arrays, backends, dtypes=(dtype,), bugs=bugs):
            cause = _cause(finding.code, finding.confidence, one)
            cause.details.append(finding.sentence)
            cause.evidence |= dict(finding.evidence)
            found.append(cause)
    return found


def _products(place: Place) -> list[tuple[str, Array]]:
    """(layer, input) of every product that a recipe makes."""
    seen: list[tuple[str, Array]] = []

    def linear(x: Array, layer: str) -> Array:
        seen.append((layer, x))
        return place.linear(x, layer)

    try:
        place.changed(linear=linear).recipe()
    except IMPOSSIBLE:
        return []
    return [(layer, x) for layer, x in seen if place.weight(f"{layer}.weight").ndim == 2]
