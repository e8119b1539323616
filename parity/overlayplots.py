"""Figures of several runs, one over the other: a colour and a mark a run.

Lines that coincide stay visible, because the first run's line is the widest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from parity.overlay import Overlay, Run, differences, overlays
from parity.overlaybudget import budget_overlay, has_budget
from parity.overlaychange import change_figure
from parity.overlaystyle import DASHES, handles_of, page_of, styles_of
from parity.plotstyle import (
    Theme,
    excess_of,
    footnote,
    index_axis,
    key,
    limits,
    log_axis,
    log_line,
    points_of,
    short,
    slug,
    symlog_axis,
)
from parity.rangeplots import panels_of, spans_of
from parity.sections import Kind, is_exact, stream_title
from parity.sequenceplots import chosen, layout
from parity.stepcurve import KINDS as STEP_KINDS
from parity.stepcurve import STREAM, has_steps

# Panels of a stream beside the panel of all checkpoints.
ACROSS, DOWN = 4, 2
# Dashes of the lines between verdicts.
BORDER = (0, (5, 3))


def plan(runs: Mapping[str, Run], kinds: Collection[str] = ()) -> list[tuple[str, Callable[[Theme], Figure]]]:
    """Name and maker of each figure of several runs, in order, such as ``overlay.errors.square.float32.isolated``."""
    return [one for one in _everything(overlays(runs)) if not kinds or one[0].split(".")[1] in kinds]


def _everything(found: Sequence[Overlay]) -> Iterator[tuple[str, Callable[[Theme], Figure]]]:
    accumulated = {(one.entry["name"], one.entry["dtype"]) for one in found if one.entry["mode"] == "accumulated"}
    for one in found:
        entry, section = one.entry, one.section
        names = [".".join(map(slug, filter(None, (entry["name"], entry["dtype"], *mode, one.part))))
                 for mode in ((), (entry["mode"],))]  # fmt: skip
        # As of one run, values are shown as they grow.
        shown = entry["mode"] == "accumulated" or (entry["name"], entry["dtype"]) not in accumulated
        figures = {
            "ranges": section.grid and shown and ranges_overlay,
            "growth": shown and "out" in section.kinds and growth_overlay,
            "steps": has_steps(section) and steps_overlay,
            "errors": errors_overlay if section.grid else sequence_overlay,
            "heatmap": section.grid and change_figure,
            "budget": has_budget(one) and budget_overlay,
        }
        for kind, draw in figures.items():
            if draw and not (kind in ("errors", "steps") and all(is_exact(row) for row in section.rows)):
                yield f"overlay.{kind}.{names[kind not in ('ranges', 'growth')]}", _with(draw, one)


def _with(draw: Callable[[Overlay, Theme], Figure], one: Overlay) -> Callable[[Theme], Figure]:
    return lambda colours: draw(one, colours)


def _floor_line(colours: Theme) -> Line2D:
    return Line2D([], [], color=colours.muted, lw=1.2, ls=DASHES, label="floor of each run")


def _border_line(one: Overlay, colours: Theme) -> Line2D:
    match, suspect = limits(one.runs[one.labels[0]])
    said = f"suspect above {match:g}, diverged above {suspect:g}"
    return Line2D([], [], color=colours.ink, lw=1, ls=BORDER, label=said)


def errors_overlay(one: Overlay, colours: Theme) -> Figure:
    """Relative RMSE of each run and its floor for the kinds with the largest excess, and all checkpoints' excess."""
    figure = page_of(one, colours, "Error against the floor", "relative RMSE against truth, a line a run; the floor "
                   "is the reference's own error in this dtype")  # fmt: skip
    lines = _panels(one)
    values = [v for line in lines for kind in line for rows in one.rows(kind).values()
              for part in ("floor", "rel_rmse") for v in points_of(rows, part).values()]  # fmt: skip
    deep, across = len(lines), max(map(len, lines))
    places = figure.add_gridspec(deep, across, left=0.075, right=0.655, top=0.79, bottom=0.11, wspace=0.12, hspace=0.36)
    styles = styles_of(one, colours)
    for i, line in enumerate(lines):
        for j, kind in enumerate(line):
            ax = figure.add_subplot(places[i, j], title=".".join(kind))
            index_axis(ax, one.span, one.section.unit, label=i == deep - 1 or j >= len(lines[i + 1]), most=4)
            log_axis(ax, values)
            ax.tick_params(labelleft=j == 0)
            ax.set_ylabel("relative RMSE" if j == 0 else "")
            for label, rows in one.rows(kind).items():
                floor = {"color": styles[label]["color"], "lw": 1.1, "ls": DASHES, "zorder": 2}
                log_line(ax, points_of(rows, "floor"), colours, **floor)
                log_line(ax, points_of(rows, "rel_rmse"), colours, **styles[label])
    _shares(figure.add_axes((0.735, 0.11, 0.23, 0.68), title="all checkpoints"), one, colours)
    key(figure, handles_of(one, colours, _floor_line(colours), _border_line(one, colours), counted=True))
    shown, total = sum(map(len, lines)), len(one.kinds)
    some = f"{shown} of {total} kinds, those with the largest excess in any run. " if shown < total else ""
    footnote(figure, some + differences(one.runs), colours)
    return figure


