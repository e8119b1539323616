"""A trace as a plot: ranges per block, and the reference's noise where the trace is golden."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.errors import OutputExistsError, UsageError
from parity.plotstyle import Theme, footnote, index_axis, key, log_axis, log_line, page, rc, theme
from parity.rangetable import RangeTable
from parity.result import last_block, range_of
from parity.sections import Entry, Section, component_title, main_of, sections, stream_title
from parity.tracefile import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")
# Of the transformer's kinds those that the guide documents.
RANGE_KINDS = ("mod", "normed", "modulated", "attn", "ffn", "out")


def entry_of(found: Trace) -> Entry:
    """A trace as an entry of ``parity.json`` with one side: the reference where it is golden, else the candidate."""
    about = found.about
    golden = about.get("side") in ("golden", "reference")
    table, last = RangeTable.load("qwen-image"), last_block(found.stats)
    of_transformer = about.get("component", "transformer") == "transformer"
    rows = []
    for name, stats in found.stats.items():
        figures = {**stats, "inf": stats["pos_inf"] + stats["neg_inf"]}
        row = {"name": name, "candidate": None if golden else figures, "reference": figures if golden else None}
        # Ranges are judged on the candidate's side, whoever's they are.
        row["range"] = range_of({**row, "candidate": figures}, table, last) if of_transformer else None
        floor = found.floors.get(name)
        row |= {"floor": floor.floor, "floor_by": floor.floor_by} if floor else {"floor": None, "floor_by": ""}
        rows.append(row)
    case = about.get("case") or {}
    return {
        "name": str(case.get("name", found.label)), "dtype": str(about.get("dtype", "")),
        "mode": str(about.get("mode", "")), "component": about.get("component", "transformer"), "checkpoints": rows,
    }  # fmt: skip


def plot(found: Trace, path: Path, force: bool = False, dark: bool = False) -> None:
    """Draw a trace into a file.

    Raises:
        UsageError: neither .png nor .svg, or nothing of it repeats.
        OutputExistsError: the file is there and `force` is false.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: expected a name that ends in {' or '.join(FORMATS)}")
    if path.exists() and not force:
        raise OutputExistsError(f"{path} exists; --force overwrites it")
    import matplotlib

    from parity.plots import encode
    from parity.rangeplots import ranges_figure

    entry, colours = entry_of(found), theme(dark)
    section = main_of(sections(entry))
    if not section.grid:
        raise UsageError(f"{found.label}: nothing in it repeats from block to block; there is no such plot")
    run = {"weights": found.about.get("weights") if isinstance(found.about.get("weights"), dict) else {}}
    with matplotlib.rc_context(rc(colours)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        if found.floors:
            figure = golden_figure(run, entry, section, colours)
        else:
            figure = ranges_figure(run, entry, section, colours)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(figure, path.suffix.lower()[1:]))


def golden_figure(run: Mapping[str, Any], entry: Entry, section: Section, colours: Theme) -> Figure:
    """Floors of a golden trace per block, above the largest magnitudes."""
    text = "how far the reference's own runs are from the truth, and how large its values are"
    what = [component_title(entry), entry["name"], entry["dtype"], entry["mode"]]
    figure = page(run, colours, "Golden trace", text, what=what)
    streams = section.streams[:2]
    shown = [kind for kind in section.kinds if kind in RANGE_KINDS] or section.kinds
    shades = dict(zip(shown, _shades(colours), strict=False))
    places = figure.add_gridspec(
        2, len(streams), left=0.07, right=0.985, top=0.815, bottom=0.12, wspace=0.18, hspace=0.3
    )
    for column, stream in enumerate(streams):
        grid = {kind: section.grid[stream, kind] for kind in shades if (stream, kind) in section.grid}
        for line, (label, of_row) in enumerate((("floor, relative RMSE", _floor), ("largest |x|", _absmax))):
            ax = figure.add_subplot(places[line, column])
            lines = {kind: _points(rows, of_row) for kind, rows in grid.items()}
            index_axis(ax, section.span, section.unit, label=line == 1, most=10)
            log_axis(ax, [value for points in lines.values() for value in points.values()])
            for kind, points in lines.items():
                log_line(ax, points, colours, color=shades[kind], lw=1.6)
            ax.set_ylabel(label if column == 0 else "")
            ax.set_title(stream_title(stream) if line == 0 else "")
    key(figure, _handles(shades))
    left = f"{len(shades)} of {len(section.kinds)} kinds. " if len(shades) < len(section.kinds) else ""
    footnote(figure, left + _largest(section), colours)
    return figure


def _points(rows: Mapping[int, Any], of_row: Any) -> dict[int, float]:
    return {index: value for index, row in sorted(rows.items()) if (value := of_row(row)) is not None}


def _floor(row: Mapping[str, Any]) -> float | None:
    return row["floor"] if row["floor_by"] != "exact" and row["floor"] else None


def _absmax(row: Mapping[str, Any]) -> float | None:
    value = (row["reference"] or row["candidate"])["absmax"]
    return value if value else None


def _shades(colours: Theme) -> tuple[str, ...]:
    """Okabe and Ito's, as many as stay apart on the page."""
    return (colours.img, colours.txt, colours.documented, colours.step, colours.muted, colours.steps[4])


def _handles(shades: Mapping[str, str]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=shade, lw=2.2, label=kind) for kind, shade in shades.items()]


def _largest(section: Section) -> str:
    rows = [row for row in section.rows if _floor(row) is not None and math.isfinite(row["floor"])]
    if not rows:
        return ""
    worst = max(rows, key=lambda row: row["floor"])
    return f"Largest floor: {worst['floor']:.2g} at {worst['name']}, set by {worst['floor_by']}."
