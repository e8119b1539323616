"""What a comparison keeps of its arrays, so that its page can show where an error lies.

Traces of both sides with the checkpoints alone that are no match, for their histograms, and the error along each
axis where the golden trace has whole values. The manifests say that they are partial: nobody takes them for traces of
a whole pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parity import profiles, trace, tracefile
from parity.golden import Golden
from parity.imports.base import Imported
from parity.imports.measure import release
from parity.imports.traces import Traced, imported_kind
from parity.lockstep import chunks_of
from parity.panelpage import MOST
from parity.result import Run
from parity.stats import describe

Stats = dict[str, dict[str, Any]]


def measure(run: Run, golden: Golden, candidate: Imported) -> Callable[[Path], None]:
    """Measure what is no match in a comparison.

    Args:
        run: what `parity.compare.compare` made of the other two.
        golden, candidate: as it got them.

    Returns:
        what writes it into a run folder; until then nothing is written. Where nothing could be measured, it
        writes nothing.
    """
    case = run["cases"][0]
    unit = f"{case['name']}.{case['dtype']}"
    names = _wanted(case["checkpoints"]) if tracefile.name_fits(unit) else []
    ours, where = _candidate(names, golden, candidate)
    theirs = _with_histograms(golden.trace, list(ours))

    def write(folder: Path) -> None:
        place = folder / "trace" / unit
        for side, stats in (("reference", theirs), ("candidate", ours)) if ours else ():
            trace.write(place / side, stats, _about(side, run, golden))
        profiles.write(place, [{case["mode"]: where}] if where else [])

    return write


def _wanted(rows: list[Mapping[str, Any]]) -> list[str]:
    """What the page shows more of than figures: sources, then the first that are no match; arrays of one shape."""
    off = [row for row in rows if row["verdict"] in ("suspect", "diverged") and row["shape"] == row["expected_shape"]]
    kept = {row["name"] for row in sorted(off, key=lambda row: not row.get("source"))[:MOST]}
    return [row["name"] for row in off if row["name"] in kept]


def _candidate(
    names: list[str], golden: Golden, candidate: Imported
) -> tuple[Stats, dict[str, list[profiles.Packed]]]:  # fmt: skip
    """Statistics with histograms of the candidate's arrays, and the error along their axes where truth is known."""
    stats: Stats = {}
    where = {}
    for name in names:
        value = candidate.read(name, sketched=False).array
        if value is None:
            continue
        stats[name] = vars(describe(value, chunks=chunks_of(name)))
        truth = golden.values(name)
        if truth is not None:
            where[name] = [axis.packed() for axis in profiles.measure(value.reshape(truth.shape), truth)]
            release(truth)
        release(value)
    if isinstance(candidate, Traced) and not imported_kind(candidate.about):
        stats = _with_histograms(candidate.trace, [name for name in names if name not in stats]) | stats
    return stats, where


def _with_histograms(found: tracefile.Trace, names: list[str]) -> Stats:
    """Rows of a trace, as `parity.trace.write` takes them."""
    _, counts = tracefile.histograms(found.folder, names) if found.folder and names else ("", {})
    return {name: {**found.stats[name], "histogram": counts.get(name, [])} for name in names}


def _about(side: str, run: Run, golden: Golden) -> dict[str, Any]:
    kept = ("case", "dtype", "mode", "component", "configs")
    return {"side": side, "partial": True} | {key: golden.about[key] for key in kept} | {
        "environment": run["environment"][side]
    }  # fmt: skip
