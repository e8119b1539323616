"""`report.html`: one offline page, a pure function of a ``parity.json`` dict.

The verdict, counts, sources, cases and settings are plain HTML. The rows travel as columns of
JSON, gzipped and in base64, and `charts.js` draws the charts and the table from them. Figures in
the page have five significant digits; those in ``parity.json`` are exact, and its digest is on
the page. The page's policy forbids every request and every script but its own.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from parity.errors import OutputExistsError
from parity.names import parse
from parity.plotstyle import blocks_of, excess_edges, excess_of, limits, visible

STATS = ("min", "max", "mean", "std", "rms", "absmax", "nan", "inf", "headroom")
MEASURES = ("rel_rmse", "floor", "excess", "peak_excess", "rmse", "max_abs", "cosine", "psnr")
WORDS = ("name", "stage", "shape", "dtype", "verdict", "reason", "floor_by", "max_at")
VERDICTS = ("match", "suspect", "diverged", "uncertain", "missing", "skipped")
DIGITS = {"cosine": 12}
ASSETS = ("report.css", "charts.js", "table.js")
TOKENS = (("image_tokens", "image tokens"), ("text_tokens", "text tokens"))
TITLES = {"parity": "Parity", "divergence": "Divergence", "incomplete": "Incomplete"}


def render_report(run: Mapping[str, Any], out: Path, *, force: bool) -> Path:
    """Write the page of a run.

    Args:
        run: a ``parity.json`` of schema 1.
        out: the file; its folder is made where it is not there.
        force: replace a file that is there.

    Raises:
        OutputExistsError: the file is there and `force` is false.
    """
    if out.exists() and not force:
        raise OutputExistsError(f"{out} is already there: choose another file or add --force")
    page = report_html(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8", newline="\n")
    return out


def report_html(run: Mapping[str, Any]) -> str:
    """The page, the same for the same run."""
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    run = spell_out(run)
    folder = resources.files("parity") / "templates"
    style, charts, table = ((folder / name).read_text(encoding="utf-8") for name in ASSETS)
    script = charts + table
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"plain": plain, "share": _share}
    return environment.get_template("report.html.j2").render(
        run=run, title=TITLES.get(run["verdict"], run["verdict"]), verdicts=VERDICTS, digest=digest,
        style=Markup(style), script=Markup(script), style_hash=_hash(style), script_hash=_hash(script),
        cards=[card(entry) for entry in run["cases"]], sources=source_table(run),
        first=first_entry(run), data=Markup(pack(run)),
    )  # fmt: skip


def spell_out(value: Any) -> Any:
    """`value` with `visible` applied to every text in it, keys included."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(str(key)): spell_out(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spell_out(item) for item in value]
    return value


def plain(value: Any) -> str:
    """A setting as text: lists with commas, numbers without noise, nothing as a dash."""
    if value is None or value == "":
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(f"({plain(item)})" if isinstance(item, list) else plain(item) for item in value)
    return str(value)


