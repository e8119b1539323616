"""An index of runs as a table of at most 80 columns in a narrow terminal, Markdown or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.plotstyle import cut, excess_edges, step_of
from parity.reporters.rows import printable
from parity.reporters.rundiff import excess
from parity.reporters.text import STYLE, markdown_table, plain_markdown
from parity.runfolder import to_json
from parity.runindex import latest

Index = Mapping[str, Any]

RUNS = 20
TRENDS = 40
_POINTS = 16
# Letters of a folder's name; the JSON has it whole.
_NAME = 68
_BARS = "▁▂▃▄▅▆▇██"


def spark(points: Sequence[Mapping[str, Any]]) -> str:
    """The largest excess of the last runs as bars: up to ``▃`` a match, up to ``▅`` suspect, ``·`` without one."""
    edges = excess_edges(3.0, 10.0)
    return "".join(
        _BARS[-1] if point["differ"] else "·" if point["worst"] is None else _BARS[step_of(point["worst"], edges)]
        for point in points[-_POINTS:]
    )


def trend_figures(trend: Mapping[str, Any], varying: Sequence[str] = ()) -> dict[str, str]:
    """One line of the table of trends.

    Args:
        varying: what a line must say, since there are several of them.
    """
    last = trend["points"][-1]
    name = " ".join([trend["case"], *([f"({made_with(trend, varying)})"] if varying else [])])
    return {
        "case": name, "dtype": trend["dtype"], "mode": trend["mode"], "trend": spark(trend["points"]),
        "last": excess(last["worst"], last["differ"]), "verdict": last["verdict"],
        "change": "" if trend["change"] == "same" else trend["change"],
    }  # fmt: skip


def made_with(trend: Mapping[str, Any], varying: Sequence[str]) -> str:
    """Weights and candidate of a trend, as far as they vary."""
    return ", ".join(filter(None, (trend[key] for key in varying)))


def run_figures(run: Mapping[str, Any]) -> dict[str, str]:
    """One line of the table of runs."""
    ended = run["state"] == "finished"
    counts = run.get("counts") or {}
    return {
        "run": cut(run["folder"], _NAME), "started": (run["started"] or "?")[:16].replace("T", " "),
        "verdict": run["verdict"] if ended else run["state"],
        "compared": f"{counts['compared']:,}/{counts['expected']:,}" if ended else "–",
        "worst": excess(run["worst"]) if ended else "–",
    }  # fmt: skip


def varying(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of ``weights`` and ``candidate``, what is not the same in all trends."""
    return [key for key in ("weights", "candidate") if len({trend[key] for trend in lines}) > 1]


def print_table(found: Index) -> None:
    """Print an index to stdout: trends, the last runs, what could not be read."""
    out = Console(highlight=False)
    lines = latest(found["trends"])
    vary = varying(lines)
    if lines:
        out.print(_table([trend_figures(trend, vary) for trend in lines[:TRENDS]], "verdict"))
        out.print(Text("trend: largest excess, oldest run first; up to ▃ a match, up to ▅ suspect", "dim"))
        out.print()
    out.print(_table([run_figures(run) for run in found["runs"][-RUNS:]], "verdict"))
    for many, most, what in ((lines, TRENDS, "cases"), (found["runs"], RUNS, "runs")):
        if len(many) > most:
            out.print(Text(f"{len(many) - most:,} more {what} are on the page and in --format json", "dim"))
    for line in remarks(found):
        out.print(Text(printable(line)))
    out.print()
    out.print(Text(printable(found["sentence"]), "bold"))


def remarks(found: Index) -> list[str]:
    """Why a run was not read, one line each, and what was left out."""
    said = [f"{cut(run['folder'], _NAME)}: {run['state']}: {run['reason']}" for run in found["runs"] if run["reason"]]
    more = [f"and {len(said) - RUNS:,} more like these"] if len(said) > RUNS else []
    return [*said[:RUNS], *more, *found["notes"]]


def _table(lines: Sequence[Mapping[str, str]], verdict: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for name in lines[0]:
        right = name in ("last", "compared", "worst")
        table.add_column(name, justify="right" if right else "left", overflow="fold",
                         no_wrap=right or name in ("trend", "change"))  # fmt: skip
    for line in lines:
        table.add_row(*(Text(printable(cell), STYLE.get(cell, "") if name == verdict else "")
                        for name, cell in line.items()))  # fmt: skip
    return table


def markdown(found: Index) -> str:
    """An index as Markdown."""
    lines = latest(found["trends"])
    said = [f"**{plain_markdown(found['sentence'])}**"]
    if lines:
        said += ["", *markdown_table([trend_figures(trend, varying(lines)) for trend in lines[:TRENDS]])]
    said += ["", *markdown_table([run_figures(run) for run in found["runs"][-RUNS:]])]
    rest = remarks(found)
    return "\n".join([*said, *([""] if rest else []), *(f"- {plain_markdown(line)}" for line in rest)])


def as_json(found: Index) -> str:
    """An index in one line of JSON; figures without a number are strings, as in ``parity.json``."""
    return json.dumps(to_json(found), allow_nan=False)


WRITERS = {"json": as_json, "md": markdown}
