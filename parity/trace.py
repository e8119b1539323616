"""Traces: one side of one unit, on disk.

    manifest.json           schema, side, case, dtype, model config, environment, order of checkpoints
    stats.parquet           one row a checkpoint: every field of `parity.stats.ArrayStats`, and in a golden
                            trace the reference's floor there
    sketches.safetensors    where recorded: `parity.sketch` of every checkpoint
    tensors/*.safetensors   where asked for: whole values, a file a checkpoint

The manifest is written last, so that a folder with one is whole. docs/traces.md describes all of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (gives safetensors its bfloat16)
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from parity.disk import room_for
from parity.runfolder import write_json
from parity.sketch import DEFAULT, Spec
from parity.stats import ArrayStats

SCHEMA = 1
MANIFEST, STATS, SKETCHES, TENSORS = "manifest.json", "stats.parquet", "sketches.safetensors", "tensors"
# Key of a safetensors file's metadata that says that its tensors are sketches, and of which kind.
SKETCH_KEY = "parity.sketch"
# The same for the case that values were made from: `parity.casefile.case_hash`.
CASE_KEY = "parity.case"

_COLUMNS = {
    "shape": pa.list_(pa.int64()),
    "dtype": pa.string(),
    "count": pa.int64(),
    "absmax_at": pa.list_(pa.int64()),
    "quantiles": pa.list_(pa.float64()),
    "nan": pa.int64(),
    "pos_inf": pa.int64(),
    "neg_inf": pa.int64(),
    "zeros": pa.int64(),
    "histogram": pa.list_(pa.int64()),
    "chunks": pa.list_(pa.list_(pa.float64())),
}
COLUMNS = pa.schema(
    [pa.field("name", pa.string())]
    + [pa.field(one.name, _COLUMNS.get(one.name, pa.float64())) for one in fields(ArrayStats)]
)
# What a golden trace says of the reference beside its statistics: see `Floor`.
FLOOR_COLUMNS = pa.schema(
    [
        pa.field("floor", pa.float64()),
        pa.field("floor_by", pa.string()),
        pa.field("peak_floor", pa.float64()),
        pa.field("precision", pa.float64()),
        pa.field("truth_rms", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Floor:
    """The reference's own noise at a checkpoint, and the size of the truth.

    Attributes:
        floor: largest relative RMSE against truth of the reference's own runs; 0 where values must be equal.
        floor_by: which of them set it: ``rounding``, ``jitter``, ``precision:NAME``, ``resolution``, ``exact``.
        peak_floor: their largest single error.
        precision: relative RMSE of the reference in the dtype; None where values must be equal.
        truth_rms: root mean square of the truth.
    """

    floor: float
    floor_by: str
    peak_floor: float
    precision: float | None
    truth_rms: float


def write(
    folder: Path,
    stats: Mapping[str, Mapping[str, Any]],
    about: Mapping[str, Any],
    *,
    floors: Mapping[str, Floor] | None = None,
    sketches: Mapping[str, np.ndarray] | None = None,
    spec: Spec = DEFAULT,
) -> None:
    """Write one trace.

    Args:
        folder: created where it is not there.
        stats: checkpoint name -> fields of `ArrayStats`, in the order in which they are made.
        about: what the manifest says besides the schema and the order.
        floors: of every checkpoint, in a golden trace.
        sketches: by checkpoint, float64 or float32.
        spec: of the sketches.
    """
    rows = [{"name": name, **figures, **(vars(floors[name]) if floors else {})} for name, figures in stats.items()]
    schema = pa.unify_schemas([COLUMNS, FLOOR_COLUMNS]) if floors else COLUMNS
    with room_for(folder / STATS):
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / STATS, compression="zstd")
        if sketches is not None:
            write_sketches(folder / SKETCHES, sketches, spec)
    write_json(folder / MANIFEST, {"schema": SCHEMA, **about, "order": list(stats)})


def write_sketches(path: Path, sketches: Mapping[str, np.ndarray], spec: Spec, **metadata: str) -> None:
    """Write sketches by checkpoint; the metadata say which sketch it is."""
    save_file(dict(sketches), path, {SKETCH_KEY: json.dumps({"buckets": spec.buckets, "seed": spec.seed})} | metadata)


def tensor_file(folder: Path, name: str) -> Path:
    """Where a trace has the whole values of a checkpoint, if it has them."""
    return folder / TENSORS / f"{name}.safetensors"


def read_stats(folder: Path) -> dict[str, dict[str, Any]]:
    """Checkpoint name -> fields of `ArrayStats` of a written trace."""
    return {row.pop("name"): row for row in pq.read_table(folder / "stats.parquet").to_pylist()}
