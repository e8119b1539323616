"""Plots of a run: pure functions from a ``parity.json`` dict to figures.

Four figures: `ranges` and `growth` for each case and dtype (of the accumulated entry, where there
is one: those are the values that the picture is made of), `errors` and `heatmap` for each case,
dtype and mode. No pyplot, no global state, and the same run gives the same bytes.
"""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from parity.errors import OutputExistsError, UsageError
from parity.names import STREAMS
from parity.plotstyle import (
    Entry,
    Row,
    Theme,
    block_axis,
    blocks_of,
    cut,
    excess_edges,
    excess_of,
    grid_of,
    ink_on,
    key,
    limits,
    log_axis,
    log_line,
    mark_nonfinite,
    page,
    points_of,
    rc,
    short,
    slug,
    step_of,
    symlog_axis,
    theme,
)

Draw = Callable[[Mapping[str, Any], Entry, Theme], Figure]
FORMATS = ("png", "svg")
RANGE_KINDS = ("mod", "normed", "modulated", "attn", "ffn", "out")
HATCH = {"missing": "////", "uncertain": "xxxx", "skipped": "----"}
STREAM_TITLE = {"img": "image stream", "txt": "text stream"}
DPI = 120
# matplotlib writes the date and its own version otherwise, and the bytes would differ from day to day.
METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


def render_plots(
    run: Mapping[str, Any],
    folder: Path,
    formats: Sequence[str] = FORMATS,
    dark: bool = False,
    force: bool = False,
) -> list[Path]:
    """Write every figure of a run into `folder`, such as ``ranges.square.float32.png``.

    Args:
        run: a ``parity.json`` of schema 1.
        folder: made where it is not there.
        formats: of ``png`` and ``svg``.
        dark: on a dark page; ``.dark`` goes into the names.
        force: replace files that are there.

    Returns:
        the files written, in order.

    Raises:
        UsageError: an unknown format.
        OutputExistsError: a file is there and `force` is false; nothing has been written then.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UsageError(f"plot format {unknown[0]!r} is none of {', '.join(FORMATS)}")
    ending = ".dark" if dark else ""
    figures = [
        (draw, entry, [folder / f"{name}{ending}.{form}" for form in formats]) for name, draw, entry in plan(run)
    ]
    paths = [path for _, _, targets in figures for path in targets]
    there = [path for path in paths if path.exists()]
    if there and not force:
        raise OutputExistsError(f"{there[0]} is already there: choose another folder or add --force")
    folder.mkdir(parents=True, exist_ok=True)
    colours = theme(dark)
    with matplotlib.rc_context(rc(colours)), warnings.catch_warnings():
        # A name may hold a letter that the font lacks; a box in its place is good enough for a plot.
        warnings.filterwarnings("ignore", message="Glyph")
        for draw, entry, targets in figures:
            figure = draw(run, entry, colours)
            for path in targets:
                path.write_bytes(encode(figure, path.suffix[1:]))
    return paths


def plan(run: Mapping[str, Any]) -> list[tuple[str, Draw, Entry]]:
    """Name, maker and entry of each figure of a run, in order."""
    shown: dict[tuple[str, str], Entry] = {}
    for entry in run["cases"]:
        key = (entry["name"], entry["dtype"])
        if key not in shown or entry["mode"] == "accumulated":
            shown[key] = entry
    found: list[tuple[str, Draw, Entry]] = []
    for (case, dtype), entry in shown.items():
        kinds = {kind for _, kind in grid_of(entry)[0]}
        if kinds & set(RANGE_KINDS):
            found.append((f"ranges.{slug(case)}.{slug(dtype)}", ranges_figure, entry))
        if "out" in kinds:
            found.append((f"growth.{slug(case)}.{slug(dtype)}", growth_figure, entry))
    for entry in run["cases"]:
        name = ".".join(slug(entry[key]) for key in ("name", "dtype", "mode"))
        found.append((f"errors.{name}", errors_figure, entry))
        found.append((f"heatmap.{name}", heatmap_figure, entry))
    return found


def encode(figure: Figure, form: str) -> bytes:
    """A figure as the bytes of a PNG or SVG file, the same at every call."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=DPI, metadata=METADATA[form])
    return buffer.getvalue()


