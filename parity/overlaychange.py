"""Where a run is better or worse than another one: a heatmap of the factor between their excesses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from parity.errorplots import divide
from parity.overlay import BORDERS, EDGES, Overlay, change, differences, step_of_change, turned
from parity.plotstyle import SIZE, Theme, cut, footnote, index_axis, ink_on, page
from parity.sections import Kind


def change_figure(one: Overlay, colours: Theme) -> Figure:
    """The factor between the excess of each further run and that of the first, kind by index, a panel a run."""
    first, *others = one.labels
    figure = page(one.runs[first], colours, "Better or worse", f"excess of each checkpoint against that in “{first}”; "
                  "an excess below 1 counts as 1", what=one.heading())  # fmt: skip
    columns = 1 if len(others) == 1 else 2
    deep = math.ceil(len(others) / columns)
    kinds, absent, worse = one.kinds, False, False
    # A few rows need not be as tall as the page.
    bottom = max(0.2, 0.835 - 0.1 * len(kinds)) if deep == 1 else 0.2
    places = figure.add_gridspec(deep, columns, left=0.12, right=0.965, top=0.835, bottom=bottom, wspace=0.05,
                                 hspace=0.3)  # fmt: skip
    # Points of a row.
    room = 72 * SIZE[1] * (0.835 - bottom) / (deep + 0.3 * (deep - 1)) / len(kinds)
    for i, label in enumerate(others):
        ax = figure.add_subplot(places[i // columns, i % columns])
        counts = _cells(ax, one, kinds, label, colours)
        absent |= counts["absent"] > 0
        worse |= counts["down"] > 0
        ax.set_title(f"{label}: {_said(counts)}", fontsize=10.5 if columns == 1 else 9)
        index_axis(ax, one.span, one.section.unit, most=12 // columns, label=i + columns >= len(others))
        ax.set_xlim(one.span[0] - 0.5, one.span[-1] + 0.5)
        names = [cut(kind if len(one.section.streams) == 1 else f"{stream}.{kind}", 22) for stream, kind in kinds]
        ax.set_yticks(range(len(kinds)), names if i % columns == 0 else [""] * len(kinds),
                      fontsize=min(8.5, 0.86 * room))  # fmt: skip
    _key(figure, colours, absent=absent, worse=worse)
    footnote(figure, _others(one, others) + differences(one.runs), colours)
    return figure


def _said(counts: Mapping[str, int]) -> str:
    found = [f"{counts[word]:,} {word}" for word in ("better", "worse") if counts[word]] or ["no change"]
    turns = [f"{counts[key]:,} {word}" for key, word in (("up", "better"), ("down", "worse")) if counts[key]]
    return ", ".join(found) + f"; verdicts: {', '.join(turns)}" * bool(turns)


def _others(one: Overlay, labels: Sequence[str]) -> str:
    """What became of the checkpoints that do not repeat, which have no cells."""
    rows = one.other_rows().values()
    if not rows:
        return ""
    found = [(change(of.get(one.labels[0]), of.get(label)), label) for of in rows for label in labels]
    counts = {word: sum(1 for factor, _ in found if factor is not None and (step_of_change(factor) - 3) * sign > 0)
              for word, sign in (("better", -1), ("worse", 1))}  # fmt: skip
    return f"Of {len(rows)} checkpoints that do not repeat: {_said(counts | {'up': 0, 'down': 0})}. "


def _cells(ax: Axes, one: Overlay, kinds: list[Kind], label: str, colours: Theme) -> dict[str, int]:
    """The cells of one run; returns how many are better and worse, and how many verdicts are."""
    first, span, steps, wide = one.labels[0], one.span, colours.changes, len(one.labels) == 2
    picture = np.ones((len(kinds), len(span), 3)) * to_rgb(colours.page)
    counts = dict.fromkeys(("better", "worse", "up", "down", "absent"), 0)
    for y, kind in enumerate(kinds):
        rows = one.rows(kind)
        for x in span:
            before, after = rows[first].get(x), rows[label].get(x)
            if before is None and after is None:
                continue
            factor = change(before, after)
            place = (x - 0.5, y - 0.5)
            if factor is None:
                picture[y, x - span[0]] = to_rgb(colours.blank)
                ax.add_patch(Rectangle(place, 1, 1, fc="none", ec=colours.muted, lw=0, hatch="////"))
                counts["absent"] += 1
                continue
            step = step_of_change(factor)
            picture[y, x - span[0]] = to_rgb(steps[step])
            counts["better"] += step < 3
            counts["worse"] += step > 3
            turn = turned(before, after)
            counts["up"] += turn < 0
            counts["down"] += turn > 0
            if turn > 0:
                ax.add_patch(Rectangle((x - 0.4, y - 0.4), 0.8, 0.8, fc="none", ec=ink_on(steps[step]),
                                       lw=1 if wide else 0.6))  # fmt: skip
    extent = (span[0] - 0.5, span[-1] + 0.5, len(kinds) - 0.5, -0.5)
    ax.imshow(picture, aspect="auto", interpolation="nearest", extent=extent)
    ax.hlines(np.arange(len(kinds) - 1) + 0.5, *extent[:2], color=colours.page, lw=1)
    streams = [stream for stream, _ in kinds]
    for y in range(1, len(kinds)):
        if streams[y] != streams[y - 1]:
            divide(ax, y - 0.5, colours)
    ax.set(xlim=extent[:2], ylim=extent[2:])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return counts


def _key(figure: Figure, colours: Theme, *, absent: bool, worse: bool) -> None:
    ax = figure.add_axes((0.12, 0.075, 0.4, 0.026))
    ax.imshow([[to_rgb(step) for step in colours.changes]], aspect="auto")
    ax.set_xticks(np.arange(len(EDGES)) + 0.5, BORDERS)
    ax.set(yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    for x, word in ((1, "better"), (3, "no change"), (5, "worse")):
        ax.text(x, -0.75, word, ha="center", va="bottom", fontsize=9, fontweight="bold")
    ax.set_ylim(0.5, -0.5)
    handles = [Patch(fc="none", ec=colours.ink, lw=1.3, label="verdict got worse")] * worse
    if absent:
        handles += [Patch(fc=colours.blank, ec=colours.muted, lw=0, hatch="////", label="not judged in both runs")]
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=(0.545, 0.087), ncols=2, columnspacing=1.3,
                  handlelength=1.5, fontsize=8.5)  # fmt: skip
