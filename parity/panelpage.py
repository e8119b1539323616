"""What the page shows of single checkpoints: their worst elements, histograms, and where in the array the error lies.

Of many checkpoints that are no match, only those that tell most are in the page, so that it stays one that can be
sent: sources first, then those that come first in their entry, for what is behind them is mostly carried on. The
others are in ``parity.json`` and in the traces.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parity import profiles, tracefile
from parity.errors import UsageError
from parity.safetensors_header import shown
from parity.sections import Entry, Row
from parity.stats import HISTOGRAM_LOW

MOST = 600
MOST_ELEMENTS = 5
_LISTS = ("error", "peak", "truth")


def panels(run: Mapping[str, Any], folder: Path | None) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """What there is to see of checkpoints that are no match.

    Args:
        run: a ``parity.json``.
        folder: the run folder, where the traces are; without it, worst elements only.

    Returns:
        index of the row over all entries -> ``worst``: ``[index, candidate, truth]``; ``axes``: of
        `parity.profiles.of_unit`; ``histogram``: binade of the first bin, counts of the reference, of the candidate,
        each only where it is there. And in words what could not be read.
    """
    found: dict[int, dict[str, Any]] = {}
    said: dict[str, None] = {}
    for entry, rows in _by_entry(run).items():
        case = run["cases"][entry]
        names = {row["name"] for _, row in rows}
        try:
            axes, histograms = of_traces(case, folder, names) if folder else ({}, {})
        except UsageError as error:
            said[str(error)] = None
            axes, histograms = {}, {}
        for index, row in rows:
            name = row["name"]
            panel = {"worst": _worst(row), "axes": [_axis(one) for one in axes.get(name, ())],
                     "histogram": histograms.get(name)}  # fmt: skip
            if kept := {key: value for key, value in panel.items() if value}:
                found[index] = kept
    return found, list(said)


def _by_entry(run: Mapping[str, Any]) -> dict[int, list[tuple[int, Row]]]:
    """Entry -> (index over all rows, row) of what has a panel."""
    start, off = 0, []
    for entry, case in enumerate(run["cases"]):
        for place, row in enumerate(case["checkpoints"]):
            if row["verdict"] in ("suspect", "diverged"):
                off.append((not row.get("source"), place, entry, start + place, row))
        start += len(case["checkpoints"])
    found = defaultdict(list)
    for _, _, entry, index, row in sorted(sorted(off, key=lambda one: one[:4])[:MOST], key=lambda one: one[3]):
        found[entry].append((index, row))
    return dict(found)


def of_traces(case: Entry, folder: Path, names: set[str]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """What the traces of a run folder have of some checkpoints of one entry.

    Returns:
        checkpoint -> axes of `parity.profiles.of_unit`; checkpoint -> histogram of both sides: binade of the first
        bin, counts of the reference, counts of the candidate.

    Raises:
        UsageError: a file is garbled, too large, or something else.
    """
    unit = f"{case['name']}.{case['dtype']}"
    axes = profiles.of_unit(folder, unit, names).get(case["mode"], {})
    place = folder / "trace" / unit
    if not tracefile.name_fits(unit) or not place.is_dir():
        return axes, {}
    if not place.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"trace/{shown(unit)}: leads out of the run folder")
    sides = []
    for side in ("reference", "candidate"):
        mode, counts = tracefile.histograms(place / side, names)
        sides.append(counts if mode == case["mode"] else {})
    return axes, {name: _trimmed(sides[0][name], sides[1][name]) for name in sides[0] if name in sides[1]}


def _trimmed(reference: Sequence[int], candidate: Sequence[int]) -> list[Any]:
    """Without the empty bins at both ends. The first and last bin hold what is beyond, and count as a binade."""
    filled = [i for i, pair in enumerate(zip(reference, candidate, strict=True)) if any(pair)]
    if not filled:
        return []
    first, stop = filled[0], filled[-1] + 1
    return [HISTOGRAM_LOW - 1 + first, list(reference[first:stop]), list(candidate[first:stop])]


def _axis(axis: Mapping[str, Any]) -> dict[str, Any]:
    return {**axis, **{key: [None if one is None else float(f"{one:.3g}") for one in axis[key]] for key in _LISTS}}


def _worst(row: Row) -> list[Any]:
    """The elements of a row as they should be; those of a file from elsewhere may be anything."""
    worst = row.get("worst")
    return [one for one in worst[:MOST_ELEMENTS] if _is_element(one)] if isinstance(worst, list) else []


def _is_element(one: object) -> bool:
    if not isinstance(one, list) or len(one) != 3 or not isinstance(one[0], list) or len(one[0]) > 32:
        return False
    return all(type(x) is int for x in one[0]) and all(
        (type(x) in (int, float) and math.isfinite(x)) or x in ("nan", "inf", "-inf") for x in one[1:]
    )