def card(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of a case entry: verdict, counts, the largest excess and where it is."""
    known = [(value, row["name"]) for row in entry["checkpoints"] if (value := excess_of(row)) is not None]
    worst, where = max(known, key=lambda pair: pair[0], default=(None, ""))
    inputs = entry.get("inputs") or {}
    text = "—" if worst is None else "not finite" if math.isinf(worst) else f"{worst:.3g}"
    return {**{key: entry[key] for key in ("name", "mode", "dtype", "verdict", "counts")},
            "size": " and ".join(f"{plain(inputs[key])} {word}" for key, word in TOKENS if key in inputs),
            "title": TITLES.get(entry["verdict"], entry["verdict"]), "worst": text, "where": where}  # fmt: skip


def source_table(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sources of all entries, those that recur over blocks as one line each, in order."""
    found: dict[str, dict[str, Any]] = {}
    for entry in run["cases"]:
        label = f"{entry['name']} · {entry['dtype']} · {entry['mode']}"
        for name in entry["sources"]:
            group, block = group_of(name)
            seen = found.setdefault(group, {"blocks": set(), "entries": {}, "first": name})
            seen["entries"][label] = None
            if block is not None:
                seen["blocks"].add(block)
    return [
        {"group": group, "first": seen["first"], "blocks": spans(seen["blocks"]), "entries": list(seen["entries"])}
        for group, seen in found.items()
    ]


def group_of(name: str) -> tuple[str, int | None]:
    """``block.07.img.attn`` as ``block.NN.img.attn`` and 7; any other name is its own group."""
    parts = parse(name)
    return (name, None) if parts.block is None else (f"block.NN.{parts.stream}.{parts.kind}", parts.block)


def spans(blocks: Iterable[int]) -> str:
    """Block numbers in short: ``0–6, 9``."""
    runs: list[list[int]] = []
    for block in sorted(blocks):
        if runs and block == runs[-1][1] + 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def first_entry(run: Mapping[str, Any]) -> int:
    """Index of the entry that the page opens with: the one of the first divergence, else the worst verdict."""
    first = run["first_divergence"]
    place = (first["case"], first["mode"], first["dtype"]) if first else None
    order = {verdict: i for i, verdict in enumerate(("divergence", "incomplete", "parity"))}

    def rank(index: int) -> tuple[bool, int]:
        entry = run["cases"][index]
        return (entry["name"], entry["mode"], entry["dtype"]) != place, order.get(entry["verdict"], 0)

    return min(range(len(run["cases"])), key=rank, default=0)


def pack(run: Mapping[str, Any]) -> str:
    """All rows by column, as base64 of gzip of JSON; `charts.js` holds the reading side.

    A column of words is ``[distinct words, index of each row]``. Numbers have as many digits as
    the page shows; a figure of the candidate that shows like the reference's is written as "=".
    """
    rows = [row for entry in run["cases"] for row in entry["checkpoints"]]
    columns = {key: _words(_word(row.get(key)) for row in rows) for key in WORDS}
    columns |= {key: _numbers((row.get(key) for row in rows), DIGITS.get(key, 5)) for key in MEASURES}
    for key in STATS:
        reference, candidate = (
            [_number((row.get(side) or {}).get(key)) for row in rows] for side in ("reference", "candidate")
        )
        columns[f"reference.{key}"] = f"[{','.join(reference)}]"
        same = ('"="' if a == b else b for a, b in zip(reference, candidate, strict=True))
        columns[f"candidate.{key}"] = f"[{','.join(same)}]"
    columns["flags"] = _numbers(bool(row.get("source")) + 2 * bool(row.get("propagated")) for row in rows)
    ranges = [row.get("range") or {} for row in rows]
    for key in ("row", "verdict"):
        columns[f"range.{key}"] = _words(item.get(key, "") for item in ranges)
    for key in ("low", "high", "factor"):
        columns[f"range.{key}"] = _numbers(item.get(key) for item in ranges)
    head = {
        "entries": [{"name": e["name"], "mode": e["mode"], "dtype": e["dtype"], "rows": len(e["checkpoints"]),
                     "blocks": blocks_of(e)} for e in run["cases"]],
        "edges": excess_edges(*limits(run)), "limits": limits(run),
    }  # fmt: skip
    body = ",".join(f"{json.dumps(key)}:{column}" for key, column in columns.items())
    text = f'{{"head":{json.dumps(head)},"columns":{{{body}}}}}'
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


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


def _share(counts: Mapping[str, int]) -> Iterator[tuple[str, float, float]]:
    """Verdict, start and width in percent of each part of a bar of counts."""
    total = sum(counts[verdict] for verdict in VERDICTS) or 1
    start = 0.0
    for verdict in VERDICTS:
        width = 100 * counts[verdict] / total
        if width:
            # A single failure among thousands must still be seen.
            yield verdict, round(start, 3), round(max(width, 0.6), 3)
        start += width


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
