"""One run of a suite: units in lockstep, journalled stage by stage, assembled at the end."""

from __future__ import annotations

import hashlib
import itertools
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from parity import histograms, memory, outside, profiles, result, run_pictures, trace, workers
from parity.components.base import Case
from parity.disk import free_on
from parity.errors import ResourceError
from parity.guarded import GuardedPort
from parity.lockstep import Chains, Lockstep, StageResult, Unit, iterate
from parity.lora import LoraFile
from parity.model_folder import ModelFolder
from parity.ports import BUILTIN, Port, environment, open_port, spell
from parity.prefetch import Prefetcher
from parity.rangetable import RangeTable
from parity.runfolder import RunFolder
from parity.suite import Suite

# Measured: a journal line and its share of parity.json and the traces, per checkpoint and mode; 3,900 bytes of it are
# the profiles and histograms, in the journal and written, of a port that is wrong everywhere.
BYTES_PER_ROW = 7900
# Weights above this size keep all cores busy with one unit, and the memory with one stage of it.
LARGE_BYTES = 1 << 30

# Told after each stage: (unit, stage, stages done of all, stages of all).
Progress = Callable[[str, str, int, int], None]


@dataclass(frozen=True)
class Job:
    """Everything that decides what a run computes; it can be sent to another process.

    Attributes:
        suite: narrowed to what is to be run.
        model: inspected weights.
        candidate: the port under test, as `parity.ports.open_port` takes it.
        truth: dtype of the truth, ``float64`` or ``float32``.
        jobs: units run at once, each in a process of its own; 1 is this process.
        loras: LoRAs that both sides wear.
        original: the weights that those of `model` were quantized from, where that error is to be measured.
        reference: the port it is held against, named in the same way. Where either is an object, `jobs` is 1.
    """

    suite: Suite
    model: ModelFolder
    candidate: str | Port
    truth: str = "float64"
    jobs: int = 1
    loras: tuple[LoraFile, ...] = ()
    original: ModelFolder | None = None
    reference: str | Port = "reference"

    @property
    def units(self) -> list[Unit]:
        """Cases × dtypes, in the suite's order."""
        return [
            Unit(planned.case, dtype, planned.modes, graph, planned.draws, self.truth)
            for planned in self.suite.cases
            for _, graph in [outside.graph(planned.case, self.model.configs, planned.detail)]
            for dtype in planned.dtypes
        ]

    def ports(self) -> dict[str, Any]:
        """What opens the same ports on the same weights again: ``ports`` of ``parity.json``."""
        return {
            "candidate": spell(self.candidate),
            "reference": spell(self.reference),
            "weights": str(self.model.root.resolve()),
            "lora": [f"{one.adapter.path.resolve()}@{one.adapter.scale}" for one in self.loras],
        }

    def plan(self, fingerprint: str) -> dict[str, Any]:
        """What must be equal for an unfinished run to be taken up again."""
        return {
            "suite": asdict(self.suite),
            "weights": fingerprint,
            "lora": [{"sha256": lora.sha256, "scale": lora.adapter.scale} for lora in self.loras],
            "original": self.original.fingerprint() if self.original else None,
            "candidate": spell(self.candidate),
            "reference": spell(self.reference),
            # A component from outside may have changed since.
            "graphs": [_digest(unit) for unit in self.units if unit.case.plain] if self.suite.plain else [],
            "truth": self.truth,
            "versions": {name: _version(name) for name in ("mlx", "torch", "diffusers", "peft", "numpy", "mlx-parity")},
        }


def _digest(unit: Unit) -> str:
    """What tells a unit's component and graph from others."""
    made = (unit.case.component, *unit.graph.parents.items(), *unit.graph.stage.items(), unit.graph.expected)
    return hashlib.sha256(repr((made, sorted(unit.graph.exact), unit.graph.pictures)).encode()).hexdigest()


def open_reference(spec: str | Port) -> Port:
    """The reference that a job names; a user's own is watched (`parity.guarded`)."""
    port = open_port(spec)
    return port if isinstance(spec, str) and spec in BUILTIN else GuardedPort(port)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def default_jobs(model: ModelFolder, units: int) -> int:
    """As many units at once as there are cores; one where the weights are large enough to fill them."""
    return 1 if model.nbytes > LARGE_BYTES else max(1, min(units, workers.usable_cores()))


