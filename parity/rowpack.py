"""The rows of a run by column, gzipped: what the page's script draws charts and table from.

A column of words is ``[distinct words, index of each row]``. Numbers have as many digits as the page
shows; a figure of the candidate that shows like the reference's is written as "=". `data.js` holds
the reading side.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from parity.dataflow import parents_of
from parity.plotstyle import excess_edges, limits
from parity.sections import (
    Entry,
    Row,
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
# Of each row: its section and place in it. `side` is -1 before the repetitions, 1 after them.
PLACES = ("stream", "kind", "where")


def pack(run: Mapping[str, Any], panels: Mapping[int, Mapping[str, Any]]) -> str:
    """All rows by column and what there is of single rows (`panelpage`), as base64 of gzip of JSON."""
    rows = [row for entry in run["cases"] for row in entry["checkpoints"]]
    parts = [sections(entry) for entry in run["cases"]]
    places = [place for entry, found in zip(run["cases"], parts, strict=True) for place in _places(entry, found)]
    columns = {key: _words(_word(row.get(key)) for row in rows) for key in WORDS}
    columns |= {key: _words(place[key] for place in places) for key in PLACES}
    columns |= {key: _numbers(place[key] for place in places) for key in ("section", "index", "side")}
    columns |= {key: _numbers((row.get(key) for row in rows), DIGITS.get(key, 5)) for key in MEASURES}
    for key in STATS:
        reference, candidate = (
            [_number((row.get(side) or {}).get(key)) for row in rows] for side in ("reference", "candidate")
        )
        columns[f"reference.{key}"] = f"[{','.join(reference)}]"
        same = ('"="' if a == b else b for a, b in zip(reference, candidate, strict=True))
        columns[f"candidate.{key}"] = f"[{','.join(same)}]"
    columns["flags"] = _numbers(bool(row.get("source")) + 2 * bool(row.get("propagated")) for row in rows)
    columns["parents"] = _words(",".join(map(str, back)) for entry in run["cases"] for back in parents_of(entry))
    ranges = [row.get("range") or {} for row in rows]
    for key in ("row", "verdict"):
        columns[f"range.{key}"] = _words(item.get(key, "") for item in ranges)
    for key in ("low", "high", "factor"):
        columns[f"range.{key}"] = _numbers(item.get(key) for item in ranges)
    entries = [_entry(run, entry, found) for entry, found in zip(run["cases"], parts, strict=True)]
    head = {"entries": entries, "edges": excess_edges(*limits(run)), "limits": limits(run)}
    body = ",".join(f"{json.dumps(key)}:{column}" for key, column in columns.items())
    single = json.dumps(panels, separators=(",", ":"))
    text = f'{{"head":{json.dumps(head)},"columns":{{{body}}},"panels":{single}}}'
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _entry(run: Mapping[str, Any], entry: Entry, parts: list[Section]) -> dict[str, Any]:
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
    return about | {"main": parts.index(main_of(parts)), "growth": words(run, entry)}


def _places(entry: Entry, parts: list[Section]) -> list[dict[str, Any]]:
    """Where each row of an entry is drawn."""
    found: dict[int, dict[str, Any]] = {}
    for which, part in enumerate(parts):
        inside = f", {part.title}" if part.inner else ""
        where = f"outside the {part.unit}s{inside}" if part.unit else "does not repeat"
        names = [part.local(row["name"]) for row in part.others] if part.unit else local_names(part.others, part)
        for row, name, side in zip(part.others, names, [-1] * len(part.before) + [1] * len(part.after), strict=True):
            found[id(row)] = _place(which, name, where, side=side)
        for (stream, kind), of_kind in part.grid.items():
            for index, row in of_kind.items():
                found[id(row)] = _place(which, kind, stream_title(stream) + inside, stream=stream, index=index)
    nowhere = _place(0, "", "does not repeat")
    return [found.get(id(row), nowhere) for row in entry["checkpoints"]]


def _place(section: int, kind: str, where: str, *, stream: str = "", index: int | None = None, side: int = 0) -> Row:
    return {"section": section, "kind": kind, "where": where, "stream": stream, "index": index, "side": side}


def _word(value: Any) -> str:
    """Text of a column of words: an index as ``3, 17``, nothing as an empty text."""
    return "" if value is None else value if isinstance(value, str) else ", ".join(map(str, value))


def _words(values: Iterable[str]) -> str:
    index: dict[str, int] = {}
    codes = [index.setdefault(value, len(index)) for value in values]
    return json.dumps([list(index), codes], separators=(",", ":"))


def _numbers(values: Iterable[Any], digits: int = 5) -> str:
    return f"[{','.join(_number(value, digits) for value in values)}]"


def _number(value: Any, digits: int = 5) -> str:
    """JSON of a figure in few characters."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.{digits}g}"
    if value is None or isinstance(value, str):
        return json.dumps(value)
    return str(int(value)) if isinstance(value, int) else json.dumps(str(value))
