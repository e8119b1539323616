"""``parity ranges``: documented value ranges against a run or a trace."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity import trace
from parity.components import COMPONENTS
from parity.disk import room_for
from parity.errors import EXIT_DIVERGENCE, EXIT_INCOMPLETE, EXIT_PARITY, OutputExistsError, UsageError
from parity.imports.units import Source, is_source, of_scales, open_source
from parity.rangetable import RangeRow, RangeTable
from parity.result import last_block
from parity.runfolder import read_run
from parity.safetensors_header import shown

WIDTH = 80
STYLE = {"inside": "green", "outside": "bold red", "absent": "bold yellow", "not checked": "dim"}
_SEVERITY = ("inside", "absent", "outside")
_NOT_FINITE = ("nan", "inf", "pos_inf", "neg_inf")

Stats = Mapping[str, Any]
# (where: case, dtype and mode; statistics by checkpoint; index of the last block)
Unit = tuple[str, dict[str, Stats], int]
Side = Literal["candidate", "reference"]


def check(
    run: Path,
    /,
    *,
    table: Annotated[
        str | None, Parameter(help="name of a table, or the path of a .toml file; the run's own, or qwen-image")
    ] = None,
    side: Annotated[Side, Parameter(help="whose values; a trace has only its own")] = "candidate",
    passage: Annotated[
        str, Parameter(name="--pass", help="of a log, one pass: its step, or how many were before; default all")
    ] = "",
) -> int:
    """Check the values of a run, a trace, a dump or a log against documented ranges.

    Every row gets its worst verdict over the cases: inside, outside (by what factor) or absent
    (the documented size is not reached). Ranges alone never show parity. Exit code 0: all
    checked rows are inside; 1: something is outside, absent or not finite; 5: nothing could be checked.

    Parameters
    ----------
    run
        run folder, its parity.json, a trace folder, tensors by checkpoint (.safetensors, .npz, a
        folder of them), or a log (.log, .txt) with lines such as [BLOCK 07] [ATTN] [-88, 118].
    """
    if not run.exists():
        raise UsageError(f"{run}: there is no such file or folder")
    source = None
    if is_source(run):
        ranges = RangeTable.load(table or "qwen-image")
        source = open_source(run, ranges, passage)
        units = list(source.units)
    else:
        ranges = RangeTable.load(table) if table else _own(run) or RangeTable.load("qwen-image")
        units = list(_units(run, side))
    worst = {row.name: _worst(ranges, row, units) for row in ranges.rows}
    _print_check(ranges, worst)
    if source is not None:
        _print_open(source, ranges, worst)
        if source.broken:
            return EXIT_DIVERGENCE
    verdicts = {found["verdict"] for found, _ in filter(None, worst.values())}
    if not verdicts:
        return EXIT_INCOMPLETE
    return EXIT_PARITY if verdicts == {"inside"} else EXIT_DIVERGENCE


def record(
    run: Path,
    /,
    *,
    out: Annotated[Path, Parameter(help="the .toml file to write")],
    force: Annotated[bool, Parameter(negative=(), help="overwrite it")] = False,
) -> int:
    """Write the ranges a run's reference reached as a table, over all its cases.

    Parameters
    ----------
    run
        run folder, its parity.json, or a trace folder.
    """
    if out.suffix != ".toml":
        raise UsageError(f"{out}: expected a name that ends in .toml")
    if out.exists() and not force:
        raise OutputExistsError(f"{out} exists; --force overwrites it")
    units = list(_units(run, "reference"))
    title = ", ".join(label for label, _, _ in units)
    source = f"recorded from {_safe(str(run))}"
    recorded = RangeTable.record(_joined(units), source=source, name=_safe(out.stem), title=title)
    with room_for(out):
        out.write_text(recorded.dump(), encoding="utf-8")
    print(f"{out}: {len(recorded.rows)} ranges")
    return EXIT_PARITY


def show(table: str = "qwen-image", /) -> int:
    """Print a range table and where each row comes from.

    Parameters
    ----------
    table
        name of a table, or the path of a .toml file.
    """
    ranges = RangeTable.load(table)
    out = Console(width=WIDTH, highlight=False)
    out.print(Text(_safe(ranges.title or ranges.name), "bold"))
    for source, rows in groupby(ranges.rows, lambda row: row.source):
        grid = _grid("row", "checkpoint", "range")
        for row in rows:
            chunks = f" ({', '.join(row.chunks)})" if row.chunks else ""
            grid.add_row(*map(Text, (row.name, row.checkpoint + chunks, _range(row.low, row.high))))
        out.print()
        out.print(Text(source, "italic"))
        out.print(grid)
    out.print()
    policy = f"outside: beyond an end times {ranges.slack:g}; absent: under the larger end over {ranges.absent:g}"
    out.print(Text(policy, "dim"))
    return EXIT_PARITY


def _own(path: Path) -> RangeTable | None:
    """The table that a run's suite brought along."""
    if (path / "manifest.json").is_file():
        return None
    run = read_run(path)
    return RangeTable.parse(run["ranges"], f"{path}: range table") if "ranges" in run else None


