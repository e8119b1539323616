"""Traces and dumps from elsewhere, read with every size checked before anything is allocated.

A trace is a folder as `parity.trace` writes it. A dump is a plain ``.safetensors`` file whose keys are names of
checkpoints, as any language can write it; its arrays are mapped, not read.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from parity import trace
from parity.components import COMPONENTS
from parity.errors import UsageError, WeightsError
from parity.names import BLOCK_KINDS, GUIDE_KINDS
from parity.names import parse as parts_of
from parity.parquet_footer import Footer, read_footer
from parity.safetensors_header import and_more, json_file, read_header, shown
from parity.sketch import DEFAULT, Spec
from parity.stats import BINADES, describe
from parity.tensors import NUMPY, all_mapped
from parity.trace import Floor

# Values are those of one column: chunks have twelve a row.
ROWS, VALUES, STATS_BYTES, UNITS = 200_000, 4_000_000, 256 << 20, 1000
# The footer of a Parquet file names each column a few times.
_FOOTER = {"thrift_string_size_limit": 1 << 20, "thrift_container_size_limit": 1 << 20}
_READ = [name for name in trace.COLUMNS.names if name != "histogram"]
_FLOORS = trace.FLOOR_COLUMNS.names

Stats = Mapping[str, Any]


@dataclass(frozen=True)
class Trace:
    """Statistics of one side.

    Attributes:
        label: what it is called in messages.
        stats: checkpoint -> fields of `parity.stats.ArrayStats`, in the order in which they are made.
        about: the manifest: component, case, dtype, mode, configs; empty for a dump.
        floors: checkpoint -> the reference's noise there; only a golden trace has them.
        sketches: checkpoint -> its sketch, mapped; empty where none were recorded.
        spec: of the sketches.
        folder: where it lies.
    """

    label: str
    stats: Mapping[str, Stats]
    about: Mapping[str, Any] = field(default_factory=dict)
    floors: Mapping[str, Floor] = field(default_factory=dict)
    sketches: Mapping[str, np.ndarray] = field(default_factory=dict)
    spec: Spec = DEFAULT
    folder: Path | None = None

    @property
    def level(self) -> str:
        """Of detail, from the names of the transformer's blocks; empty where there are none."""
        kinds = {parts.kind for name in self.stats if (parts := parts_of(name)).block is not None}
        kinds &= set(BLOCK_KINDS)
        if not kinds:
            return ""
        return "full" if kinds & {"q", "k", "v"} else "block" if kinds - set(GUIDE_KINDS) else "kinds"


def read_trace(folder: Path) -> Trace:
    """Read and check one side's trace.

    Raises:
        UsageError: unfinished, too large, or not what `parity.trace` writes.
    """
    label = shown("/".join(part for part in (folder.parent.name, folder.name) if part))
    if not (folder / "manifest.json").is_file():
        raise UsageError(f"{label}: no manifest.json here; a trace that was cut off has none, record it again")
    try:
        about = json_file(folder / "manifest.json")
    except OSError as error:
        raise UsageError(f"{label}/manifest.json: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{label}/manifest.json: {error}") from None
    problem = _manifest_problem(about)
    if problem:
        raise UsageError(f"{label}/manifest.json: {problem}")
    rows = _read_stats(folder / trace.STATS, f"{label}/{trace.STATS}")
    strangers = sorted(set(about["order"]) ^ set(rows))
    if strangers:
        raise UsageError(f"{label}: manifest.json and stats.parquet name other checkpoints: {shown(strangers[0])}")
    floors = {}
    for name, row in rows.items():
        noise = {key: row.pop(key) for key in _FLOORS if key in row}
        if noise:
            floors[name] = Floor(**noise)
    spec, sketches = DEFAULT, {}
    if (folder / trace.SKETCHES).is_file():
        spec, sketches, _ = read_sketches(folder / trace.SKETCHES, label)
        if unknown := sorted(set(sketches) - set(rows)):
            raise UsageError(f"{label}/{trace.SKETCHES}: {shown(unknown[0])} is not in {trace.STATS}")
    stats = {name: rows[name] for name in about["order"]}
    return Trace(label, stats, about, floors, sketches, spec, folder)


def tensor_of(found: Trace, name: str) -> np.ndarray | None:
    """The whole values of a checkpoint, mapped, where a trace has them.

    Raises:
        UsageError: its file is garbled or holds something else.
    """
    if found.folder is None or not name_fits(name):
        return None
    path = trace.tensor_file(found.folder, name)
    if not path.is_file():
        return None
    arrays = read_dump(path)
    if set(arrays) != {name}:
        raise UsageError(f"{found.label}: {shown(path.name)} holds {shown(next(iter(arrays)))}, expected {shown(name)}")
    return arrays[name]


def name_fits(name: str) -> bool:
    """Whether a checkpoint's name, which may be from elsewhere, can be a file's."""
    return bool(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}", name))


