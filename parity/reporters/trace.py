"""A trace as a table of 80 columns, and as JSON."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.names import parse
from parity.plotstyle import cut, short, visible
from parity.sections import Section, main_of, sections, stream_title
from parity.tracefile import Trace
from parity.traceplots import RANGE_KINDS, entry_of

WIDTH = 80
# Blocks and kinds that there is room for.
_LINES, _KINDS = 16, 6
_FIGURES = ("shape", "dtype", "count", "min", "max", "mean", "std", "rms", "absmax", "absmax_at", "nan", "pos_inf",
            "neg_inf", "zeros", "headroom", "quantiles", "chunks")  # fmt: skip


def to_json(found: Trace, names: Sequence[str]) -> dict[str, Any]:
    """What a trace is, with the figures of some checkpoints."""
    about = {key: found.about[key] for key in _ABOUT if key in found.about}
    rows = []
    for name in names:
        row = {"name": name, **{key: found.stats[name].get(key) for key in _FIGURES}}
        floor = found.floors.get(name)
        rows.append(row | (vars(floor) if floor else {}) | {"sketch": name in found.sketches})
    return {"label": found.label, **about, "checkpoints": rows}


_ABOUT = ("side", "component", "case", "case_hash", "dtype", "mode", "truth", "weights", "environment", "imported",
          "command")  # fmt: skip


def print_trace(found: Trace, names: Sequence[str], *, chosen: bool) -> None:
    """Print a trace.

    Args:
        found: the trace.
        names: of checkpoints to show.
        chosen: whether these were asked for: then each has a line of its own.
    """
    out = Console(width=WIDTH, highlight=False)
    for line in _head(found):
        out.print(Text(line))
    out.print()
    if chosen:
        out.print(_lines(found, names))
        return
    section = main_of(sections(entry_of(found)))
    for stream in section.streams[:2]:
        out.print(Text(f"{stream_title(stream)}, smallest and largest value", "bold"))
        out.print(_ranges(section, stream))
        out.print()
    out.print(_lines(found, [row["name"] for row in section.others][:_LINES]))


def _head(found: Trace) -> Iterator[str]:
    about = found.about
    side = {"golden": "golden trace of the reference", "candidate": "a port's trace"}.get(about.get("side"), "a trace")
    told = about.get("imported")
    made = f", read from {visible(str(told.get('from')))} ({told.get('kind')})" if isinstance(told, dict) else ""
    yield f"{found.label}: {side}{made}"
    case, weights = about.get("case") or {}, about.get("weights")
    parts = [f"case {cut(str(case.get('name')), 30)}", about.get("dtype"), about.get("mode"), about.get("component")]
    synthetic = isinstance(weights, dict) and weights.get("synthetic")
    yield ", ".join(visible(str(part)) for part in parts if part) + (", synthetic weights" if synthetic else "")
    kinds = Counter(parse(name).kind for name in found.stats)
    counted = ", ".join(f"{cut(kind, 20)} {count}" for kind, count in kinds.most_common(8))
    sketches = f"{len(found.sketches):,} sketches of {found.spec.buckets}" if found.sketches else "no sketches"
    yield f"{len(found.stats):,} checkpoints ({counted}{' …' if len(kinds) > 8 else ''}), {sketches}"
    broken = [name for name, row in found.stats.items() if row["nan"] or row["pos_inf"] or row["neg_inf"]]
    if broken:
        yield f"not finite: {len(broken):,} of them, {cut(broken[0], 40)} first"
    noise = [floor.floor for floor in found.floors.values() if floor.floor_by != "exact" and math.isfinite(floor.floor)]
    if noise:
        worst = max((name for name in found.floors), key=lambda name: found.floors[name].floor)
        yield f"noise floor: median {statistics.median(noise):.2g}, largest {max(noise):.2g} at {cut(worst, 40)}"


def _grid(*columns: str) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in columns:
        grid.add_column(
            column, no_wrap=True, overflow="ellipsis", justify="left" if column == "checkpoint" else "right"
        )
    return grid


def _ranges(section: Section, stream: str) -> Table:
    """A line a block, or every few blocks, and a column a kind."""
    kinds = [kind for its, kind in section.grid if its == stream]
    kinds = ([kind for kind in kinds if kind in RANGE_KINDS] or kinds)[:_KINDS]
    span = section.span
    step = math.ceil(len(span) / _LINES)
    grid = _grid(section.unit, *(cut(kind, 11) for kind in kinds))
    for index in sorted({*span[::step], span[-1]}):
        rows = (section.grid[stream, kind].get(index) for kind in kinds)
        grid.add_row(str(index), *(_range(row and (row["candidate"] or row["reference"])) for row in rows))
    return grid


def _range(figures: Mapping[str, Any] | None) -> str:
    if not figures:
        return ""
    if figures["nan"] or figures["inf"]:
        return "NaN" if figures["nan"] else "inf"
    return f"{short(figures['min'])} {short(figures['max'])}"


def _lines(found: Trace, names: Sequence[str]) -> Table:
    grid = _grid("checkpoint", "shape", "min", "max", "rms", *(["floor"] if found.floors else []))
    for name in names:
        row, floor = found.stats[name], found.floors.get(name)
        bad = row["nan"] + row["pos_inf"] + row["neg_inf"]
        ends = [f"{bad:,} bad", ""] if bad else [short(row["min"]), short(row["max"])]
        shape = "×".join(map(str, row["shape"]))
        noise = [f"{floor.floor:.1e}" if floor.floor_by != "exact" else "exact"] if floor else [""]
        rms = "" if math.isnan(row["rms"]) else short(row["rms"])
        grid.add_row(cut(name, 32), shape, *ends, rms, *(noise if found.floors else []))
    return grid
