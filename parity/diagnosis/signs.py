"""What signs alone say of a checkpoint that no experiment explains: a broken kernel, other weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from parity.diagnosis.backend import check
from parity.diagnosis.evidence import Local, Stage
from parity.diagnosis.fault import by_code
from parity.diagnosis.othermap import other_map
from parity.diagnosis.place import Array, Place, widened
from parity.diagnosis.products import last_product
from parity.diagnosis.result import Cause
from parity.diagnosis.sweep import boundaries
from parity.diagnosis.ways import Backend
from parity.known_bugs import Bug

# A kernel's tile is not smaller, and begins at a multiple of it.
_TILE = 8
# Fewer channels say nothing by being unlike.
_CHANNELS = 64
# Cosine below which two arrays have nothing to do with each other, in standard deviations of unrelated rows.
_UNRELATED = 3.5


def signs(
    one: Local, stage: Stage | None = None, backends: Sequence[Backend] = (), bugs: Sequence[Bug] = (), *,
    known: bool = False,
) -> list[Cause]:  # fmt: skip
    """Causes that are likely or possible; none where nothing speaks for one.

    Args:
        one: a wrong checkpoint without an explanation.
        stage: of it; to run it once more.
        backends: libraries on which the products of this place are made once more.
        bugs: known ones of the candidate's library.
        known: its like in another block was found to have other weights.
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
    if not _packed(one.place) and _unrelated(one):
        linear = stage is not None and other_map(one, stage)
        cause = _cause("weights.random", "proven" if linear else "likely" if known else "possible", one)
        said = (
            "it is linear in its input, with another weight" if linear else "unrelated to what its weights would give"
        )
        cause.details.append(said)
        return [cause]
    return []


def _packed(place: Place) -> bool:
    """Whether a layer is quantized: weights that are unpacked otherwise look like others."""
    entries = getattr(place.values.weights, "entries", {})
    found = (entries.get(f"{layer}.weight") for layer in place.layers())
    return any(entry is not None and entry.packing is not None for entry in found)


def _cause(code: str, confidence: str, one: Local) -> Cause:
    fault = by_code()[code]
    evidence: dict[str, Any] = {"excess": one.excess, "checkpoints": 1}
    return Cause(code, fault.title, fault.fix, fault.seen, confidence, [one.name], [], evidence)


def _tile(one: Local) -> str:
    """Rows that a tile of a kernel could be, where all others are right; empty if there are none.

    A row is right where its difference is within the floor as it is over all rows.
    """
    if one.value.ndim < 3:
        return ""
    rows = one.value.shape[-2] if one.value.ndim == 3 else one.value.shape[-3]
    value, expected = (
        widened(x).reshape(-1, rows, int(np.prod(x.shape[1:])) // rows) for x in (one.value, one.expected)
    )
    with np.errstate(all="ignore"):
        norms = np.sqrt((expected**2).mean((0, 2)))
        off = np.sqrt(((value - expected) ** 2).mean((0, 2))) / (one.floor.rms * max(float(norms.max()), 1e-300))
    hit = np.flatnonzero(~(off <= 10))
    if not len(hit) or not (np.delete(off, hit) <= 5).all():
        return ""
    whole = hit[-1] - hit[0] + 1 == len(hit) and hit[0] % _TILE == 0
    ends = hit[-1] + 1 == rows or (hit[-1] + 1) % _TILE == 0
    return f"rows {hit[0]} to {hit[-1]} of {rows}" if whole and ends and _TILE <= len(hit) < rows else ""


def _unrelated(one: Local) -> bool:
    """Whether value and expectation have nothing to do with each other, but for the layer's bias.

    Both are of many channels; rows are much alike, so that they do not count as so many more numbers.
    """
    bias = one.place.bias(one.place.layers()[-1])
    channels = int(np.prod(one.value.shape[min(2, one.value.ndim - 1) :]))  # of all heads
    flat = [widened(x).reshape(-1, channels) for x in (one.value, one.expected)]
    if not np.isfinite(flat[0]).all() or channels < _CHANNELS:
        return False
    offsets = [0.0] if bias is None or bias.shape != (channels,) else [0.0, bias]
    return min(_cosine(flat[0] - offset, flat[1] - offsets[-1]) for offset in offsets) * channels**0.5 < _UNRELATED


def _cosine(a: Array, b: Array) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return abs(float((a * b).sum())) / norms if norms else 1.0


def _replayed(one: Local, backends: Sequence[Backend], bugs: Sequence[Bug]) -> list[Cause]:
    """What the candidate's library gets wrong of the place's last product, where the candidate has that very result.

    A library may be wrong in some way on some device that this candidate never used.
    """
    product = last_product(one.place) if backends else None
    if product is None:
        return []
    arrays = {"x": product.x.reshape(-1, product.x.shape[-1]), "weight": one.place.weight(f"{product.layer}.weight")}
    if (bias := one.place.bias(product.layer)) is not None:
        arrays["bias"] = bias
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    dtype, value = str(one.value.dtype), one.value.reshape(-1, product.y.shape[-1])
    found = []
    for finding in check("linear", arrays, backends, dtypes=(dtype,), value=value, bugs=bugs):
        if not finding.evidence["candidate_has_it"]:
            continue
        cause = _cause(finding.code, finding.confidence, one)
        cause.details.append(finding.sentence)
        cause.evidence |= dict(finding.evidence)
        if finding.code == "backend.kernel":
            cause.details += _boundaries(arrays, backends[0], dtype)
        found.append(cause)
    return found


def _boundaries(arrays: dict[str, Array], backend: Backend, dtype: str) -> list[str]:
    """From which size on a broken product is right or wrong, in sentences."""
    found = boundaries("linear", arrays, backend, device=backend.devices()[0], dtype=dtype)
    return [one.sentence for one in found]
