"""A port's dump, trace or log held against a golden trace.

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
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from parity import worst
from parity.errors import UsageError
from parity.golden import Golden
from parity.imports.base import Imported, Reading
from parity.imports.hints import hints
from parity.lockstep import chunks_of
from parity.rangetable import RangeTable
from parity.result import Run, assemble
from parity.runfolder import from_json, to_json
from parity.safetensors_header import shown
from parity.sketch import difference
from parity.stats import Error, distance, error, mismatches
from parity.trace import Floor

Row = dict[str, Any]
_FIGURES = ("min", "max", "mean", "std", "rms", "absmax", "nan", "headroom", "inf")


def compare(golden: Golden, candidate: Imported, *, mode: str = "", command: str = "") -> Run:
    """Judge a candidate from elsewhere.

    Args:
        golden: what the reference says.
        candidate: what the port computed.
        mode: how the port was run, where it does not say; as the golden trace where this is empty.
        command: that was given, for the report.

    Returns:
        a dictionary of the schema of ``parity.json``, with ``notes``.

    Raises:
        UsageError: the candidate is of another case, dtype or mode, or has no checkpoint in common.
    """
    started = datetime.now(UTC)
    _check_same(golden, candidate, mode)
    names = set(candidate.names)
    if not names & set(golden.graph.expected):
        raise UsageError(
            f"{candidate.label}: none of its {len(names)} names is a checkpoint of {golden.label}; "
            f"expected names such as {golden.graph.expected[len(golden.graph.expected) // 2]}"
        )
    rows, readings = [], {}
    for name in golden.graph.expected:
        reading = candidate.read(name, chunks=chunks_of(name)) if name in names else None
        rows.append(_row(golden, name, reading))
        if reading is not None:
            readings[name] = replace(reading, array=None)  # an unpacked one would stay in memory
    about = {
        "weights": golden.about.get("weights") or {"synthetic": False, "preset": None, "path": ""},
        "environment": {
            "reference": dict(golden.about.get("environment") or {}),
            "candidate": {"port": candidate.label, **(candidate.about.get("environment") or {})},
            "host": {"system": platform.platform(terse=True), "machine": platform.machine()},
        },
        "suite": "compare",
        "notes": list(candidate.notes),
        **({"ranges": golden.about["ranges"]} if "ranges" in golden.about else {}),
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
        "resources": {},
    }
    # Seven digits, as a run's journal keeps them: what is judged again must be the same to the byte.
    rows = from_json(to_json(rows))
    run = assemble([_case(golden, rows)], about, RangeTable.load("qwen-image"))
    judged = run["cases"][0]["checkpoints"]
    diverged = [row["name"] for row in judged if row["verdict"] == "diverged"]
    run["notes"] = [*run["notes"], *(hint.text for hint in hints(candidate, golden, diverged, readings))]
    return run


def _check_same(golden: Golden, candidate: Imported, mode: str) -> None:
    """Refuse what was made from something else: every figure would be off, and say nothing of the port."""
    if candidate.case and candidate.case != golden.about["case_hash"]:
        theirs = candidate.about.get("case_name") or f"{shown(candidate.case[:12])}…"
        raise UsageError(
            f"{candidate.label}: of another case ({shown(str(theirs))}), and {golden.label} is of "
            f"{shown(golden.about['case']['name'])} ({shown(golden.about['case_hash'][:12])}…): "
            "record both from the same file of inputs"
        )
    said = mode or candidate.about.get("mode") or golden.about["mode"]
    if said != golden.about["mode"]:
        raise UsageError(
            f"{candidate.label}: mode {shown(said)}, and {golden.label} is {golden.about['mode']}: record another"
        )
    dtype = candidate.about.get("dtype")
    if dtype and dtype != golden.about["dtype"]:
        raise UsageError(
            f"{candidate.label}: of a run in {shown(dtype)}, and {golden.label} is in {golden.about['dtype']}: "
            "each dtype has noise of its own; record one in the same"
        )
    if candidate.kind in ("sketches", "trace") and candidate.spec != golden.spec:
        theirs, ours = (f"{one.buckets} buckets, seed {one.seed}" for one in (candidate.spec, golden.spec))
        raise UsageError(f"{candidate.label}: its sketches have {theirs}, those of {golden.label} {ours}")


def _case(golden: Golden, rows: Sequence[Row]) -> dict[str, Any]:
    about = golden.about
    inputs = {key: value for key, value in about["case"].items() if key != "name"}
    return {
        "name": about["case"]["name"],
        "mode": about["mode"],
        "dtype": about["dtype"],
        "component": about["component"],
        "graph": about["graph"],
        "inputs": inputs,
        "request": about.get("request", {}),
        "amplification": None,
        "pictures": [],
        "checkpoints": rows,
    }


def _row(golden: Golden, name: str, reading: Reading | None) -> Row:
    """One row of ``parity.json``, without its verdict."""
    floor, expected = golden.floors[name], golden.shape(name)
    row = {
        "name": name,
        "stage": golden.graph.stage[name],
        "status": "missing" if reading is None else "measured",
        "reason": "",
        "evidence": None,
        "uncertainty": None,
        "resolution": None,
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
    return {"evidence": "range", "resolution": reading.resolution}


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


def _figures(reading: Reading) -> Row:
    """The candidate's figures, NaN where the file does not say."""
    found = dict.fromkeys(_FIGURES, math.nan) | {"nan": 0, "inf": 0} | (reading.stats or {})
    if reading.sketch is not None and reading.stats is None and not np.isfinite(reading.sketch).all():
        found["nan"] = 1
    return found


def folder_name(golden: Golden) -> Path:
    """A name for the run folder of a comparison."""
    return Path(f"compare-{golden.about['case']['name']}.{golden.about['dtype']}")
