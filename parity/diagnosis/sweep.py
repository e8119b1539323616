"""Where a kernel starts to be wrong: one size of an operation is varied, and the boundary found to the element.

    sweep("quantized_linear", arrays, MlxReplay(), vary="rows", device="gpu", dtype="float32", options=…).sentence
    -> "wrong for rows >= 16 at inputs = 64, outputs = 3072"

Sizes are powers of two and their neighbours; between two of them that differ it is bisected. The arrays of another
size are made of the given ones, repeated or cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from parity.diagnosis import referee
from parity.diagnosis.judge import Judge
from parity.diagnosis.referee import Array, Arrays, Options
from parity.diagnosis.ways import Backend, Way, replay

VARIED = ("rows", "inputs", "outputs", "keys")
# Multiplications of one probe, and elements of one array of it.
PROBE_COST = 20_000_000_000
PROBE_ELEMENTS = 1 << 26
# Array and axis of each size, of an operation on matrices and of attention.
_AXES = {
    "rows": (("x", 0), ("q", 2)),
    "inputs": (("x", 1), ("weight", -1), ("scales", 1), ("biases", 1)),
    "outputs": (("weight", 0), ("scales", 0), ("biases", 0), ("bias", 0)),
    "keys": (("k", 2), ("v", 2), ("mask", 3)),
}


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        vary: the size that was varied.
        fixed: the others.
        probes: size -> whether the operation was wrong there.
        multiple: wrong only where the size is no multiple of this; 0 where that says nothing.
    """

    vary: str
    fixed: Mapping[str, int]
    probes: Mapping[int, bool]
    multiple: int = 0

    @property
    def wrong(self) -> list[tuple[int, int | None]]:
        """Ranges of sizes that are wrong, first and last; the last is None where it is the largest that was tried."""
        found: list[tuple[int, int | None]] = []
        sizes = [size for size in sorted(self.probes) if not self.multiple or size % self.multiple]
        start = None
        for i, size in enumerate(sizes):
            if self.probes[size] and start is None:
                start = size
            if start is not None and not self.probes[size]:
                found.append((start, sizes[i - 1]))
                start = None
        return found if start is None else [*found, (start, None)]

    @property
    def sentence(self) -> str:
        """In words."""
        at = ", ".join(f"{name} = {size}" for name, size in self.fixed.items())
        at = f" at {at}" if at else ""
        smallest, largest = min(self.probes), max(self.probes)
        if not any(self.probes.values()):
            return f"right for {self.vary} from {smallest} to {largest}{at}"
        ranges = []
        for first, last in self.wrong:
            if first == smallest:
                ranges.append(f"all {self.vary}" if last is None else f"{self.vary} <= {last}")
            elif last is None:
                ranges.append(f"{self.vary} >= {first}")
            else:
                ranges.append(f"{self.vary} = {first}" if first == last else f"{first} <= {self.vary} <= {last}")
        words = " and ".join(ranges)
        words += f" that are no multiple of {self.multiple}" if self.multiple else ""
        return f"wrong for {words}{at}"


def sweep(
    op: str, arrays: Arrays, backend: Backend, *, vary: str, device: str, dtype: str, options: Options | None = None,
    largest: int | None = None,
) -> Sweep:  # fmt: skip
    """Vary one size of an operation and find where it changes between right and wrong.

    Args:
        op: of `parity.diagnosis.referee.OPS`.
        arrays: its inputs, of any size; the other sizes stay what they are.
        vary: one of `VARIED` that the operation has.
        device, dtype: as the backend names them.
        largest: not beyond; by default four times the size given, at least 4096.

    Raises:
        ValueError: the operation has no such size.
    """
    options = options or {}
    sizes = referee.OPS[op].sizes(arrays)
    if vary not in sizes or not _axes(arrays, vary) or op == "conv":
        raise ValueError(f"{op} has no size {vary!r} to vary")
    unit = options["group_size"] if op == "quantized_linear" and vary == "inputs" else 1
    way = Way(f"{backend.package} {backend.version}", device, dtype, "whole")

    def wrong(size: int) -> bool:
        judge = Judge.of(op, _resized(arrays, vary, sizes[vary], size), options, dtype)
        return (
            judge is not None and judge(way, next(replay(op, judge.arrays, options, backend, [way], judge.rows))).wrong
        )

    probes = {size: wrong(size) for size in _sizes(op, arrays, vary, sizes[vary], unit, largest)}
    multiple = _smaller(_multiple(probes), unit, wrong, probes)
    for low, high in _changes(probes, multiple):
        _bisect(low, high, unit, multiple, wrong, probes)
    fixed = {name: size for name, size in sizes.items() if name in VARIED and name != vary}
    return Sweep(vary, fixed, probes, multiple)


