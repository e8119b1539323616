"""Where in an array the error lies: root mean squares along each axis, for checkpoints that are no match.

An error in a few tokens, a few channels or one head shows as a step along one axis and not along the others.
Measured while both arrays are there, kept in the journal with the stage, written as
``trace/UNIT/profiles.safetensors`` (docs/traces.md) and read back with everything checked.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from parity.disk import room_for
from parity.names import parse
from parity.stats import float64
from parity.tensors import all_mapped
from parity.unitfile import listed_rows, read_unit

FILE = "profiles.safetensors"
BINS = 64
# Axes over all checkpoints and modes of a unit, first come first kept: 60 blocks that are all wrong have 5,000.
MOST = 20_000
FILE_BYTES = 64 << 20
MODES = ("isolated", "accumulated")
# Elements that are squared at a time: they stay in the cache.
_BLOCK = 1 << 15
# Key of the file's metadata: which rows it has, `_NUMBERS` of each behind mode and name.
KEY = "parity.profiles"
_NUMBERS = ("axis", "axes", "length", "worst")
_FLOATS = ("error", "peak", "truth")

# As it is in the journal: numbers, and arrays of float32 as base64 (little-endian).
Packed = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """The error along one axis of an array, in at most `BINS` bins of indices as equal as they can be.

    Bin i of b holds the indices from ``i * length // b`` to ``(i + 1) * length // b``, the latter excluded.

    Attributes:
        axis, axes: which one, of how many.
        length: of the axis.
        worst: the index with the largest error, the first one with values that are not finite if there are any.
        error: a bin's root mean square of candidate minus truth.
        peak: the largest root mean square of a single index in the bin.
        truth: the bin's root mean square of the truth, over the same elements.
        bad: elements whose error is not finite, which are in none of the others; None where there are none.
    """

    axis: int
    axes: int
    length: int
    worst: int
    error: np.ndarray
    peak: np.ndarray
    truth: np.ndarray
    bad: np.ndarray | None

    def packed(self) -> Packed:
        """For the journal."""
        lists = {key: base64.b64encode(getattr(self, key).astype("<f4").tobytes()).decode() for key in _FLOATS}
        numbers = {key: getattr(self, key) for key in _NUMBERS}
        return numbers | lists | {"bad": None if self.bad is None else self.bad.tolist()}


def measure(value: np.ndarray, truth: np.ndarray) -> list[Axis]:
    """Profiles along every axis longer than 1, outermost first; arrays of one shape.

    Raises:
        ValueError: the shapes differ.
    """
    if value.shape != truth.shape:
        raise ValueError(f"shapes {value.shape} and {truth.shape} differ")
    last = value.shape[-1] if value.ndim > 1 else 1
    if value.size == 0:
        return []
    rows, columns = _sums(value.reshape(-1, last), truth.reshape(-1, last))
    rows = rows.reshape(3, *(value.shape[:-1] if value.ndim > 1 else value.shape))
    found = []
    for axis, length in enumerate(value.shape):
        if length < 2:
            continue
        others = tuple(i for i in range(1, rows.ndim) if i != axis + 1)
        sums = columns if axis + 1 == rows.ndim else rows.sum(axis=others)
        found.append(_axis(axis, value.ndim, sums, value.size // length))
    return found


def _sums(value: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a matrix, for each row and for each column: squares of error and truth, and elements that are not finite."""
    height, width = value.shape
    rows, columns = np.zeros((3, height)), np.zeros((3, width))
    wide = min(width, _BLOCK)
    tall = max(1, _BLOCK // wide)
    with np.errstate(invalid="ignore", over="ignore"):
        for top, left in itertools.product(range(0, height, tall), range(0, width, wide)):
            part = slice(top, top + tall), slice(left, left + wide)
            right = float64(truth[part])
            off = float64(value[part]) - right
            squares = right * right
            off *= off
            along = off.sum(axis=1)
            if not np.isfinite(along).all():
                bad = ~np.isfinite(off)
                off[bad] = squares[bad] = 0.0
                along = off.sum(axis=1)
                rows[2, part[0]] += bad.sum(axis=1)
                columns[2, part[1]] += bad.sum(axis=0)
            rows[0, part[0]] += along
            rows[1, part[0]] += squares.sum(axis=1)
            columns[0, part[1]] += off.sum(axis=0)
            columns[1, part[1]] += squares.sum(axis=0)
    return rows, columns


def _axis(axis: int, axes: int, sums: np.ndarray, each: int) -> Axis:
    """Reduce the sums of every index, of `each` elements, to bins."""
    length = sums.shape[1]
    bins = bins_of(length)
    starts = np.arange(bins) * length // bins
    off, truth, bad = np.add.reduceat(sums, starts, axis=1)
    counts = np.diff(np.append(starts, length)) * each - bad
    single = _mean(sums[0], each - sums[2])
    worst = int(sums[2].argmax() if sums[2].any() else single.argmax())
    figures = (_mean(off, counts), np.maximum.reduceat(single, starts), _mean(truth, counts))
    with np.errstate(over="ignore"):  # what float64 runs may reach beyond float32 is read back as no figure
        error, peak, right = (np.sqrt(one).astype(np.float32) for one in figures)
    return Axis(axis, axes, length, worst, error, peak, right, bad.astype(np.int64) if bad.any() else None)


def _mean(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """0 where nothing was finite: `bad` says so."""
    return np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)


def titles(name: str, axes: int) -> tuple[str, ...]:
    """What the axes of a checkpoint are called, from its name: ``batch``, ``row`` (a token), ``head``, ``channel`` …"""
    if name.startswith("vae.") and axes in (4, 5):
        return ("batch", "channel", "frame", "row", "column") if axes == 5 else ("batch", "channel", "row", "column")
    kind = parse(name).kind
    if kind.startswith("rope.") and axes >= 3:
        ends: tuple[str, ...] = ("row", "pair", "cos, sin")
    elif kind.rpartition(".")[2] == "image" and axes >= 3:
        ends = ("row", "column", "channel")
    elif kind in ("q", "k", "v") and axes >= 3:
        ends = ("row", "head", "channel")
    else:
        ends = ("row", "channel")
    return ("batch",) * (axes - len(ends)) + ends[max(0, len(ends) - axes) :]


def write(folder: Path, stages: Iterable[Mapping[str, Mapping[str, list[Packed]]]]) -> None:
    """Write the profiles of a unit where it has any; beyond `MOST` axes none are kept.

    Args:
        folder: of the unit's traces.
        stages: of each stage in order, mode -> checkpoint -> its axes.
    """
    every = (
        (mode, name, axis)
        for stage in stages for mode, of_mode in stage.items() for name, axes in of_mode.items() for axis in axes
    )  # fmt: skip
    rows = list(itertools.islice(every, MOST))
    if not rows:
        return
    index = [[mode, name, *(axis[key] for key in _NUMBERS)] for mode, name, axis in rows]
    tensors = {
        key: np.frombuffer(b"".join(base64.b64decode(axis[key]) for _, _, axis in rows), "<f4") for key in _FLOATS
    }
    if any(axis["bad"] for _, _, axis in rows):
        tensors["bad"] = np.concatenate(
            [np.array(axis["bad"] or [0] * bins_of(axis["length"]), "<i8") for _, _, axis in rows]
        )
    with room_for(folder / FILE):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / FILE, {KEY: json.dumps({"rows": index}, separators=(",", ":"))})