def run(
    job: Job, folder: RunFolder, command: str, progress: Progress, lockstep: type[Lockstep] = Lockstep
) -> result.Run:
    """Run what is not yet done of a job and write ``parity.json``.

    Args:
        job: what to run.
        folder: where to.
        command: that was given, for the report.
        progress: told after each stage.
        lockstep: what runs a unit's stages.

    Returns:
        the contents of ``parity.json``.

    Raises:
        ResourceError: not enough room on the disk.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    units = job.units
    _check_room(folder.path, units)
    found_in, peak = _run_units(job, units, folder, progress, lockstep)
    cases = []
    spent: Counter[str] = Counter()
    stages: dict[str, dict[str, float]] = {}
    for unit in units:
        lines, _ = _taken_up(folder, unit)
        cases += _cases(job, unit, lines)
        for line in lines:
            spent.update(line["seconds"])
        stages[unit.key] = {line["stage"]: round(line["seconds"]["stage"], 4) for line in lines}
        _write_traces(job, unit, lines, folder.path, found_in)
    original = {"original": job.original.describe()} if job.original else {}
    ranges = {"ranges": job.suite.ranges.contents()} if job.suite.ranges else {}
    about = {
        "weights": job.model.describe() | {"lora": [lora.describe() for lora in job.loras]} | original,
        "environment": found_in,
        "suite": job.suite.name,
        **ranges,
        "ports": job.ports(),
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 1),
        "resources": {
            "peak_bytes": peak,
            "spent": {what: round(took, 2) for what, took in sorted(spent.items())},
            "stages": stages,
        },
    }
    assembled = result.assemble(cases, about, RangeTable.load("qwen-image"))
    folder.finish(assembled)
    return assembled


def _run_units(
    job: Job, units: list[Unit], folder: RunFolder, progress: Progress, lockstep: type[Lockstep]
) -> tuple[dict[str, Any], int]:
    """Bring all units onto the disk; gives the environment in which they were run, and the largest process's size."""
    total = sum(len(unit.graph.stages) for unit in units)
    found: dict[str, Any] = {}
    done = peak = 0

    def told(message: tuple[str, Any]) -> None:
        nonlocal done, peak
        kind, value = message
        if kind == "environment":
            found.update(value)
        elif kind == "peak":
            peak = max(peak, value)
        else:
            done += 1
            progress(*value, done, total)

    tasks = [partial(_unit_task, job, unit, folder.path, lockstep) for unit in units]
    if job.jobs > 1:
        workers.run(tasks, job.jobs, told)
    else:
        for task in tasks:
            for message in task():
                told(message)
    return found, peak


def _unit_task(job: Job, unit: Unit, path: Path, lockstep: type[Lockstep]) -> Iterator[tuple[str, Any]]:
    """Run the stages of a unit that are not on disk yet; tells the environment and every stage, old and new."""
    folder = RunFolder(path)
    reference, candidate = open_reference(job.reference), open_port(job.candidate)
    yield "environment", _environment(reference, candidate, job.jobs)
    lines, chains = _taken_up(folder, unit)
    yield from (("stage", (unit.key, line["stage"])) for line in lines)
    if folder.is_done(unit.key):
        return
    original = job.original.root if job.original else None
    side_by_side = lockstep(unit, reference, candidate, job.model.root, [lora.adapter for lora in job.loras], original)
    if chains is None:
        chains = side_by_side.start(outside.inputs(unit.case, job.model.configs, unit.dtype))
    for done, (stage, after, stage_result) in enumerate(
        _stages(job, unit, side_by_side, chains, len(lines)), len(lines) + 1
    ):
        entry = _entry(stage, stage_result)
        entry["pictures"] = run_pictures.keep(path, unit.key, stage_result.pictures)
        folder.stage_done(unit.key, entry, after, done)
        yield "stage", (unit.key, stage)
    folder.unit_done(unit.key)
    yield "peak", memory.peak()


# Of a journal line; what came later has a value for the lines of earlier versions.
_KEYS = ("stage", "rows", "growth", "stats", "pictures", "seconds")
_LATER: dict[str, Any] = {"profiles": {}, "histograms": {}}


def _taken_up(folder: RunFolder, unit: Unit) -> tuple[list[dict[str, Any]], Chains | None]:
    """`RunFolder.resume`, with what lines of an earlier version have not.

    Raises:
        UsageError: the journal is garbled, or so old that what a report needs is not in it.
    """
    lines, chains = folder.resume(unit.key)
    for number, line in enumerate(lines, 1):
        lacking = [key for key in _KEYS if key not in line] if isinstance(line, dict) else ["everything"]
        if lacking:
            what = f"line {number} lacks {', '.join(lacking)}, another version wrote it"
            raise folder.unreadable(folder.path / "work" / f"{unit.key}.jsonl", what)
    return [_LATER | line for line in lines], chains


