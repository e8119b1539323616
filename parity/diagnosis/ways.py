"""Ways to compute one operation on a library: on which device, in which dtype, whole or cut, and the replay of them.

A backend is anything with `package`, `version`, `devices()` and `run(calls)`: ``mlx_impl.replay.MlxReplay`` in this
process, `parity.diagnosis.elsewhere.Elsewhere` in another interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from parity.diagnosis import referee
from parity.diagnosis.referee import Array, Arrays, Options

# Rows that the referee looks at, and multiplications that they may cost; of more, some are drawn.
SAMPLE, SAMPLE_COST = 512, 10_000_000_000
# Multiplications that MLX's own CPU kernels do in a second, as measured on two cores with an optimised BLAS.
_RATES = {
    ("linear", "float32"): 5e10, ("linear", "bfloat16"): 2.5e9, ("linear", "float16"): 2.5e9,
    ("quantized_linear", "float32"): 5e8, ("quantized_linear", "bfloat16"): 6e7, ("quantized_linear", "float16"): 3.5e7,
}  # fmt: skip
_RATE = 5e8
# Seconds on the CPU up to which an operation is computed in all ways there, and at all.
_ALL_WAYS, _ONE_WAY = 1.0, 10.0
# Numbers of pieces that an operation is cut into; more would only be slower.
_PIECES = {"rows": 64, "columns": 16}


class Backend(Protocol):
    """A library that operations can be replayed on; see ``mlx_impl.replay.MlxReplay``."""

    package: str
    version: str

    def devices(self) -> Sequence[str]:
        """Names of its devices, the default one first."""

    def run(self, calls: Sequence[Mapping[str, Any]]) -> Sequence[Array | str]:
        """Results of ``{op, arrays, options, device, dtype, alone}``, or for each what went wrong."""


@dataclass(frozen=True)
class Way:
    """One way to compute an operation.

    Attributes:
        library: package and version.
        cut: ``whole``, ``alone`` (inputs evaluated first), ``rows``, ``columns``, or ``sample`` (some rows only).
    """

    library: str
    device: str
    dtype: str
    cut: str

    def __str__(self) -> str:
        return f"{self.library} on {self.device} in {self.dtype}, {self.cut}"


def ways(op: str, arrays: Arrays, backend: Backend, dtype: str) -> Iterator[Way]:
    """The ways worth trying; on a CPU, where large products take minutes, only as many as are affordable."""
    library = f"{backend.package} {backend.version}"
    cuts = ["whole", "alone"]
    cuts += ["rows"] if referee.OPS[op].rows else []
    cuts += ["columns"] if referee.OPS[op].columns else []
    devices = backend.devices()
    for device in devices:
        for cut in _affordable(op, arrays, dtype, cuts, device == devices[0]) if device == "cpu" else cuts:
            yield Way(library, device, dtype, cut)


def _affordable(op: str, arrays: Arrays, dtype: str, cuts: list[str], default: bool) -> list[str]:
    """Cuts for a CPU; a large operation on some of its rows only, and whole where that is the port's own device."""
    rate = _RATES.get((op, dtype), _RATE)
    seconds = referee.cost(op, arrays) / rate
    if seconds <= _ALL_WAYS:
        return cuts
    some = referee.cost(op, sampled(op, arrays)[0]) / rate
    found = ["whole"] if default and seconds <= _ONE_WAY else []
    return found + (["sample"] if referee.OPS[op].rows and some <= _ONE_WAY else [])


