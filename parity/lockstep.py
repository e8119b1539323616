"""Running reference, truth and candidate side by side, one stage at a time.

A *chain* is one pass through the model that feeds itself: the reference in the run's dtype,
the truth, the candidate, the reference from jittered inputs, the reference in another
precision mode, and of quantized weights the truth on the original ones. Accumulated mode
compares chains. Isolated mode runs each stage once more from the reference's own state. At any
time one stage of one port is in memory, and only the truth's and the reference's arrays of that
stage are held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parity import profiles, worst
from parity.components.base import DTYPES, Case
from parity.errors import ParityError, PreconditionError
from parity.floor import EXACT, floor_of
from parity.layouts.lora import Adapter
from parity.names import Graph, parse
from parity.ports import Port, Session, State
from parity.rounding import CONSTANT, jitter, round_state
from parity.stats import ArrayStats, Error, binades, describe, distance, error, mismatches
from parity.timing import Clock, Timed

Row = dict[str, Any]
Chains = dict[str, State]
# Checkpoint -> the reference's and the candidate's picture.
Pictures = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Unit:
    """One case in one dtype: what one pass through the stages compares."""

    case: Case
    dtype: str
    modes: tuple[str, ...]
    graph: Graph
    draws: int
    truth: str = "float64"

    @property
    def key(self) -> str:
        """``square.float32``, unique within a run."""
        return f"{self.case.name}.{self.dtype}"


@dataclass
class StageResult:
    """What one stage gave.

    Attributes:
        rows: mode -> measured rows, without verdicts, in the graph's order.
        growth: stage error in and out of the candidate's chain, in relative RMSE.
        stats: side -> full statistics by checkpoint, for the trace.
        pictures: checkpoint -> the reference's and the candidate's, B H W 3 in 0…1, where each port fed itself.
        profiles: mode -> checkpoint that is no match -> where in the array the error lies.
        histograms: the same -> `parity.stats.ArrayStats.histogram` of the candidate, in modes that `stats` is not of.
        seconds: ``SIDE.load``, ``SIDE.run`` of truth, reference and candidate, and ``stage`` for all of it.
    """

    rows: dict[str, list[Row]]
    growth: tuple[float, float] | None = None
    stats: dict[str, dict[str, ArrayStats]] = field(default_factory=dict)
    pictures: Pictures = field(default_factory=dict)
    profiles: dict[str, dict[str, list[profiles.Axis]]] = field(default_factory=dict)
    histograms: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Prepared:
    """The reference's side of one stage.

    Attributes:
        floors: mode -> checkpoint -> floor run -> its error against truth.
        truth: mode -> arrays.
        reference: arrays of the reference in the run's dtype.
        after: the chains after the stage.
        quantization: mode -> checkpoint -> relative RMSE of truth against the truth on the original weights.
    """

    floors: dict[str, dict[str, dict[str, Error]]]
    truth: dict[str, State] = field(default_factory=dict)
    reference: State = field(default_factory=dict)
    after: Chains = field(default_factory=dict)
    quantization: dict[str, dict[str, float]] = field(default_factory=dict)
    _stats: dict[str, ArrayStats] = field(default_factory=dict)
    _floors: dict[tuple[str, str], Row] = field(default_factory=dict)

    def enter(self, mode: str, label: str, values: State) -> None:
        """Reduce one floor run to its errors."""
        for name, runs in self.floors[mode].items():
            runs[label] = error(values[name], self.truth[mode][name])

    def floor_of(self, mode: str, name: str) -> Row:
        """The floor of a checkpoint that is not exact, made once when all floor runs are entered."""
        if (mode, name) not in self._floors:
            self._floors[mode, name] = floor_of(self.floors[mode][name], self.reference[name], self.truth[mode][name])
        return self._floors[mode, name]

    def stats_of(self, name: str) -> ArrayStats:
        """Statistics of the reference's array, made once for both modes."""
        if name not in self._stats:
            self._stats[name] = describe(self.reference[name], chunks=chunks_of(name))
        return self._stats[name]


@dataclass
class _Measured:
    """What is known of one checkpoint in one mode: floor runs, then the candidate.

    An array without elements has a shape, which is judged, and no statistics.
    """

    floor: Mapping[str, Error]
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    error: Error | None = None
    mismatches: int | None = None
    stats: ArrayStats | None = None
    against_reference: Row = field(default_factory=dict)
    worst: list[worst.Element] | None = None
    profiles: list[profiles.Axis] = field(default_factory=list)
    histogram: tuple[int, ...] = ()


