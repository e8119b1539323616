"""Several runs arranged for comparison: what of them is of the same case, dtype and mode."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.errors import UsageError
from parity.plotstyle import cut, excess_of, limits
from parity.rundiff import STEPS
from parity.sections import Entry, Kind, Row, Section, drawn, heading, sections

Run = Mapping[str, Any]
# Lines that can be told apart in one panel.
MOST = 5
LABEL = 24
# Borders of the factor by which an excess changes, and how they are written; the middle step is no change.
EDGES = (*(1 / step for step in reversed(STEPS)), *STEPS)
BORDERS = (*(f"÷{step:g}" for step in reversed(STEPS)), *(f"×{step:g}" for step in STEPS))


@dataclass(frozen=True)
class Overlay:
    """One case in one dtype and mode, as several runs have it; the first run is what the others are held against.

    Attributes:
        part: what its files are called behind the entry's name, see `sections.drawn`.
        runs, entries, sections: by the run's label.
    """

    part: str
    runs: Mapping[str, Run]
    entries: Mapping[str, Entry]
    sections: Mapping[str, Section]

    @property
    def labels(self) -> list[str]:
        """The runs that have it, in order."""
        return list(self.sections)

    @property
    def entry(self) -> Entry:
        """That of the first run."""
        return self.entries[self.labels[0]]

    @property
    def section(self) -> Section:
        """That of the first run."""
        return self.sections[self.labels[0]]

    @property
    def kinds(self) -> list[Kind]:
        """(stream, kind) of what repeats in any of the runs, streams together, in the order of the first run."""
        found = dict.fromkeys(kind for section in self.sections.values() for kind in section.grid)
        streams = list(dict.fromkeys(stream for stream, _ in found))
        return sorted(found, key=lambda kind: streams.index(kind[0]))

    @property
    def span(self) -> range:
        """First to last index of all runs."""
        spans = [section.span for section in self.sections.values() if section.span]
        return range(min(span[0] for span in spans), max(span[-1] for span in spans) + 1) if spans else range(0)

    @property
    def match(self) -> float:
        """The largest excess of a match, as the first run has it."""
        return limits(self.runs[self.labels[0]])[0]

    def rows(self, kind: Kind) -> dict[str, Mapping[int, Row]]:
        """Label -> index -> row of one kind."""
        return {label: section.grid.get(kind, {}) for label, section in self.sections.items()}

    def other_rows(self) -> dict[str, dict[str, Row]]:
        """Name -> label -> row of what does not repeat, in order."""
        found: dict[str, dict[str, Row]] = {}
        for label, section in self.sections.items():
            for row in section.others:
                found.setdefault(row["name"], {})[label] = row
        return found

    def heading(self, *, mode: bool = True) -> list[str]:
        """Component, case, dtype and mode in words."""
        return heading(self.entry, self.section, mode=mode)


def named(folders: Sequence[Path], runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by the shortest ends of their folders' paths that tell them apart.

    Raises:
        UsageError: a folder is there twice, or there are more than can be told apart in one plot.
    """
    if len(folders) > MOST:
        raise UsageError(f"{len(folders)} runs: a plot can hold at most {MOST}")
    paths = [folder.resolve() for folder in folders]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UsageError(f"{cut(str(folders[i]), 200)}: this run is there twice")
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        labels = [cut("/".join(path.parts[-length:]), 200) for path in paths]
        if len(set(labels)) == len(labels):
            break
    return dict(zip(_short(labels), runs, strict=True))


def _short(labels: Sequence[str]) -> list[str]:
    """Labels cut in the middle, with a number where that makes two of them alike."""
    keep = LABEL // 2 - 1
    cuts = [one if len(one) <= LABEL else f"{one[:keep]}…{one[-keep:]}" for one in labels]
    return [one if cuts.count(one) == 1 else f"{i + 1} {one}" for i, one in enumerate(cuts)]


