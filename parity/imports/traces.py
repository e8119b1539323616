"""Traces as candidates: of `parity trace record`, or one side of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from parity.errors import UsageError
from parity.imports.base import Imported, Reading
from parity.safetensors_header import shown
from parity.stats import ArrayStats
from parity.trace import MANIFEST
from parity.tracefile import Trace, read_trace, tensor_of


@dataclass(frozen=True, kw_only=True)
class Traced(Imported):
    """Statistics, with sketches where they were recorded, and values where they were kept."""

    trace: Trace = field(default_factory=lambda: Trace("", {}), repr=False)

    def read(self, name: str, *, chunks: int = 0, sketched: bool = True) -> Reading:
        """What the trace has; nothing is computed."""
        row = self.trace.stats[name]
        stats = ArrayStats(**{key: value for key, value in row.items() if value is not None}).brief()
        made = self.trace.sketches.get(name) if sketched else None
        sketch = None if made is None else made.astype(np.float64)
        return Reading(tuple(row["shape"]), row["dtype"], stats, sketch, tensor_of(self.trace, name))


def read_traced(folder: Path) -> Traced:
    """A trace folder, the candidate's in a unit of a run, or the only trace within a folder.

    Raises:
        UsageError: no trace there, several, or one that is not whole.
    """
    found = read_trace(_single(folder))
    about = dict(found.about)
    case = about.get("case_hash", "")
    notes = () if found.sketches else ("the trace has statistics only, which see no permutation",)
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
    if len(inside) > 1:
        names = ", ".join(shown(str(path.relative_to(folder))) for path in inside[:4])
        raise UsageError(f"{shown(folder.name)}: {len(inside)} traces are here ({names}); name one of them")
    return inside[0]
