"""Runs as text: progress on stderr, a table or Markdown on stdout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from parity import budget, health
from parity.pageimages import figure
from parity.reporters.rows import printable
from parity.run import Progress as Tell
from parity.sections import component_title, estimated, group_of, is_exact

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
    """One line of the table: what was compared, how good it is.

    What must be equal bit for bit has neither floor nor excess: it is counted where it differs, and
    stands alone where there is nothing else.
    """
    counts = case["counts"]
    judged = [row for row in case["checkpoints"] if row["excess"] is not None]
    excesses = [row["excess"] for row in judged if not is_exact(row)]
    floors = [row["floor"] for row in judged if row["floor"] > 0]
    exact = [row for row in judged if is_exact(row)]
    differ = sum(row["verdict"] == "diverged" for row in exact)
    worst = f"{differ} differ" if differ else _short(max(excesses)) if excesses else "equal" if exact else "–"
    return {
        "case": case["name"],
        "dtype": case["dtype"],
        "mode": case["mode"],
        "compared": f"{counts['compared']}/{counts['expected']}",
        "floor": f"{median(floors):.1e}" if floors else "exact" if exact else "–",
        "median": _short(median(excesses)) if excesses else "–",
        "worst": worst,
        "verdict": case["verdict"],
    }


def _short(excess: float) -> str:
    return f"{excess:.2f}" if excess < 1000 else f"{excess:.0e}"


def print_table(run: Mapping[str, Any]) -> None:
    """Print the result of a run to stdout, at most 80 columns wide in a narrow terminal."""
    out = Console(highlight=False)
    if run["weights"]["synthetic"]:
        out.print(Text(f"Synthetic weights ({run['weights']['preset']}): random numbers, calibrated.", "yellow"))
    wide = _cases_table(run["cases"], tight=False)
    fits = out.measure(wide, options=out.options.update(width=1000)).maximum <= out.width
    out.print(wide if fits else _cases_table(run["cases"], tight=True))
    for line in legend(run["cases"]):
        out.print(Text(line, "dim"))
    pictures = pictures_of(run)
    if pictures:
        out.print()
        out.print(_plain_table(pictures, "picture", "dtype"))
        out.print(Text("pictures on 0–255, mean and std of reference → candidate; FLIP and SSIM on 0–1", "dim"))
    if lines := budget.table(run):
        out.print()
        out.print(_plain_table(lines, "error budget"))
        out.print(Text(budget.about(run), "dim"))
    out.print()
    for line in source_lines(run["cases"]):
        out.print(Text(line, "red"))
    for severity, line in health.brief(run):
        out.print(Text(printable(line), {"error": "bold red", "warning": "yellow"}[severity]))
    out.print(Text(run["sentence"], STYLE[run["verdict"]]))


def _cases_table(cases: Sequence[Mapping[str, Any]], *, tight: bool) -> Table:
    """A line an entry; where there are several components, each below its name.

    Args:
        tight: one space between columns, not two.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0) if tight else (0, 1))
    for name in ("case", "dtype", "mode"):
        table.add_column(name, overflow="fold")
    for name in ("compared", "floor", "median", "worst"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    components = list(dict.fromkeys(map(component_title, cases)))
    for component in components:
        if len(components) > 1:
            table.add_row(Text(component, "bold"))
        for case in cases:
            if component_title(case) == component:
                cells = list(figures(case).values())
                table.add_row(*(Text(cell) for cell in cells[:-1]), Text(cells[-1], STYLE[case["verdict"]]))
    return table


def legend(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the columns mean, of those that have something in them."""
    rows = [row for case in cases for row in case["checkpoints"]]
    said = []
    if not all(map(is_exact, rows)):
        said.append("floor: the reference's own rounding noise, median relative RMSE")
        said.append("median, worst: the candidate's error in units of that floor; up to 3 is a match")
    said += estimated(rows)
    if any(map(is_exact, rows)):
        said.append("exact: must be equal bit for bit; worst: equal, or how many of them differ")
    return said


def pictures_of(run: Mapping[str, Any]) -> list[dict[str, str]]:
    """The end-to-end table: one line a picture, figures as text."""
    found = []
    for case in run["cases"]:
        pictures = case.get("pictures") or []
        for picture in pictures:
            metrics = picture["metrics"]
            sides = [metrics.get(side) or {} for side in ("reference", "candidate")]
            number = f" {picture['index'] + 1}" if len(pictures) > 1 else ""
            line = {"picture": case["name"] + number, "dtype": case["dtype"], "RMSE": figure(metrics.get("rmse"), 2)}
            line["max"] = figure(metrics.get("max_abs"), 0)
            line |= {part: "→".join(figure(side.get(part), 2) for side in sides) for part in ("mean", "std")}
            digits = {"PSNR": 1, "SSIM": 4, "FLIP": 4}
            found.append(line | {name: figure(metrics.get(name.lower()), most) for name, most in digits.items()})
    return found


def _plain_table(lines: Sequence[Mapping[str, str]], *words_in: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for name in lines[0]:
        words = name in words_in
        table.add_column(name, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line.values()))
    return table


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
    """``block.00.img.mod, block.01.img.mod, …`` as ``block.00.img.mod (and in 59 more blocks)``.

    Layers and steps are folded alike; where several indices run, all places are counted.
    """
    groups: dict[str, list[tuple[str, dict[str, int]]]] = {}
    for name in names:
        group, indices = group_of(name)
        groups.setdefault(group, []).append((name, indices))
    return [found[0][0] + _in_more([indices for _, indices in found]) for found in groups.values()]


def _in_more(places: Sequence[Mapping[str, int]]) -> str:
    more = len(places) - 1
    if not more:
        return ""
    running = [unit for unit in places[0] if len({indices[unit] for indices in places}) > 1]
    unit = running[0] if len(running) == 1 else "place"
    return f" (and {'at' if unit == 'place' else 'in'} {more} more {unit}{'s' if more > 1 else ''})"


def markdown(run: Mapping[str, Any]) -> str:
    """The result of a run as Markdown, for a comment or a step summary."""
    lines = [f"**{plain_markdown(run['sentence'])}**", ""]
    if run["weights"]["synthetic"]:
        lines += [f"Synthetic weights: {code(run['weights']['preset'])}.", ""]
    several = len(set(map(component_title, run["cases"]))) > 1
    lines += markdown_table(
        [({"component": component_title(case)} if several else {}) | figures(case) for case in run["cases"]]
    )
    if pictures := pictures_of(run):
        lines += ["", "Pictures, on 0–255; mean and std of reference → candidate:", "", *markdown_table(pictures)]
    if lines_of_budget := budget.table(run):
        lines += ["", f"Error budget, {budget.about(run)}:", "", *markdown_table(lines_of_budget)]
    if said := estimated([row for case in run["cases"] for row in case["checkpoints"]]):
        lines += ["", *(f"{line}." for line in said)]
    said = [*map(code, source_lines(run["cases"])), *(plain_markdown(line) for _, line in health.brief(run))]
    return "\n".join([*lines, *([""] if said else []), *(f"- {line}" for line in said)])


def code(text: object) -> str:
    """Markdown's code span in one line, which nothing in the text ends."""
    return f"`{printable(text).replace('`', chr(39))}`"


def plain_markdown(text: object) -> str:
    """Text that opens no tag, no cell and no line of its own."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace("`", "&#96;").replace("|", "\\|")


def markdown_table(lines: Sequence[Mapping[str, str]]) -> list[str]:
    """A Markdown table; a bar in a name does not open a cell, and a bracket no tag."""
    head = ["| " + " | ".join(lines[0]) + " |", "|" + "---|" * len(lines[0])]
    return head + ["| " + " | ".join(map(plain_markdown, line.values())) + " |" for line in lines]
