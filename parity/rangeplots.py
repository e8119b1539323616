"""Activation ranges and the growth of the residual, over blocks, layers or steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from parity.plotstyle import (
    Theme,
    cross,
    cut,
    footnote,
    index_axis,
    is_broken,
    key,
    log_axis,
    log_line,
    mark_nonfinite,
    page,
    points_of,
    short,
    symlog_axis,
)
from parity.sections import (
    FEW,
    Entry,
    Kind,
    Row,
    Section,
    heading,
    left_out,
    local_names,
    role_of,
    stream_title,
)

# The kinds of the transformer that the guide documents; of the others all are shown that there is room for.
RANGE_KINDS = ("mod", "normed", "modulated", "attn", "ffn", "out")
ACROSS = 6


def ranges_figure(run: Mapping[str, Any], entry: Entry, section: Section, colours: Theme) -> Figure:
    """Smallest to largest activation of both sides per index and kind, with the documented ranges."""
    text = "smallest to largest value of each checkpoint; the scale is linear around 0 and logarithmic outside"
    figure = page(run, colours, "Activation ranges", text, what=heading(entry, section, mode=False))
    panels = panels_of(section)
    deep, wide = len(panels), max(map(len, panels))
    others = section.others if len(section.others) <= FEW else []
    bottom = 0.345 if others else 0.12
    places = figure.add_gridspec(deep, wide, left=0.07, right=0.985, top=0.805, bottom=bottom, wspace=0.42,
                                 hspace=0.28 if len(section.streams) > 1 else 0.42)  # fmt: skip
    for (i, line), j in itertools.product(enumerate(panels), range(wide)):
        if j >= len(line):
            continue
        stream, kind = line[j]
        ax = figure.add_subplot(places[i, j])
        rows, span = section.grid.get((stream, kind), {}), section.span
        _range_panel(ax, [rows.get(x) for x in span], colours, getattr(colours, role_of(stream)), start=span[0])
        index_axis(ax, span, section.unit, label=i == deep - 1 or j >= len(panels[i + 1]))
        ax.set_title(kind if i == 0 or len(section.streams) == 1 else "")
        ax.set_ylabel(f"{stream_title(stream)}, value" if j == 0 else "")
    if others:
        _beside(figure, others, section, colours)
    key(figure, [
        *(Patch(color=getattr(colours, role_of(s)), alpha=0.5, lw=0, label=f"candidate, {stream_title(s)}")
          for s in section.streams),
        *([Line2D([], [], color=colours.reference, lw=1.2, label="reference")]
          if any(row.get("reference") for row in section.rows) else []),
        *([_documented(colours)] if any(row.get("range") for row in section.rows) else []),
        *cross(colours, section.rows),
    ])  # fmt: skip
    shown = sum(map(len, panels))
    kinds = f"{shown} of {len(section.grid)} kinds. " if shown < len(section.grid) else ""
    footnote(figure, kinds + left_out(entry, section), colours)
    return figure


def panels_of(section: Section) -> list[list[Kind]]:
    """Which kinds have a panel, line by line: a line a stream, or one stream in two lines."""
    streams = section.streams[:2]
    if len(streams) == 2:
        kinds = [kind for kind in section.kinds if kind in RANGE_KINDS] or section.kinds
        return [[(stream, kind) for kind in kinds[:ACROSS]] for stream in streams]
    found = list(section.grid)
    if len(found) > 2 * ACROSS:
        found = sorted(found, key=lambda key: key[1] not in RANGE_KINDS)[: 2 * ACROSS]
    wide = len(found) if len(found) <= ACROSS else math.ceil(len(found) / 2)
    return [found[i : i + wide] for i in range(0, len(found), wide)]


def _documented(colours: Theme) -> Line2D:
    return Line2D([], [], color=colours.documented, lw=2.6, label="documented range")


def _beside(figure: Figure, rows: Sequence[Row], section: Section, colours: Theme) -> None:
    """The panel of what does not repeat."""
    ax = figure.add_axes((0.07, 0.1, 0.915, 0.13))
    _range_panel(ax, rows, colours, colours.muted, width=0.7)
    ax.set(title=f"outside the {section.unit}s", ylabel="value", xlim=(-0.6, len(rows) - 0.4))
    names = local_names(rows, section)
    # Labels stand in two lines where one has no room for them.
    crowded = sum(map(len, names)) + 2 * len(names) > 132
    room = max(4, (270 if crowded else 168) // len(rows))
    labels = [("\n" if crowded and i % 2 else "") + cut(name, room) for i, name in enumerate(names)]
    ax.set_xticks(range(len(rows)), labels)
    ax.grid(visible=False, axis="x")


def _range_panel(
    ax: Axes, rows: Sequence[Row | None], colours: Theme, colour: str, *, width: float = 1.0, start: int = 0
) -> None:
    """A bar for each of `rows`: candidate filled, edges of the reference, edges of the documented range."""
    spans = {part: spans_of(rows, part) for part in ("range", "candidate", "reference")}
    symlog_axis(ax, np.concatenate(list(spans.values()), axis=None))
    edges, (low, high) = _bars(spans["candidate"], width)
    ax.stairs(high, edges + start, baseline=low, fill=True, color=pale(colour, colours), lw=0)
    edges, ends = _bars(spans["reference"], width)
    for end in ends:
        ax.stairs(end, edges + start, baseline=None, color=colours.reference, lw=1.2, zorder=3)
    documented = spans["range"]
    known = np.isfinite(documented[0])
    xs = np.flatnonzero(known)
    # A mark for a single block, one bar wide among sixty, could not be seen.
    lone = np.array([width == 1 and known[max(x - 1, 0) : x + 2].sum() == 1 for x in xs], bool)
    half = np.where(lone, max(0.5, len(rows) / 14), width / 2)
    low, high = documented[:, xs]
    ax.bar(xs + start, high - low, bottom=low, width=2 * half, color=colours.documented, alpha=0.22, lw=0, zorder=2.5)
    for ends in (low, high):
        ax.hlines(ends, xs + start - half, xs + start + half, color=colours.documented, lw=2.6, zorder=4)
    mark_nonfinite(ax, [start + x for x, row in enumerate(rows) if row and is_broken(row.get("candidate"))], colours)


def pale(colour: str, colours: Theme) -> tuple[float, ...]:
    """A colour mixed with that of the panel, for areas."""
    return tuple(0.5 * (np.array(to_rgb(colour)) + to_rgb(colours.panel)))


def _bars(spans: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Borders and ends for `Axes.stairs`; bars narrower than one get gaps between them."""
    count = spans.shape[1]
    if width == 1:
        return np.arange(count + 1) - 0.5, spans
    edges = (np.arange(count)[:, None] + np.array([-0.5, 0.5]) * width).ravel()
    gaps = np.full_like(spans, math.nan)
    return edges, np.stack([spans, gaps], axis=-1).reshape(2, -1)[:, :-1]


