"""Two runs held against each other, as a table of at most 80 columns in a narrow terminal, Markdown or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.plotstyle import cut
from parity.report import plain
from parity.reporters.rows import printable
from parity.reporters.text import code, gather, markdown_table, plain_markdown
from parity.rundiff import ORDER, gathered
from parity.runfolder import to_json
from parity.sections import spans

Found = Mapping[str, Any]

STYLE = {"better": "bold green", "worse": "bold red", "mixed": "bold yellow", "incomparable": "bold yellow"}
TITLES = {"other": "changed otherwise", "same": "as it was"}
LINES = 24
_SETTINGS = 10
# Letters of a name from a file; the JSON has it whole.
_NAME = 120
_SOURCES = 6


def excess(value: float | None, differ: int = 0) -> str:
    """An excess in a few characters; how many checkpoints differ, where values must be equal and are not."""
    if differ:
        return f"{differ} differ"
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞"
    if value < 999.5:
        return f"{value:.2f}" if value < 10 else f"{value:.3g}"
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def times(factor: float | None) -> str:
    """By how much an excess was multiplied or divided: ``×240``, ``÷12``."""
    if factor is None or factor == 1:
        return ""
    sign, size = ("×", factor) if factor > 1 else ("÷", 1 / factor if factor else math.inf)
    return sign + (
        "∞" if math.isinf(size) else f"{size:.2g}" if size < 99.5 else f"{size:.0f}" if size < 999.5 else excess(size)
    )


def place(line: Found) -> str:
    """A gathered line's name and where it recurs: ``block.NN.img.attn (blocks 7–59)``."""
    if line["count"] == 1:
        return cut(line["name"], _NAME)
    where = "; ".join(f"{unit}s {spans(indices)}" for unit, indices in line["indices"].items())
    return f"{cut(line['group'], _NAME)} ({where})"


def arrow(before: object, after: object) -> str:
    """``match → diverged``; once where both are the same."""
    sides = ["–" if side is None or side == "" else str(side) for side in (before, after)]
    return sides[0] if sides[0] == sides[1] else " → ".join(sides)


def entry_figures(entry: Found) -> dict[str, str]:
    """One line of the table of entries."""
    states = [entry["before"], entry["after"]]
    worst = [None if state is None else excess(state["worst"], state["differ"]) for state in states]
    changed = [f"{entry['counts'][change]:,} {change}" for change in ORDER if entry["counts"][change]]
    return {
        **{key: cut(entry[key], _NAME) for key in ("case", "dtype", "mode")},
        "verdict": arrow(*(state and state["verdict"] for state in states)),
        "largest excess": arrow(*worst), "changes": ", ".join(changed) or "none",
    }  # fmt: skip


def line_figures(line: Found) -> dict[str, str]:
    """One line of the table of changed checkpoints."""
    sides = ["–" if value is None else excess(value) for value in line["excess"]]
    return {
        "checkpoint": place(line), "n": f"{line['count']:,}", "verdict": arrow(*line["verdicts"]),
        "excess": "" if line["exact"] else arrow(*sides), "by": times(line["factor"]),
    }  # fmt: skip


def sections_of(found: Found, most: int = LINES) -> tuple[list[tuple[str, list[Found]]], int]:
    """(title, gathered lines) by change and entry, at most `most` lines in all; how many are left out."""
    lines = gathered(found["checkpoints"])
    several = len(found["entries"]) > 1
    parts: dict[str, list[Found]] = {}
    for line in lines[:most]:
        still = ", still a match" if line["within"] else ""
        where = f": {cut(' '.join(line['entry']), _NAME)}" if several else ""
        parts.setdefault(f"{TITLES.get(line['change'], line['change'])}{still}{where}", []).append(line)
    return list(parts.items()), max(0, len(lines) - most)


def source_lines(found: Found) -> list[str]:
    """Which sources came and went, a line an entry and kind, blocks of one kind gathered."""
    return [": ".join(one[key] for key in ("where", "what", "names")) for one in sources(found)]


