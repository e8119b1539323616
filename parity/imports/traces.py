"""Traces as candidates: of `parity trace record`, or one side of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import UsageError
from parity.imports.base import Imported, Reading
from parity.safetensors_header import shown
from parity.stats import ArrayStats
from parity.trace import MANIFEST
from parity.tracefile import Trace, read_trace, tensor_of

# Key of a manifest: what an imported trace was read from. Rows of ranges and of sketches lack most figures.
IMPORTED = "imported"


@dataclass(frozen=True, kw_only=True)
class Traced(Imported):
    """Statistics, with sketches where they were recorded, and values where they were kept."""

    trace: Trace = field(default_factory=lambda: Trace("", {}), repr=False)

    def read(self, name: str, *, chunks: int = 0, sketched: bool = True) -> Reading:
        """What the trace has; nothing is computed."""
        row = self.trace.stats[name]
        kind = imported_kind(self.about)
        if kind == "ranges":
            return _range(row, name, self.about[IMPORTED])
        stats = ArrayStats(**{key: value for key, value in row.items() if value is not None}).brief()
        made = self.trace.sketches.get(name) if sketched else None
        sketch = None if made is None else made.astype(np.float64)
        if kind == "sketches":
            return Reading(tuple(row["shape"]) or None, sketch=sketch)
        return Reading(tuple(row["shape"]), row["dtype"], stats, sketch, tensor_of(self.trace, name))


def imported_kind(about: Mapping[str, Any]) -> str:
    """What a trace was imported from: ``tensors``, ``sketches``, ``ranges``; empty where it was recorded."""
    told = about.get(IMPORTED)
    kind = told.get("kind") if isinstance(told, dict) else None
    return kind if kind in ("tensors", "sketches", "ranges") else ""


def _range(row: Mapping[str, Any], name: str, told: Mapping[str, Any]) -> Reading:
    """A printed range; see `parity.imports.ranges.figures_of`."""
    coarse, only = (told.get(key) if isinstance(told.get(key), dict) else {} for key in ("resolution", "only"))
    bad = {"nan": row["nan"], "inf": row["pos_inf"] + row["neg_inf"]}
    ends = ("low", "high") if name in only else ("min", "max")
    stats = {ends[0]: row["min"], ends[1]: row["max"], **bad} | ({"only": only[name]} if name in only else {})
    off = coarse.get(name, 0.0)
    return Reading(stats=stats, resolution=float(off) if isinstance(off, int | float) and 0 <= off < math.inf else 0.0)


def read_traced(folder: Path) -> Traced:
    """A trace folder, the candidate's in a unit of a run, or the only trace within a folder.

    Raises:
        UsageError: no trace there, several, or one that is not whole.
    """
    found = read_trace(_single(folder))
    about = dict(found.about)
    case = about.get("case_hash", "")
    alone = not found.sketches and imported_kind(about) != "ranges"
    notes = () if not alone else ("the trace has statistics only, which see no permutation",)
    return Traced(
        label=found.label, kind="trace", names=tuple(found.stats), case=case if isinstance(case, str) else "",
        spec=found.spec, about=about, notes=notes, trace=found,
    )  # fmt: skip


def is_traced(folder: Path) -> bool:
    """Whether a folder is a trace, or holds some."""
    return bool(_within(folder))


def _within(folder: Path) -> list[Path]:
    if (folder / MANIFEST).is_file():
        return [folder]
    if (folder / "candidate" / MANIFEST).is_file():
        return [folder / "candidate"]
    inside = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    return inside or sorted(path.parent for path in folder.glob(f"trace/*/candidate/{MANIFEST}"))


def _single(folder: Path) -> Path:
    inside = _within(folder)
    if not inside:
        raise UsageError(f"{shown(folder.name)}: no trace here; expected manifest.json and stats.parquet")
    if len(inside) > 1:
        names = ", ".join(shown(str(path.relative_to(folder))) for path in inside[:4])
        raise UsageError(f"{shown(folder.name)}: {len(inside)} traces are here ({names}); name one of them")
    return inside[0]
