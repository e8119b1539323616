"""Recording traces: the reference's, with truth and floor inside (golden), and a port's own.

A golden trace lets somebody judge a port with neither torch nor the reference's weights: it has, of every
checkpoint, a sketch of the truth, the reference's statistics, and how far the reference itself is from the truth.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from parity import memory, outside, trace
from parity.casefile import case_hash, request, write_inputs
from parity.components.base import Case
from parity.disk import room_for
from parity.floor import EXACT, floor_of
from parity.layouts.lora import Adapter
from parity.lockstep import Lockstep, Prepared, Unit, chunks_of, loaded, opened
from parity.model_folder import ModelFolder
from parity.ports import Port, State, environment
from parity.prefetch import Prefetcher
from parity.rangetable import RangeTable
from parity.run import streams
from parity.sketch import DEFAULT, Spec, sketch
from parity.stats import describe
from parity.trace import Floor

# Told before each stage: its name, stages done, stages of all.
Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Wanted:
    """What a trace is to hold besides statistics.

    Attributes:
        mode: ``accumulated`` or ``isolated``.
        level: of detail that the unit's graph has.
        keep: patterns (``block.07.*``) of checkpoints whose whole values are kept.
        spec: of the sketches.
        ranges: a table of the suite's own, which comparisons check too.
        command: that was given, for the manifest.
    """

    mode: str = "accumulated"
    level: str = "block"
    keep: tuple[str, ...] = ()
    spec: Spec = DEFAULT
    ranges: RangeTable | None = None
    command: str = ""

    def keeps(self, name: str) -> bool:
        """Whether a checkpoint's whole values are kept."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.keep)


@dataclass
class _Made:
    """A trace in the making."""

    stats: dict[str, Any] = field(default_factory=dict)
    sketches: dict[str, np.ndarray] = field(default_factory=dict)
    floors: dict[str, Floor] = field(default_factory=dict)


def record_golden(
    unit: Unit, reference: Port, model: ModelFolder, folder: Path, wanted: Wanted, told: Told,
    adapters: Sequence[Adapter] = (),
) -> int:  # fmt: skip
    """Record a unit of the reference with truth and floor.

    Values that must be equal bit for bit (`Graph.exact`) are kept whole, and those of `Wanted.keep`, in the
    truth's dtype.

    Args:
        unit: whose modes are ignored for that of `wanted`.
        reference: opened on `model`.
        model: its weights.
        folder: to write.
        wanted: what the trace is to hold.
        told: told before each stage.
        adapters: LoRAs that the reference wears.

    Returns:
        how many checkpoints were recorded.
    """
    unit = Unit(unit.case, unit.dtype, (wanted.mode,), unit.graph, unit.draws, unit.truth)
    side_by_side = Lockstep(unit, reference, None, model.root, adapters)
    inputs = outside.inputs(unit.case, model.configs, unit.dtype)
    chains, made = side_by_side.start(inputs), _Made()
    for stage in _stages(unit, model, told):
        prepared = side_by_side.prepare(stage, chains)
        _add_golden(unit, stage, prepared, made, folder, wanted)
        chains = prepared.after
    about = _about(unit, model, wanted, inputs, environment(reference), "golden") | {"truth": unit.truth}
    trace.write(folder, made.stats, about, floors=made.floors, sketches=made.sketches, spec=wanted.spec)
    return len(made.stats)


def _add_golden(unit: Unit, stage: str, prepared: Prepared, made: _Made, folder: Path, wanted: Wanted) -> None:
    mode = wanted.mode
    for name in unit.graph.names_of(stage):
        truth, value, exact = prepared.truth[mode][name], prepared.reference[name], name in unit.graph.exact
        runs = prepared.floors[mode][name]
        noise = EXACT if exact else floor_of(runs, value, truth)
        precision = None if exact else runs["rounding"].rel_rmse
        # The rms as errors are measured with: a truth that is not finite makes it so.
        rms = float(np.sqrt(np.mean(np.square(truth, dtype=np.float64))))
        made.stats[name] = vars(describe(value, chunks=chunks_of(name)))
        made.floors[name] = Floor(**noise, precision=precision, truth_rms=rms)
        if exact:
            _keep(folder, name, value)
            continue
        made.sketches[name] = sketch(truth, wanted.spec)
        if wanted.keeps(name):
            _keep(folder, name, truth)


