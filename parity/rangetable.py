"""Documented ranges of activations, checked like a schema.

A table is a TOML file: `slack` and `absent` at the top, then ``[[row]]`` entries, each a range
of one checkpoint with where it comes from. A value may leave its range, and the opposite
failure exists as well: the documented size is *absent*, so a scale or a residual got lost. A
range is blind to permutations and to errors that keep it, so no verdict here means parity.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from parity.errors import UsageError
from parity.names import block_stage

SCHEMA = 1
FOLDER = Path(__file__).parent / "ranges"
# Chunks of the last axis, by the kind of checkpoint they belong to.
MOD_CHUNKS = ("shift1", "scale1", "gate1", "shift2", "scale2", "gate2")
NORM_OUT_CHUNKS = ("scale", "shift")
LAST = "block.last."
# An end this small against the other one is judged on this share of the other one: a recorded
# minimum of -1e-6 beside a maximum of 50 says nothing about the next run's minimum.
_SMALL_END = 0.01


@dataclass(frozen=True)
class RangeRow:
    """One documented range.

    Attributes:
        name: what the source calls it; unique in a table.
        checkpoint: full name; ``block.last.…`` is the last block, whatever its number.
        low, high: the documented ends, in the values' own unit.
        source: where they come from.
        chunks: only these chunks of the last axis (`MOD_CHUNKS`, `NORM_OUT_CHUNKS`); all where empty.
        note: the source's remark.
    """

    name: str
    checkpoint: str
    low: float
    high: float
    source: str
    chunks: tuple[str, ...] = ()
    note: str = ""

    @property
    def size(self) -> float:
        """The larger documented end, as a magnitude."""
        return max(abs(self.low), abs(self.high))

    def resolved(self, last_block: int | None) -> str:
        """The checkpoint's full name in a model whose last block has this index."""
        if last_block is None or not self.checkpoint.startswith(LAST):
            return self.checkpoint
        return f"{block_stage(last_block)}.{self.checkpoint.removeprefix(LAST)}"

    def chunk_indices(self) -> tuple[int, ...]:
        """Which parts of the last axis the row speaks of."""
        names = NORM_OUT_CHUNKS if self.checkpoint == "norm_out.mod" else MOD_CHUNKS
        return tuple(names.index(chunk) for chunk in self.chunks)


