"""A port's dump, trace or log held against a golden trace.

`parity.golden_rows` says what each kind of evidence allows.
"""

from __future__ import annotations

import fnmatch
import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from parity.errors import UsageError
from parity.golden import Golden
from parity.golden_rows import row_of
from parity.imports.base import Imported
from parity.imports.hints import hints
from parity.listed import listed
from parity.lockstep import chunks_of
from parity.rangetable import RangeTable
from parity.result import Run, assemble
from parity.runfolder import as_read
from parity.safetensors_header import shown

Row = dict[str, Any]


def compare(
    golden: Golden, candidate: Imported, *, mode: str = "", only: Sequence[str] = (), command: str = ""
) -> Run:  # fmt: skip
    """Judge a candidate from elsewhere.

    Args:
        golden: what the reference says.
        candidate: what the port computed.
        mode: how the port was run, where it does not say; as the golden trace where this is empty.
        only: patterns (``block.07.*``) of the checkpoints that are asked about; all where empty.
        command: that was given, for the report.

    Returns:
        a dictionary of the schema of ``parity.json``, with ``notes``.

    Raises:
        UsageError: the candidate is of another case, dtype or mode, or has no checkpoint in common.
    """
    started = datetime.now(UTC)
    _check_same(golden, candidate, mode)
    if only:
        golden = narrowed(golden, only)
    names = set(candidate.names)
    if not names & set(golden.graph.expected):
        raise UsageError(
            f"{candidate.label}: none of its {len(names)} names is a checkpoint of {golden.label}; "
            f"expected names such as {golden.graph.expected[len(golden.graph.expected) // 2]}"
        )
    rows, readings = [], {}
    for name in golden.graph.expected:
        reading = candidate.read(name, chunks=chunks_of(name)) if name in names else None
        rows.append(row_of(golden, name, reading))
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
        "notes": [*([_only(golden, only)] if only else []), *candidate.notes],
        **({"ranges": golden.about["ranges"]} if "ranges" in golden.about else {}),
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
        "resources": {},
    }
    # Seven digits, as a run's journal keeps them: what is judged again must be the same to the byte.
    rows = as_read(rows)
    run = assemble([_case(golden, rows)], about, RangeTable.load("qwen-image"))
    judged = run["cases"][0]["checkpoints"]
    diverged = [row["name"] for row in judged if row["verdict"] == "diverged"]
    run["notes"] = [*run["notes"], *(hint.text for hint in hints(candidate, golden, diverged, readings))]
    return run


def narrowed(golden: Golden, only: Sequence[str]) -> Golden:
    """A golden trace that expects some of its checkpoints alone.

    Raises:
        UsageError: a pattern that fits none.
    """
    kept: set[str] = set()
    for pattern in only:
        found = fnmatch.filter(golden.graph.expected, pattern)
        if not found:
            example = golden.graph.expected[len(golden.graph.expected) // 2]
            raise UsageError(
                f"--only {shown(pattern)}: no checkpoint of {golden.label} is named so; names are like {example}"
            )
        kept |= set(found)
    expected = tuple(name for name in golden.graph.expected if name in kept)
    return replace(golden, graph=replace(golden.graph, expected=expected))


def _only(golden: Golden, only: Sequence[str]) -> str:
    patterns = ", ".join(map(shown, only))
    return (
        f"only {patterns}: {len(golden.graph.expected):,} of {len(golden.trace.stats):,} checkpoints were asked about"
    )


def described(golden: Golden) -> dict[str, Any]:
    """What builds its graph again; one of some checkpoints alone is written out."""
    whole = len(golden.graph.expected) == len(golden.trace.stats)
    return dict(golden.about["graph"]) if whole else listed(golden.graph)


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
        "graph": described(golden),
        "inputs": inputs,
        "request": about.get("request", {}),
        "amplification": None,
        "pictures": [],
        "checkpoints": rows,
    }