def _panels(one: Overlay) -> list[list[Kind]]:
    """The kinds with the largest excess in any run, in order: a line a stream, or one stream in two lines."""
    worst = {}
    for kind in one.kinds:
        rows = [row for of in one.rows(kind).values() for row in of.values() if not is_exact(row)]
        if rows:
            worst[kind] = max([value for row in rows if (value := excess_of(row)) is not None], default=-1.0)
    streams = list(dict.fromkeys(stream for stream, _ in worst))[:DOWN]
    room = ACROSS if len(streams) > 1 else ACROSS * DOWN
    kept = {stream: sorted((kind for kind in worst if kind[0] == stream), key=lambda kind: -worst[kind])[:room]
            for stream in streams}  # fmt: skip
    found = [[kind for kind in worst if kind in kept[stream]] for stream in streams]
    if len(found) == 1 and len(found[0]) > ACROSS:
        half = math.ceil(len(found[0]) / 2)
        found = [found[0][:half], found[0][half:]]
    return found


def _shares(ax: Axes, one: Overlay, colours: Theme) -> None:
    """What share of all checkpoints has at most a certain excess, a line a run."""
    excesses = {
        label: sorted(value for row in section.rows if not is_exact(row) and (value := excess_of(row)) is not None)
        for label, section in one.sections.items()
    }
    match, suspect = limits(one.runs[one.labels[0]])
    log_axis(ax, [v for line in excesses.values() for v in line] + [match / 10, suspect * 3], along="x", pad=1.6)
    low, high = ax.get_xlim()
    for value in (match, suspect):
        ax.axvline(value, color=colours.ink, lw=1, ls=BORDER)
    for label, style in styles_of(one, colours).items():
        line = excesses[label]
        if line:
            xs = [low, *(min(max(value, low), high) for value in line if math.isfinite(value)), high]
            finite = len(xs) - 2
            shares = [0.0, *((i + 1) / len(line) for i in range(finite)), finite / len(line)]
            plain = {k: v for k, v in style.items() if k not in ("marker", "markevery", "ms")}
            # As vectors, a thousand steps would be most of an SVG.
            ax.plot(xs, shares, drawstyle="steps-post", rasterized=len(xs) > 300, **plain)
    ax.set(ylim=(0, 1.03), xlabel="excess: error over floor", ylabel="share of checkpoints up to this excess")
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])


