"""The score of planted faults, for people: a table on a terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

from parity.faultbench.score import Line, Outcome

_KINDS = {"fault": "all of the catalogue", "pair": "two at once", "unlisted": "of no catalogue", "clean": "clean"}
HEAD = ("", "runs", "source", "cause", "proven", "left", "wrong", "s")
LEGEND = (
    "source: exact source checkpoints; cause: right cause first (two at once: both, and nothing left); proven: the "
    "first cause is right and proven; left: something "
    "left unexplained; wrong: something named that is not there, or a clean copy called wrong; s: median seconds"
)


def print_score(lines: Mapping[str, Line], outcomes: Sequence[Outcome]) -> None:
    """The confusion table, what was missed, and what could not be seen."""
    out = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for index, column in enumerate(HEAD):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for name, line in lines.items():
        if name == "fault":
            table.add_section()
        table.add_row(*_cells(name, line), style="bold" if name in _KINDS else "")
    out.print(table)
    for title, said in (("not as it should be", missed(outcomes)), ("within the floor", unseen(outcomes))):
        if said:
            out.print(f"\n{title}:", style="bold")
            for one in said:
                out.print(f"  {one}", markup=False, soft_wrap=True)


def markdown(lines: Mapping[str, Line], *, codes: bool = True) -> str:
    """The table for a README; without `codes` only one line a kind."""
    rows = [_cells(name, line) for name, line in lines.items() if codes or name in _KINDS]
    head = ["| " + " | ".join(HEAD) + " |", "|---|" + "---:|" * (len(HEAD) - 1)]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows), "", LEGEND + "."])


def missed(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each visible instance that was not diagnosed as it should be."""
    return [_said(one) for one in outcomes if (one.visible or one.kind == "clean") and not one.good]


def unseen(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each planted fault that no run sees."""
    return [_planted(one) for one in outcomes if one.kind != "clean" and not one.visible]


def _planted(one: Outcome) -> str:
    what = " + ".join(f"{part['injection']} ({part['site']})" for part in one.instance["planted"])
    return f"{one.instance['number']:03d} {what}, {one.instance['case']} {one.instance['dtype']}"


def _said(one: Outcome) -> str:
    return f"{_planted(one)}: {'; '.join(_reasons(one)) or 'nothing said'}"


def _reasons(one: Outcome) -> Iterator[str]:
    if one.error:
        yield one.error
    if one.causes:
        yield "named " + ", ".join(f"{code} ({confidence})" for code, confidence in one.causes[:3])
    if one.unexplained:
        yield f"left {one.unexplained[0]}" + (f" and {len(one.unexplained) - 1} more" * (len(one.unexplained) > 1))
    if one.kind in ("fault", "pair") and not one.exact:
        stray = [name for name in one.sources if name not in one.expected]
        lost = [name for name in one.run_sources if name in one.expected and name not in one.sources]
        yield f"sources not expected {stray[:3]}, missing {lost[:3]}"
    if one.kind == "clean" and one.run_sources:
        yield f"the run alarms at {', '.join(one.run_sources[:3])}"


def _cells(name: str, line: Line) -> tuple[str, ...]:
    shown = _KINDS.get(name, name)
    seconds = f"{median(line.seconds):.1f}" if line.seconds else ""
    count = line.instances
    if name not in _KINDS:
        figures = (
            str(line.exact),
            str(line.right),
            str(line.proven),
            str(line.unexplained or ""),
            str(line.wrong or ""),
        )
        return (shown, str(count), *figures, seconds)
    if name == "clean":
        return (shown, str(count), "", "", "", "", str(line.wrong), seconds)
    of_cause = tuple(_share(part, count) for part in (line.exact, line.right, line.proven))
    of_cause = ("", "", "") if name == "unlisted" else of_cause
    return (shown, str(count), *of_cause, _share(line.unexplained, count), _share(line.wrong, count), seconds)


def _share(part: int, count: int) -> str:
    return f"{part / count:.1%}" if count else ""