def _units(path: Path, side: Side) -> Iterator[Unit]:
    """The statistics of a trace, or of the cases of a run: those of the transformer and of components from outside."""
    manifest = path / "manifest.json"
    if manifest.is_file():
        try:
            about = json.loads(manifest.read_text())
            stats = trace.read_stats(path)
            of_qwen = about.get("component", "transformer") == "transformer"
            last = about["configs"]["transformer"]["num_layers"] - 1 if of_qwen else last_block(stats)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: not a trace this version reads ({type(error).__name__}: {error})") from None
        yield _safe(path.name), stats, last
        return
    run = read_run(path)
    others = set(COMPONENTS) - {"transformer"}
    for case in (case for case in run["cases"] if case["component"] not in others):
        label = _safe(f"{case['name']} {case['dtype']} {case['mode']}")
        # What must be equal bit for bit (ids, masks) are a case's own numbers, without a range to expect.
        rows = {
            row["name"]: _of_row(row, side)
            for row in case["checkpoints"]
            if row[side] is not None and row.get("floor_by") != "exact"
        }
        yield label, rows, last_block(row["name"] for row in case["checkpoints"])


def _of_row(row: Mapping[str, Any], side: Side) -> Stats:
    """Statistics of a row; with the verdict already there, for a run that kept no chunks."""
    return {**row[side], "judged": row.get("range") if side == "candidate" else None}


def _worst(ranges: RangeTable, row: RangeRow, units: Iterable[Unit]) -> tuple[dict[str, Any], str] | None:
    """The worst verdict of a row over all units, and where; None where nothing could be checked."""
    found = []
    for label, stats, last in units:
        figures = stats.get(row.resolved(last))
        checked = ranges.check(row, figures) or _judged(row, figures) or of_scales(ranges, row, figures)
        if checked is not None:
            found.append((checked, label))
    return max(found, key=lambda one: (_SEVERITY.index(one[0]["verdict"]), _badness(one[0])), default=None)


def _badness(checked: Mapping[str, Any]) -> float:
    return -checked["factor"] if checked["verdict"] == "absent" else checked["factor"]


def _judged(row: RangeRow, figures: Stats | None) -> dict[str, Any] | None:
    """The verdict that the run itself came to on this very row, if it did."""
    judged = (figures or {}).get("judged") or {}
    same = [judged.get(key) for key in ("row", "low", "high")] == [row.name, row.low, row.high]
    return judged if same else None


def _joined(units: Iterable[Unit]) -> dict[str, dict[str, Any]]:
    """The ranges that hold all units."""
    joined: dict[str, dict[str, Any]] = {}
    for _, stats, _ in units:
        for name, figures in stats.items():
            seen = joined.get(name, figures)
            # NaN may lose in min and max; the count keeps it.
            joined[name] = {
                "min": min(seen["min"], figures["min"]),
                "max": max(seen["max"], figures["max"]),
                "nan": sum(one.get(key) or 0 for one in (seen, figures) for key in _NOT_FINITE),
            }
    return joined


def _print_check(ranges: RangeTable, worst: Mapping[str, tuple[dict[str, Any], str] | None]) -> None:
    out = Console(width=WIDTH, highlight=False)
    grid = _grid("row", "checkpoint", "documented", "verdict", "factor")
    for row in ranges.rows:
        found, _ = worst[row.name] or ({"verdict": "not checked", "factor": None}, "")
        verdict, factor = found["verdict"], found["factor"]
        cells = (row.name, row.checkpoint, _range(row.low, row.high))
        grid.add_row(*map(Text, cells), Text(verdict, STYLE[verdict]), _factor(factor))
    out.print(grid)
    for name, (found, where) in ((name, one) for name, one in worst.items() if one):
        if found["verdict"] != "inside":
            out.print(Text(f"{name}: {found['verdict']} in {where}", STYLE[found["verdict"]]))
    count = [found["verdict"] for found, _ in filter(None, worst.values())]
    said = ", ".join(f"{count.count(verdict)} {verdict}" for verdict in _SEVERITY)
    out.print(Text(f"{len(count)} of {len(ranges.rows)} rows checked: {said}"))
    out.print(Text("Ranges alone never show parity: values in the wrong place have the same range.", "dim"))


def _print_open(source: Source, ranges: RangeTable, worst: Mapping[str, tuple[dict[str, Any], str] | None]) -> None:
    """What a log or a dump leaves open."""
    out = Console(width=WIDTH, highlight=False)
    if source.broken:
        more = f" and {len(source.broken) - 1} more" if len(source.broken) > 1 else ""
        out.print(Text(f"{source.label}: values that are not finite at {shown(source.broken[0])}{more}", "bold red"))
    open_rows = [row.checkpoint for row in ranges.rows if worst[row.name] is None]
    for text in (*source.notes, *([f"not checked: {', '.join(dict.fromkeys(open_rows))}"] if open_rows else [])):
        out.print(Text(f"{source.label}: {text}", "dim"))


def _grid(*columns: str) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in columns:
        grid.add_column(column, no_wrap=column != "row", overflow="fold")
    return grid


def _range(low: float, high: float) -> str:
    return f"[{_number(low)}, {_number(high)}]"


def _number(x: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e4)):
        if size <= abs(x) < 1e9:
            return f"{x / (1e6 if unit == 'M' else 1e3):.3g}{unit}"
    return f"{x:.3g}"


def _factor(factor: float | None) -> str:
    if factor is None:
        return ""
    return "∞" if math.isinf(factor) else f"{factor:.3g}" if factor < 100 else f"{factor:.0e}"


def _safe(text: str) -> str:
    """Names from files, without what a terminal would obey."""
    return text if text.isprintable() else ascii(text)