def spans_of(rows: Sequence[Row | None], part: str) -> np.ndarray:
    """Lower and upper ends, [2, rows], NaN where there are none."""
    keys = ("low", "high") if part == "range" else ("min", "max")
    ends = [[float(row[part][k]) if row and row.get(part) else math.nan for row in rows] for k in keys]
    spans = np.array(ends)
    return np.where(np.isfinite(spans).all(axis=0), spans, math.nan)


def _name_lines(ax: Axes, lines: Mapping[str, Mapping[int, float]], colours: Theme) -> None:
    """The name of each stream behind the end of its line; one above the other where lines end close together."""
    ends = {}
    for stream, line in lines.items():
        shown = {index: value for index, value in line.items() if math.isfinite(value) and value > 0}
        if shown:
            ends[stream] = (max(shown), shown[max(shown)])
    values = [value for _, value in ends.values()]
    close = len(values) > 1 and max(values) < 1.6 * min(values)
    for rank, stream in enumerate(sorted(ends, key=lambda stream: ends[stream][1])):
        up = 14 * (rank - (len(ends) - 1) / 2) if close else 0
        ax.annotate(stream_title(stream), ends[stream], xytext=(12, up), textcoords="offset points", va="center",
                    color=getattr(colours, role_of(stream)), fontweight="bold", annotation_clip=False)  # fmt: skip


def growth_figure(run: Mapping[str, Any], entry: Entry, section: Section, colours: Theme) -> Figure:
    """Largest magnitude of the residual after each block, all streams, both sides, and the documented marks."""
    text = f"largest magnitude after each {section.unit}"
    figure = page(run, colours, "Growth of the residual", text, what=heading(entry, section, mode=False))
    rows = {stream: section.grid[stream, "out"] for stream in section.streams if (stream, "out") in section.grid}
    lines = {(s, side): points_of(rows[s], "absmax", side) for s in rows for side in ("reference", "candidate")}
    marks = [(index, max(abs(float(row["range"][end])) for end in ("low", "high")))
             for of_stream in rows.values() for index, row in of_stream.items() if row.get("range")]  # fmt: skip
    ax = figure.add_axes((0.075, 0.1, 0.79, 0.71))
    index_axis(ax, section.span, section.unit, most=12)
    log_axis(ax, [v for line in lines.values() for v in line.values()] + [v for _, v in marks], pad=1.8)
    ax.set_ylabel(f"largest |x| after the {section.unit}")
    for (stream, side), line in lines.items():
        colour = getattr(colours, role_of(stream))
        wide = side == "reference"
        style = {"lw": 7, "alpha": 0.3, "solid_capstyle": "round"} if wide else {"lw": 1.8}
        log_line(ax, line, colours, color=colour, **style)
    _name_lines(ax, {stream: lines[stream, "reference"] for stream in rows}, colours)
    for index, value in marks:
        ax.plot([index], [value], "D", ms=9, mfc="none", mec=colours.documented, mew=2, clip_on=False, zorder=6)
        right = index > section.span[-1] / 2
        ax.annotate(f"documented: {short(value)}", (index, value), xytext=(-14, 12) if right else (0, 24), zorder=7,
                    textcoords="offset points", ha="right" if right else "left", color=colours.documented,
                    fontweight="bold", bbox={"fc": colours.panel, "ec": "none", "alpha": 0.8, "pad": 1.5})  # fmt: skip
    key(figure, [
        Line2D([], [], color=colours.muted, lw=7, alpha=0.4, label="reference"),
        Line2D([], [], color=colours.muted, lw=1.8, label="candidate"),
        *([Line2D([], [], color=colours.documented, marker="D", mfc="none", mew=2, lw=0, label="documented")]
          if marks else []),
        *cross(colours, section.rows),
    ])  # fmt: skip
    footnote(figure, left_out(entry, section), colours)
    return figure