class Lockstep:
    """The sessions of one unit.

    Args:
        unit: what to run.
        reference, candidate: opened on the same checkpoint; without a candidate there is `prepare` only.
        weights: its folder.
        adapters: LoRAs that all of them wear.
        original: folder of the weights that `weights` were quantized from, where that error is to be measured.
    """

    def __init__(
        self, unit: Unit, reference: Port, candidate: Port | None, weights: Path, adapters: Sequence[Adapter] = (),
        original: Path | None = None,
    ) -> None:  # fmt: skip
        self.unit = unit
        component = unit.case.component
        self._clock = Clock()
        options = {"component": component} | ({"adapters": tuple(adapters)} if adapters else {})
        self._reference = self._timed(reference.open(weights, dtype=unit.dtype, **options), "reference")
        exact = options | {"dtype": unit.truth, "hold": unit.dtype}
        self._truth = self._timed(reference.open(weights, **exact), "truth")
        self._original = None if original is None else self._timed(reference.open(original, **exact), "original")
        if candidate is not None:
            self._candidate = self._timed(opened(candidate, weights, unit.dtype, options), "candidate")
        self._precisions = reference.precisions(unit.dtype)[1:]
        self.stages = unit.graph.stages

    def _timed(self, session: Session, side: str) -> Session:
        return Timed(session, side, self._clock)

    def start(self, inputs: Mapping[str, np.ndarray]) -> Chains:
        """The chains before the first stage, from the inputs in the run's dtype."""
        chains: Chains = {"reference": dict(inputs)}
        if "accumulated" in self.unit.modes:
            chains["truth"] = round_state(inputs, np.dtype(self.unit.truth))
            chains["candidate"] = dict(inputs)
            if self._original is not None:
                chains["original"] = dict(chains["truth"])
            for draw in range(self.unit.draws):
                chains[f"jitter.{draw}"] = jitter(inputs, (self.unit.case.seed, draw, -1))
            for precision in self._precisions:
                chains[f"precision.{precision}"] = dict(inputs)
        return chains

    def run(self, stage: str, chains: Chains) -> tuple[Chains, StageResult]:
        """Run one stage of everything.

        Returns:
            the chains after the stage, and what was measured.
        """
        with self._clock.on("stage"):
            prepared = self.prepare(stage, chains)
            result = self.measure(stage, chains, prepared)
        result.seconds = self._clock.take()
        return prepared.after, result

    def prepare(self, stage: str, chains: Chains) -> Prepared:
        """Run the reference's side of a stage: truth, reference and floor."""
        names = self.unit.graph.names_of(stage)
        prepared = Prepared({mode: {name: {} for name in names} for mode in self.unit.modes})
        self._run_truth(stage, names, chains, prepared)
        self._run_original(stage, names, chains, prepared)
        self._run_floor(stage, names, chains, prepared)
        return prepared

    def measure(self, stage: str, chains: Chains, prepared: Prepared) -> StageResult:
        """Run the candidate's side of a prepared stage and measure it; adds its chain to ``prepared.after``."""
        measured: dict[str, dict[str, _Measured]] = {
            mode: {name: _Measured(runs) for name, runs in floors.items()} for mode, floors in prepared.floors.items()
        }
        failure, pictures = self._run_candidate(stage, chains, prepared, measured)
        rows = {
            mode: [self._row(name, stage, one, prepared, mode, failure.get(mode)) for name, one in of_mode.items()]
            for mode, of_mode in measured.items()
        }
        shown = measured[self.unit.modes[-1]].items()
        stats = {
            "reference": {name: prepared.stats_of(name) for name, _ in shown},
            "candidate": {name: one.stats for name, one in shown if one.stats is not None},
        }
        result = StageResult(rows, stats=stats, pictures=pictures)
        result.profiles = {
            mode: {name: one.profiles for name, one in of_mode.items() if one.profiles}
            for mode, of_mode in measured.items()
        }
        result.histograms = {
            mode: {name: one.histogram for name, one in of_mode.items() if one.histogram}
            for mode, of_mode in measured.items() if mode != self.unit.modes[-1]
        }  # fmt: skip
        if "candidate" in prepared.after and "truth" in prepared.after:
            before, after = chains["reference"], prepared.after["reference"]
            # What a stage hands on as it got it says nothing about the stage.
            passed = {key for key in before if before[key] is after.get(key)}
            result.growth = (_chain_error(chains, passed), _chain_error(prepared.after, passed))
        return result

    def _run_truth(self, stage: str, names: tuple[str, ...], chains: Chains, prepared: Prepared) -> None:
        with loaded(self._truth, stage) as session:
            if "isolated" in self.unit.modes:
                exact = round_state(chains["reference"], np.dtype(self.unit.truth))
                _, prepared.truth["isolated"] = session.run(stage, exact, names)
            if "accumulated" in self.unit.modes:
                prepared.after["truth"], prepared.truth["accumulated"] = session.run(stage, chains["truth"], names)

    def _run_original(self, stage: str, names: tuple[str, ...], chains: Chains, prepared: Prepared) -> None:
        """What quantization alone changes: the truth against the truth on the original weights, reduced at once."""
        if self._original is None:
            return
        with loaded(self._original, stage) as session:
            for mode in self.unit.modes:
                if mode == "isolated":
                    fed = round_state(chains["reference"], np.dtype(self.unit.truth))
                    _, values = session.run(stage, fed, names)
                else:
                    prepared.after["original"], values = session.run(stage, chains["original"], names)
                prepared.quantization[mode] = {
                    name: error(prepared.truth[mode][name], values[name]).rel_rmse
                    for name in set(names) - self.unit.graph.exact
                }

    def _run_floor(self, stage: str, names: tuple[str, ...], chains: Chains, prepared: Prepared) -> None:
        """All runs of the reference in the run's dtype; each but the first is reduced at once."""
        fed, unit = chains["reference"], self.unit
        index = self.stages.index(stage)
        with loaded(self._reference, stage) as session:
            prepared.after["reference"], prepared.reference = session.run(stage, fed, names)
            for mode in unit.modes:
                prepared.enter(mode, "rounding", prepared.reference)
            for draw in range(unit.draws):
                if "isolated" in unit.modes:
                    moved = jitter(fed, (unit.case.seed, draw, index))
                    prepared.enter("isolated", f"jitter.{draw}", session.run(stage, moved, names)[1])
                self._advance(session, stage, f"jitter.{draw}", chains, prepared, names)
            for precision in self._precisions:
                label = f"precision.{precision}"
                if "isolated" in unit.modes:
                    prepared.enter("isolated", label, session.run(stage, fed, names, precision=precision)[1])
                self._advance(session, stage, label, chains, prepared, names, precision)

    @staticmethod
    def _advance(
        session: Session, stage: str, label: str, chains: Chains, prepared: Prepared, names: tuple[str, ...],
        precision: str = "default",
    ) -> None:  # fmt: skip
        if label in chains:
            prepared.after[label], values = session.run(stage, chains[label], names, precision=precision)
            prepared.enter("accumulated", label, values)

    def _run_candidate(
        self, stage: str, chains: Chains, prepared: Prepared, measured: Mapping[str, dict[str, _Measured]]
    ) -> tuple[dict[str, str], Pictures]:
        """Run the candidate; what it raises is a finding about it and ends its chain, not the run."""
        failure: dict[str, str] = {}
        pictures: Pictures = {}
        names = self.unit.graph.names_of(stage)
        try:
            self._candidate.load(stage)
        except ParityError:
            raise
        except Exception as raised:
            return dict.fromkeys(self.unit.modes, f"loading the stage: {_spell(raised)}"), pictures
        try:
            for mode in self.unit.modes:
                state = chains["reference"] if mode == "isolated" else chains.get("candidate")
                if state is None:
                    failure[mode] = "the candidate's own chain ended in an earlier stage"
                    continue
                try:
                    state, values = self._candidate.run(stage, state, names)
                except ParityError:
                    raise
                except Exception as raised:
                    failure[mode] = _spell(raised)
                    continue
                if mode == "accumulated":
                    prepared.after["candidate"] = state
                    pictures |= {
                        name: (prepared.reference[name], values[name])
                        for name in self.unit.graph.pictures
                        if name in values and values[name].shape == prepared.reference[name].shape
                    }
                for name in set(names) & set(values):
                    shown = mode == self.unit.modes[-1]
                    self._measure(name, values[name], prepared, mode, measured[mode][name], shown=shown)
        finally:
            self._candidate.free(stage)
        return failure, pictures

    def _measure(
        self, name: str, value: np.ndarray, prepared: Prepared, mode: str, one: _Measured, *, shown: bool
    ) -> None:
        """Everything about the candidate's array; afterwards it is not needed any more.

        Args:
            shown: its distribution goes into the trace; of other modes there is that of what is no match.
        """
        one.shape, one.dtype = value.shape, value.dtype.name
        if value.size == 0:
            return
        one.stats = describe(value, chunks=chunks_of(name), distribution=shown)
        truth = prepared.truth[mode][name]
        if value.shape == truth.shape:
            exact = name in self.unit.graph.exact
            right, floor = (prepared.reference[name], EXACT) if exact else (truth, prepared.floor_of(mode, name))
            if exact:
                one.mismatches = mismatches(value, right)
            one.error = error(value, right)
            one.worst = worst.of_measured(value, right, one.error, floor)
            if one.worst:
                one.profiles = profiles.measure(value, right)
                one.histogram = () if shown else binades(value)
            far = distance(value, prepared.reference[name])
            one.against_reference = {
                "rmse": far.rmse, "max_abs": far.max_abs, "max_at": list(far.max_at),
                "cosine": far.cosine, "psnr": far.psnr,
            }  # fmt: skip

    def _row(self, name: str, stage: str, one: _Measured, prepared: Prepared, mode: str, failure: str | None) -> Row:
        """One row of ``parity.json``, without its verdict."""
        expected, stats = prepared.reference[name], one.stats
        exact = name in self.unit.graph.exact
        floor = EXACT if exact else prepared.floor_of(mode, name)
        return {
            "name": name,
            "stage": stage,
            "status": "measured" if one.shape is not None else "skipped" if failure else "missing",
            "reason": failure or "",
            "mismatches": one.mismatches,
            "shape": None if one.shape is None else list(one.shape),
            "expected_shape": list(expected.shape),
            "dtype": one.dtype,
            "rel_rmse": one.error.rel_rmse if one.error else None,
            "peak": one.error.max_abs if one.error else None,
            **floor,
            "precision": None if exact else one.floor["rounding"].rel_rmse,
            "quantization": prepared.quantization.get(mode, {}).get(name),
            **_NOT_COMPARED,
            **one.against_reference,
            "worst": one.worst,
            "reference": prepared.stats_of(name).brief(),
            "candidate": stats.brief() if stats else None,
            "range": None,
        }