def boundaries(
    op: str, arrays: Arrays, backend: Backend, *, device: str, dtype: str, options: Options | None = None
) -> list[Sweep]:
    """A sweep over each size that the operation has and whose change makes it right."""
    found = []
    for vary in VARIED:
        try:
            one = sweep(op, arrays, backend, vary=vary, device=device, dtype=dtype, options=options)
        except ValueError:
            continue
        if len(set(one.probes.values())) == 2:
            found.append(one)
    return found


def _axes(arrays: Arrays, vary: str) -> list[tuple[str, int]]:
    found = [(name, axis) for name, axis in _AXES[vary] if name in arrays]
    if vary == "rows" and "q" in arrays and arrays.get("mask") is not None and arrays["mask"].shape[2] > 1:
        found.append(("mask", 2))
    return found


def _resized(arrays: Arrays, vary: str, old: int, new: int) -> dict[str, Array]:
    """The arrays with one size changed: elements repeat, or fall away."""
    found = dict(arrays)
    for name, axis in _axes(arrays, vary):
        length = arrays[name].shape[axis]
        # Packed words and groups are shorter than the inputs they stand for by a whole factor.
        indices = np.arange(new * length // old) % length
        found[name] = np.take(arrays[name], indices, axis)
    return found


def _sizes(op: str, arrays: Arrays, vary: str, given: int, unit: int, largest: int | None) -> list[int]:
    """Powers of two with their neighbours, and the size given, as far as they are affordable."""
    largest = max(4 * given, 4096) if largest is None else largest
    size, found = 1, {given}
    while size <= largest:
        found |= {max(1, n) * unit for n in (size - 1, size, size + 1)}
        size *= 2
    per_one = referee.cost(op, arrays) / given
    grown = max(arrays[name].size for name, _ in _axes(arrays, vary)) / given
    scores = referee.OPS[op].sizes(arrays).get("scores", 0) / given
    return sorted(
        n for n in found
        if n <= largest and n * per_one <= PROBE_COST and n * max(grown, scores) <= PROBE_ELEMENTS
    )  # fmt: skip


def _multiple(probes: Mapping[int, bool]) -> int:
    """The power of two whose multiples are right where their neighbours are wrong; 0 where there is none."""
    wrong = [n for n, bad in probes.items() if bad]
    if not wrong:
        return 0
    for power in (1 << i for i in range(12, 0, -1)):
        between = [n for n in probes if n > min(wrong) and n % power == 0]
        if len(between) >= 2 and not any(probes[n] for n in between) and not any(n % power == 0 for n in wrong):
            rest = [n for n in probes if n >= min(wrong) and n % power]
            if all(probes[n] for n in rest):
                return power
    return 0


def _smaller(multiple: int, unit: int, wrong: Callable[[int], bool], probes: dict[int, bool]) -> int:
    """The smallest power of two whose multiples are right as well."""
    first = min((n for n, bad in probes.items() if bad), default=0)
    while multiple > 2 * unit:
        half = multiple // 2
        size = (first // multiple + 1) * multiple + half
        probes[size] = wrong(size)
        if probes[size]:
            break
        multiple = half
    return multiple


def _changes(probes: Mapping[int, bool], multiple: int) -> list[tuple[int, int]]:
    sizes = [n for n in sorted(probes) if not multiple or n % multiple]
    return [(a, b) for a, b in pairwise(sizes) if probes[a] != probes[b]]


def _bisect(
    low: int, high: int, unit: int, multiple: int, wrong: Callable[[int], bool], probes: dict[int, bool]
) -> None:
    """Narrow a change down to two sizes that follow each other."""
    while True:
        middle = (low + high) // (2 * unit) * unit
        if multiple and middle % multiple == 0:
            middle += unit
        if not low < middle < high:
            return
        probes[middle] = wrong(middle)
        low, high = (middle, high) if probes[middle] == probes[low] else (low, middle)