def growth_overlay(one: Overlay, colours: Theme) -> Figure:
    """Largest magnitude of the residual after each block, a panel a stream, a line a run."""
    unit = one.section.unit
    figure = page_of(one, colours, "Growth of the residual", f"largest magnitude after each {unit}, a line a run; the "
                   "wide pale line is the reference of the first run", mode=False)  # fmt: skip
    kinds = [kind for kind in one.kinds if kind[1] == "out"]
    marks = {kind: _documented(one, kind) for kind in kinds}
    first = one.labels[0]
    values = [v for kind in kinds for rows in one.rows(kind).values() for side in ("reference", "candidate")
              for v in points_of(rows, "absmax", side).values()]  # fmt: skip
    values += [value for points in marks.values() for value in points.values()]
    places = figure.add_gridspec(1, len(kinds), left=0.075, right=0.965, top=0.79, bottom=0.1, wspace=0.08)
    for i, kind in enumerate(kinds):
        ax = figure.add_subplot(places[0, i], title=stream_title(kind[0]))
        index_axis(ax, one.span, unit, most=8)
        log_axis(ax, values, pad=1.8)
        ax.tick_params(labelleft=i == 0)
        ax.set_ylabel(f"largest |x| after the {unit}" if i == 0 else "")
        rows = one.rows(kind)
        wide = {"color": colours.muted, "lw": 11, "alpha": 0.25, "solid_capstyle": "round"}
        log_line(ax, points_of(rows[first], "absmax", "reference"), colours, **wide)
        for label, style in styles_of(one, colours).items():
            log_line(ax, points_of(rows[label], "absmax", "candidate"), colours, **style)
        for index, value in marks[kind].items():
            ax.plot([index], [value], "D", ms=10, mfc="none", mec=colours.documented, mew=2, clip_on=False, zorder=6)
            right = index > one.span[-1] / 2
            ax.annotate(f"documented: {short(value)}", (index, value), xytext=(-14, 12) if right else (14, -16),
                        textcoords="offset points", ha="right" if right else "left", color=colours.documented,
                        fontweight="bold", zorder=7)  # fmt: skip
    key(figure, handles_of(one, colours, Line2D([], [], color=colours.muted, lw=9, alpha=0.35, label="reference")))
    footnote(figure, differences(one.runs), colours)
    return figure


def _documented(one: Overlay, kind: Kind) -> dict[int, float]:
    rows = [(index, row) for of in one.rows(kind).values() for index, row in of.items() if row.get("range")]
    return {index: max(abs(float(row["range"][end])) for end in ("low", "high")) for index, row in rows}


def ranges_overlay(one: Overlay, colours: Theme) -> Figure:
    """Smallest and largest activation of each run, a panel a kind, with the documented ranges."""
    text = "smallest and largest value of each checkpoint, a pair of lines a run; linear around 0, logarithmic outside"
    figure = page_of(one, colours, "Activation ranges", text, mode=False)
    panels, span, known = panels_of(one.section), one.span, False
    deep, wide = len(panels), max(map(len, panels))
    places = figure.add_gridspec(deep, wide, left=0.07, right=0.985, top=0.79, bottom=0.11, wspace=0.42, hspace=0.36)
    for i, line in enumerate(panels):
        for j, kind in enumerate(line):
            ax = figure.add_subplot(places[i, j], title=".".join(kind))
            by_run = {label: [rows.get(x) for x in span] for label, rows in one.rows(kind).items()}
            ends = {label: spans_of(rows, "candidate") for label, rows in by_run.items()}
            documented = next((d for rows in by_run.values() if np.isfinite(d := spans_of(rows, "range")).any()), None)
            drawn = [*ends.values(), *([documented] if documented is not None else [])]
            symlog_axis(ax, np.concatenate(drawn, axis=None))
            index_axis(ax, span, one.section.unit, label=i == deep - 1 or j >= len(panels[i + 1]), most=4)
            ax.set_ylabel("value" if j == 0 else "")
            for label, style in styles_of(one, colours).items():
                for end in ends[label]:
                    ax.plot(span, end, **style | {"ms": style["ms"] * 0.7, "lw": style["lw"] * 0.7})
            if documented is not None:
                known = True
                _bands(ax, documented, span, colours)
    band = Line2D([], [], color=colours.documented, lw=2.6, label="documented range")
    key(figure, handles_of(one, colours, *([band] if known else [])))
    shown = sum(map(len, panels))
    some = f"{shown} of {len(one.section.grid)} kinds. " if shown < len(one.section.grid) else ""
    footnote(figure, some + differences(one.runs), colours)
    return figure


def _bands(ax: Axes, documented: np.ndarray, span: range, colours: Theme) -> None:
    """Edges of the documented range; a mark for a single block is wide enough to be seen."""
    xs = np.flatnonzero(np.isfinite(documented[0]))
    half = 0.5 if len(xs) > 2 else max(0.5, len(span) / 14)
    low, high = documented[:, xs]
    ax.bar(xs + span[0], high - low, bottom=low, width=2 * half, color=colours.documented, alpha=0.15, lw=0, zorder=1)
    for end in (low, high):
        ax.hlines(end, xs + span[0] - half, xs + span[0] + half, color=colours.documented, lw=2.6, zorder=5)