def overlays(runs: Mapping[str, Run]) -> list[Overlay]:
    """What at least two of the runs have, in the order of the first of them.

    Raises:
        UsageError: no two of them have a case in common in the same dtype and mode.
    """
    places: dict[tuple[str, ...], dict[str, Entry]] = {}
    for label, run in runs.items():
        for entry in run["cases"]:
            places.setdefault((entry["name"], entry["dtype"], entry["mode"]), {})[label] = entry
    found = [one for entries in places.values() if len(entries) > 1 for one in _of_entries(runs, entries)]
    if not found:
        has = "; ".join(f"{label} has {_listed(run)}" for label, run in runs.items())
        raise UsageError(f"the runs share no case in the same dtype and mode: {has}")
    return found


def _listed(run: Run) -> str:
    places = [f"{cut(entry['name'], 30)} {entry['dtype']} {entry['mode']}" for entry in run["cases"]]
    return ", ".join(places[:3]) + " …" * (len(places) > 3) or "none"


def _of_entries(runs: Mapping[str, Run], entries: Mapping[str, Entry]) -> Iterator[Overlay]:
    first, *others = entries
    arranged = {label: dict(drawn(entries[label])) for label in others}
    for part, section in drawn(entries[first]):
        found = {first: section}
        for label in others:
            # The pass with the largest excess need not be the same in all runs.
            same = (one for one in sections(entries[label]) if one.key == section.key)
            mine = arranged[label].get(part) or next(same, None)
            if mine is not None:
                found[label] = mine
        if len(found) > 1:
            yield Overlay(part, {label: runs[label] for label in found}, dict(entries), found)


def change(before: Row | None, after: Row | None) -> float | None:
    """By what factor the excess of a checkpoint grew; None where one of the two was not judged.

    An excess below 1 counts as 1: as near to truth as the reference is no better than nearer still.
    """
    if before is None or after is None:
        return None
    first, second = excess_of(before), excess_of(after)
    if first is None or second is None:
        return None
    first, second = max(first, 1.0), max(second, 1.0)
    if math.isinf(first) or math.isinf(second):
        return 1.0 if first == second else math.inf if math.isinf(second) else 0.0
    return second / first


def step_of_change(factor: float) -> int:
    """Which of the seven steps a factor falls in; one on a border belongs to the step nearer to no change."""
    return bisect.bisect_right(EDGES, factor) if factor < 1 else bisect.bisect_left(EDGES, factor)


RANK = ("match", "suspect", "diverged")


def turned(before: Row | None, after: Row | None) -> int:
    """1 where the verdict of a checkpoint got worse, -1 where it got better, 0 otherwise."""
    if before is None or after is None or not {before["verdict"], after["verdict"]} <= set(RANK):
        return 0
    first, second = RANK.index(before["verdict"]), RANK.index(after["verdict"])
    return (second > first) - (second < first)


def differences(runs: Mapping[str, Run]) -> str:
    """In what else the runs differ (weights, ports, versions), as a sentence; empty where in nothing that they say."""
    said = {label: _told(run) for label, run in runs.items()}
    keys = dict.fromkeys(key for told in said.values() for key in told)
    found = []
    for key in keys:
        values = [told.get(key, "none") for told in said.values()]
        if len(set(values)) > 1:
            found.append(f"{key} ({' / '.join(cut(value, 24) for value in values)})")
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"The runs differ in {', '.join(found[:3])}{more}. " if found else ""


def _told(run: Run) -> dict[str, str]:
    weights, environment = run.get("weights") or {}, run.get("environment") or {}
    ports = run.get("ports") or {}
    told = {"weights": str(weights.get("path", "")), "port": str(ports.get("candidate", ""))}
    # What changes with what else the machine does says little; it stands last, or not at all.
    late = {}
    for side in ("candidate", "reference", "host"):
        of_side = environment.get(side)
        for key, value in of_side.items() if isinstance(of_side, Mapping) else ():
            if isinstance(value, str | int | float) and key not in ("port", "units_at_once"):
                (late if key == "threads" else told)[f"{side} {cut(str(key), 24)}"] = str(value)
    return told | late
