"""Traces: the statistics of one side of one unit, on disk.

    manifest.json    schema, side, case, dtype, model config, environment, order of checkpoints
    stats.parquet    one row a checkpoint: every field of `parity.stats.ArrayStats`

The manifest is written last, so that a folder with one is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from parity.disk import room_for
from parity.runfolder import write_json
from parity.stats import ArrayStats

SCHEMA = 1

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


def write(folder: Path, stats: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Write one trace.

    Args:
        folder: created where it is not there.
        stats: checkpoint name -> fields of `ArrayStats`, in the order in which they are made.
        about: what the manifest says besides the schema and the order.
    """
    rows = [{"name": name, **figures} for name, figures in stats.items()]
    with room_for(folder / "stats.parquet"):
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=COLUMNS), folder / "stats.parquet", compression="zstd")
    write_json(folder / "manifest.json", {"schema": SCHEMA, **about, "order": list(stats)})


def read_stats(folder: Path) -> dict[str, dict[str, Any]]:
    """Checkpoint name -> fields of `ArrayStats` of a written trace."""
    return {row.pop("name"): row for row in pq.read_table(folder / "stats.parquet").to_pylist()}
