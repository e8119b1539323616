"""Errors against their floor and the excess of every checkpoint, over blocks, layers or steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from parity.plotstyle import (
    SIZE,
    Theme,
    cross,
    cut,
    excess_edges,
    excess_of,
    footnote,
    index_axis,
    ink_on,
    key,
    limits,
    log_axis,
    log_line,
    mark_nonfinite,
    page,
    points_of,
    ring,
    short,
    step_of,
)
from parity.sections import (
    FEW,
    Entry,
    Kind,
    Row,
    Section,
    heading,
    is_exact,
    left_out,
    local_names,
    role_of,
    stream_title,
)

HATCH = {"missing": "////", "uncertain": "xxxx", "skipped": "----"}
# Panels of kinds beside the panel of excess.
PANELS = 12
# Cells wide enough for a mark in them.
MARKED = 40


def errors_figure(run: Mapping[str, Any], entry: Entry, section: Section, colours: Theme) -> Figure:
    """Relative RMSE against the floor, a panel a kind; and the excess of every checkpoint with the verdict lines."""
    text = "candidate against float64 truth; the floor is the reference's own error in this dtype"
    figure = page(run, colours, "Error against the floor", text, what=heading(entry, section))
    grid = {kind: rows for kind, rows in section.grid.items() if not all(map(is_exact, rows.values()))}
    kinds = _worst_kinds(grid)
    lines = {key: (points_of(rows, "floor"), points_of(rows, "rel_rmse")) for key, rows in grid.items()}
    values = [v for (_, kind), pair in lines.items() if kind in kinds for line in pair for v in line.values()]
    columns = 1 if len(kinds) == 1 else 2 if len(kinds) <= 4 else 3 if len(kinds) <= 9 else 4
    deep = math.ceil(len(kinds) / columns)
    dashes = (0, (2, 1.5))
    dot = "." if len(section.span) < 12 else None
    places = figure.add_gridspec(max(deep, 1), columns, left=0.075, right=0.6, top=0.79, bottom=0.11, wspace=0.1,
                                 hspace=0.3)  # fmt: skip
    for i, kind in enumerate(kinds):
        ax = figure.add_subplot(places[i // columns, i % columns], title=kind)
        lowest = i + columns >= len(kinds)
        index_axis(ax, section.span, section.unit, label=lowest)
        log_axis(ax, values)
        ax.tick_params(labelleft=i % columns == 0, labelbottom=lowest)
        ax.set_ylabel("relative RMSE" if i % columns == 0 else "")
        for stream in section.streams:
            floor, error = lines.get((stream, kind), ({}, {}))
            colour = getattr(colours, role_of(stream))
            log_line(ax, floor, colours, color=colour, lw=1.2, ls=dashes, marker=dot)
            log_line(ax, error, colours, color=colour, lw=1.8, marker=dot)
    left = 0.665 if kinds else 0.065
    _excess_panel(figure.add_axes((left, 0.11, 0.965 - left, 0.68), title="excess"), run, section, colours)
    key(figure, [
        *(Line2D([], [], color=getattr(colours, role_of(s)), lw=1.8, label=stream_title(s)) for s in section.streams),
        Line2D([], [], color=colours.muted, lw=1.2, ls=dashes, label="floor"),
        *ring(colours, section.rows),
        *cross(colours, section.rows),
    ])  # fmt: skip
    known = {kind for _, kind in grid}
    some = f"{len(kinds)} of {len(known)} kinds, those with the largest excess. " if len(kinds) < len(known) else ""
    footnote(figure, some + exact_words(section.rows) + left_out(entry, section), colours)
    return figure


def _worst_kinds(grid: Mapping[Kind, Mapping[int, Row]]) -> list[str]:
    """The kinds that have panels, in order: all, or those with the largest excess."""
    worst: dict[str, float] = {}
    for (_, kind), rows in grid.items():
        found = [value for row in rows.values() if (value := excess_of(row)) is not None]
        worst[kind] = max([worst.get(kind, -1.0), *found])
    kept = sorted(worst, key=lambda kind: -worst[kind])[:PANELS]
    return [kind for kind in worst if kind in kept]


def exact_words(rows: Sequence[Row]) -> str:
    """What became of the checkpoints that must be equal bit for bit, as a sentence; empty where there are none."""
    exact = [row for row in rows if is_exact(row) and row["verdict"] in ("match", "diverged")]
    differ = sum(row["verdict"] == "diverged" for row in exact)
    if not exact:
        return ""
    found = f"{differ} of them {'differs' if differ == 1 else 'differ'}" if differ else "all are"
    return f"{len(exact)} checkpoint{'s' * (len(exact) > 1)} must equal the reference bit for bit: {found}. "


def _excess_panel(ax: Axes, run: Mapping[str, Any], section: Section, colours: Theme) -> None:
    """A dot a checkpoint; what is made before and after the repetitions stands at the sides.

    Checkpoints that are equal bit for bit, as they must be, have no place on a logarithmic axis.
    """
    span = section.span
    gap = max(1.0, len(span) / 12)
    placed = [(span[0] - gap, row, colours.muted) for row in section.before]
    placed += [(span[-1] + gap, row, colours.muted) for row in section.after]
    placed += [(x, row, getattr(colours, role_of(s))) for (s, _), of in section.grid.items() for x, row in of.items()]
    dots = [(x, value, row, colour) for x, row, colour in placed
            if (value := excess_of(row)) is not None and not (is_exact(row) and value == 0)]  # fmt: skip
    match, suspect = limits(run)
    log_axis(ax, [v for _, v, _, _ in dots] + [match / 10, suspect * 3], pad=1.6)
    index_axis(ax, span, section.unit)
    ticks = [int(tick) for tick in ax.get_xticks()]
    sides = [(span[0] - gap, "in")] * bool(section.before) + [(span[-1] + gap, "out")] * bool(section.after)
    ax.set_xticks([*ticks, *(x for x, _ in sides)], [*ticks, *(word for _, word in sides)])
    ax.set_xlim(span[0] - 1.7 * gap, span[-1] + 1.7 * gap)
    low, _ = ax.get_ylim()
    for value, verdict in ((match, "suspect"), (suspect, "diverged")):
        ax.axhline(value, color=colours.ink, lw=1, ls=(0, (5, 3)))
        ax.annotate(f"{verdict} above {value:g}", (0.985, value), xycoords=ax.get_yaxis_transform(), xytext=(0, 3),
                    textcoords="offset points", fontsize=8.5, fontweight="bold", ha="right", zorder=6,
                    bbox={"fc": colours.panel, "ec": "none", "alpha": 0.75, "pad": 1})  # fmt: skip
    finite = [(x, max(v, low), c) for x, v, _, c in dots if math.isfinite(v)]
    # Thousands of dots as vectors would make the SVG ten times as large.
    ax.scatter(*np.array([(x, v) for x, v, _ in finite]).reshape(-1, 2).T, c=[c for _, _, c in finite], alpha=0.8,
               s=11 if len(finite) > 100 else 22, lw=0, zorder=3, rasterized=True)  # fmt: skip
    mark_nonfinite(ax, [x for x, v, _, _ in dots if not math.isfinite(v)], colours)
    rings = [(x, v) for x, v, row, _ in dots if row.get("source") and math.isfinite(v)]
    ax.scatter(*np.array(rings).reshape(-1, 2).T, s=46, facecolors="none", edgecolors=colours.ink, lw=1, zorder=4)
    ax.set_ylabel("error over floor")


def heatmap_figure(run: Mapping[str, Any], entry: Entry, section: Section, colours: Theme) -> Figure:
    """Excess of every checkpoint, kind by index; what was not judged is hatched, sources are framed."""
    text = "excess of each checkpoint: its error in units of the floor, the reference's own error in this dtype"
    if all(map(is_exact, section.rows)):
        text = "every checkpoint of this component must equal the reference bit for bit"
    figure = page(run, colours, "Where the port departs", text, what=heading(entry, section))
    others = section.others if len(section.others) <= FEW else []
    edges = excess_edges(*limits(run))
    names = local_names(others, section)
    wide = min(12, max(4, 138 // (max(map(len, names), default=1) + 1)))
    lines = math.ceil(len(others) / wide)
    wide, strip = math.ceil(len(others) / max(lines, 1)), min(0.045 * lines, 0.15)
    grid, left = section.grid, 0.12
    names_of = [kind if len(section.streams) == 1 else f"{stream}.{kind}" for stream, kind in grid]
    # A few rows need not be as tall as the page.
    room = 0.645 - strip
    deep = min(room, 0.1 * len(grid))
    ax = figure.add_axes((left, 0.225 + strip + room - deep, 0.965 - left, deep))
    cells = {(x - section.span[0], i): row for i, rows in enumerate(grid.values()) for x, row in rows.items()}
    _cells(ax, cells, edges, colours, start=section.span[0])
    index_axis(ax, section.span, section.unit, most=12)
    ax.set_xlim(section.span[0] - 0.5, section.span[-1] + 0.5)
    ax.set_yticks(range(len(grid)), [cut(name, 22) for name in names_of], fontsize=min(8.5, 470 * deep / len(grid)))
    for stream in section.streams[1:]:
        first = next(i for i, kind in enumerate(grid) if kind[0] == stream)
        divide(ax, first - 0.5, colours)
    if others:
        ax = figure.add_axes((left, 0.145 + room - deep, 0.965 - left, strip))
        cells = {(i % wide, i // wide): row for i, row in enumerate(others)}
        _cells(ax, cells, edges, colours)
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel("other", rotation=0, ha="right", va="center", color=colours.muted)
        for (x, y), name in zip(cells, names, strict=True):
            value = excess_of(cells[x, y])
            face = colours.blank if value is None else colours.steps[step_of(value, edges)]
            sign = "" if not is_exact(cells[x, y]) or value is None else " ≠" if value else " ="
            ax.text(x, y, cut(name, 142 // wide) + sign, ha="center", va="center", fontsize=8.5, color=ink_on(face),
                    bbox={"fc": face, "ec": "none", "pad": 1})  # fmt: skip
    _heatmap_key(figure, edges, colours, section.rows)
    footnote(figure, exact_words(section.rows) + left_out(entry, section), colours)
    return figure


def divide(ax: Axes, y: float, colours: Theme) -> None:
    """A line between two streams of a heatmap, seen on light and on dark cells."""
    ax.axhline(y, color=colours.page, lw=4.5)
    ax.axhline(y, color=colours.ink, lw=1.5)


def _cells(
    ax: Axes, cells: Mapping[tuple[int, int], Row], edges: Sequence[float], colours: Theme, *, start: int = 0
) -> None:
    """One cell a row at (x, y), y downwards, the first column at `start`."""
    wide, deep = (1 + max(place[i] for place in cells) for i in (0, 1))
    picture = np.ones((deep, wide, 3)) * to_rgb(colours.page)
    # A point on paper, in cells.
    place = ax.get_position()
    dots = (wide / (72 * SIZE[0] * place.width), deep / (72 * SIZE[1] * place.height))
    for (column, y), row in cells.items():
        x, value = start + column, excess_of(row)
        judged = value is not None and row["verdict"] not in HATCH
        face = colours.steps[step_of(value, edges)] if judged else colours.blank
        picture[y, column] = to_rgb(face)
        if not judged:
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc="none", ec=colours.muted, lw=0,
                                   hatch=HATCH.get(row["verdict"], "")))  # fmt: skip
        elif is_exact(row) and wide <= MARKED:
            ax.text(x, y, "≠" if value else "=", ha="center", va="center", fontsize=9, color=ink_on(face))
        elif math.isinf(value):
            ax.plot([x], [y], "x", color=ink_on(colours.steps[-1]), ms=4, mew=1.2)
        if row.get("source"):
            # Two lines, so that the frame shows on light and on dark cells.
            for inset, colour in ((1.0, colours.ink), (2.4, colours.page)):
                across, down = inset * dots[0], inset * dots[1]
                ax.add_patch(Rectangle((x - 0.5 + across, y - 0.5 + down), 1 - 2 * across, 1 - 2 * down,
                                       fc="none", ec=colour, lw=1.2))  # fmt: skip
    extent = (start - 0.5, start + wide - 0.5, deep - 0.5, -0.5)
    ax.imshow(picture, aspect="auto", interpolation="nearest", extent=extent)
    ax.hlines(np.arange(deep - 1) + 0.5, *extent[:2], color=colours.page, lw=1)
    if wide <= MARKED:
        ax.vlines(start + np.arange(wide - 1) + 0.5, *extent[2:], color=colours.page, lw=1)
    ax.set(xlim=extent[:2], ylim=extent[2:])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def _heatmap_key(figure: Figure, edges: Sequence[float], colours: Theme, rows: Sequence[Row]) -> None:
    """The steps with their borders, the verdicts above them, and those marks that occur."""
    ax = figure.add_axes((0.12, 0.075, 0.4, 0.026))
    ax.imshow([[to_rgb(step) for step in colours.steps]], aspect="auto")
    ax.set_xticks(np.arange(len(edges)) + 0.5, [short(float(f"{edge:.2g}")) for edge in edges])
    ax.set(yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    for x, verdict, border in ((1, "match", 2.5), (3.5, "suspect", 4.5), (6.5, "diverged", None)):
        ax.text(x, -0.75, verdict, ha="center", va="bottom", fontsize=9, fontweight="bold")
        if border is not None:
            ax.plot([border] * 2, [-1.2, 0.5], color=colours.ink, lw=1.6, clip_on=False)
    ax.set_ylim(0.5, -0.5)
    found = {row["verdict"] for row in rows}
    marks = [Patch(fc=colours.blank, ec=colours.muted, lw=0, hatch=HATCH[v], label=v) for v in HATCH if v in found]
    frame = Patch(fc="none", ec=colours.ink, lw=1.3, label="source of a divergence")
    sources = [frame] * any(row.get("source") for row in rows)
    equal = [Line2D([], [], lw=0, label="=  equal bit for bit")] * any(map(is_exact, rows))
    handles = [*sources, *cross(colours, (row for row in rows if not is_exact(row))), *marks, *equal]
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=(0.545, 0.087), ncols=3,
                  columnspacing=1.3, handlelength=1.5, fontsize=8.5)  # fmt: skip
