"""Golden traces, read: what a reference says of one case, without the reference.

See `parity.recording` for how one is made and docs/traces.md for the files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from parity.components import build_graph
from parity.components.base import DTYPES
from parity.errors import UsageError
from parity.names import Graph
from parity.safetensors_header import shown
from parity.sketch import Spec
from parity.suite import MODES
from parity.trace import MANIFEST, Floor
from parity.tracefile import Trace, read_trace, tensor_of


@dataclass(frozen=True)
class Golden:
    """A golden trace of one case, dtype and mode.

    Attributes:
        trace: statistics of the reference, sketches of the truth.
        graph: names, parents, stages.
    """

    trace: Trace
    graph: Graph

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.trace.label

    @property
    def about(self) -> Mapping[str, Any]:
        """The manifest."""
        return self.trace.about

    @property
    def floors(self) -> Mapping[str, Floor]:
        """Checkpoint -> noise of the reference."""
        return self.trace.floors

    @property
    def spec(self) -> Spec:
        """Of its sketches."""
        return self.trace.spec

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the reference's values."""
        return tuple(self.trace.stats[name]["shape"])

    def values(self, name: str) -> np.ndarray | None:
        """Whole values, mapped, where they were kept: of the truth, or exact ones."""
        return tensor_of(self.trace, name)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Checkpoint -> shape."""
        return {name: self.shape(name) for name in self.trace.stats}


def read_golden(folder: Path) -> Golden:
    """Read a golden trace, or the only one within a folder.

    Raises:
        UsageError: none there, several there, not golden, or not whole; the message says which.
    """
    found = read_trace(_single(folder))
    about, label = found.about, found.label
    if about.get("side") != "golden" or not found.floors:
        raise UsageError(
            f"{label}: a trace of a port, without the reference's floors; the first of two must be golden, "
            "as `parity trace record` makes it from the reference"
        )
    try:
        graph = build_graph(about["graph"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{label}/{MANIFEST}: graph describes none ({shown(str(error))})") from None
    problem = _problem(found, graph)
    if problem:
        raise UsageError(f"{label}: {problem}; record it again")
    return Golden(found, graph)


def _single(folder: Path) -> Path:
    if folder.is_file():
        raise UsageError(
            f"{shown(folder.name)}: a file; expected a golden trace, the folder that `parity trace record` wrote, "
            "before what is held against it"
        )
    if not folder.is_dir():
        raise UsageError(f"{shown(str(folder))}: there is no such folder; expected a golden trace")
    if (folder / MANIFEST).is_file():
        return folder
    inside = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = ", ".join(shown(path.name) for path in inside[:6])
        raise UsageError(f"{shown(folder.name)}: {len(inside)} traces are here ({names}); name one of them")
    raise UsageError(f"{shown(folder.name)}: no trace here; expected the folder that `parity trace record` wrote")


def _problem(found: Trace, graph: Graph) -> str:
    """What keeps a trace from being compared with; empty where nothing does."""
    about = found.about
    if about["mode"] not in MODES or about["dtype"] not in DTYPES:
        return f"mode {shown(about['mode'])} or dtype {shown(about['dtype'])} is none that there is"
    if tuple(found.stats) != graph.expected:
        return f"it holds {len(found.stats)} checkpoints, and its graph expects {len(graph.expected)} in order"
    if not isinstance(about.get("case_hash"), str) or not isinstance(about["case"].get("name"), str):
        return "its manifest names no case"
    missing = [name for name in graph.expected if name not in found.floors]
    missing += [name for name in graph.expected if name not in graph.exact and name not in found.sketches]
    if missing:
        return f"{len(missing)} checkpoints lack a floor or a sketch, {missing[0]} first"
    odd = [name for name, one in found.floors.items() if one.floor < 0 or one.peak_floor < 0 or one.truth_rms < 0]
    if odd:
        return f"the floor of {odd[0]} is negative"
    sizes = [name for name, row in found.stats.items() if math.prod(row["shape"]) != row["count"] or row["count"] < 1]
    return f"the shape of {sizes[0]} does not fit its count" if sizes else ""