def record_port(
    unit: Unit, port: Port, reference: Port, model: ModelFolder, folder: Path, wanted: Wanted, told: Told,
    adapters: Sequence[Adapter] = (),
) -> int:  # fmt: skip
    """Record a port's own trace, to be compared with a golden one.

    Args:
        unit: whose modes are ignored for that of `wanted`.
        port: to record.
        reference: gives the states of isolated mode; not opened in accumulated mode.
        model, folder, wanted, told, adapters: see `record_golden`.

    Returns:
        how many of the expected checkpoints the port gave.
    """
    options = {"component": unit.case.component} | ({"adapters": tuple(adapters)} if adapters else {})
    session = opened(port, model.root, unit.dtype, options)
    feeding = reference.open(model.root, dtype=unit.dtype, **options) if wanted.mode == "isolated" else None
    inputs = outside.inputs(unit.case, model.configs, unit.dtype)
    state, made = dict(inputs), _Made()
    for stage in _stages(unit, model, told):
        with loaded(session, stage):
            after, values = session.run(stage, state, unit.graph.names_of(stage))
        for name in (name for name in unit.graph.names_of(stage) if name in values and values[name].size):
            value = values[name]
            made.stats[name] = vars(describe(value, chunks=chunks_of(name)))
            made.sketches[name] = sketch(value, wanted.spec)
            if name in unit.graph.exact or wanted.keeps(name):
                _keep(folder, name, value)
        state = after if feeding is None else _fed(feeding, stage, state)
    about = _about(unit, model, wanted, inputs, environment(port), "candidate")
    trace.write(folder, made.stats, about, sketches=made.sketches, spec=wanted.spec)
    return len(made.stats)


def _fed(session: Any, stage: str, state: State) -> State:
    with loaded(session, stage):
        return session.run(stage, state, ())[0]


def export_states(
    case: Case, dtype: str, reference: Port, model: ModelFolder, folder: Path, told: Told, stages: Sequence[str]
) -> Iterator[Path]:
    """Write the reference's state before each stage, a case file each, for isolated mode by hand.

    Args:
        case: whose states.
        dtype: that the reference computes in.
        reference: opened on `model`.
        model: its weights.
        folder: where to.
        told: told before each stage.
        stages: all stages in order.

    Yields:
        each file written.
    """
    session = reference.open(model.root, dtype=dtype, component=case.component)
    state: State = dict(outside.inputs(case, model.configs, dtype))
    for done, stage in enumerate(stages):
        told(stage, done, len(stages))
        path = folder / f"{stage}.safetensors"
        write_inputs(path, state, case, dtype, stage)
        yield path
        if done + 1 < len(stages):
            state = _fed(session, stage, state)


def _stages(unit: Unit, model: ModelFolder, told: Told) -> Iterator[str]:
    """The stages in order, with the weights of a large model read one stage ahead."""
    stages = unit.graph.stages
    if not streams(model, [unit.case]):
        for done, stage in enumerate(stages):
            told(stage, done, len(stages))
            yield stage
        return
    with Prefetcher(model.checkpoints, stages) as ahead:
        for done, (stage, following) in enumerate(itertools.pairwise([*stages, None])):
            told(stage, done, len(stages))
            ahead.wait(stage)
            ahead.begin(following)
            yield stage
            memory.give_back()


def _keep(folder: Path, name: str, value: np.ndarray) -> None:
    path = trace.tensor_file(folder, name)
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(value)}, path)


def _about(
    unit: Unit, model: ModelFolder, wanted: Wanted, inputs: State, found: Mapping[str, Any], side: str
) -> dict[str, Any]:  # fmt: skip
    """What the manifest says."""
    own = {"ranges": wanted.ranges.contents()} if wanted.ranges else {}
    return own | {
        "side": side,
        "case": outside.describe(unit.case) | {"name": unit.case.name},
        "case_hash": case_hash(inputs),
        "request": request(unit.case, unit.dtype)["case"],
        "dtype": unit.dtype,
        "mode": wanted.mode,
        "component": unit.case.component,
        "graph": outside.graph(unit.case, model.configs, wanted.level)[0],
        "configs": {folder: model.configs[folder] for folder in unit.case.folders},
        "weights": model.describe(),
        "environment": found,
        "command": wanted.command,
    }
