"""Whether what a ``parity.json`` holds has the shape of a run (docs/parity-json.md), so that all who read one can rely
on it: a file may have been changed by hand, or written by something else."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from parity.errors import UsageError
from parity.runfolder import read_run
from parity.safetensors_header import shown

Kinds = tuple[type, ...]
_TEXT, _NUMBER, _LIST, _OBJECT, _NONE = (str,), (int, float), (list,), (dict,), (type(None),)
_WORDS = {str: "a text", int: "a number", list: "a list", dict: "an object", bool: "true or false"}

# Key -> what its value may be; `_NONE` among it: it may be missing as well.
TOP: Mapping[str, Kinds] = {
    "verdict": _TEXT, "cases": _LIST, "weights": _OBJECT, "environment": _OBJECT, "suite": _TEXT, "command": _TEXT,
    "started": _TEXT, "seconds": _NUMBER, "sentence": _TEXT + _NONE, "counts": _OBJECT + _NONE,
    "thresholds": _OBJECT + _NONE, "notes": _LIST + _NONE, "ports": _OBJECT + _NONE, "resources": _OBJECT + _NONE,
}  # fmt: skip
WEIGHTS: Mapping[str, Kinds] = {"synthetic": (bool,), "preset": _TEXT + _NONE, "path": _TEXT + _NONE}
ENVIRONMENT: Mapping[str, Kinds] = dict.fromkeys(("reference", "candidate", "host"), _OBJECT)
CASE: Mapping[str, Kinds] = {
    "name": _TEXT, "mode": _TEXT, "dtype": _TEXT, "component": _TEXT, "verdict": _TEXT, "counts": _OBJECT,
    "sources": _LIST, "graph": _OBJECT, "checkpoints": _LIST, "inputs": _OBJECT + _NONE,
    "amplification": _OBJECT + _NONE, "pictures": _LIST + _NONE,
}  # fmt: skip
_FIGURES = ("rel_rmse", "floor", "excess", "peak", "peak_floor", "peak_excess", "rmse", "max_abs", "cosine", "psnr",
            "precision", "quantization", "mismatches")  # fmt: skip
ROW: Mapping[str, Kinds] = {
    "name": _TEXT, "verdict": _TEXT, "stage": _TEXT + _NONE, "reason": _TEXT + _NONE, "dtype": _TEXT + _NONE,
    "floor_by": _TEXT + _NONE, "shape": _LIST + _NONE, "expected_shape": _LIST + _NONE, "max_at": _LIST + _NONE,
    "reference": _OBJECT + _NONE, "candidate": _OBJECT + _NONE, "range": _OBJECT + _NONE,
    **dict.fromkeys(_FIGURES, _NUMBER + _NONE),
}  # fmt: skip
VERDICTS = ("match", "suspect", "diverged", "uncertain", "missing", "skipped")
STATUS = ("measured", "missing", "skipped")


def read_whole(folder: Path) -> dict[str, Any]:
    """`parity.runfolder.read_run`, of a run that has all that a report and plots are made from.

    Raises:
        UsageError: there is none, or it has not.
    """
    run = read_run(folder)
    if found := problem(run):
        path = folder / "parity.json" if folder.is_dir() else folder
        raise UsageError(f"{path}: {found}; no run wrote it so: run it again, or restore the file")
    return run


def problem(run: Mapping[str, Any]) -> str:
    """The first thing in a run that is not as it should be, in words; empty where there is none.

    Args:
        run: as `parity.runfolder.from_json` gives it: figures that are not finite are numbers.
    """
    found = _of(run, TOP, "") or _of(run["weights"], WEIGHTS, "weights.", ("preset", "path"))
    found = found or _of(run["environment"], ENVIRONMENT, "environment.") or _of_limits(run.get("thresholds") or {})
    if found:
        return found
    for index, case in enumerate(run["cases"]):
        if found := _of_case(case, f"cases[{index}]"):
            return found
    return ""


def _of(value: Mapping[str, Any], keys: Mapping[str, Kinds], where: str, present: Container[str] = ()) -> str:
    """The first key of a wrong kind; those of `present` may be null and not missing."""
    for key, kinds in keys.items():
        one = value.get(key)
        if type(one) not in kinds or (key in present and key not in value):
            expected = " or ".join(dict.fromkeys(_WORDS[kind] for kind in kinds if kind in _WORDS))
            return f"{where}{key} is {shown(one) if key in value else 'missing'}, expected {expected}"
    return ""


def _of_limits(thresholds: Mapping[str, Any]) -> str:
    return _of(thresholds, dict.fromkeys(thresholds, _NUMBER), "thresholds.")


def _of_case(case: Any, where: str) -> str:
    if type(case) is not dict:
        return f"{where} is {shown(case)}, expected an object"
    if found := _of(case, CASE, f"{where}.") or _of(case["graph"], {"name": _TEXT}, f"{where}.graph."):
        return found
    if type((case.get("inputs") or {}).get("batch", 1)) is not int:
        return f"{where}.inputs.batch is {shown(case['inputs']['batch'])}, expected a number"
    if not all(type(name) is str for name in case["sources"]):
        return f"{where}.sources are not all texts"
    fine: set[tuple[type, ...]] = set()
    for place, row in enumerate(case["checkpoints"]):
        at = f"{where}.checkpoints[{place}]"
        if type(row) is not dict:
            return f"{at} is {shown(row)}, expected an object"
        # Rows have few shapes: each is looked at once.
        shape = tuple(map(type, map(row.get, ROW)))
        if shape not in fine:
            if found := _of(row, ROW, f"{at}."):
                return found
            fine.add(shape)
        if row["verdict"] not in VERDICTS or row.get("status", "measured") not in STATUS:
            key = "status" if row["verdict"] in VERDICTS else "verdict"
            return f"{at}.{key} is {shown(row[key])}, expected {', '.join(STATUS if key == 'status' else VERDICTS)}"
    return ""