def ranges_figure(run: Mapping[str, Any], entry: Entry, colours: Theme) -> Figure:
    """Smallest to largest activation of both sides per block and kind, with the documented ranges."""
    text = "smallest to largest value of each checkpoint; the scale is linear around 0 and logarithmic outside"
    figure = page(run, entry, colours, "Activation ranges", text, mode=False)
    grid, before, after = grid_of(entry)
    kinds = [kind for kind in RANGE_KINDS if any((s, kind) in grid for s in STREAMS)]
    places = figure.add_gridspec(2, len(kinds), left=0.07, right=0.985, top=0.805,
                                 bottom=0.345, wspace=0.36, hspace=0.28)  # fmt: skip
    for (i, stream), (j, kind) in itertools.product(enumerate(STREAMS), enumerate(kinds)):
        ax = figure.add_subplot(places[i, j])
        rows = grid.get((stream, kind), {})
        _range_panel(ax, [rows.get(b) for b in range(blocks_of(entry))], colours, getattr(colours, stream))
        block_axis(ax, blocks_of(entry), label=i == 1)
        ax.set_title(kind if i == 0 else "")
        ax.set_ylabel(f"{STREAM_TITLE[stream]}, value" if j == 0 else "")
    others = before + after
    if others:
        ax = figure.add_axes((0.07, 0.085, 0.915, 0.145))
        _range_panel(ax, others, colours, colours.muted, width=0.7)
        ax.set(title="outside the blocks", ylabel="value", xlim=(-0.6, len(others) - 0.4))
        ax.set_xticks(range(len(others)), [cut(row["name"], max(4, 180 // len(others))) for row in others])
        ax.grid(visible=False, axis="x")
    key(figure, [
        Patch(color=colours.img, alpha=0.5, lw=0, label="candidate, image stream"),
        Patch(color=colours.txt, alpha=0.5, lw=0, label="candidate, text stream"),
        Line2D([], [], color=colours.reference, lw=1.2, label="reference"),
        Line2D([], [], color=colours.documented, lw=2.6, label="documented range"),
        Line2D([], [], color=colours.bad, marker="x", lw=0, mew=1.8, label="not finite"),
    ])  # fmt: skip
    return figure


def _range_panel(ax: Axes, rows: Sequence[Row | None], colours: Theme, colour: str, width: float = 1.0) -> None:
    """A bar for each of `rows`: candidate filled, edges of the reference, edges of the documented range."""
    spans = {part: _spans(rows, part) for part in ("range", "candidate", "reference")}
    symlog_axis(ax, np.concatenate(list(spans.values()), axis=None))
    pale = tuple(0.5 * (np.array(to_rgb(colour)) + to_rgb(colours.panel)))
    edges, (low, high) = _bars(spans["candidate"], width)
    ax.stairs(high, edges, baseline=low, fill=True, color=pale, lw=0)
    edges, ends = _bars(spans["reference"], width)
    for end in ends:
        ax.stairs(end, edges, baseline=None, color=colours.reference, lw=1.2, zorder=3)
    documented = spans["range"]
    known = np.isfinite(documented[0])
    xs = np.flatnonzero(known)
    # A mark for a single block, one bar wide among sixty, could not be seen.
    lone = np.array([width == 1 and known[max(x - 1, 0) : x + 2].sum() == 1 for x in xs], bool)
    half = np.where(lone, max(0.5, len(rows) / 14), width / 2)
    for ends in documented[:, xs]:
        ax.hlines(ends, xs - half, xs + half, color=colours.documented, lw=2.6, zorder=4)
    mark_nonfinite(ax, [x for x, row in enumerate(rows) if row and _is_broken(row.get("candidate"))], colours)


def _bars(spans: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Borders and ends for `Axes.stairs`; bars narrower than one get gaps between them."""
    count = spans.shape[1]
    if width == 1:
        return np.arange(count + 1) - 0.5, spans
    edges = (np.arange(count)[:, None] + np.array([-0.5, 0.5]) * width).ravel()
    gaps = np.full_like(spans, math.nan)
    return edges, np.stack([spans, gaps], axis=-1).reshape(2, -1)[:, :-1]


def _spans(rows: Sequence[Row | None], part: str) -> np.ndarray:
    """Lower and upper ends, [2, rows], NaN where there are none."""
    keys = ("low", "high") if part == "range" else ("min", "max")
    ends = [[float(row[part][k]) if row and row.get(part) else math.nan for row in rows] for k in keys]
    spans = np.array(ends)
    return np.where(np.isfinite(spans).all(axis=0), spans, math.nan)


def _is_broken(stats: Mapping[str, Any] | None) -> bool:
    return bool(stats) and not (stats["nan"] == stats["inf"] == 0 and math.isfinite(float(stats["absmax"])))


def growth_figure(run: Mapping[str, Any], entry: Entry, colours: Theme) -> Figure:
    """Largest magnitude of the residual after each block, both streams, both sides, and the documented marks."""
    figure = page(run, entry, colours, "Growth of the residual", "largest magnitude after each block", mode=False)
    grid, _, _ = grid_of(entry)
    rows = {stream: grid.get((stream, "out"), {}) for stream in STREAMS}
    lines = {(s, side): points_of(rows[s], "absmax", side) for s in STREAMS for side in ("reference", "candidate")}
    marks = [(block, max(abs(float(row["range"][end])) for end in ("low", "high")))
             for s in STREAMS for block, row in rows[s].items() if row.get("range")]  # fmt: skip
    ax = figure.add_axes((0.075, 0.1, 0.81, 0.71))
    block_axis(ax, blocks_of(entry))
    log_axis(ax, [v for line in lines.values() for v in line.values()] + [v for _, v in marks], pad=1.8)
    ax.set_ylabel("largest |x| after the block")
    for (stream, side), line in lines.items():
        colour = getattr(colours, stream)
        wide = side == "reference"
        style = {"lw": 7, "alpha": 0.3, "solid_capstyle": "round"} if wide else {"lw": 1.8}
        log_line(ax, line, colours, color=colour, **style)
        finite = [block for block, value in line.items() if math.isfinite(value) and value > 0]
        if finite and wide:
            ax.annotate(STREAM_TITLE[stream], (finite[-1], line[finite[-1]]), xytext=(12, 0), annotation_clip=False,
                        textcoords="offset points", color=colour, fontweight="bold", va="center")  # fmt: skip
    for block, value in marks:
        ax.plot([block], [value], "D", ms=9, mfc="none", mec=colours.documented, mew=2, clip_on=False, zorder=6)
        right = block > blocks_of(entry) / 2
        ax.annotate(f"documented: {short(value)}", (block, value), xytext=(-14, 12) if right else (14, -16), zorder=7,
                    textcoords="offset points", ha="right" if right else "left", color=colours.documented,
                    fontweight="bold", bbox={"fc": colours.panel, "ec": "none", "alpha": 0.8, "pad": 1.5})  # fmt: skip
    key(figure, [
        Line2D([], [], color=colours.muted, lw=7, alpha=0.4, label="reference"),
        Line2D([], [], color=colours.muted, lw=1.8, label="candidate"),
        Line2D([], [], color=colours.documented, marker="D", mfc="none", mew=2, lw=0, label="documented"),
        Line2D([], [], color=colours.bad, marker="x", lw=0, mew=1.8, label="not finite"),
    ])  # fmt: skip
    return figure


def errors_figure(run: Mapping[str, Any], entry: Entry, colours: Theme) -> Figure:
    """Relative RMSE against the floor, a panel a kind; and the excess of every checkpoint with the verdict lines."""
    text = "candidate against float64 truth; the floor is the reference's own error in this dtype"
    figure = page(run, entry, colours, "Error against the floor", text)
    grid, _, _ = grid_of(entry)
    kinds = list(dict.fromkeys(kind for _, kind in grid))
    lines = {key: (points_of(rows, "floor"), points_of(rows, "rel_rmse")) for key, rows in grid.items()}
    values = [v for pair in lines.values() for line in pair for v in line.values()]
    columns = 2 if len(kinds) <= 4 else 3 if len(kinds) <= 9 else 4
    deep = math.ceil(len(kinds) / columns)
    dashes = (0, (2, 1.5))
    dot = "." if blocks_of(entry) < 12 else None
    for i, kind in enumerate(kinds):
        places = figure.add_gridspec(deep, columns, left=0.065, right=0.6, top=0.79, bottom=0.1, wspace=0.1, hspace=0.3)
        ax = figure.add_subplot(places[i // columns, i % columns], title=kind)
        lowest = i + columns >= len(kinds)
        block_axis(ax, blocks_of(entry), label=lowest)
        log_axis(ax, values)
        ax.tick_params(labelleft=i % columns == 0, labelbottom=lowest)
        ax.set_ylabel("relative RMSE" if i % columns == 0 else "")
        for stream in STREAMS:
            floor, error = lines.get((stream, kind), ({}, {}))
            log_line(ax, floor, colours, color=getattr(colours, stream), lw=1.2, ls=dashes, marker=dot)
            log_line(ax, error, colours, color=getattr(colours, stream), lw=1.8, marker=dot)
    left = 0.665 if kinds else 0.065
    _excess_panel(figure.add_axes((left, 0.1, 0.965 - left, 0.69), title="excess"), run, entry, colours)
    key(figure, [
        Line2D([], [], color=colours.img, lw=1.8, label="image stream"),
        Line2D([], [], color=colours.txt, lw=1.8, label="text stream"),
        Line2D([], [], color=colours.muted, lw=1.2, ls=dashes, label="floor"),
        Line2D([], [], color=colours.ink, marker="o", mfc="none", lw=0, ms=7, label="source of a divergence"),
        Line2D([], [], color=colours.bad, marker="x", lw=0, mew=1.8, label="not finite"),
    ])  # fmt: skip
    return figure


def _excess_panel(ax: Axes, run: Mapping[str, Any], entry: Entry, colours: Theme) -> None:
    """A dot a checkpoint; what is made before and after the blocks stands at the sides."""
    grid, before, after = grid_of(entry)
    count = max(blocks_of(entry), 1)
    gap = max(1.0, count / 12)
    placed = [(-gap, row, colours.muted) for row in before] + [(count - 1 + gap, row, colours.muted) for row in after]
    placed += [(b, row, getattr(colours, s)) for (s, _), rows in grid.items() for b, row in rows.items()]
    dots = [(x, value, row, colour) for x, row, colour in placed if (value := excess_of(row)) is not None]
    match, suspect = limits(run)
    log_axis(ax, [v for _, v, _, _ in dots] + [match / 10, suspect * 3], pad=1.6)
    block_axis(ax, count)
    blocks = [int(tick) for tick in ax.get_xticks()]
    ax.set_xticks([-gap, *blocks, count - 1 + gap], ["in", *blocks, "out"])
    ax.set_xlim(-1.7 * gap, count - 1 + 1.7 * gap)
    low, _ = ax.get_ylim()
    for value, verdict in ((match, "suspect"), (suspect, "diverged")):
        ax.axhline(value, color=colours.ink, lw=1, ls=(0, (5, 3)))
        ax.annotate(f"{verdict} above {value:g}", (0.985, value), xycoords=ax.get_yaxis_transform(), xytext=(0, 3),
                    textcoords="offset points", fontsize=8.5, fontweight="bold", ha="right", zorder=6,
                    bbox={"fc": colours.panel, "ec": "none", "alpha": 0.75, "pad": 1})  # fmt: skip
    finite = [(x, max(v, low), c) for x, v, _, c in dots if math.isfinite(v)]
    # Thousands of dots as vectors would make the SVG ten times as large.
    ax.scatter(*np.array([(x, v) for x, v, _ in finite]).reshape(-1, 2).T, c=[c for _, _, c in finite], s=11, alpha=0.8,
               lw=0, zorder=3, rasterized=True)  # fmt: skip
    mark_nonfinite(ax, [x for x, v, _, _ in dots if not math.isfinite(v)], colours)
    rings = [(x, v) for x, v, row, _ in dots if row.get("source") and math.isfinite(v)]
    ax.scatter(*np.array(rings).reshape(-1, 2).T, s=46, facecolors="none", edgecolors=colours.ink, lw=1, zorder=4)
    ax.set_ylabel("error over floor")


def heatmap_figure(run: Mapping[str, Any], entry: Entry, colours: Theme) -> Figure:
    """Excess of every checkpoint, kind by block; what was not judged is hatched, sources are framed."""
    text = "excess of each checkpoint: its error in units of the floor, the reference's own error in this dtype"
    figure = page(run, entry, colours, "Where the port departs", text)
    grid, before, after = grid_of(entry)
    others = before + after
    edges = excess_edges(*limits(run))
    wide = 12
    deep = math.ceil(len(others) / wide)
    strip = min(0.05 * deep, 0.6)
    if grid:
        ax = figure.add_axes((0.105, 0.21 + strip, 0.86, 0.66 - strip))
        _cells(ax, {(b, i): row for i, rows in enumerate(grid.values()) for b, row in rows.items()}, edges, colours)
        block_axis(ax, blocks_of(entry))
        ax.set_xlim(-0.5, blocks_of(entry) - 0.5)
        ax.set_yticks(range(len(grid)), [f"{stream}.{kind}" for stream, kind in grid])
        ax.axhline(sum(stream == STREAMS[0] for stream, _ in grid) - 0.5, color=colours.ink, lw=1.5)
    if others:
        ax = figure.add_axes((0.105, 0.13, 0.86, strip))
        cells = {(i % wide, i // wide): row for i, row in enumerate(others)}
        _cells(ax, cells, edges, colours)
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel("other", rotation=0, ha="right", va="center", color=colours.muted)
        for (x, y), row in cells.items():
            value = excess_of(row)
            face = colours.blank if value is None else colours.steps[step_of(value, edges)]
            ax.text(x, y, cut(row["name"], 14), ha="center", va="center", fontsize=8.5, color=ink_on(face),
                    bbox={"fc": face, "ec": "none", "pad": 1})  # fmt: skip
    _heatmap_key(figure, edges, colours)
    return figure


def _cells(ax: Axes, cells: Mapping[tuple[int, int], Row], edges: Sequence[float], colours: Theme) -> None:
    """One cell a row at (x, y), y downwards."""
    wide, deep = (1 + max(place[i] for place in cells) for i in (0, 1))
    picture = np.ones((deep, wide, 3)) * to_rgb(colours.page)
    for (x, y), row in cells.items():
        value = excess_of(row)
        judged = value is not None and row["verdict"] not in HATCH
        picture[y, x] = to_rgb(colours.steps[step_of(value, edges)] if judged else colours.blank)
        if not judged:
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc="none", ec=colours.muted, lw=0,
                                   hatch=HATCH.get(row["verdict"], "")))  # fmt: skip
        elif math.isinf(value):
            ax.plot([x], [y], "x", color=ink_on(colours.steps[-1]), ms=4, mew=1.2)
        if row.get("source"):
            # Two lines, so that the frame shows on light and on dark cells.
            for inset, colour in ((0.06, colours.ink), (0.14, colours.page)):
                ax.add_patch(Rectangle((x - 0.5 + inset, y - 0.5 + inset), 1 - 2 * inset, 1 - 2 * inset,
                                       fc="none", ec=colour, lw=1.2))  # fmt: skip
    ax.imshow(picture, aspect="auto", interpolation="nearest")
    ax.hlines(np.arange(deep - 1) + 0.5, -0.5, wide - 0.5, color=colours.page, lw=1)
    ax.set(xlim=(-0.5, wide - 0.5), ylim=(deep - 0.5, -0.5))
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def _heatmap_key(figure: Figure, edges: Sequence[float], colours: Theme) -> None:
    """The steps with their borders, the verdicts above them, and the marks that are no colour."""
    ax = figure.add_axes((0.105, 0.05, 0.44, 0.026))
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
    marks = [Patch(fc=colours.blank, ec=colours.muted, lw=0, hatch=HATCH[v], label=v) for v in HATCH]
    frame = Patch(fc="none", ec=colours.ink, lw=1.3, label="source of a divergence")
    cross = Line2D([], [], color=colours.bad, marker="x", lw=0, mew=1.8, label="not finite")
    figure.legend(handles=[*marks, cross, frame], loc="center left", bbox_to_anchor=(0.565, 0.062), ncols=5,
                  columnspacing=1.3, handlelength=1.5, fontsize=8.5)  # fmt: skip