def steps_overlay(one: Overlay, colours: Theme) -> Figure:
    """Relative RMSE over the denoising steps, a panel a kind, a line a run, with the floors."""
    grown = one.entry["mode"] == "accumulated"
    figure = page_of(one, colours, "Error over the steps", "relative RMSE against truth, a line a run"
                   + (", grown since the first step" if grown else ", made by each step alone"))  # fmt: skip
    kinds = [(STREAM, kind) for kind in STEP_KINDS if (STREAM, kind) in one.kinds]
    values = [v for kind in kinds for rows in one.rows(kind).values() for part in ("floor", "rel_rmse")
              for v in points_of(rows, part).values()]  # fmt: skip
    columns = min(len(kinds), 2)
    deep = math.ceil(len(kinds) / columns)
    places = figure.add_gridspec(deep, columns, left=0.08, right=0.965, top=0.79, bottom=0.1, wspace=0.1, hspace=0.32)
    for i, kind in enumerate(kinds):
        ax = figure.add_subplot(places[i // columns, i % columns], title=f"{kind[1]}: {STEP_KINDS[kind[1]]}")
        index_axis(ax, one.span, one.section.unit, most=12, label=i + columns >= len(kinds))
        log_axis(ax, values)
        ax.set_ylabel("relative RMSE" if i % columns == 0 else "")
        styles = styles_of(one, colours)
        for label, rows in one.rows(kind).items():
            style = {"color": styles[label]["color"], "lw": 1.1, "ls": DASHES, "zorder": 2}
            log_line(ax, points_of(rows, "floor"), colours, **style)
            log_line(ax, points_of(rows, "rel_rmse"), colours, **styles[label])
    key(figure, handles_of(one, colours, _floor_line(colours)))
    footnote(figure, differences(one.runs), colours)
    return figure


def sequence_overlay(one: Overlay, colours: Theme) -> Figure:
    """The excess of what does not repeat, a line a checkpoint and a mark a run."""
    figure = page_of(one, colours, "Error against the floor", "excess of each checkpoint, in order, a mark a run: its "
                   "error in units of the floor")  # fmt: skip
    by_name = one.other_rows()
    # The worst run speaks for a checkpoint where there is no room for all of them.
    worst = [max(rows.values(), key=lambda row: _known(excess_of(row))) for rows in by_name.values()]
    rows = chosen(worst)
    match, suspect = limits(one.runs[one.labels[0]])
    values = [_known(excess_of(row)) for of in by_name.values() for row in of.values()]
    styles = styles_of(one, colours)

    def excess(ax: Axes, shown: Sequence[Mapping]) -> None:
        log_axis(ax, [*values, match / 10, suspect * 3], along="x", pad=1.5)
        low, high = ax.get_xlim()
        for border in (match, suspect):
            ax.axvline(border, color=colours.ink, lw=1, ls=BORDER, zorder=1)
        for y, row in enumerate(shown):
            ends = {label: excess_of(mine) for label, mine in by_name[row["name"]].items() if not is_exact(mine)}
            ends = {label: min(max(value, low), high) for label, value in ends.items() if value is not None}
            if ends:
                ax.plot([min(ends.values()), max(ends.values())], [y, y], color=colours.grid, lw=2, zorder=2)
            for label, value in ends.items():
                infinite = excess_of(by_name[row["name"]][label]) == math.inf
                style = {"color": styles[label]["color"], "ms": styles[label]["ms"], "zorder": styles[label]["zorder"]}
                ax.plot([value], [y], "x" if infinite else styles[label]["marker"], **style)

    layout(figure, rows, one.section, {"excess: error over floor": excess}, colours, behind=0.012)
    key(figure, handles_of(one, colours, _border_line(one, colours), counted=True))
    some = f"{len(rows)} of {len(worst)} checkpoints, those with the largest excess. " if len(rows) < len(worst) else ""
    footnote(figure, some + differences(one.runs), colours)
    return figure


def _known(excess: float | None) -> float:
    return -1.0 if excess is None else excess
