"""A run that is not at parity, as the message of a failed assertion: one screen, nothing to scroll for."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parity.components import build_graph
from parity.reporters import rows
from parity.reporters.rows import Case, Row, Run
from parity.verdict import COMPARED

COLUMNS, LINES = 100, 40
ROWS_SHOWN, ABSENT_SHOWN, CASES_SHOWN = 10, 6, 3
NAME = 38
_HEAD = ("checkpoint", "verdict", "floor", "error", "excess")


def message(run: Run, page: Path | None = None) -> str:
    """Verdict, first divergence with its parents, the figures, the worst elements, what was not compared.

    Args:
        run: contents of ``parity.json``.
        page: the report, named at the end.

    Returns:
        at most `LINES` lines of at most `COLUMNS` columns of what prints.
    """
    lines = [headline(run), *textwrap.wrap(rows.printable(run["sentence"]), COLUMNS)[:4]]
    found = rows.first_divergence(run)
    if found:
        lines += _divergence(*found)
    absent = [(case, row) for case in run["cases"] for row in rows.not_compared(case)]
    if absent:
        lines += ["", *_absent(absent, several=len(run["cases"]) > 1)]
    lines += _others(run, found[0] if found else None)
    tail = [f"note: {rows.printable(note)}" for note in (run.get("notes") or [])[:2]]
    if (run.get("weights") or {}).get("synthetic"):
        tail.append(f"weights: {rows.weights_line(run)}")
    if page is not None:
        # A path is for copying: it is kept whole where it is a little too long, and cut in the middle where it is very.
        tail.append(f"page: {_middle(rows.printable(page), COLUMNS - 6)}")
    head = lines[: LINES - len(tail)]
    return "\n".join(_cut(line) for line in [*head, *tail])


def headline(run: Run) -> str:
    """The verdict and its place, short enough for a list of failures."""
    found = rows.first_divergence(run)
    if found:
        return f"divergence at {_middle(rows.shown(found[1]['name']), 60)} ({rows.title(found[0])})"
    counts = run["counts"]
    said = ", ".join(f"{counts[key]} {key}" for key in rows.NOT_COMPARED if counts.get(key))
    return f"{run['verdict']}: {said or 'nothing was compared'}"


def _divergence(case: Case, first: Row) -> list[str]:
    """The figures around the first divergence: its parents, itself, other sources, what follows."""
    row_of = {row["name"]: row for row in case["checkpoints"]}
    parents = [row_of[name] for name in _parents(case, first["name"]) if name in row_of]
    # The last ones: closest in the order of computation.
    parents = parents[-4:]
    sources = [row for row in rows.diverged(case) if row.get("source") and row is not first]
    off = [row for row in rows.diverged(case) if not row.get("source")]
    shown = [*parents, first, *sources][: ROWS_SHOWN - 2]
    shown += off[: ROWS_SHOWN - len(shown)]
    lines = ["", _line(_HEAD, "")]
    for row in shown:
        role = "<- first divergence" if row is first else "parent" if row in parents else ""
        role = role or ("source" if row.get("source") else "propagated")
        lines.append(_line(_cells(row), role))
    rest = len(sources) + len(off) - sum(row["verdict"] == "diverged" for row in shown if row is not first)
    rest += sum(row["verdict"] == "diverged" for row in parents)
    if rest > 0:
        lines.append(f"and {rest} more diverged")
    if not parents:
        lines.append("it is computed from the inputs, or from what was not compared")
    if first.get("reason"):
        lines.append(f"reason: {rows.shown(first['reason'])}")
    lines.append(f"shape {rows.shape(first.get('shape'))}, {first.get('dtype')}" + _at(first))
    if worst := rows.worst_lines(first):
        lines += ["", "worst elements (index: candidate, truth)", *(f"  {line}" for line in worst)]
    return lines


def _at(row: Row) -> str:
    cosine = row.get("cosine")
    return "" if cosine is None else f"; cosine with the reference {rows.number(cosine, 6)}"


def _parents(case: Case, name: str) -> Sequence[str]:
    try:
        graph = build_graph(case["graph"])
    except (KeyError, TypeError, ValueError):
        return ()
    telling = {row["name"] for row in case["checkpoints"] if row["verdict"] in COMPARED}
    if name not in graph.parents:
        return ()
    return graph.visible_parents(name, telling, within_stage=case["mode"] == "isolated")


def _cells(row: Row) -> tuple[str, ...]:
    figures = (rows.number(row.get(key), 2) for key in ("floor", "rel_rmse", "excess"))
    return (rows.shown(row["name"]), row["verdict"], *figures)


def _line(cells: Sequence[str], role: str) -> str:
    name, verdict, *figures = cells
    return f"{_middle(name, NAME):<{NAME}} {verdict:<9} " + " ".join(f"{x:>8}" for x in figures) + f"  {role}".rstrip()


def _absent(found: Sequence[tuple[Case, Row]], *, several: bool) -> list[str]:
    counts: dict[str, int] = {}
    for _, row in found:
        counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
    lines = [f"not compared: {', '.join(f'{number} {verdict}' for verdict, number in counts.items())}"]
    for case, row in found[:ABSENT_SHOWN]:
        where = f"{rows.title(case)}: " if several else ""
        reason = rows.shown(row.get("reason") or _WHY[row["verdict"]])
        lines.append(f"  {where}{_middle(rows.shown(row['name']), NAME)}: {row['verdict']}, {reason}")
    if len(found) > ABSENT_SHOWN:
        lines.append(f"  and {len(found) - ABSENT_SHOWN} more")
    return lines


_WHY: Mapping[str, str] = {
    "missing": "the candidate did not give it",
    "skipped": "it was not run",
    "uncertain": "nothing can be said of it",
}


def _others(run: Run, first: Case | None) -> list[str]:
    """The other entries that are not at parity."""
    others: list[Any] = [case for case in run["cases"] if case is not first and case["verdict"] != "parity"]
    if first is None or not others:
        return []
    lines = [""]
    for case in others[:CASES_SHOWN]:
        start = f", starts at {rows.shown(case['sources'][0])}" if case["sources"] else ""
        lines.append(f"also {rows.title(case)}: {case['verdict']}{start}")
    if len(others) > CASES_SHOWN:
        lines.append(f"and {len(others) - CASES_SHOWN} more cases")
    return lines


def _middle(text: str, width: int) -> str:
    """Text cut in the middle: beginning and end of a name say most."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"


def _cut(line: str) -> str:
    return line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "…"
