"""What a run will take, before it starts: time, and memory at its largest.

The memory model: the two frameworks; one stage's weights, as mapped by the reference or as copied by
the candidate; the truth's arrays of that stage in each mode, the reference's and the candidate's; what a
stage holds while it computes; a third on top for what allocators keep. Time is arithmetic at the rate that
this machine's matrix products reach, or reading, whichever is longer.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from parity.checkpoint import Checkpoint
from parity.components.base import DTYPES
from parity.errors import ResourceError
from parity.lockstep import Unit
from parity.memory import spell
from parity.model_folder import ModelFolder
from parity.prefetch import number_in
from parity.safetensors_header import DTYPE_BYTES

# Measured: a process that has imported torch, diffusers and MLX.
FRAMEWORKS = 450 << 20
# Measured: what allocators keep beyond the arrays that are alive.
SLACK = 1.3
# Measured: share of a bare matrix product's rate that a whole pass of a transformer reaches on a CPU.
EFFICIENCY = 0.55
# Precision modes of the reference on a CPU, beside its default.
PRECISIONS = 1


@dataclass(frozen=True)
class Rates:
    """What this machine reaches: floating-point operations a second, and bytes a second from the disk."""

    float32: float
    float64: float
    read: float

    def of(self, dtype: str) -> float:
        """Rate of products in a dtype; half precision is computed in float32."""
        return self.float64 if dtype == "float64" else self.float32


@dataclass(frozen=True)
class Estimate:
    """Of one unit.

    Attributes:
        peak_bytes: largest resident size.
        seconds: None where the component's work is not known, or it does not run on the CPU.
        passes: side -> passes through the model.
    """

    peak_bytes: int
    seconds: float | None
    passes: Mapping[str, int]


def estimate(
    unit: Unit, model: ModelFolder, level: str, rates: Rates | None = None, *, original: bool = False
) -> Estimate:
    """Estimate one unit.

    Args:
        unit: what is to run.
        model: inspected weights.
        level: of the unit's checkpoints.
        rates: without them no time is estimated.
        original: whether the truth is run on the original weights as well.
    """
    passes, modes = _passes(unit, original), len(unit.modes)
    folders = {folder: one for folder, one in model.checkpoints.items() if folder in unit.case.folders}
    weights = sum(_stage_bytes(one, unit) for one in folders.values())
    work = unit.case.work(model.configs, level)
    wide, narrow = np.dtype(unit.truth).itemsize, DTYPES[unit.dtype].itemsize
    arrays = 0
    if work is not None:
        chains = 3 + unit.draws + PRECISIONS if "accumulated" in unit.modes else 1
        arrays = work.captured * (wide * (modes + 1) + 2 * narrow) + 2 * wide * work.inside
        arrays += chains * work.state * wide
    seconds = None
    if work is not None and rates is not None:
        computing = arithmetic(unit, model, level, rates, original=original) / EFFICIENCY
        seconds = max(computing, sum(one.nbytes for one in folders.values()) / rates.read)
    return Estimate(int((FRAMEWORKS + weights + arrays) * SLACK), seconds, passes)


def _passes(unit: Unit, original: bool = False) -> dict[str, int]:
    """Side -> passes through the model."""
    modes = len(unit.modes)
    truths = {"truth": modes} | ({"original": modes} if original else {})
    return {**truths, "reference": 1 + (unit.draws + PRECISIONS) * modes, "candidate": modes}


def arithmetic(unit: Unit, model: ModelFolder, level: str, rates: Rates, *, original: bool = False) -> float:
    """Seconds that the matrix products of all passes take at the bare rate; NaN where they are not known."""
    work, passes = unit.case.work(model.configs, level), _passes(unit, original)
    if work is None:
        return math.nan
    in_dtype = passes["reference"] + passes["candidate"]
    in_truth = passes["truth"] + passes.get("original", 0)
    return work.flops * (in_truth / rates.of(unit.truth) + in_dtype / rates.of(unit.dtype))


def _stage_bytes(checkpoint: Checkpoint, unit: Unit) -> int:
    """The largest stage's weights in memory, on the side that takes more."""
    of_stage: Counter[int | None] = Counter()
    for name, entry in checkpoint.located.entries.items():
        count = math.prod(entry.true_shape)
        # The reference maps plain weights as they are stored, and dequantizes packed ones to float32; MLX copies
        # plain ones in the run's dtype, and keeps packed ones packed.
        width = 4 if entry.packing else max(DTYPE_BYTES[entry.dtype], DTYPES[unit.dtype].itemsize)
        of_stage[number_in(name) if unit.case.streamed else None] += count * width
    return max(of_stage.values(), default=0)


def check_memory(units: Sequence[tuple[Unit, str]], model: ModelFolder, jobs: int, available: int) -> int:
    """Refuse what does not fit.

    Args:
        units: with the level of each.
        model: inspected weights.
        jobs: units that run at once.
        available: bytes.

    Returns:
        the estimated peak of all processes together.

    Raises:
        ResourceError: not enough memory; says what would do.
    """

    def peak(change: Callable[[Unit], Unit] = lambda unit: unit, jobs: int = jobs) -> int:
        each = sorted((estimate(change(unit), model, level).peak_bytes for unit, level in units), reverse=True)
        return sum(each[:jobs])

    need = peak()
    if need <= available:
        return need
    found = [f"{how} needs {spell(most)}" for how, most in _ways_out(peak, jobs) if most <= available]
    advice = f"what would do: {'; '.join(found)}" if found else _NOTHING_DOES
    largest, _ = max(units, key=lambda pair: estimate(pair[0], model, pair[1]).peak_bytes)
    raise ResourceError(
        f"not enough memory: about {spell(need)} needed (case {largest.case.name}, {largest.dtype}, "
        f"{jobs} at once), {spell(available)} available; {advice}"
    )


_NOTHING_DOES = "no option would do: close other programs, compare a smaller case, or use a larger machine"


def _ways_out(peak: Callable[..., int], jobs: int) -> Iterator[tuple[str, int]]:
    """(Options of ``parity run``, what they need), the mildest first."""
    if jobs > 1:
        yield "--jobs 1", peak(jobs=1)
    yield "--truth float32 --jobs 1", peak(lambda unit: replace(unit, truth="float32"), 1)


def measure_rates(model: ModelFolder) -> Rates:
    """Time matrix products and a read from the middle of the weights; about a second."""
    return Rates(_flops(np.dtype(np.float32)), _flops(np.dtype(np.float64)), _read_rate(model))


def _flops(dtype: np.dtype, n: int = 1024, budget: float = 0.3) -> float:
    a, b = (np.random.default_rng(seed).standard_normal((n, n)).astype(dtype) for seed in (0, 1))
    best, begun = math.inf, time.perf_counter()
    while time.perf_counter() - begun < budget:
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def _read_rate(model: ModelFolder, size: int = 64 << 20) -> float:
    path, length = max(_files(model), key=lambda pair: pair[1])
    with path.open("rb", buffering=0) as file:
        file.seek(length // 2)
        start = time.perf_counter()
        got = len(file.read(size))
    return got / max(time.perf_counter() - start, 1e-6)


def _files(model: ModelFolder) -> Iterator[tuple[Path, int]]:
    for one in model.checkpoints.values():
        yield from ((one.located.folder / shard.name, shard.size) for shard in one.shards)
