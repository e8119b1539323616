"""What the page shows of single checkpoints: their worst elements, histograms, and where in the array the error lies.

Of many checkpoints that are no match, only those that tell most are in the page, so that it stays one that can be
sent: sources first, then those that come first in their entry, for what is behind them is mostly carried on. The
others are in ``parity.json`` and in the traces.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from parity import histograms, profiles, tracefile
from parity.errors import UsageError
from parity.safetensors_header import shown
from parity.sections import Entry, Row
from parity.stats import HISTOGRAM_LOW

MOST = 600
MOST_ELEMENTS = 5
# Of one entry, by checkpoint.
Found = dict[str, Any]
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
        before = len(said)
        axes = _read(axes_of, case, folder, names, said)
        counts = _read(histograms_of, case, folder, names, said)
        if folder and len(said) == before and (missing := _missing(case, folder, rows)):
            said[missing] = None
        for index, row in rows:
            name = row["name"]
            panel = {"worst": _worst(row), "axes": [_axis(one) for one in axes.get(name, ())],
                     "histogram": counts.get(name)}  # fmt: skip
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


def _read(
    read: Callable[..., Found], case: Entry, folder: Path | None, names: set[str], said: dict[str, None]
) -> Found:
    """What one of the two readers below finds; what is wrong with a file is said, and the other one reads on."""
    try:
        return read(case, folder, names) if folder else {}
    except UsageError as error:
        said[str(error)] = None
        return {}


def _missing(case: Entry, folder: Path, rows: Sequence[tuple[int, Row]]) -> str:
    """What a run has written and is not there any more, in words. A comparison need not have written anything."""
    unit = f"{case['name']}.{case['dtype']}"
    if not tracefile.name_fits(unit) or all(row.get("evidence") for _, row in rows):
        return ""
    if not (folder / "trace" / unit).is_dir():
        return f"trace/{unit}: not there, and with it the histograms and where in the arrays the errors lie"
    if any(row.get("worst") for _, row in rows) and not (folder / "trace" / unit / profiles.FILE).is_file():
        return f"trace/{unit}/{profiles.FILE}: not there, and with it where in the arrays the errors lie"
    return ""


def of_traces(case: Entry, folder: Path, names: set[str]) -> tuple[Found, Found]:
    """`axes_of` and `histograms_of`."""
    return axes_of(case, folder, names), histograms_of(case, folder, names)


def axes_of(case: Entry, folder: Path, names: set[str]) -> Found:
    """Checkpoint -> axes of `parity.profiles.of_unit`, of some checkpoints of one entry.

    Raises:
        UsageError: the file is garbled, too large, or something else.
    """
    return profiles.of_unit(folder, f"{case['name']}.{case['dtype']}", names).get(case["mode"], {})


def histograms_of(case: Entry, folder: Path, names: set[str]) -> Found:
    """Checkpoint -> histogram of both sides, of some checkpoints of one entry: binade of the first bin, counts of the
    reference, counts of the candidate.

    Raises:
        UsageError: a file is garbled, too large, or something else.
    """
    unit = f"{case['name']}.{case['dtype']}"
    place = folder / "trace" / unit
    if not tracefile.name_fits(unit) or not place.is_dir():
        return {}
    if not place.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"trace/{shown(unit)}: leads out of the run folder")
    # The reference's arrays are the same in both modes.
    _, reference = tracefile.histograms(place / "reference", names)
    mode, candidate = tracefile.histograms(place / "candidate", names)
    if mode != case["mode"]:
        candidate = histograms.of_unit(folder, unit, names).get(case["mode"], {})
    return {name: _trimmed(reference[name], candidate[name]) for name in reference if name in candidate}


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