def bins_of(length: int) -> int:
    """Into how many bins an axis is reduced."""
    return min(length, BINS)


def of_unit(
    folder: Path, unit: str, names: Collection[str] | None = None
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The profiles of a unit of a run folder.

    Args:
        folder: of the run.
        unit: ``square.float32``, a case's name and its dtype.
        names: of the checkpoints that are wanted; all without it.

    Returns:
        mode -> checkpoint -> the axes longer than 1, as dicts that JSON can hold: the fields of `Axis`, figures
        that are not finite as None, and `title`, what the axis is called. Empty where the run has none.

    Raises:
        UsageError: the file is garbled, too large, or something else.
    """
    return read_unit(folder, unit, FILE, lambda path: _read(path, names))


def _read(path: Path, names: Collection[str] | None) -> dict[str, dict[str, list[dict[str, Any]]]]:
    shard, rows = listed_rows(path, KEY, _row_problem, most=MOST, most_bytes=FILE_BYTES)
    total = sum(bins_of(row[4]) for row in rows)
    for key in (*_FLOATS, *(["bad"] if "bad" in shard.tensors else [])):
        kind, found = ("I64" if key == "bad" else "F32"), shard.tensors.get(key)
        if found is None or (found.dtype, found.shape) != (kind, (total,)):
            what = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise ValueError(f"{key} is {what}, expected {kind} [{total}]")
    arrays = all_mapped(path, {key: shard.tensors[key] for key in (*_FLOATS, "bad") if key in shard.tensors})
    made: dict[str, dict[str, list[dict[str, Any]]]] = {}
    stop = 0
    for mode, name, *numbers in rows:
        start, stop = stop, stop + bins_of(numbers[2])
        if names is None or name in names:
            part = {key: array[start:stop] for key, array in arrays.items()}
            made.setdefault(mode, {}).setdefault(name, []).append(_readable(name, numbers, part))
    return made


def _row_problem(row: object) -> str:
    if not isinstance(row, list) or len(row) != 2 + len(_NUMBERS) or not all(isinstance(x, str) for x in row[:2]):
        return f"expected mode, name, {', '.join(_NUMBERS)}"
    if row[0] not in MODES:
        return f"expected the mode {' or '.join(MODES)}"
    axis, axes, length, worst = row[2:]
    if not all(type(x) is int and 0 <= x < 1 << 53 for x in row[2:]):
        return "expected whole numbers"
    if axis >= axes or axes > 32 or length < 2 or worst >= length:
        return "its axis, length and worst index do not fit each other"
    return ""


def _readable(name: str, numbers: list[int], part: Mapping[str, np.ndarray]) -> dict[str, Any]:
    row: dict[str, Any] = dict(zip(_NUMBERS, numbers, strict=True))
    lists = {key: np.where(np.isfinite(part[key]), part[key], None).tolist() for key in _FLOATS}
    bad = part["bad"].tolist() if "bad" in part and part["bad"].any() else None
    return {"title": titles(name, row["axes"])[row["axis"]], **row, **lists, "bad": bad}