def read_sketches(path: Path, label: str = "") -> tuple[Spec, dict[str, np.ndarray], Mapping[str, str]]:
    """A safetensors file of sketches by checkpoint, as `parity.trace.write_sketches` or any port writes it.

    Args:
        path: of the file.
        label: what messages call the folder that it is in.

    Returns:
        which sketch it is, the sketches (mapped, float64 or float32), and the file's metadata.

    Raises:
        UsageError: garbled, or not sketches of one kind.
    """
    where = f"{label}/{shown(path.name)}" if label else shown(path.name)
    try:
        shard = read_header(path)
        told = json.loads(shard.metadata[trace.SKETCH_KEY])
        spec = Spec(told["buckets"], told["seed"])
    except WeightsError as error:
        raise UsageError(str(error), error.details) from None
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{where}: its metadata say nothing usable of {trace.SKETCH_KEY!r} ({_words(error)}); "
            'expected {"buckets": 2048, "seed": 0} as text'
        ) from None
    for name, tensor in shard.tensors.items():
        if tensor.shape != (spec.buckets,) or tensor.dtype not in ("F64", "F32"):
            raise UsageError(
                f"{where}: {shown(name)} is {tensor.dtype} {list(tensor.shape)}, expected F64 or F32 [{spec.buckets}]"
            )
    return spec, all_mapped(path, shard.tensors), shard.metadata


def _manifest_problem(about: Mapping[str, Any]) -> str:
    if about.get("schema") != trace.SCHEMA:
        return f"schema is {shown(about.get('schema'))}, this version reads {trace.SCHEMA}"
    if about.get("partial"):
        return "of a comparison, what was off alone is in it; name what was compared"
    order = about.get("order")
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        return "order is no list of names"
    if len(order) > ROWS:
        return f"order has {len(order)} names, against a limit of {ROWS}"
    if len(set(order)) != len(order):
        return "order has a name twice"
    for key, kind in (("component", str), ("dtype", str), ("mode", str), ("case", dict), ("configs", dict)):
        if not isinstance(about.get(key), kind):
            return f"{key} is {shown(about.get(key))}, expected {'a text' if kind is str else 'an object'}"
    listed = isinstance(about.get("graph"), dict) and about["graph"].get("name") == "listed"
    if about["component"] not in COMPONENTS and not listed:
        return f"component is {shown(about['component'])}, expected one of {', '.join(COMPONENTS)}"
    return ""


def _read_stats(path: Path, label: str) -> dict[str, dict[str, Any]]:
    """Rows by name, each with the fields of `ArrayStats`."""
    try:
        size = path.stat().st_size
        if size > STATS_BYTES:
            raise UsageError(f"{label}: {size} bytes, against a limit of {STATS_BYTES}")
        if problem := _size_problem(read_footer(path)):
            raise UsageError(f"{label}: {problem}")
        with pq.ParquetFile(path, **_FOOTER) as file:
            if problem := _column_problem(file):
                raise UsageError(f"{label}: {problem}")
            golden = [one for one in _FLOORS if one in file.schema_arrow.names]
            rows = [row for batch in file.iter_batches(4096, columns=_READ + golden) for row in batch.to_pylist()]
    except OSError as error:
        raise UsageError(f"{label}: cannot be read ({_words(error)})") from None
    except (pa.ArrowException, ValueError, OverflowError, UnicodeDecodeError) as error:
        raise UsageError(f"{label}: garbled ({_words(error)})") from None
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = row.pop("name")
        if name in found:
            raise UsageError(f"{label}: {shown(name)} comes twice")
        if not _complete(row):
            raise UsageError(f"{label}: the row of {shown(name)} is not whole")
        found[name] = row
    return found


def histograms(folder: Path, names: Collection[str]) -> tuple[str, dict[str, list[int]]]:
    """Histograms of one side's trace (`parity.stats.ArrayStats.histogram`), and the mode that it is of.

    Args:
        folder: of the trace.
        names: of the checkpoints that are wanted; those without a histogram are left out.

    Raises:
        UsageError: unfinished, too large, or not what `parity.trace` writes.
    """
    label = shown("/".join(folder.parts[-2:]))
    try:
        mode = str(json_file(folder / trace.MANIFEST).get("mode"))
        if (size := (folder / trace.STATS).stat().st_size) > STATS_BYTES:
            raise ValueError(f"{size} bytes, against a limit of {STATS_BYTES}")
        footer = read_footer(folder / trace.STATS)
        if problem := _size_problem(footer) or _histogram_problem(footer):
            raise ValueError(problem)
        with pq.ParquetFile(folder / trace.STATS, **_FOOTER) as file:
            if problem := _column_problem(file):
                raise ValueError(problem)
            batches = file.iter_batches(4096, columns=["name", "histogram"])
            rows = [row for batch in batches for row in batch.to_pylist() if row["name"] in names]
    except OSError as error:
        raise UsageError(f"{label}: cannot be read ({_words(error)})") from None
    except (pa.ArrowException, ValueError, OverflowError, UnicodeDecodeError) as error:
        raise UsageError(f"{label}: {trace.STATS} is garbled ({_words(error)})") from None
    whole = [row for row in rows if row["histogram"] and len(row["histogram"]) == BINADES]
    return mode, {row["name"]: row["histogram"] for row in whole if None not in row["histogram"]}


