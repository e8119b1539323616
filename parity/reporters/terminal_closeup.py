"""Single checkpoints in a terminal: sparklines of how their values are spread, and of the error along each axis."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from parity.closeup import Checkpoint, checkpoints, said
from parity.plotstyle import cut, short
from parity.reporters.sparks import WIDTH, Lines, titled, two
from parity.reporters.terminal import title


def lines_of_checkpoints(
    run: Mapping[str, Any], folder: Path | None, kinds: Collection[str], names: Collection[str]
) -> Lines:
    """Histograms and profiles, see `closeup.checkpoints`; nothing of a checkpoint of which the traces have none.

    Raises:
        UsageError: a checkpoint that the run has not, a trace that cannot be read.
    """
    for one in checkpoints(run, folder, names):
        plots: list[Lines] = [_histogram(one)] * ("histogram" in kinds and bool(one.histogram))
        plots += [_profile(axis) for axis in one.axes if "profile" in kinds]
        if plots:
            yield title(one.what)
            yield Text(cut(one.name, WIDTH), "bold")
            yield Text(cut(said(one.row), WIDTH))
            for plot in plots:
                yield from plot
            yield Text()


def _histogram(one: Checkpoint) -> Lines:
    first, *counts = one.histogram
    lines = {}
    for side, of, style in zip(("reference", "candidate"), counts, ("dim", "blue"), strict=True):
        total = max(sum(of), 1)
        lines[side] = ({i: count / total for i, count in enumerate(of) if count}, style)
    ends = f"|x|, {short(two(2.0**first))} to {short(two(2.0 ** (first + len(counts[0]))))}"
    yield from titled(f"share of the values by {ends}", lines, range(len(counts[0])))


def _profile(axis: Mapping[str, Any]) -> Lines:
    lines = {"error": (_points(axis["error"], axis["bad"]), "red"), "truth": (_points(axis["truth"], None), "dim")}
    along = f"rms along {axis['title']}, {axis['length']:,}, worst {axis['worst']:,}"
    yield from titled(along, lines, range(len(axis["error"])))


def _points(values: Sequence[float | None], bad: Sequence[int] | None) -> dict[int, float]:
    """By bin; not finite where any of its elements is not."""
    broken = bad or [0] * len(values)
    return {i: math.inf if broken[i] or value is None else value for i, value in enumerate(values)}
