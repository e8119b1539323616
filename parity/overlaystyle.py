"""What the figures of several runs share: a colour and a mark a run, the head, the legend."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from parity.overlay import Overlay
from parity.plotstyle import Theme, cross, page

MARKS = ("o", "s", "^", "D", "v")
DASHES = (0, (2, 1.5))


def tones(colours: Theme) -> tuple[str, ...]:
    """The colours of runs, in order."""
    return (colours.img, colours.txt, colours.step, colours.ink, colours.steps[4])


def styles_of(one: Overlay, colours: Theme) -> dict[str, dict[str, Any]]:
    """Style of each run's line: that of the first is the widest, so that lines which coincide stay visible."""
    before = len(one.runs) - 1
    wide, every = min(1.7, 3.6 / before), math.ceil(len(one.span) / 6) if len(one.span) > 12 else 1
    return {
        label: {"color": tone, "lw": 1.6 + wide * (before - i), "marker": mark, "ms": 4.5 + wide * (before - i),
                "markevery": (i * every // len(one.runs), every), "zorder": 3 + 0.1 * i, "solid_capstyle": "round"}
        for i, (label, tone, mark) in enumerate(zip(one.labels, tones(colours), MARKS, strict=False))
    }  # fmt: skip


def page_of(one: Overlay, colours: Theme, title: str, text: str, *, mode: bool = True) -> Figure:
    """An empty figure of several runs with its head, see `plotstyle.page`."""
    synthetic = next((run for run in one.runs.values() if run["weights"].get("synthetic")), None)
    return page(synthetic or one.runs[one.labels[0]], colours, title, text, what=one.heading(mode=mode))


def handles_of(one: Overlay, colours: Theme, *more: Line2D, counted: bool = False) -> list[Line2D]:
    """The legend: runs, what else there is, and crosses where there are any."""
    styles = styles_of(one, colours)
    said = {label: f": {_verdicts(one, label)}" if counted else "" for label in styles}
    left_out = ("markevery", "zorder")
    return [
        *(Line2D([], [], label=label + said[label], **{k: v for k, v in style.items() if k not in left_out})
          for label, style in styles.items()),
        *more,
        *cross(colours, (row for section in one.sections.values() for row in section.rows)),
    ]  # fmt: skip


def _verdicts(one: Overlay, label: str) -> str:
    rows = one.sections[label].rows
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("diverged", "suspect")}
    said = [f"{count:,} {verdict}" for verdict, count in counts.items() if count]
    return f"{', '.join(said) or 'none off'} of {len(rows):,}"
