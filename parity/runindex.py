"""All runs below a folder, and the trend of each case over them.

Runs are read as they are, not judged again, and nothing is taken for granted of them: what is unfinished, damaged
or of another version is listed with the reason. A trend is of one case: the same component, inputs, dtype, mode,
weights and candidate; runs of anything else do not break it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parity.errors import UsageError
from parity.report import size_of
from parity.rundiff import AT_FLOOR, BEYOND, state_of
from parity.runfolder import SCHEMA
from parity.safetensors_header import shown

Run = Mapping[str, Any]

MOST_RUNS = 2000
MOST_FOLDERS = 20_000
DEEPEST = 5
# The largest run of the tests' models takes 14 MB.
MOST_BYTES = 256 << 20
_VERDICTS = ("parity", "incomplete", "divergence")
_TEXT = 300


def index(root: Path) -> dict[str, Any]:
    """What lies below a folder.

    Returns:
        ``folder``, ``sentence``, ``notes``; ``runs``, oldest first: ``folder`` (below the root), ``state``
        (``finished``, ``unfinished``, ``unreadable``), ``reason``, ``started``, ``report`` and ``comparison``
        (whether it has such a page), and of finished ones ``verdict``, ``sentence``, ``suite``, ``weights``,
        ``synthetic``, ``candidate``, ``seconds``, ``counts``, ``worst``, ``where``; ``trends``: `trends`.

    Raises:
        UsageError: not a folder, or no run is in it.
    """
    if not root.is_dir():
        what = "a file" if root.exists() else "no such folder"
        raise UsageError(f"{shown(str(root))}: {what}; --index expects a folder of runs")
    notes: list[str] = []
    found = [_read(folder, root) for folder in _folders(root, notes)]
    if not found:
        raise UsageError(f"{shown(str(root))}: no run in it; --index expects a folder of run folders")
    found.sort(key=lambda run: (run["when"], run["folder"]))
    lines = trends(found)
    runs = [{key: value for key, value in run.items() if key not in ("when", "entries")} for run in found]
    name = shown(str(root if root.name else root.absolute()))
    return {"schema": 1, "folder": name, "sentence": _sentence(runs, lines), "notes": notes, "runs": runs,
            "trends": lines}  # fmt: skip


def trends(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The course of each case over some runs in order.

    Returns:
        what it is (``component``, ``case``, ``dtype``, ``mode``, ``size``, ``weights``, ``candidate``); ``points``:
        ``run`` (its place), ``verdict``, ``worst`` excess, ``differ``; ``change`` of the last point against the one
        before it (``better``, ``worse``, ``same``, ``new``); ``since``: place of the first run of the last verdict.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for place, run in enumerate(runs):
        for entry in run["entries"]:
            what = {key: entry[key] for key in ("component", "case", "dtype", "mode", "size")}
            what |= {key: run[key] for key in ("weights", "candidate")}
            trend = found.setdefault((*what.values(), entry["inputs"]), what | {"points": []})
            # A run may hold a case twice only where somebody wrote it by hand.
            if not trend["points"] or trend["points"][-1]["run"] != place:
                trend["points"].append({"run": place} | {key: entry[key] for key in ("verdict", "worst", "differ")})
    for trend in found.values():
        trend |= {"change": _change(trend["points"]), "since": _since(trend["points"])}
    return list(found.values())


def _change(points: Sequence[Mapping[str, Any]]) -> str:
    if len(points) < 2:
        return "new"
    before, after = points[-2:]
    ranks = [_VERDICTS.index(point["verdict"]) for point in (before, after)]
    if ranks[0] != ranks[1]:
        return "better" if ranks[1] < ranks[0] else "worse"
    if before["differ"] != after["differ"]:
        return "better" if after["differ"] < before["differ"] else "worse"
    a, b = (max(point["worst"] or 0.0, AT_FLOOR) for point in (before, after))
    return "worse" if b > a * BEYOND else "better" if a > b * BEYOND else "same"


def _since(points: Sequence[Mapping[str, Any]]) -> int:
    since = points[-1]["run"]
    for point in reversed(points):
        if point["verdict"] != points[-1]["verdict"]:
            break
        since = point["run"]
    return since


def _sentence(runs: Sequence[Run], lines: Sequence[Mapping[str, Any]]) -> str:
    """What the folder holds, in one sentence."""
    states = {state: sum(run["state"] == state for run in runs) for state in ("unfinished", "unreadable")}
    finished = len(runs) - sum(states.values())
    said = [
        f"{finished:,} finished run{'s' * (finished != 1)}",
        *(f"{n:,} {state}" for state, n in states.items() if n),
    ]
    if not lines:
        return f"{', '.join(said)}; nothing was compared in them."
    last = [trend["points"][-1]["verdict"] for trend in lines]
    counts = ", ".join(f"{last.count(verdict):,} {verdict}" for verdict in _VERDICTS if verdict in last)
    moved = [
        f"{n:,} {change}" for change in ("worse", "better") if (n := sum(one["change"] == change for one in lines))
    ]
    than = f"; {' and '.join(moved)} than the time before" if moved else ""
    return f"{', '.join(said)}. Of {len(lines):,} case{'s' * (len(lines) != 1)}, the last time: {counts}{than}."


def _folders(root: Path, notes: list[str]) -> Iterator[Path]:
    """Run folders below `root`, no link followed, none inside another one."""
    closed: list[OSError] = []
    seen = runs = 0
    for place, folders, files in os.walk(root, onerror=closed.append):
        path, seen = Path(place), seen + 1
        if seen > MOST_FOLDERS or runs >= MOST_RUNS:
            notes.append(f"only the first {runs:,} runs in {seen - 1:,} folders were read; there are more")
            break
        if "parity.json" in files or ("work" in folders and (path / "work" / "plan.json").is_file()):
            runs += 1
            folders.clear()
            yield path
        elif len(path.relative_to(root).parts) >= DEEPEST:
            folders.clear()
        folders.sort()
    if closed:
        notes.append(f"{len(closed):,} folder{'s' * (len(closed) > 1)} could not be read")


def _read(folder: Path, root: Path) -> dict[str, Any]:
    path = folder / "parity.json"
    about = {"folder": folder.relative_to(root).as_posix(), "reason": "", "entries": [],
             "report": (folder / "report.html").is_file(),
             "comparison": (folder / "comparison.html").is_file()}  # fmt: skip
    try:
        if not path.exists():
            done = sum(name.endswith(".done") for name in os.listdir(folder / "work"))
            reason = f"{done} unit{'s' * (done != 1)} done; the same `parity run` resumes it"
            return about | _undated(folder / "work") | {"state": "unfinished", "reason": reason}
        about |= _undated(path)
        return about | _finished(_load(path)) | {"state": "finished"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        what = str(error) if isinstance(error, ValueError) else f"not as a run writes it ({type(error).__name__})"
        what = f"parity.json has no {shown(str(error.args[0]))}" if isinstance(error, KeyError) else what
        return {"when": 0.0, "started": None} | about | {"state": "unreadable", "reason": _short(what)}


def _undated(path: Path) -> dict[str, Any]:
    when = path.stat().st_mtime
    return {"when": when, "started": datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")}


def _load(path: Path) -> Any:
    if path.is_symlink() or not path.is_file():
        raise ValueError("parity.json is no file of its own")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"parity.json has {size:,} bytes, expected at most {MOST_BYTES:,}")
    try:
        run = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"parity.json is not JSON ({error})") from None
    found = run.get("schema") if isinstance(run, dict) else None
    if found != SCHEMA:
        raise ValueError(f"schema {shown(str(found))}, this version reads {SCHEMA}")
    return run


def _finished(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run in short, without its rows; every text of bounded length."""
    entries = [_entry(case) for case in run["cases"]]
    worst = max((one for one in entries if one["worst"] is not None), key=lambda one: one["worst"], default=None)
    counts = {key: int(run["counts"][key]) for key in ("expected", "compared", "suspect", "diverged")}
    weights, seconds = run["weights"], run.get("seconds")
    said = {
        "verdict": _verdict(run["verdict"]), "sentence": _short(run["sentence"]),
        "suite": _short(run.get("suite") or ""),
        "weights": _weights(weights), "synthetic": bool(weights.get("synthetic")),
        "candidate": _short((run.get("ports") or {}).get("candidate") or ""),
        "seconds": float(seconds) if seconds is not None else None, "counts": counts, "entries": entries,
        "worst": worst and worst["worst"], "where": worst["where"] if worst else "",
    }  # fmt: skip
    return said | _dated(run.get("started"))


