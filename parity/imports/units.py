"""What range tables are checked against in logs and dumps: statistics of each pass, and what they leave open."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parity.errors import UsageError
from parity.imports.base import Imported
from parity.imports.loglines import Log, Pass, parse, read_lines
from parity.imports.opening import ACCEPTED, ARRAYS, LOGS, TENSORS, open_candidate
from parity.imports.ranges import choose, figures_of, log_notes, nothing_in
from parity.imports.traces import imported_kind, is_traced
from parity.names import parse as parts_of
from parity.names import qwen_image_transformer
from parity.rangetable import LAST, MOD_CHUNKS, NORM_OUT_CHUNKS, RangeRow, RangeTable
from parity.safetensors_header import json_file, shown
from parity.trace import MANIFEST

# Where a pass ends: without it the last block that is there need not be the model's last.
_END = ("norm_out", "final")


@dataclass(frozen=True)
class Source:
    """What a file holds for a range table.

    Attributes:
        label: of the file, safe to print.
        units: (label, statistics by checkpoint, index of the last block or -1) of each pass.
        notes: sentences on what could not be read or judged.
    """

    label: str
    units: tuple[tuple[str, dict[str, Mapping[str, Any]], int], ...]
    notes: tuple[str, ...]

    @property
    def broken(self) -> tuple[str, ...]:
        """Checkpoints with values that are not finite, documented or not, in order."""
        rows = ((name, figures) for _, stats, _ in self.units for name, figures in stats.items())
        return tuple(dict.fromkeys(name for name, figures in rows if figures.get("nan") or figures.get("inf")))


def is_source(path: Path) -> bool:
    """Whether a path is a log, a dump or a trace made of one: not a run, nor a trace that was recorded."""
    if path.is_file():
        return path.suffix.lower() != ".json"
    if not path.is_dir() or (path / "parity.json").exists():
        return False
    if is_traced(path):
        return _is_imported(path / MANIFEST)
    return any(one.suffix.lower() in (*TENSORS, *ARRAYS) for one in path.iterdir())


def _is_imported(manifest: Path) -> bool:
    try:
        return bool(imported_kind(json_file(manifest)))
    except (OSError, ValueError):
        return False


def open_source(path: Path, table: RangeTable, passage: str = "") -> Source:
    """Statistics of what a table speaks of.

    Args:
        path: a log, a dump, or a folder of dumps.
        table: to be checked.
        passage: of a log, the pass to look at; all of them where empty.

    Raises:
        UsageError: unreadable, or nothing of it can be checked.
    """
    if path.suffix.lower() in LOGS and path.is_file():
        return _of_log(path, table, passage)
    found = open_candidate([path], passage=passage)
    if found.kind == "sketches":
        raise UsageError(f"{found.label}: sketches have no ranges; expected {ACCEPTED}")
    layers = found.about.get("configs", {}).get("transformer", {}).get("num_layers")
    last = layers - 1 if type(layers) is int else last_of(found.names)
    wanted = {row.resolved(last) for row in table.rows}
    stats = {name: _stats(found, name) for name in found.names if _is_checkpoint(name) or name in wanted}
    notes = _notes(found, len(wanted & set(stats)), last is None and _asks_last(table))
    return Source(found.label, ((found.label, stats, -1 if last is None else last),), notes)


def _is_checkpoint(name: str) -> bool:
    """Whether values of a name should be finite: inputs beside checkpoints, such as masks, need not be."""
    return parts_of(name).block is not None or name in _OUTSIDE


_OUTSIDE = frozenset(qwen_image_transformer(1).parents)


def _stats(found: Imported, name: str) -> Mapping[str, Any]:
    chunks = {"mod": len(MOD_CHUNKS), "norm_out.mod": len(NORM_OUT_CHUNKS)}.get(parts_of(name).kind, 0)
    return found.read(name, chunks=chunks, sketched=False).stats or {}


def _notes(found: Imported, judged: int, unknown_last: bool) -> tuple[str, ...]:
    said = [*found.notes, f"{judged} of {len(found.names):,} checkpoints have a documented range"]
    return (*said, *([_UNKNOWN_LAST] if unknown_last else []))


def _asks_last(table: RangeTable) -> bool:
    return any(row.checkpoint.startswith(LAST) for row in table.rows)


_UNKNOWN_LAST = "which block is the last is not known, since neither norm_out nor final is there; its rows are left out"


def last_of(names: Iterable[str]) -> int | None:
    """Index of the last block, None where a pass that was cut off does not show it."""
    names = tuple(names)
    blocks = {
        parts.block for name in names if (parts := parts_of(name)).block is not None and name.startswith("block.")
    }
    whole = bool(blocks) and blocks == set(range(max(blocks) + 1)) and any(name in names for name in _END)
    return max(blocks) if whole and len(blocks) > 1 else None


def _of_log(path: Path, table: RangeTable, passage: str) -> Source:
    label, log = shown(path.name), parse(read_lines(path))
    if not log.readings:
        raise UsageError(f"{label}: {nothing_in(log)}")
    passes = [choose(log.passes, passage, label)] if passage else log.passes
    lasts = [last_of(one.ranges) for one in passes]
    units = tuple(
        (f"pass {shown(one.label)}", {name: figures_of(one, name) for name in one.ranges}, -1 if last is None else last)
        for one, last in zip(passes, lasts, strict=True)
    )
    return Source(label, units, tuple(_log_notes(log, passes, None in lasts and _asks_last(table))))


def _log_notes(log: Log, passes: list[Pass], unknown_last: bool) -> Iterator[str]:
    names = {name for one in passes for name in one.ranges}
    yield f"{log.readings} ranges of {len(names)} checkpoints in {_passes(len(log.passes))}"
    yield from log_notes(log, any(parts_of(name).block is not None for name in names))
    if any(one.scales for one in passes):
        yield "lines of [MOD] have the scales alone: they can be outside of the documented range, not absent"
    if unknown_last:
        yield _UNKNOWN_LAST


def _passes(count: int) -> str:
    return "one pass" if count == 1 else f"{count} passes"


def of_scales(table: RangeTable, row: RangeRow, stats: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The verdict on a range of scales alone by a row of chunks that scales are among; None where it says nothing."""
    only = (stats or {}).get("only")
    if not only or not set(row.chunks) & set(only):
        return None
    found = table.check(replace(row, chunks=()), {**stats, "min": stats["low"], "max": stats["high"]})
    return found if found and found["verdict"] != "absent" and not math.isnan(found["factor"]) else None
