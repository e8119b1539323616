"""The rows of a run by column, gzipped: what the page's script draws charts and table from.

A column of words is ``[distinct words, index of each row]``. Numbers have as many digits as the page
shows; a figure of the candidate that shows like the reference's is written as "=". Marks that hide or
turn text are spelled out. `data.js` holds the reading side.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from parity.dataflow import parents_of
from parity.plotstyle import excess_edges, limits, visible
from parity.sections import (
    Entry,
    Section,
    component_title,
    local_names,
    main_of,
    role_of,
    sections,
    stream_title,
)
from parity.stepcurve import words

STATS = ("min", "max", "mean", "std", "rms", "absmax", "nan", "inf", "headroom")
MEASURES = ("rel_rmse", "floor", "excess", "peak_excess", "rmse", "max_abs", "cosine", "psnr", "mismatches")
WORDS = ("name", "stage", "shape", "dtype", "verdict", "reason", "floor_by", "max_at")
DIGITS = {"cosine": 12}
# Of gzip: the highest, 9, makes it 1 % smaller in three times the time.
LEVEL = 7
_NOTHING: Mapping[str, Any] = {}


def pack(run: Mapping[str, Any], panels: Mapping[int, Mapping[str, Any]]) -> str:
    """All rows by column and what there is of single rows (`panelpage`), as base64 of gzip of JSON."""
    rows = [row for entry in run["cases"] for row in entry["checkpoints"]]
    parts = {id(entry): sections(entry) for entry in run["cases"]}
    columns = {key: _words(_word(row.get(key)) for row in rows) for key in WORDS}
    columns |= _placed([place for entry in run["cases"] for place in _places(entry, parts[id(entry)])])
    columns |= {key: _column(_numbers([row.get(key) for row in rows], DIGITS.get(key, 5))) for key in MEASURES}
    sides = [[row.get(side) or _NOTHING for row in rows] for side in ("reference", "candidate")]
    for key in STATS:
        reference, candidate = (_numbers([stats.get(key) for stats in side]) for side in sides)
        columns[f"reference.{key}"] = _column(reference)
        same = ['"="' if a == b else b for a, b in zip(reference, candidate, strict=True)]
        columns[f"candidate.{key}"] = _column(same)
    columns["flags"] = _column(_numbers([bool(row.get("source")) + 2 * bool(row.get("propagated")) for row in rows]))
    columns["parents"] = _words(_word(back, ",") for entry in run["cases"] for back in parents_of(entry))
    ranges = [row.get("range") or _NOTHING for row in rows]
    for key in ("row", "verdict"):
        columns[f"range.{key}"] = _words(item.get(key, "") for item in ranges)
    for key in ("low", "high", "factor"):
        columns[f"range.{key}"] = _column(_numbers([item.get(key) for item in ranges]))
    entries = [_entry(run, entry, parts) for entry in run["cases"]]
    head = {"entries": entries, "edges": excess_edges(*limits(run)), "limits": limits(run)}
    body = ",".join(f"{json.dumps(key)}:{column}" for key, column in columns.items())
    single = json.dumps(panels, separators=(",", ":"))
    text = f'{{"head":{json.dumps(head)},"columns":{{{body}}},"panels":{single}}}'
    return base64.b64encode(gzip.compress(text.encode(), LEVEL, mtime=0)).decode()


def _entry(run: Mapping[str, Any], entry: Entry, parts_of: Mapping[int, list[Section]]) -> dict[str, Any]:
    parts = parts_of[id(entry)]
    about = {key: entry[key] for key in ("name", "mode", "dtype")}
    shown = [
        {
            "title": part.title, "unit": part.unit, "first": part.span[0] if part.span else 0,
            "count": len(part.span), "prefix": f"{part.key}." if part.inner else "",
            "streams": [[stream, role_of(stream), stream_title(stream)] for stream in part.streams],
        }
        for part in parts
    ]  # fmt: skip
    about |= {"component": component_title(entry), "rows": len(entry["checkpoints"]), "sections": shown}
    return about | {"main": parts.index(main_of(parts)), "growth": words(run, entry, lambda one: parts_of[id(one)])}


# Section, kind, in words where it lies, stream, index, side.
Place = tuple[int, str, str, str, int | None, int]


def _placed(places: Sequence[Place]) -> dict[str, str]:
    """The columns of what `_places` found."""
    which, kind, where, stream, index, side = zip(*places, strict=True) if places else ((),) * 6
    columns = {"stream": _words(stream), "kind": _words(kind), "where": _words(where)}
    return columns | {
        key: _column(_numbers(values)) for key, values in (("section", which), ("index", index), ("side", side))
    }


def _places(entry: Entry, parts: list[Section]) -> list[Place]:
    """Where each row of an entry is drawn: `side` is -1 before the repetitions, 1 after them."""
    found: dict[int, Place] = {}
    for which, part in enumerate(parts):
        inside = f", {part.title}" if part.inner else ""
        where = f"outside the {part.unit}s{inside}" if part.unit else "does not repeat"
        names = [part.local(row["name"]) for row in part.others] if part.unit else local_names(part.others, part)
        for row, name, side in zip(part.others, names, [-1] * len(part.before) + [1] * len(part.after), strict=True):
            found[id(row)] = (which, name, where, "", None, side)
        for (stream, kind), of_kind in part.grid.items():
            within = stream_title(stream) + inside
            for index, row in of_kind.items():
                found[id(row)] = (which, kind, within, stream, index, 0)
    nowhere: Place = (0, "", "does not repeat", "", None, 0)
    return [found.get(id(row), nowhere) for row in entry["checkpoints"]]


def _word(value: Any, between: str = ", ") -> str:
    """Text of a column of words: an index as ``3, 17``, nothing as an empty text."""
    return "" if value is None else value if isinstance(value, str) else between.join(map(str, value))


def _words(values: Iterable[str]) -> str:
    index: dict[str, int] = {}
    codes = [index.setdefault(value, len(index)) for value in values]
    return json.dumps([list(map(visible, index)), codes], separators=(",", ":"))


def _column(values: Sequence[str]) -> str:
    return f"[{','.join(values)}]"


def _numbers(values: Sequence[Any], digits: int = 5) -> list[str]:
    """JSON of figures in few characters each."""
    form = f"%.{digits}g"
    if set(map(type, values)) == {float} and all(map(math.isfinite, values)):
        # A page has millions of them: spelled at once, which takes half the time.
        return (f"{form}," * len(values) % tuple(values)).split(",")[:-1]
    return [form % x if type(x) is float and math.isfinite(x) else _number(x) for x in values]


def _number(value: Any) -> str:
    """JSON of what is no finite float."""
    if type(value) is int:
        return str(value)
    if value is None:
        return "null"
    return str(int(value)) if isinstance(value, int) else json.dumps(visible(str(value)))