def _stages(
    job: Job, unit: Unit, lockstep: Lockstep, chains: Chains, done: int
) -> Iterator[tuple[str, Chains, StageResult]]:
    """`parity.lockstep.iterate`, with the weights of a large model read one stage ahead."""
    if not streams(job.model, [unit.case]):
        yield from iterate(lockstep, chains, done)
        return
    with Prefetcher(job.model.checkpoints, lockstep.stages) as ahead:
        for stage, following in itertools.pairwise([*lockstep.stages[done:], None]):
            ahead.wait(stage)
            ahead.begin(following)
            chains, found = lockstep.run(stage, chains)
            yield stage, chains, found
            memory.give_back()


def streams(model: ModelFolder, cases: Iterable[Case]) -> bool:
    """Whether weights are looked at while they are used: they are many, and every stage has its own."""
    return model.nbytes > LARGE_BYTES and all(case.streamed for case in cases)


def _environment(reference: Port, candidate: Port, jobs: int) -> dict[str, Any]:
    """Versions, devices and precision settings of both sides, and the machine."""
    return {
        "reference": environment(reference),
        "candidate": environment(candidate),
        "host": {
            "system": platform.platform(terse=True),
            "machine": platform.machine(),
            "cores": workers.usable_cores(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "units_at_once": jobs,
        },
    }


def _entry(stage: str, found: StageResult) -> dict[str, Any]:
    # vars, not asdict: a deep copy of every histogram takes longer than measuring the array did.
    stats = {side: {name: vars(one) for name, one in of.items()} for side, of in found.stats.items()}
    where = {
        mode: {name: [axis.packed() for axis in axes] for name, axes in of_mode.items()}
        for mode, of_mode in found.profiles.items()
    }
    return {
        "stage": stage, "rows": found.rows, "growth": found.growth, "stats": stats, "profiles": where,
        "histograms": found.histograms, "seconds": found.seconds,
    }  # fmt: skip


def _cases(job: Job, unit: Unit, lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One case of ``parity.json`` per mode of a unit."""
    detail = {planned.case.name: planned.detail for planned in job.suite.cases}[unit.case.name]
    described, _ = outside.graph(unit.case, job.model.configs, detail)
    for mode in unit.modes:
        case = {
            "name": unit.case.name,
            "mode": mode,
            "dtype": unit.dtype,
            "component": unit.case.component,
            "graph": described,
            "inputs": outside.describe(unit.case),
            "request": asdict(unit.case),
            "amplification": _amplification(lines) if mode == "accumulated" else None,
            "pictures": [one for line in lines for one in line["pictures"]] if mode == "accumulated" else [],
            "checkpoints": [row for line in lines for row in line["rows"][mode]],
        }
        yield case


def _amplification(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Stage -> error out over error in. The first stage starts from equal inputs and has none."""
    growth = {line["stage"]: line["growth"] for line in lines if line["growth"]}
    return {stage: after / before for stage, (before, after) in growth.items() if before > 0}


def _write_traces(job: Job, unit: Unit, lines: list[dict[str, Any]], path: Path, found_in: dict[str, Any]) -> None:
    for side in ("reference", "candidate"):
        stats = {name: figures for line in lines for name, figures in line["stats"][side].items()}
        about = {
            "side": side,
            "case": outside.describe(unit.case) | {"name": unit.case.name},
            "dtype": unit.dtype,
            "mode": unit.modes[-1],
            "component": unit.case.component,
            "configs": {folder: job.model.configs[folder] for folder in unit.case.folders},
            "environment": found_in[side],
        }
        trace.write(path / "trace" / unit.key / side, stats, about)
    profiles.write(path / "trace" / unit.key, (line["profiles"] for line in lines))
    histograms.write(path / "trace" / unit.key, (line["histograms"] for line in lines))


def _check_room(path: Path, units: list[Unit]) -> None:
    need = sum(len(unit.graph.expected) * len(unit.modes) for unit in units) * BYTES_PER_ROW
    free = free_on(path)
    if free < need:
        raise ResourceError(
            f"{path}: the run writes about {need / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free; "
            "free some or choose another --out"
        )