def _histogram_problem(footer: Footer) -> str:
    for column, count in footer.values.items():
        if column.startswith("histogram") and count > footer.rows * BINADES:
            return f"{count} values in histograms of {footer.rows} rows"
    return ""


def _size_problem(footer: Footer) -> str:
    if footer.rows > ROWS:
        return f"{footer.rows} rows, against a limit of {ROWS}"
    if footer.unpacked > STATS_BYTES:
        return f"{footer.unpacked} bytes unpacked, against a limit of {STATS_BYTES}"
    for column, count in footer.values.items():
        # A run of equal values is short in the file, however many there are.
        if count > VALUES and not column.startswith("histogram"):
            return f"{count} values in {shown(column)}, against a limit of {VALUES}"
    return ""


def _column_problem(file: pq.ParquetFile) -> str:
    types = {one.name: one.type for one in file.schema_arrow}
    golden = bool(set(_FLOORS) & set(types))
    for one in (*trace.COLUMNS, *(trace.FLOOR_COLUMNS if golden else ())):
        if types.get(one.name) != one.type:
            return f"column {one.name} is {shown(str(types.get(one.name, 'missing')))}, expected {one.type}"
    return ""


_LISTS = ("quantiles", "chunks")


def _complete(row: Mapping[str, Any]) -> bool:
    # `precision` of values that must be equal is none.
    if any(value is None for key, value in row.items() if key not in ("precision", *_LISTS)):
        return False
    numbers = [*row["shape"], *row["absmax_at"], *(row["quantiles"] or ())]
    pairs = row["chunks"] or ()
    return None not in numbers and all(pair is not None and len(pair) == 2 and None not in pair for pair in pairs)


def read_dump(path: Path, known: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Arrays of a ``.safetensors`` file by checkpoint, mapped from the file.

    Args:
        known: names that checkpoints have; where given, a file with none of them is an error that suggests some.

    Raises:
        UsageError: unreadable, garbled, of a dtype that numpy has not, or none of its names is known.
    """
    label = shown(path.name)
    try:
        shard = read_header(path)
    except WeightsError as error:
        raise UsageError(str(error), error.details) from None
    foreign = [name for name, tensor in shard.tensors.items() if tensor.dtype not in NUMPY]
    if foreign:
        dtype = shard.tensors[foreign[0]].dtype
        raise UsageError(f"{label}: {shown(foreign[0])} is {dtype}; write it as F32, F16 or BF16{and_more(foreign)}")
    if known:
        strangers = unknown_names(shard.tensors, known)
        if len(strangers) == len(shard.tensors):
            raise UsageError(f"{label}: none of its {len(strangers)} names is a checkpoint: {_told(strangers)}")
    for name, tensor in shard.tensors.items():
        if math.prod(tensor.shape) == 0:
            raise UsageError(f"{label}: {shown(name)} of shape {list(tensor.shape)} is empty")
    return all_mapped(path, shard.tensors)


def unknown_names(names: Iterable[str], known: Collection[str], at_most: int = 20) -> dict[str, list[str]]:
    """Names that are none of the known, each with the nearest known ones.

    Args:
        at_most: nearest names are looked for, for so many; the search takes a while.
    """
    strangers = [name for name in names if name not in known]
    pool = sorted(known)
    near = {name: difflib.get_close_matches(name[:200], pool, 3) for name in strangers[:at_most]}
    return {name: near.get(name, []) for name in strangers}


def _told(strangers: Mapping[str, list[str]]) -> str:
    name, near = next(iter(strangers.items()))
    return shown(name) + (f" (nearest: {', '.join(near)})" if near else ", expected names such as block.07.img.attn")


def fit_shapes(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Give arrays the shapes that are expected where only an axis of length 1 in front is missing or too many.

    Args:
        arrays: by checkpoint.
        expected: shape by checkpoint; others stay as they are.

    Returns:
        the arrays, and what was done in words.
    """
    found, added, removed = {}, [], []
    for name, array in arrays.items():
        wanted = expected.get(name)
        if wanted is not None and array.shape != wanted:
            if (1, *array.shape) == wanted:
                array, _ = array[None], added.append(name)
            elif array.shape == (1, *wanted):
                array, _ = array[0], removed.append(name)
        found[name] = array
    notes = [
        f"{len(names)} arrays {what} a batch dimension, {names[0]} first; compared {how}"
        for names, what, how in ((added, "lack", "with one"), (removed, "have", "without"))
        if names
    ]
    return found, notes


def of_dump(path: Path, known: Collection[str] = ()) -> Trace:
    """Statistics of a dump's arrays."""
    arrays = read_dump(path, known)
    chunks = {name: {"mod": 6, "norm_out.mod": 2}.get(parts_of(name).kind, 0) for name in arrays}
    stats = {name: vars(describe(array, chunks=chunks[name])) for name, array in arrays.items()}
    return Trace(shown(path.name), stats)


def _words(error: BaseException) -> str:
    return shown(" ".join(str(error).split()))