_NOT_COMPARED: Row = dict.fromkeys(("rmse", "max_abs", "max_at", "cosine", "psnr"))


def opened(candidate: Port, weights: Path, dtype: str, options: Mapping[str, Any]) -> Session:
    """The candidate's session; what it raises becomes one line for the user.

    Raises:
        PreconditionError: the candidate does not open this checkpoint.
    """
    try:
        return candidate.open(weights, dtype=dtype, **options)
    except ParityError:
        raise
    except Exception as raised:
        raise PreconditionError(
            f"candidate {candidate.name} does not open {weights} in {dtype}: {type(raised).__name__}: {raised}"
        ) from raised


class loaded:
    """Context manager: a session with one stage's weights in memory."""

    def __init__(self, session: Session, stage: str) -> None:
        self._session, self._stage = session, stage

    def __enter__(self) -> Session:
        self._session.load(self._stage)
        return self._session

    def __exit__(self, *_: object) -> None:
        self._session.free(self._stage)


def _spell(raised: Exception) -> str:
    return f"the candidate raised {type(raised).__name__}: {raised}"[:300]


def chunks_of(name: str) -> int:
    """Into how many parts the documented ranges of shift and scale take a checkpoint's last axis; 0 where none do."""
    parts = parse(name)
    return 6 if parts.kind == "mod" and parts.block is not None else 0


# What does not grow from stage to stage.
_STILL = (*CONSTANT, "controlnet.", "temb")


def _chain_error(chains: Chains, passed: set[str]) -> float:
    """Relative RMSE of the candidate's chain against the truth's, rms over the tensors that are not passed on."""
    truth, candidate = chains["truth"], chains["candidate"]
    squares = [
        error(candidate[key], truth[key]).rel_rmse ** 2
        for key, array in chains["reference"].items()
        if array.ndim >= 2 and array.dtype in DTYPES.values() and key not in passed and not key.startswith(_STILL)
        and key in candidate and candidate[key].shape == truth[key].shape
    ]  # fmt: skip
    return math.sqrt(sum(squares) / len(squares)) if squares else math.nan


def iterate(lockstep: Lockstep, chains: Chains, done: int) -> Iterator[tuple[str, Chains, StageResult]]:
    """Run the stages after the first `done` ones, handing out chains and results after each."""
    for stage in lockstep.stages[done:]:
        chains, result = lockstep.run(stage, chains)
        yield stage, chains, result
