"""Where two runs differ, at a glance: kinds of checkpoints by block, layer or step, coloured by how far they moved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup, escape

from parity.plotstyle import cut
from parity.rundiff import STEPS
from parity.sections import group_of, spans

Found = Mapping[str, Any]

# Maps on a page and lines in a map, the first ones; the tables below have the rest.
MAPS = 6
LINES = 48
_LABEL, _WIDTH, _LINE = 120, 400, 15
_LETTERS = 20
_WORDS = {"b": "better", "w": "worse", "o": "changed otherwise", "n": "new or gone"}
# What the classes stand for, for the page.
KEY = (
    ("b3", f"better by over {STEPS[2]:g}"), ("b2", f"over {STEPS[1]:g}"), ("b1", "less"), ("w1", "worse by less"),
    ("w2", f"over {STEPS[1]:g}"), ("w3", f"over {STEPS[2]:g}"), ("o1", "changed otherwise"), ("n1", "new or gone"),
)  # fmt: skip
_DEPTH = {name: place for place, name in enumerate(("b1", "n1", "o1", "b2", "b3", "w1", "w2", "w3"))}


def change_maps(found: Found) -> tuple[list[tuple[str, Markup]], int]:
    """(title, drawing) of the entries in which something that repeats changed, by what repeats, at most `MAPS`; and
    how many are left out."""
    rows: dict[tuple[str, ...], list[Found]] = {}
    for row in found["checkpoints"]:
        if not row["alone"]:
            rows.setdefault((row["case"], row["dtype"], row["mode"]), []).append(row)
    drawn = []
    for entry in found["entries"]:
        key = (entry["case"], entry["dtype"], entry["mode"])
        for unit, last in entry["extent"].items():
            if lines := _lines(rows.get(key, []), unit):
                drawn.append((f"{cut(' '.join(key), 60)}, by {unit}", _map(lines, unit, last)))
    return drawn[:MAPS], max(0, len(drawn) - MAPS)


def colour(row: Found) -> str:
    """The class of a changed checkpoint: ``b`` better, ``w`` worse with its depth 1 to 3, ``o1`` otherwise, ``n1`` new
    or gone."""
    if row["change"] in ("new", "gone", "other"):
        return "o1" if row["change"] == "other" else "n1"
    factor = row["factor"]
    # A change of the verdict without figures, to NaN or to what is not there any more, is as deep as one gets.
    size = math.inf if not factor else max(factor, 1 / factor)
    return row["change"][0] + str(1 + sum(size > step for step in STEPS[1:]))


def _lines(rows: list[Found], unit: str) -> dict[str, dict[int, str]]:
    """Kind -> index -> class."""
    lines: dict[str, dict[int, str]] = {}
    for row in rows:
        group, indices = group_of(row["name"])
        if set(indices) == {unit}:
            lines.setdefault(group, {})[indices[unit]] = colour(row)
    return dict(list(lines.items())[:LINES])


def _map(lines: Mapping[str, Mapping[int, str]], unit: str, last: int) -> Markup:
    cell = _WIDTH / (last + 1)
    parts = []
    for place, (group, cells) in enumerate(lines.items()):
        y = place * _LINE
        label = escape(cut(group.removeprefix(f"{unit}.NN."), _LETTERS))
        parts.append(f'<text x="{_LABEL - 8}" y="{y + 11}" text-anchor="end">{label}</text>')
        parts.append(f'<rect class="cells0" x="{_LABEL}" y="{y}" width="{_WIDTH}" height="{_LINE - 2}"/>')
        for name, first, count in _stretches(cells):
            x, width = _LABEL + first * cell, max(count * cell - 0.5, 0.5)
            parts.append(
                f'<rect class="{name}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_LINE - 2}">'
                f"<title>{label}, {unit} {spans(range(first, first + count))}: {_WORDS[name[0]]}</title></rect>"
            )
    bottom = len(lines) * _LINE
    for index in sorted({0, last // 2, last}):
        x = _LABEL + (index + 0.5) * cell
        parts.append(f'<text x="{x:.1f}" y="{bottom + 13}" text-anchor="middle">{index}</text>')
    worst = max((name for cells in lines.values() for name in cells.values()), key=_DEPTH.__getitem__)
    said = f"{sum(map(len, lines.values())):,} changed checkpoints of {len(lines)} kinds by {unit}"
    said += ", some worse" if worst[0] == "w" else ", none worse"
    return Markup(
        f'<svg viewBox="0 0 {_LABEL + _WIDTH + 6} {bottom + 18}" role="img" aria-label="{escape(said)}">'
        f"{''.join(parts)}</svg>"
    )


def _stretches(cells: Mapping[int, str]) -> Iterator[tuple[str, int, int]]:
    """Neighbours of one class as one: (class, first index, count)."""
    first = count = 0
    name = ""
    for index in sorted(cells):
        if name == cells[index] and index == first + count:
            count += 1
            continue
        if name:
            yield name, first, count
        name, first, count = cells[index], index, 1
    if name:
        yield name, first, count