@dataclass(frozen=True)
class RangeTable:
    """Rows and the policy they are checked with."""

    name: str
    rows: tuple[RangeRow, ...]
    title: str = ""
    slack: float = 1.5
    absent: float = 4.0

    @classmethod
    def load(cls, name_or_path: str | Path) -> RangeTable:
        """Read a table that comes with the package (``qwen-image``) or any TOML file.

        Raises:
            UsageError: not there, not TOML, unknown keys or wrong values, all named.
        """
        text = os.fspath(name_or_path)
        path = Path(text)
        if path.suffix != ".toml" and path.name == text:
            path = FOLDER / f"{text}.toml"
        try:
            with path.open("rb") as file:
                content = tomllib.load(file)
        except FileNotFoundError:
            known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
            raise UsageError(f"no range table {text!r}; known: {known}, or the path of a .toml file") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise UsageError(f"range table {path}: {error}") from None
        return cls.parse(content, f"range table {path}")

    @classmethod
    def parse(cls, content: Any, where: str) -> RangeTable:
        """A table from the contents of its file, which a run keeps as well.

        Args:
            content: as TOML or JSON has it.
            where: for messages.

        Raises:
            UsageError: unknown keys or wrong values, all named.
        """
        problems = _table_problems(content) if isinstance(content, Mapping) else ["no table"]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise UsageError(f"{where}: {problems[0]}{more}", problems)
        top = {key: value for key, value in content.items() if key not in ("schema", "row")}
        return cls(rows=tuple(map(_row, content["row"])), **top)

    @classmethod
    def record(
        cls, stats: Mapping[str, Mapping[str, Any]], *, source: str, name: str = "recorded", title: str = ""
    ) -> RangeTable:
        """A table of the ranges a run reached, one row a checkpoint.

        Args:
            stats: checkpoint name -> ``min``, ``max`` and, where known, ``nan`` and ``inf``.
            source: which run, on what weights and case.

        Raises:
            UsageError: nothing to record, or values that are not finite, which no later run
                should be measured against.
        """
        broken = [checkpoint for checkpoint, figures in stats.items() if _span(figures) in (None, _NON_FINITE)]
        if broken or not stats:
            what = f"{broken[0]} (and {len(broken) - 1} more) is not finite" if broken else "there are no statistics"
            raise UsageError(f"cannot record a range table: {what}", broken)
        rows = (RangeRow(c, c, float(s["min"]), float(s["max"]), source) for c, s in stats.items())
        return cls(name, tuple(rows), title)

    def contents(self) -> dict[str, Any]:
        """The table as plain values, which `parse` reads back."""
        top = {"schema": SCHEMA, "name": self.name, "title": self.title, "slack": self.slack, "absent": self.absent}
        rows = [
            {key: value for key, value in asdict(row).items() if value != () and (key, value) != ("note", "")}
            for row in self.rows
        ]
        return {**top, "row": rows}

    def dump(self) -> str:
        """The table as TOML that `load` reads back exactly."""
        top = self.contents()
        rows = top.pop("row")
        return "\n".join([_toml(top), *("[[row]]\n" + _toml(row) for row in rows)])

    def rows_for(self, checkpoint: str, last_block: int | None = None) -> tuple[RangeRow, ...]:
        """All rows that speak of a checkpoint.

        Args:
            checkpoint: its full name.
            last_block: index of the model's last block, for rows of ``block.last``.
        """
        return tuple(row for row in self.rows if row.resolved(last_block) == checkpoint)

    def check(self, row: RangeRow, stats: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Judge one array's statistics by one row.

        Args:
            row: of this table.
            stats: ``min`` and ``max`` of the finite values, ``nan`` and ``inf`` counts where
                known, and for a row of chunks ``chunks``: [min, max] of every chunk.

        Returns:
            ``{row, low, high, verdict, factor}``, or None where the statistics do not say. The
            factor is: outside, how far beyond the documented end (2: twice the end); absent, the
            size reached over the documented one; inside, the larger share of an end reached.
        """
        span = _span(stats, row.chunk_indices())
        if span is None:
            return None
        verdict, factor = ("outside", math.inf) if span == _NON_FINITE else self._judge(row, *span)
        return {"row": row.name, "low": row.low, "high": row.high, "verdict": verdict, "factor": factor}

    def _judge(self, row: RangeRow, low: float, high: float) -> tuple[str, float]:
        reached = max(abs(low), abs(high))
        if row.size == 0:
            return ("inside", 0.0) if reached == 0 else ("outside", math.inf)
        # For an end that points away from zero this is value over end.
        below = 1 + (row.low - low) / (max(-row.low, _SMALL_END * row.size) if row.low < 0 else row.size)
        above = 1 + (high - row.high) / (max(row.high, _SMALL_END * row.size) if row.high > 0 else row.size)
        factor = max(below, above)
        if factor > self.slack:
            return "outside", factor
        if reached < row.size / self.absent:
            return "absent", reached / row.size
        return "inside", factor


def _row(entry: Mapping[str, Any]) -> RangeRow:
    typed = {"low": float(entry["low"]), "high": float(entry["high"]), "chunks": tuple(entry.get("chunks", ()))}
    return RangeRow(**entry | typed)


_NON_FINITE = (-math.inf, math.inf)


def _span(stats: Mapping[str, Any] | None, chunks: Sequence[int] = ()) -> tuple[float, float] | None:
    """(min, max) of an array or of some chunks, `_NON_FINITE`, or None where it is not known."""
    if stats is None or stats.get("min") is None or stats.get("max") is None:
        return None
    pairs = [(stats["min"], stats["max"])]
    bad = any(stats.get(key) for key in ("nan", "inf", "pos_inf", "neg_inf"))
    if bad or not all(math.isfinite(x) for x in pairs[0]):
        return _NON_FINITE
    if chunks:
        known = stats.get("chunks") or ()
        if len(known) <= max(chunks):
            return None
        pairs = [tuple(known[i]) for i in chunks]
        if not all(math.isfinite(x) for pair in pairs for x in pair):
            return _NON_FINITE
    return min(low for low, _ in pairs), max(high for _, high in pairs)


def _table_problems(content: Mapping[str, Any]) -> list[str]:
    """Everything wrong with a table as TOML gave it."""
    known = {"schema", "row"} | {field.name for field in fields(RangeTable)} - {"rows"}
    problems = [f"unknown key {key!r}" for key in content if key not in known]
    if content.get("schema") != SCHEMA:
        problems.append(f"schema is {content.get('schema')!r}, expected {SCHEMA}")
    if not _is_text(content.get("name")):
        problems.append("name is missing or no text")
    if not isinstance(content.get("title", ""), str):
        problems.append("title is no text")
    for key in ("slack", "absent"):
        if not (_is_number(content.get(key, 2)) and content.get(key, 2) >= 1):
            problems.append(f"{key} is {content[key]!r}, expected a number of at least 1")
    rows = content.get("row")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return [*problems, "no [[row]] entries"]
    for number, row in enumerate(rows, 1):
        label = row["name"] if _is_text(row.get("name")) else f"row {number}"
        problems += [f"{label}: {problem}" for problem in _row_problems(row)]
    names = [row["name"] for row in rows if _is_text(row.get("name"))]
    return problems + [f"{name}: two rows have this name" for name in dict.fromkeys(names) if names.count(name) > 1]


_TEXTS = ("name", "checkpoint", "source")


def _row_problems(row: Mapping[str, Any]) -> list[str]:
    known = {field.name for field in fields(RangeRow)}
    problems = [f"unknown key {key!r}" for key in row if key not in known]
    problems += [f"{key} is missing or no text" for key in _TEXTS if not _is_text(row.get(key))]
    if not isinstance(row.get("note", ""), str):
        problems.append("note is no text")
    ends = [row.get("low"), row.get("high")]
    if not all(map(_is_number, ends)):
        problems.append("low and high are not both finite numbers")
    elif ends[0] > ends[1]:
        problems.append(f"low {ends[0]} is above high {ends[1]}")
    chunks = row.get("chunks", [])
    allowed = NORM_OUT_CHUNKS if row.get("checkpoint") == "norm_out.mod" else MOD_CHUNKS
    if not isinstance(chunks, list) or not all(chunk in allowed for chunk in chunks):
        problems.append(f"chunks is {chunks!r}, expected some of {', '.join(allowed)}")
    elif chunks and not str(row.get("checkpoint")).endswith(".mod"):
        problems.append(f"chunks need a checkpoint of modulation parameters, not {row.get('checkpoint')!r}")
    return problems


def _is_text(value: object) -> bool:
    """Text that is safe to print: names are shown in tables and in messages."""
    return isinstance(value, str) and value != "" and value.isprintable()


def _is_number(value: object) -> bool:
    # By comparison: isfinite would raise on an integer beyond the largest float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _toml(entry: Mapping[str, Any]) -> str:
    """Key-value lines. Python's shortest float and JSON's strings are both TOML, but for DEL."""

    def value(x: object) -> str:
        if isinstance(x, tuple):
            return "[" + ", ".join(map(value, x)) + "]"
        return repr(x) if isinstance(x, int | float) else json.dumps(x, ensure_ascii=False).replace("\x7f", "\\u007f")

    return "".join(f"{key} = {value(x)}\n" for key, x in entry.items())
