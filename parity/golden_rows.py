"""Rows of ``parity.json`` from a golden trace and from what a port dumped.

What can be said depends on what there is of a checkpoint (``evidence`` of its row):

    values      both sides whole: measured as in a run
    sketch      two sketches: RMSE within `parity.sketch.Spec.half_width`, and a single large error where
                one sticks out. Permutations are seen
    statistics  of one side only: a bound. The error is at least the difference of the means, and of the root
                mean squares; more than that is not known
    range       smallest and largest value: off by more than the largest error of the reference's own runs
                allows, or not

Sketches and values give verdicts. The other two can prove a divergence and never parity: where they agree, a
checkpoint is uncertain and the comparison incomplete.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from parity import worst
from parity.golden import Golden
from parity.imports.base import Reading
from parity.rangetable import MOD_CHUNKS
from parity.sketch import difference
from parity.stats import Error, distance, error, mismatches
from parity.trace import Floor

Row = dict[str, Any]
_FIGURES = ("min", "max", "mean", "std", "rms", "absmax", "nan", "headroom", "inf")


def row_of(golden: Golden, name: str, reading: Reading | None) -> Row:
    """One row of ``parity.json``, without its verdict.

    Args:
        golden: what the reference says.
        name: of a checkpoint that it expects.
        reading: what the candidate has; None where it has nothing.
    """
    floor, expected = golden.floors[name], golden.shape(name)
    row = {
        "name": name,
        "stage": golden.graph.stage[name],
        "status": "missing" if reading is None else "measured",
        "reason": "",
        "evidence": None,
        "uncertainty": None,
        "resolution": None,
        "ends": None,
        "mismatches": None,
        "shape": None,
        "expected_shape": list(expected),
        "dtype": reading.dtype if reading else None,
        "rel_rmse": None,
        "peak": None,
        "floor": floor.floor,
        "floor_by": floor.floor_by,
        "peak_floor": floor.peak_floor,
        "precision": floor.precision,
        "quantization": None,
        **dict.fromkeys(("rmse", "max_abs", "max_at", "cosine", "psnr", "worst")),
        "reference": _brief(golden.trace.stats[name]),
        "candidate": None,
        "range": None,
    }
    if reading is None:
        return row
    row["shape"] = list(expected if reading.shape is None else fitted(reading.shape, expected))
    row["candidate"] = _figures(reading)
    if row["shape"] == row["expected_shape"]:
        row |= _measured(golden, name, reading, floor)
    return row


def fitted(shape: tuple[int, ...], expected: tuple[int, ...]) -> tuple[int, ...]:
    """A shape with one axis of length 1 in front more or less, where that is all that keeps it from the expected."""
    return expected if (1, *shape) == expected or shape == (1, *expected) else shape


def _measured(golden: Golden, name: str, reading: Reading, floor: Floor) -> Row:
    """The figures of a checkpoint of the right shape, from the best evidence there is."""
    truth = golden.values(name) if reading.array is not None else None
    if name in golden.graph.exact:
        return _of_exact(truth, reading, floor)
    if truth is not None:
        return _of_values(reading.array.reshape(truth.shape), truth, floor)
    if reading.sketch is not None:
        return _of_sketches(golden, name, reading, floor)
    stats = reading.stats or {}
    if stats.get("rms") is not None:
        return {"evidence": "statistics", "rel_rmse": _bound(stats, golden.trace.stats[name], floor)}
    return {"evidence": "range", "resolution": reading.resolution, "ends": _ends(stats, golden.trace.stats[name])}


def _ends(stats: Mapping[str, Any], reference: Mapping[str, Any]) -> list[list[float]]:
    """The candidate's range, and the reference's of the same: of the whole, or of some chunks.

    A log's scales are of one of two modulations, or of both; of these the nearest is taken.
    """
    if "only" not in stats:
        return [[stats["min"], stats["max"]], [reference["min"], reference["max"]]]
    found = [stats["low"], stats["high"]]
    chunks = [reference["chunks"][MOD_CHUNKS.index(one)] for one in stats["only"]] if reference.get("chunks") else []
    if not chunks:
        return [found, [reference["min"], reference["max"]]]
    both = [min(low for low, _ in chunks), max(high for _, high in chunks)]
    return [found, list(min([both, *chunks], key=lambda one: math.dist(one, found)))]


def _of_exact(expected: np.ndarray | None, reading: Reading, floor: Floor) -> Row:
    if expected is None or reading.array is None:
        return {"evidence": "statistics"}
    array = reading.array.reshape(expected.shape)
    found = error(array, expected)
    return {
        "evidence": "values", "mismatches": mismatches(array, expected),
        "rel_rmse": found.rel_rmse, "peak": found.max_abs,
        "worst": worst.of_measured(array, expected, found, vars(floor)),
    }  # fmt: skip


def _of_values(array: np.ndarray, truth: np.ndarray, floor: Floor) -> Row:
    far = distance(array, truth)
    return {
        "evidence": "values", "rel_rmse": far.rel_rmse, "peak": far.max_abs,
        "rmse": far.rmse, "max_abs": far.max_abs, "max_at": list(far.max_at), "cosine": far.cosine, "psnr": far.psnr,
        "worst": worst.of_measured(array, truth, Error(far.rel_rmse, far.max_abs), vars(floor)),
    }  # fmt: skip


def _of_sketches(golden: Golden, name: str, reading: Reading, floor: Floor) -> Row:
    """RMSE from two sketches, and the cosine that follows from it and the norms, which are known."""
    found = difference(reading.sketch, golden.trace.sketches[name])
    rmse, rms = found.norm / math.sqrt(math.prod(golden.shape(name))), floor.truth_rms
    relative = rmse / rms if rms else 0.0 if rmse == 0 else math.inf
    own = (reading.stats or {}).get("rms")
    cosine = None
    if own and rms and math.isfinite(rmse):
        cosine = max(-1.0, min(1.0, (own**2 + rms**2 - rmse**2) / (2 * own * rms)))
    return {
        "evidence": "sketch", "uncertainty": golden.spec.half_width, "rel_rmse": relative, "peak": found.peak,
        "rmse": rmse, "max_abs": found.peak, "cosine": cosine,
    }  # fmt: skip


def _bound(stats: Mapping[str, Any], reference: Mapping[str, Any], floor: Floor) -> float:
    """The least relative RMSE that two sets of statistics allow, less the reference's own.

    By the triangle inequality the root mean squares differ by at most the RMSE, and so do the means.
    """
    apart = [abs(float(stats[key]) - float(reference[key])) for key in ("rms", "mean") if stats.get(key) is not None]
    if not floor.truth_rms:
        return 0.0 if max(apart) == 0 else math.inf
    return max(0.0, max(apart) / floor.truth_rms - floor.floor)


def _brief(stats: Mapping[str, Any]) -> Row:
    """The reference's figures as rows have them."""
    found = {key: stats[key] for key in _FIGURES if key in stats}
    found["inf"] = stats["pos_inf"] + stats["neg_inf"]
    if stats.get("chunks"):
        found["chunks"] = [list(pair) for pair in stats["chunks"]]
    return found


def _figures(reading: Reading) -> Row | None:
    """The candidate's figures, NaN where the file does not say; None where it says nothing of ranges."""
    if reading.stats is None or "only" in reading.stats:
        return None
    return dict.fromkeys(_FIGURES, math.nan) | {"nan": 0, "inf": 0} | reading.stats
