"""Ranges that a port printed: one pass of a log as a candidate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parity.errors import UsageError
from parity.imports.base import Imported, Reading
from parity.imports.loglines import Log, Pass, parse, read_lines
from parity.names import parse as parts_of
from parity.rangetable import MOD_CHUNKS
from parity.safetensors_header import shown

EXAMPLE = "[IMG_IN] [-14.20, 15.31], [BLOCK 07] [ATTN] [-88.00, 118.00] or block.07.img.attn [-88, 118]"


@dataclass(frozen=True, kw_only=True)
class Ranges(Imported):
    """Smallest and largest values.

    Attributes:
        chosen: the pass that they are of.
    """

    chosen: Pass = field(default_factory=lambda: Pass("0"), repr=False)

    def read(self, name: str, *, chunks: int = 0, sketched: bool = True) -> Reading:
        """A range with its resolution; see `figures_of`."""
        return Reading(stats=figures_of(self.chosen, name), resolution=self.chosen.resolutions.get(name, 0.0))


def figures_of(one: Pass, name: str) -> dict[str, Any]:
    """``min``, ``max``, ``nan`` and ``inf`` of a checkpoint.

    Of modulation parameters, the guide's lines have the scales only. Then the ends are ``low`` and ``high`` instead,
    and ``only`` names the chunks that they are of: nobody may take them for the range of the whole.
    """
    ends = one.ranges[name]
    bad = {"nan": sum(map(math.isnan, ends)), "inf": sum(map(math.isinf, ends))}
    if name not in one.scales:
        return {"min": ends[0], "max": ends[1], **bad}
    return {
        "only": [chunk for chunk in MOD_CHUNKS if chunk.startswith("scale")],
        "low": ends[0],
        "high": ends[1],
        **bad,
    }


def read_log(path: Path, passage: str = "") -> Ranges:
    """The ranges of one pass of a log.

    Args:
        path: of the log.
        passage: label of the pass, a step's number or how many there were before; the first where empty.

    Raises:
        UsageError: unreadable, without a range, or without such a pass.
    """
    label, log = shown(path.name), parse(read_lines(path))
    if not log.readings:
        raise UsageError(f"{label}: {nothing_in(log)}")
    one = choose(log.passes, passage, label)
    notes = tuple(_notes(log, one, label))
    about = {"passes": len(log.passes), "pass": one.label, "lines": log.lines, "numbered": log.numbered}
    return Ranges(label=label, kind="ranges", names=tuple(one.ranges), notes=notes, about=about, chosen=one)


def nothing_in(log: Log) -> str:
    """That a log has no ranges, in words."""
    held = f"{log.lines} lines and {log.truncated} of them cut off" if log.lines else "nothing"
    return f"no ranges found in {held}; expected lines such as {EXAMPLE}"


def choose(passes: Sequence[Pass], passage: str, label: str) -> Pass:
    """The first pass, or the first of a label.

    Raises:
        UsageError: there is none of that label.
    """
    if not passage:
        return passes[0]
    for one in passes:
        if one.label == passage:
            return one
    labels = list(dict.fromkeys(one.label for one in passes))
    known = ", ".join(labels[:12]) + (" …" if len(labels) > 12 else "")
    raise UsageError(f"{label}: no pass {shown(passage)}; there are {known}")


def _notes(log: Log, one: Pass, label: str) -> list[str]:
    notes = []
    if len(log.passes) > 1:
        notes.append(f"{label} has {len(log.passes)} passes; pass {one.label} is looked at")
    notes += log_notes(log, any(parts_of(name).block is not None for name in one.ranges))
    if one.scales:
        notes.append(f"{len(one.scales)} ranges are of the modulation's scales alone")
    return notes


def log_notes(log: Log, blocks: bool) -> list[str]:
    """What was taken for granted or passed over in reading a log.

    Args:
        log: as it was read.
        blocks: whether it has ranges of blocks.
    """
    notes = []
    if not log.numbered and blocks:
        notes.append("the log numbers no blocks: the n-th line of a kind in a pass is taken for block n")
    if log.truncated:
        notes.append(log.cut_lines)
    return notes + ([log.cut] if log.cut else [])
