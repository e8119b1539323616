"""Histograms of the candidate in the mode that its trace is not of, for checkpoints that are no match.

A run in two modes writes one trace a side, of what each port made when it fed itself. The reference's arrays are the
same in both modes; the candidate's are not, and the sources of a divergence show best where it was fed the
reference's. Written as ``trace/UNIT/histograms.safetensors`` (docs/traces.md) and read back with everything checked.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from parity.disk import room_for
from parity.stats import BINADES
from parity.suite import MODES
from parity.tensors import all_mapped
from parity.unitfile import listed_rows, read_unit

FILE = "histograms.safetensors"
# Over all checkpoints and modes of a unit, first come first kept: 60 blocks that are all wrong have 1,320.
MOST = 5_000
FILE_BYTES = 16 << 20
# Key of the file's metadata: mode and name of each row of the one tensor, `COUNTS`.
KEY = "parity.histograms"
COUNTS = "counts"

Histograms = dict[str, dict[str, list[int]]]


def write(folder: Path, stages: Iterable[Mapping[str, Mapping[str, Sequence[int]]]]) -> None:
    """Write the histograms of a unit where it has any; beyond `MOST` none are kept.

    Args:
        folder: of the unit's traces.
        stages: of each stage in order, mode -> checkpoint -> counts.
    """
    every = ((mode, name, counts) for stage in stages for mode, of in stage.items() for name, counts in of.items())
    rows = list(itertools.islice(every, MOST))
    if not rows:
        return
    index = json.dumps({"rows": [[mode, name] for mode, name, _ in rows]}, separators=(",", ":"))
    with room_for(folder / FILE):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({COUNTS: np.array([counts for _, _, counts in rows], "<i8")}, folder / FILE, {KEY: index})


def of_unit(folder: Path, unit: str, names: Collection[str] | None = None) -> Histograms:
    """The histograms of a unit of a run folder.

    Args:
        folder: of the run.
        unit: ``square.float32``, a case's name and its dtype.
        names: of the checkpoints that are wanted; all without it.

    Returns:
        mode -> checkpoint -> `parity.stats.ArrayStats.histogram`. Empty where the run has none.

    Raises:
        UsageError: the file is garbled, too large, or something else.
    """
    return read_unit(folder, unit, FILE, lambda path: _read(path, names))


def _read(path: Path, names: Collection[str] | None) -> Histograms:
    shard, rows = listed_rows(path, KEY, _row_problem, most=MOST, most_bytes=FILE_BYTES)
    found = shard.tensors.get(COUNTS)
    if found is None or (found.dtype, found.shape) != ("I64", (len(rows), BINADES)):
        what = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
        raise ValueError(f"{COUNTS} is {what}, expected I64 {[len(rows), BINADES]}")
    counts = all_mapped(path, {COUNTS: found})[COUNTS]
    if counts.size and int(counts.min()) < 0:
        raise ValueError(f"{COUNTS} has a count below 0")
    made: Histograms = {}
    for (mode, name), one in zip(rows, counts, strict=True):
        if names is None or name in names:
            made.setdefault(mode, {})[name] = one.tolist()
    return made


def _row_problem(row: object) -> str | None:
    right = isinstance(row, list) and len(row) == 2 and row[0] in MODES and isinstance(row[1], str)
    return None if right else f"expected {' or '.join(MODES)}, and a name"