def replay(
    op: str, arrays: Arrays, options: Options, backend: Backend, ways: Sequence[Way], rows: Array | None
) -> Iterator[Array | str]:
    """The result of each way, of the sampled rows only where there are `rows`."""
    pieces = [list(_pieces(op, arrays, way.cut, rows)) for way in ways]
    calls = [
        {"op": op, "arrays": part, "options": dict(options), "device": way.device, "dtype": way.dtype,
         "alone": way.cut == "alone"}
        for way, parts in zip(ways, pieces, strict=True) for part in parts
    ]  # fmt: skip
    made = iter(backend.run(calls))
    for way, parts in zip(ways, pieces, strict=True):
        results = [next(made) for _ in parts]
        failed = next((one for one in results if isinstance(one, str)), None)
        if failed is not None:
            yield failed
            continue
        axis = referee.OPS[op].columns[1] if way.cut == "columns" else row_axis(op)
        whole = results[0] if len(results) == 1 else np.concatenate(results, axis)
        yield whole if way.cut == "sample" else whole[at(op, rows)]


def row_axis(op: str) -> int:
    """The axis of a result along which rows are independent of each other."""
    return referee.OPS[op].rows[1] if referee.OPS[op].rows else 0


def _pieces(op: str, arrays: Arrays, cut: str, rows: Array | None) -> Iterator[Arrays]:
    """Arrays of the parts that an operation is cut into."""
    what = referee.OPS[op]
    if cut == "sample":
        yield rows_of(op, arrays, slice(None) if rows is None else rows)
    elif cut == "rows":
        name, axis = what.rows
        for part in _parts(arrays[name].shape[axis], _PIECES["rows"]):
            yield rows_of(op, arrays, part)
    elif cut == "columns":
        count = arrays[what.columns[0][0][0]].shape[what.columns[0][0][1]]
        for part in _parts(count, _PIECES["columns"]):
            cutting = {n: x for n, x in what.columns[0] if n in arrays and arrays[n].shape[x] == count}
            yield {n: one[(slice(None),) * cutting[n] + (part,)] if n in cutting else one for n, one in arrays.items()}
    else:
        yield arrays


def _parts(count: int, pieces: int) -> Iterator[slice]:
    step = max(1, -(-count // pieces))
    # Two pieces at least, so that a piece is never the whole.
    step = min(step, max(1, count // 2))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def rows_of(op: str, arrays: Arrays, part: slice | Array) -> dict[str, Array]:
    """The inputs of some rows of an operation."""
    name, axis = referee.OPS[op].rows
    found = dict(arrays)
    found[name] = arrays[name][(slice(None),) * axis + (part,)]
    if "mask" in arrays and arrays["mask"].shape[axis] > 1:
        found["mask"] = arrays["mask"][:, :, part]
    return found


def at(op: str, rows: Array | None) -> tuple[Any, ...]:
    """Index of the sampled rows in a result."""
    return (slice(None),) if rows is None else (*(slice(None),) * row_axis(op), rows)


def sampled(op: str, arrays: Arrays) -> tuple[Arrays, Array | None]:
    """Arrays of the rows the referee looks at, and which rows these are: None for all."""
    if referee.OPS[op].rows is None:
        return arrays, None
    name, axis = referee.OPS[op].rows
    count = arrays[name].shape[axis]
    # Packed weights are slow on a CPU, which has to compute these rows as well.
    budget = SAMPLE_COST // (100 if op == "quantized_linear" else 1)
    most = max(16, min(SAMPLE, budget * count // max(1, referee.cost(op, arrays))))
    if count <= most:
        return arrays, None
    # Both ends, and others at random distances, so that no period of tiles is missed.
    chosen = np.random.default_rng(count).choice(count, most - 4, replace=False)
    rows = np.unique(np.concatenate([chosen, [0, 1, count - 2, count - 1]]))
    return rows_of(op, arrays, rows), rows


def few(op: str, arrays: Arrays, rows: int = 8, columns: int = 64) -> dict[str, Array]:
    """The first rows and columns of an operation."""
    found = rows_of(op, arrays, slice(rows)) if referee.OPS[op].rows else dict(arrays)
    if referee.OPS[op].rows == ("x", 0) and "weight" in found and found["weight"].ndim == 2:
        for name, axis in referee.OPS[op].columns[0]:
            if name in found:
                found[name] = found[name].take(range(min(columns, found[name].shape[axis])), axis)
    return found
