"""Runs as text: progress on stderr, a table or Markdown on stdout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from parity.run import Progress as Tell

STYLE = {"parity": "bold green", "divergence": "bold red", "incomplete": "bold yellow"}
SOURCES_SHOWN = 6


@contextmanager
def progress(console: Console) -> Iterator[Tell]:
    """A progress bar on `console`; yields the function that `parity.run.run` tells."""
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def tell(unit: str, stage: str, done: int, total: int) -> None:
            bar.update(task, description=f"{unit} {stage}", completed=done, total=total)

        yield tell


def figures(case: Mapping[str, Any]) -> dict[str, str]:
    """One line of the table: what was compared, how good it is."""
    counts = case["counts"]
    judged = [row for row in case["checkpoints"] if row["excess"] is not None]
    excesses = [row["excess"] for row in judged]
    floors = [row["floor"] for row in judged if row["floor"] > 0]
    return {
        "case": case["name"],
        "dtype": case["dtype"],
        "mode": case["mode"],
        "compared": f"{counts['compared']}/{counts['expected']}",
        "floor": f"{median(floors):.1e}" if floors else "–",
        "median": _short(median(excesses)) if excesses else "–",
        "worst": _short(max(excesses)) if excesses else "–",
        "verdict": case["verdict"],
    }


def _short(excess: float) -> str:
    return f"{excess:.2f}" if excess < 1000 else f"{excess:.0e}"


def print_table(run: Mapping[str, Any]) -> None:
    """Print the result of a run to stdout, at most 80 columns wide in a narrow terminal."""
    out = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for name in ("case", "dtype", "mode"):
        table.add_column(name)
    for name in ("compared", "floor", "median", "worst"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for case in run["cases"]:
        cells = list(figures(case).values())
        table.add_row(*(Text(cell) for cell in cells[:-1]), Text(cells[-1], STYLE[case["verdict"]]))
    if run["weights"]["synthetic"]:
        out.print(Text(f"Synthetic weights ({run['weights']['preset']}): random numbers, calibrated.", "yellow"))
    out.print(table)
    out.print(Text("floor: the reference's own rounding noise, median relative RMSE", "dim"))
    out.print(Text("median, worst: the candidate's error in units of that floor; up to 3 is a match", "dim"))
    out.print()
    for line in source_lines(run["cases"]):
        out.print(Text(line, "red"))
    out.print(Text(run["sentence"], STYLE[run["verdict"]]))


def source_lines(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where divergences start, one line a case, blocks of one kind gathered."""
    lines = []
    for case in cases:
        if case["sources"]:
            gathered = gather(case["sources"])
            more = f" and {len(gathered) - SOURCES_SHOWN} more" if len(gathered) > SOURCES_SHOWN else ""
            where = f"{case['name']} {case['dtype']} {case['mode']}"
            lines.append(f"{where}: starts at {', '.join(gathered[:SOURCES_SHOWN])}{more}")
    return lines


def gather(names: Sequence[str]) -> list[str]:
    """``block.00.img.mod, block.01.img.mod, …`` as ``block.00.img.mod (and in 59 more blocks)``."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"^block\.\d+\.", "block.*.", name), []).append(name)
    return [found[0] + _in_more(len(found) - 1) for found in kinds.values()]


def _in_more(blocks: int) -> str:
    return "" if blocks == 0 else f" (and in {blocks} more block{'s' if blocks > 1 else ''})"


def markdown(run: Mapping[str, Any]) -> str:
    """The result of a run as Markdown, for a comment or a step summary."""
    lines = [f"**{run['sentence']}**", ""]
    if run["weights"]["synthetic"]:
        lines += [f"Synthetic weights: `{run['weights']['preset']}`.", ""]
    rows = [figures(case) for case in run["cases"]]
    lines += ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row.values()) + " |" for row in rows]
    sources = source_lines(run["cases"])
    return "\n".join([*lines, *([""] if sources else []), *(f"- `{line}`" for line in sources)])
