"""Figures of what does not repeat: a line a checkpoint, in the order in which the model makes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from parity.errorplots import exact_words
from parity.plotstyle import (
    SIZE,
    Theme,
    cross,
    cut,
    excess_of,
    footnote,
    is_broken,
    key,
    limits,
    log_axis,
    page,
    ring,
    symlog_axis,
)
from parity.rangeplots import pale, spans_of
from parity.sections import Entry, Row, Section, heading, is_exact, left_out, local_names

# Lines that can be read on one page, and how many of them stand in one, two and three columns.
MOST = 114
COLUMNS = ((36, 1), (76, 2), (MOST, 3))
LONGEST = 34
# Width of a letter over its size, and of the page in points.
LETTER, POINTS = 0.59, 72 * SIZE[0]

Panel = Callable[[Axes, Sequence[Row]], None]


def sequence_figure(run: Mapping[str, Any], entry: Entry, section: Section, colours: Theme) -> Figure:
    """Relative RMSE beside its floor, and the excess with the verdict lines, of each checkpoint."""
    text = "a line a checkpoint, in order; the floor is the reference's own error in this dtype"
    figure = page(run, colours, "Error against the floor", text, what=heading(entry, section))
    rows = chosen(section.others)
    match, suspect = limits(run)
    excesses = [value for row in rows if (value := excess_of(row)) is not None]
    errors = [float(row[part]) for row in rows for part in ("rel_rmse", "floor") if row.get(part) is not None]

    # A shape as well as a colour.
    marks = {"match": (colours.img, "o"), "suspect": (colours.steps[4], "s"), "diverged": (colours.bad, "D")}

    def error(ax: Axes, shown: Sequence[Row]) -> None:
        log_axis(ax, errors, along="x")
        low, high = ax.get_xlim()
        for y, row in enumerate(shown):
            if is_exact(row) or row.get("rel_rmse") is None or row.get("floor") is None:
                continue
            floor, found = (min(max(float(row[part]), low), high) if not math.isnan(float(row[part])) else high
                            for part in ("floor", "rel_rmse"))  # fmt: skip
            ax.plot([floor, found], [y, y], color=colours.grid, lw=2, zorder=2, solid_capstyle="butt")
            ax.plot([floor], [y], "|", color=colours.muted, ms=7, mew=1.6, zorder=3)
            colour, mark = marks.get(row["verdict"], (colours.muted, "o"))
            finite = math.isfinite(float(row["rel_rmse"]))
            ax.plot([found], [y], mark if finite else "x", color=colour, ms=4.5 if finite else 6, zorder=4)

    def excess(ax: Axes, shown: Sequence[Row]) -> None:
        log_axis(ax, [*excesses, match / 10, suspect * 3], along="x", pad=1.5)
        low, high = ax.get_xlim()
        for border in (match, suspect):
            ax.axvline(border, color=colours.ink, lw=1, ls=(0, (5, 3)), zorder=1)
        for y, row in enumerate(shown):
            value = excess_of(row)
            if value is not None and not is_exact(row):
                end = min(max(value, low), high)
                colour, mark = marks.get(row["verdict"], (colours.muted, "o"))
                ax.plot([low, end], [y, y], color=colour, lw=2.2, alpha=0.45, solid_capstyle="butt", zorder=2)
                ax.plot([end], [y], mark if math.isfinite(value) else "x", color=colour, ms=4.5, zorder=3)
            if row.get("source") and value is not None:
                ax.plot([min(max(value, low), high)], [y], "o", mfc="none", mec=colours.ink, ms=8.5, zorder=4)
            ax.annotate(said(row), (1, y), xycoords=ax.get_yaxis_transform(), xytext=(4, 0), fontsize=_size(len(shown)),
                        textcoords="offset points", va="center", annotation_clip=False,
                        color=colours.muted if row["verdict"] == "match" else colours.bad)  # fmt: skip

    panels = {"relative RMSE": error, "excess: error over floor": excess}
    if _columns(len(rows)) == 3 or all(map(is_exact, rows)):
        del panels["relative RMSE"]
    layout(figure, rows, section, panels, colours)
    labels = ("match", f"suspect, above {match:g}", f"diverged, above {suspect:g}")
    key(figure, [
        *(Line2D([], [], color=colour, marker=mark, lw=2, ms=4.5, label=label)
          for (colour, mark), label in zip(marks.values(), labels, strict=True)),
        *([Line2D([], [], color=colours.muted, marker="|", lw=0, ms=7, mew=1.6, label="floor")]
          if len(panels) == 2 else []),
        *ring(colours, rows),
        *cross(colours, rows),
    ])  # fmt: skip
    footnote(figure, _some(rows, section) + exact_words(section.rows) + left_out(entry, section), colours)
    return figure


def spans_figure(run: Mapping[str, Any], entry: Entry, section: Section, colours: Theme) -> Figure:
    """Smallest to largest activation of both sides of each checkpoint, with the documented ranges."""
    text = "smallest to largest value of each checkpoint, in order; linear around 0 and logarithmic outside"
    figure = page(run, colours, "Activation ranges", text, what=heading(entry, section, mode=False))
    rows = chosen(section.others)
    ends = {part: spans_of(rows, part) for part in ("candidate", "reference", "range")}
    everything = [value for part in ends.values() for value in part.ravel()]

    def span(ax: Axes, shown: Sequence[Row]) -> None:
        symlog_axis(ax, everything, along="x")
        ax.axvline(0, color=colours.grid, lw=1)
        for part, height, style in (
            ("candidate", 0.66, {"color": pale(colours.img, colours), "zorder": 2}),
            ("reference", 0.9, {"fill": False, "edgecolor": colours.reference, "lw": 0.9, "zorder": 3}),
        ):
            low, high = spans_of(shown, part)
            ax.barh(range(len(shown)), high - low, left=low, height=height, **({"lw": 0} | style))
        low, high = spans_of(shown, "range")
        for end in (low, high):
            ax.plot(end, range(len(shown)), "|", color=colours.documented, ms=10, mew=2.6, zorder=4)
        broken = [y for y, row in enumerate(shown) if is_broken(row.get("candidate"))]
        ax.plot([0.98] * len(broken), broken, "x", color=colours.bad, ms=6, mew=1.8, zorder=5,
                transform=ax.get_yaxis_transform())  # fmt: skip

    layout(figure, rows, section, {"value": span}, colours, behind=0.01)
    known = any(row.get("range") for row in rows)
    key(figure, [
        Patch(color=colours.img, alpha=0.5, lw=0, label="candidate"),
        Patch(fc="none", ec=colours.reference, lw=0.9, label="reference"),
        *([Line2D([], [], color=colours.documented, marker="|", ms=10, mew=2.6, lw=0, label="documented range")]
          if known else []),
        *cross(colours, rows),
    ])  # fmt: skip
    footnote(figure, _some(rows, section), colours)
    return figure


def said(row: Row) -> str:
    """The excess of a row as a word at the end of its line."""
    value = excess_of(row)
    if value is None or row["verdict"] not in ("match", "suspect", "diverged"):
        return row["verdict"]
    if is_exact(row):
        return "equal" if value == 0 else f"{row.get('mismatches') or 'some'} differ"
    return "not finite" if math.isinf(value) else f"{value:.2f}" if value < 100 else f"{value:.1e}"


def chosen(rows: Sequence[Row]) -> list[Row]:
    """The rows that a page has room for, in order: all, or those with the largest excess."""
    if len(rows) <= MOST:
        return list(rows)
    rank = sorted(range(len(rows)), key=lambda i: -(math.inf if (value := excess_of(rows[i])) is None else value))
    return [rows[i] for i in sorted(rank[:MOST])]


def _some(shown: Sequence[Row], section: Section) -> str:
    if len(shown) == len(section.others):
        return ""
    return f"{len(shown)} of {len(section.others)} checkpoints, those with the largest excess. "


def _columns(count: int) -> int:
    return next(columns for most, columns in COLUMNS if count <= most)


def _size(deep: int) -> float:
    """Size of the letters beside `deep` lines."""
    return min(8.5, max(5.5, 300 / deep))


def layout(
    figure: Figure,
    rows: Sequence[Row],
    section: Section,
    panels: Mapping[str, Panel],
    colours: Theme,
    *,
    behind: float = 0.042,
) -> None:
    """Columns of lines: names, then one panel beside another; stages are told apart by shading.

    Args:
        panels: title -> what draws some of the rows.
        behind: room for words behind the last panel.
    """
    columns = _columns(len(rows))
    deep = math.ceil(len(rows) / columns)
    size, names = _size(deep), [cut(name, LONGEST) for name in local_names(rows, section)]
    before = 0.014 + max(map(len, names)) * size * LETTER / POINTS
    stages = list(dict.fromkeys(row.get("stage") for row in rows))
    # A few lines need not be as far apart as the page is tall.
    line = min(0.67 / deep, 0.05)
    for column in range(columns):
        part = slice(column * deep, (column + 1) * deep)
        shown = rows[part]
        left, right = (0.025 + (column + end) * 0.95 / columns for end in (0, 1))
        left, right = left + before, right - behind
        wide = (right - left - 0.015 * (len(panels) - 1)) / len(panels)
        for i, (title, draw) in enumerate(panels.items()):
            ax = figure.add_axes((left + i * (wide + 0.015), 0.8 - line * len(shown), wide, line * len(shown)))
            draw(ax, shown)
            for y, row in enumerate(shown):
                if stages.index(row.get("stage")) % 2:
                    ax.axhspan(y - 0.5, y + 0.5, color=colours.blank, lw=0, zorder=0, alpha=0.7)
            ax.set(ylim=(len(shown) - 0.5, -0.5), xlabel=title)
            ax.set_yticks(range(len(shown)), names[part] if i == 0 else [""] * len(shown), fontsize=size)
            ax.tick_params(axis="y", length=0)
            ax.grid(visible=False, axis="y")
