"""A port's dump or log as a trace: statistics and sketches, small enough to send."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from parity import trace
from parity.golden import Golden
from parity.imports.base import Imported, Reading
from parity.imports.measure import measure
from parity.imports.tensors import Tensors
from parity.imports.traces import IMPORTED, Traced
from parity.names import parse, qwen_image_transformer
from parity.rangetable import MOD_CHUNKS, NORM_OUT_CHUNKS
from parity.sketch import Spec
from parity.stats import ArrayStats

MOST_BLOCKS = 999
# What a file without values says of a figure that needs them.
_UNKNOWN: dict[str, Any] = {
    "shape": [], "dtype": "", "count": 0, "absmax_at": [], "nan": 0, "pos_inf": 0, "neg_inf": 0, "zeros": 0,
    "quantiles": [], "histogram": [], "chunks": [],
}  # fmt: skip


def write_trace(
    found: Imported, folder: Path, golden: Golden | None = None, command: str = "",
    told: Callable[[int, int], None] = lambda done, of: None,
) -> int:  # fmt: skip
    """Write a candidate as a trace folder.

    Args:
        found: opened.
        folder: to write.
        golden: whose case, dtype, mode and sketches the trace is to be compared with; it then claims these.
        command: that was given, for the manifest.
        told: told how many checkpoints are done, of how many.

    Returns:
        how many checkpoints were written.
    """
    spec = golden.spec if golden is not None and isinstance(found, Tensors) else found.spec
    rows: dict[str, Mapping[str, Any]] = {}
    sketches: dict[str, np.ndarray] = {}
    for done, name in enumerate(_in_order(found, golden)):
        told(done, len(found.names))
        rows[name], made = _measured(found, name, spec)
        if made is not None:
            sketches[name] = made
    trace.write(folder, rows, _about(found, golden, command), sketches=sketches or None, spec=spec)
    return len(rows)


def _in_order(found: Imported, golden: Golden | None) -> list[str]:
    """Names as they are made, where a graph tells; a dump often has them sorted."""
    blocks = [block for name in found.names if (block := parse(name).block) is not None]
    graph = golden.graph if golden else qwen_image_transformer(min(max(blocks, default=0), MOST_BLOCKS) + 1)
    place = {name: at for at, name in enumerate(graph.parents)}
    return sorted(found.names, key=lambda name: place.get(name, len(place)))


def _measured(found: Imported, name: str, spec: Spec) -> tuple[Mapping[str, Any], np.ndarray | None]:
    if isinstance(found, Tensors):
        chunks = {"mod": len(MOD_CHUNKS), "norm_out.mod": len(NORM_OUT_CHUNKS)}.get(parse(name).kind, 0)
        stats, made = measure(found.arrays[name](), chunks=chunks, spec=spec)
        return vars(stats), made
    if isinstance(found, Traced):
        return found.trace.stats[name], found.trace.sketches.get(name)
    reading = found.read(name)
    return _sparse(reading), reading.sketch


def _sparse(reading: Reading) -> dict[str, Any]:
    """A row of which only the ends, or nothing but the shape, is known; the manifest says which."""
    row: dict[str, Any] = {one.name: _UNKNOWN.get(one.name, math.nan) for one in fields(ArrayStats)}
    if reading.shape is not None:
        row |= {"shape": list(reading.shape), "count": math.prod(reading.shape)}
    told = reading.stats or {}
    ends = [float(told.get(key, told.get(other, math.nan))) for key, other in (("min", "low"), ("max", "high"))]
    row |= {"min": ends[0], "max": ends[1], "nan": told.get("nan", 0)}
    return row | {"pos_inf": ends.count(math.inf), "neg_inf": ends.count(-math.inf)}


def _about(found: Imported, golden: Golden | None, command: str) -> dict[str, Any]:
    """The manifest. What neither the dump nor the golden trace says stays empty."""
    theirs: Mapping[str, Any] = golden.about if golden is not None else found.about
    about: dict[str, Any] = {
        "side": "candidate",
        "case": theirs.get("case") or {"name": found.label},
        "case_hash": found.case,
        "dtype": theirs.get("dtype") or "",  # of the run: a dump may be wider
        "mode": theirs.get("mode") or "",
        "component": theirs.get("component") or "transformer",
        "configs": theirs.get("configs") or {},
        "environment": found.about.get("environment") or {"port": found.label},
        "command": command,
        IMPORTED: _imported(found),
    }
    return about | ({"graph": theirs["graph"]} if "graph" in theirs else {})


def _imported(found: Imported) -> dict[str, Any]:
    """What the trace was read from, and what of its rows is known."""
    if isinstance(found, Traced) and IMPORTED in found.about:
        return found.about[IMPORTED]
    told: dict[str, Any] = {"from": found.label, "kind": found.kind, "notes": list(found.notes)}
    if found.kind == "ranges":
        readings = {name: found.read(name) for name in found.names}
        told["resolution"] = {name: one.resolution for name, one in readings.items()}
        told["only"] = {name: one.stats["only"] for name, one in readings.items() if one.stats and "only" in one.stats}
    return told