def _dated(started: Any) -> dict[str, Any]:
    """When a run began; nothing, so that the file's own time stands, where it does not say so."""
    try:
        when = datetime.fromisoformat(started)
    except (TypeError, ValueError):
        return {}
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return {"when": when.timestamp(), "started": when.astimezone(UTC).isoformat(timespec="seconds")}


def _entry(case: Mapping[str, Any]) -> dict[str, Any]:
    if not all("verdict" in row for row in case["checkpoints"]):
        raise ValueError("a checkpoint has no verdict")
    state, inputs = state_of(case), case.get("inputs") or {}
    return {
        "component": _short(case.get("component", "transformer")), "case": _short(case["name"]),
        "dtype": _short(case["dtype"], 40), "mode": _short(case["mode"], 40), "size": _short(size_of(inputs)),
        "inputs": _digest(inputs), "verdict": _verdict(case["verdict"]), "worst": state["worst"],
        "where": _short(state["where"]), "differ": state["differ"],
    }  # fmt: skip


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _verdict(text: Any) -> str:
    if text not in _VERDICTS:
        raise ValueError(f"verdict {shown(str(text))}, expected one of {', '.join(_VERDICTS)}")
    return text


def _weights(weights: Mapping[str, Any]) -> str:
    """Which weights a run had, so that runs of the same ones say the same."""
    name = f"synthetic:{weights.get('preset')}" if weights.get("synthetic") else weights.get("path")
    if weights.get("repository"):
        name = f"{weights['repository']}@{str(weights.get('commit') or weights.get('revision'))[:12]}"
    packed = sorted({kind for of in (weights.get("bits") or {}).values() for kind in of})
    loras = [f"{one['name']}@{one['scale']}" for one in weights.get("lora") or []]
    return _short(" + ".join([" ".join([str(name), *packed]), *loras]))


def _short(text: Any, most: int = _TEXT) -> str:
    text = str(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def latest(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Trends with what needs a look first: worse, then divergence, then what is incomplete."""
    order = {verdict: place for place, verdict in enumerate(reversed(_VERDICTS))}
    return sorted(lines, key=lambda one: (one["change"] != "worse", order[one["points"][-1]["verdict"]]))
