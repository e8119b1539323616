"""The result of ``parity weights check`` as a table of 80 columns and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from parity.layouts.entries import Problem
from parity.memory import spell
from parity.safetensors_header import printable
from parity.weights_check import ComponentReport, PackedGroup

WIDTH = 80
SCHEMA = 1
# Of a kind; JSON has all.
_SHOWN = 12
_STYLE = {"ok": "green", "other": "yellow", "wrong": "bold red"}


def to_json(path: str, reports: Sequence[ComponentReport]) -> dict[str, Any]:
    """One object: ``verdict`` is ``ok`` or ``wrong``, ``components`` has each one's report."""
    return {
        "schema": SCHEMA,
        "path": path,
        "verdict": "wrong" if any(report.problems for report in reports) else "ok",
        "components": {report.component: report.to_dict() for report in reports},
    }


def print_table(out: Console, reports: Sequence[ComponentReport]) -> None:
    """Print all components, what is wrong with each last."""
    for report in reports:
        _print_component(out, report)
    count = sum(len(report.problems) for report in reports)
    verdict = Text(f"{count} things are wrong" if count > 1 else "1 thing is wrong", "bold red")
    out.print(verdict if count else Text("nothing is wrong", "bold green"))


def _print_component(out: Console, report: ComponentReport) -> None:
    out.print(Text(f"{report.component}  ", "bold").append(f"layout {report.layout}", "not bold"))
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    facts.add_column(no_wrap=True, style="dim")
    facts.add_column(overflow="fold")
    files = f"{report.files} file{'s' * (report.files != 1)}"
    facts.add_row("size", f"{files}, {spell(report.file_bytes)}, {report.tensors:,} tensors, "
                          f"{_parameters(report.parameters)} parameters")  # fmt: skip
    if report.dtypes:
        facts.add_row("dtypes", ", ".join(f"{dtype} {count:,}" for dtype, count in report.dtypes.items()))
    for group in report.packed:
        facts.add_row(_how(group), Text(_layers(group)))
    if report.fingerprint:
        facts.add_row("fingerprint", report.fingerprint[:32])
    for name, digest in report.sha256.items():
        facts.add_row("sha256", Text(f"{digest}\n{printable(name)}"))
    if not report.values_checked:
        facts.add_row("values", "not looked at")
    out.print(facts)
    if report.guide:
        _print_guide(out, report)
    for style, lines in (("dim", report.notes), ("yellow", report.warnings)):
        for line in lines:
            out.print(_line(f"note: {line}", style))
    _print_problems(out, report.problems)
    out.print()


def _print_guide(out: Console, report: ComponentReport) -> None:
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 2))
    grid.add_column("documented at 4 bits, group 64", no_wrap=True)
    for column in ("expected", "found"):
        grid.add_column(column, overflow="fold")
    for row in report.guide:
        found = Text("ok" if row.verdict == "ok" else row.found, _STYLE[row.verdict])
        grid.add_row(Text(row.name), str(list(row.expected)), found)
    out.print(grid)


def _print_problems(out: Console, problems: Iterable[Problem]) -> None:
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    for found in kinds.values():
        for problem in found[:_SHOWN]:
            out.print(_line(str(problem), "red"))
        if len(found) > _SHOWN:
            out.print(_line(f"… and {len(found) - _SHOWN} more {found[0].kind}; --format json has all", "red"))


def _line(text: str, style: str) -> Padding:
    """A sentence that keeps its indentation where it is wrapped."""
    return Padding(Text(printable(text), style), (0, 0, 0, 2), expand=False)


def _how(group: PackedGroup) -> str:
    return "not packed" if group.bits is None else f"{group.bits}-bit group {group.group_size}"


def _layers(group: PackedGroup) -> str:
    return f"{group.layers:,} layer{'s' * (group.layers != 1)} ({', '.join(map(printable, group.classes))})"


def _parameters(count: int) -> str:
    for unit, scale in (("billion", 1e9), ("million", 1e6)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:,}"
