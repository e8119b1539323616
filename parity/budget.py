"""The error budget of a run on quantized weights: how much is quantization, precision, implementation.

*Quantization* is the truth on the quantized weights against the truth on the original ones, known where the run had
both; *precision* is the reference in the run's dtype against truth; *implementation* is what the candidate has beyond
that, judged elsewhere by its excess. All are relative RMSE at one checkpoint. In isolated mode they are the errors
that a stage makes, in accumulated mode those that reach the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from parity.names import parse

Entry = Mapping[str, Any]
Row = Mapping[str, Any]

# Kind of a checkpoint within a block -> class of the layers behind it. An MLP's two layers have one checkpoint.
_OF_KIND = {"mod": "modulation", "q": "attention in", "k": "attention in", "v": "attention in",
            "attn": "attention out", "ffn": "MLP in and out"}  # fmt: skip
_HEAD = ("norm_out", "final")
CLASSES = ("embed", "modulation", "attention in", "attention out", "MLP in and out", "head")


@dataclass(frozen=True)
class Parts:
    """One checkpoint's error, or the median of several, in relative RMSE.

    Attributes:
        quantization: None where the original weights were not at hand.
        precision: of the reference.
        implementation: of the candidate beyond the reference's, 0 where it is nearer to truth.
    """

    quantization: float | None
    precision: float
    implementation: float


def parts_of(row: Row) -> Parts | None:
    """The budget of one row; None where something is missing, or must be equal bit for bit."""
    precision, total, quantization = (row.get(key) for key in ("precision", "rel_rmse", "quantization"))
    if precision is None or total is None:
        return None
    if not all(map(math.isfinite, (precision, total, quantization or 0.0))):
        return None
    return Parts(quantization, precision, math.sqrt(max(0.0, total**2 - precision**2)))


def entries(run: Mapping[str, Any]) -> list[Entry]:
    """The entries of a transformer that have a budget: runs on quantized weights."""
    if not (run["weights"].get("bits") or run["weights"].get("original")):
        return []
    of_transformer = [entry for entry in run["cases"] if entry.get("component", "transformer") == "transformer"]
    return [entry for entry in of_transformer if any(map(parts_of, entry["checkpoints"]))]


def first(run: Mapping[str, Any]) -> list[Entry]:
    """Of the first case that has a budget, the entries of its last dtype, isolated mode first; none without one."""
    found = entries(run)
    mine = [entry for entry in found if entry["name"] == found[0]["name"]]
    mine = [entry for entry in mine if entry["dtype"] == mine[-1]["dtype"]]
    return sorted(mine, key=lambda entry: entry["mode"] != "isolated")


def layer_class(name: str) -> str | None:
    """Which of `CLASSES` a checkpoint tells of; None for norms, sums and tables."""
    parts = parse(name)
    if parts.block is not None:
        return _OF_KIND.get(parts.kind)
    if name.startswith(_HEAD):
        return "head"
    return None if name.startswith("rope.") or name == "txt_norm" else "embed"


def by_class(entry: Entry) -> dict[str, Parts]:
    """Class of layers -> medians over its checkpoints. In isolated mode a class has the errors of what it is fed
    by within the block as well."""
    found: dict[str, list[Parts]] = {}
    for row in entry["checkpoints"]:
        name, parts = layer_class(row["name"]), parts_of(row)
        if name and parts:
            found.setdefault(name, []).append(parts)
    return {name: _median(found[name]) for name in CLASSES if name in found}


def by_block(entry: Entry) -> dict[str, dict[int, Parts]]:
    """Stream -> block -> budget of the block's output."""
    found: dict[str, dict[int, Parts]] = {}
    for row in entry["checkpoints"]:
        where, parts = parse(row["name"]), parts_of(row)
        if where.kind == "out" and where.block is not None and parts:
            found.setdefault(where.stream, {})[where.block] = parts
    return found


def at(entry: Entry, name: str) -> Parts | None:
    """The budget of one checkpoint."""
    return next((parts_of(row) for row in entry["checkpoints"] if row["name"] == name), None)


def table(run: Mapping[str, Any]) -> list[dict[str, str]]:
    """The budget in short, figures as text: a line a class of layers, and the outputs."""
    lines = []
    for entry in first(run):
        if entry["mode"] == "isolated":
            lines += [_line(name, parts) for name, parts in by_class(entry).items()]
            for stream, blocks in by_block(entry).items():
                lines.append(_line(f"a block, {stream}", _median(blocks.values())))
        elif final := at(entry, "final"):
            lines.append(_line("all blocks, final", final))
    return lines


def about(run: Mapping[str, Any]) -> str:
    """What `table` is of."""
    shown = first(run)
    return f"{shown[0]['name']} {shown[0]['dtype']}, relative RMSE, medians; blocks one at a time but for the last line"


def _line(name: str, parts: Parts) -> dict[str, str]:
    values = (parts.quantization, parts.precision, parts.implementation)
    texts = ("–" if value is None else f"{value:.1e}" if value else "0" for value in values)
    return {"error budget": name} | dict(zip(("quantization", "precision", "implementation"), texts, strict=True))


def _median(parts: Iterable[Parts]) -> Parts:
    parts = list(parts)
    known = [one.quantization for one in parts if one.quantization is not None]
    return Parts(
        median(known) if known else None,
        median(one.precision for one in parts),
        median(one.implementation for one in parts),
    )
