"""Single checkpoints, and what the traces of a run folder have of them: values by magnitude, errors along the axes.

Profiles are there for checkpoints that are no match, histograms where the traces have them.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.errors import UsageError
from parity.panelpage import of_traces
from parity.plotstyle import cut, excess_of, short
from parity.sections import Entry, Row, component_title, is_exact

KINDS = ("histogram", "profile")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of an entry, and what the traces have of it.

    Attributes:
        axes: of `parity.profiles.of_unit`; empty where there are none.
        histogram: binade of the first bin, counts of the reference, of the candidate; empty where there is none.
    """

    entry: Entry
    row: Row
    axes: Sequence[Mapping[str, Any]]
    histogram: Sequence[Any]

    @property
    def name(self) -> str:
        """That of the row."""
        return self.row["name"]

    @property
    def what(self) -> list[str]:
        """What a figure of it shows, in words."""
        return [component_title(self.entry), self.entry["name"], self.entry["dtype"], self.entry["mode"]]


def checkpoints(run: Mapping[str, Any], folder: Path | None, names: Collection[str] = ()) -> Iterator[Checkpoint]:
    """Of each entry the checkpoints of some names, or the one that tells most: its first source, or what is worst.

    Raises:
        UsageError: a checkpoint that the run has not, a trace that cannot be read.
    """
    _check_names(run, names)
    for entry in run["cases"]:
        rows = [row for row in entry["checkpoints"] if row["name"] in names] if names else _telling(entry)
        axes, histograms = of_traces(entry, folder, {row["name"] for row in rows}) if folder and rows else ({}, {})
        for row in rows:
            yield Checkpoint(entry, row, axes.get(row["name"], ()), histograms.get(row["name"], ()))


def _check_names(run: Mapping[str, Any], names: Collection[str]) -> None:
    known = dict.fromkeys(row["name"] for entry in run["cases"] for row in entry["checkpoints"])
    for name in names:
        if name not in known:
            padded = re.sub(r"(?<=\.)\d(?=\.)", r"0\g<0>", name)
            near = [padded] if padded in known else difflib.get_close_matches(name[:200], list(known)[:20_000], 3)
            are = "is" if len(near) == 1 else "are"
            hint = f"; close to it {are} {', '.join(cut(one, 60) for one in near)}" if near else ""
            raise UsageError(f"--checkpoint {cut(name, 80)}: the run has no such checkpoint{hint}")


def _telling(entry: Entry) -> list[Row]:
    rows = [row for row in entry["checkpoints"] if not is_exact(row)]
    sources = [row for row in rows if row.get("source")]
    return sources[:1] or sorted(rows, key=lambda row: -_known(excess_of(row)))[:1]


def _known(excess: float | None) -> float:
    return -1.0 if excess is None else excess


def said(row: Row) -> str:
    """The verdict of a row, with its figures."""
    value = excess_of(row)
    if value is None or math.isinf(value):
        return row["verdict"] + (": values that are not finite, or not equal" if value else "")
    figures = [float(row[part]) for part in ("rel_rmse", "floor")]
    error, floor = (short(float(f"{one:.2g}")) for one in figures)
    return f"{row['verdict']}: relative RMSE {error}, {short(float(f'{value:.3g}'))} times the floor of {floor}"


def nothing(kinds: Collection[str], names: Collection[str]) -> str:
    """What to say where the traces have none of what was asked for."""
    named = f" of {', '.join(cut(name, 60) for name in names)}" if names else ""
    return (f"there is no {' or '.join(kinds)}{named}: profiles are kept of checkpoints that are no match, "
            "histograms with their traces, in the folder trace of the run")  # fmt: skip