def sources(found: Found) -> list[dict[str, Any]]:
    """The same in parts: ``where``, ``what`` became of them, their ``names``; ``entry``, the ``first`` of them and
    ``kind`` (``came``, ``went``, ``stayed``)."""
    said = []
    for entry in found["entries"]:
        for kind, words in (("came", "new source"), ("went", "no source any more"), ("stayed", "still a source")):
            if names := gather(entry["sources"][kind]):
                more = f" and {len(names) - _SOURCES} more" if len(names) > _SOURCES else ""
                key = tuple(entry[part] for part in ("case", "dtype", "mode"))
                listed = ", ".join(cut(name, _NAME) for name in names[:_SOURCES]) + more
                said.append({"where": cut(" ".join(key), _NAME), "what": words, "names": listed, "entry": key,
                             "first": entry["sources"][kind][0], "kind": kind})  # fmt: skip
    return said


def head_lines(found: Found) -> list[str]:
    """Which runs these are, one line each."""
    return [
        f"{side}: {run['folder']} · {run['started'] or '?'} · suite {run['suite'] or '?'}"
        + (", synthetic weights" if run["synthetic"] else "")
        for side, run in (("before", found["before"]), ("after", found["after"]))
    ]


def setting_lines(found: Found, most: int = _SETTINGS) -> list[str]:
    """What differs about the runs, one line each."""
    settings = found["settings"]
    said = [f"{cut(one['what'], 60)}: {_value(one['before'])} → {_value(one['after'])}" for one in settings[:most]]
    return said + ([f"and {len(settings) - most} more settings"] if len(settings) > most else [])


def _value(value: object) -> str:
    return cut(plain(value), 160)


def print_table(found: Found) -> None:
    """Print a comparison to stdout."""
    out = Console(highlight=False)
    for line in head_lines(found):
        out.print(Text(printable(line), "dim"))
    out.print(_table([entry_figures(entry) for entry in found["entries"]], ("changes",)))
    parts, more = sections_of(found)
    for title, lines in parts:
        out.print()
        out.print(Text(printable(title), "bold"))
        out.print(_table([line_figures(line) for line in lines], ()))
    if more:
        out.print(Text(f"{more:,} more lines are on the page and in --format json", "dim"))
    if parts:
        out.print(Text("excess: largest before → after, by: median; n: how many checkpoints", "dim"))
    for title, said in (
        ("sources", source_lines(found)),
        ("settings", setting_lines(found)),
        ("notes", found["notes"]),
    ):
        if said:
            out.print()
            out.print(Text(title, "bold"))
            for line in said:
                out.print(Text(printable(line)))
    out.print()
    out.print(Text(printable(found["sentence"]), STYLE.get(found["verdict"], "bold")))


def _table(lines: Sequence[Mapping[str, str]], ragged: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for name in lines[0] if lines else ():
        table.add_column(name, justify="right" if name in ("n", "by") else "left", overflow="fold",
                         no_wrap=name in ("n", "by"), min_width=9 if name in ragged else None)  # fmt: skip
    for line in lines:
        table.add_row(*(Text(printable(cell)) for cell in line.values()))
    return table


def markdown(found: Found) -> str:
    """A comparison as Markdown, for a comment or a step summary."""
    said = [f"**{plain_markdown(found['sentence'])}**", "", *(f"- {code(line)}" for line in head_lines(found)), ""]
    said += markdown_table([entry_figures(entry) for entry in found["entries"]])
    parts, more = sections_of(found)
    for title, lines in parts:
        said += ["", f"{plain_markdown(title)}:", "", *markdown_table([line_figures(line) for line in lines])]
    said += ["", f"{more:,} more lines are on the page."] if more else []
    rest = [*source_lines(found), *setting_lines(found)]
    said += ["", *(f"- {code(line)}" for line in rest)] if rest else []
    said += ["", *(f"- {plain_markdown(note)}" for note in found["notes"])] if found["notes"] else []
    return "\n".join(said)


def as_json(found: Found) -> str:
    """A comparison in one line of JSON; figures without a number are strings, as in ``parity.json``."""
    return json.dumps(to_json({key: value for key, value in found.items() if key != "points"}), allow_nan=False)


WRITERS = {"json": as_json, "md": markdown}
