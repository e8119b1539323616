"""The causes of a finished run's divergence: its ports are opened again, and what is wrong is explained."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parity.components.base import Case
from parity.diagnosis.causes import Finding, assemble
from parity.diagnosis.evidence import Local, Stage
from parity.diagnosis.fault import Fault, by_code
from parity.diagnosis.fingerprint import fingerprint
from parity.diagnosis.recipes import place_class
from parity.diagnosis.reference_bad import also_bad
from parity.diagnosis.reopen import Reopened, case_of
from parity.diagnosis.result import Cause, Diagnosis, Unexplained
from parity.diagnosis.search import LIMITS, Limits, Search
from parity.diagnosis.signs import signs
from parity.names import parse

# Checkpoints of one kind and stream that are searched through in full; others are held against what was found there.
SEARCHED = 2
_SHARPEST_FIRST = ("float32", "bfloat16", "float16")
# Unexplained checkpoints whose products are made once more by the candidate's library, some seconds each.
REPLAYS = 2
# Told while it goes on: what is being looked at.
Progress = Callable[[str], None]


@dataclass
class _Unit:
    """One case in one dtype of a run, and what is wrong in it.

    Attributes:
        flagged: stage -> checkpoints that diverged there, or are suspect beside one that did.
        sources: of the run's own verdict, in order.
    """

    case: Case
    dtype: str
    mode: str
    flagged: dict[str, list[str]]
    sources: list[str]


@dataclass
class _Log:
    """What was found so far."""

    findings: list[Finding] = field(default_factory=list)
    suspected: list[Cause] = field(default_factory=list)
    unexplained: list[Unexplained] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    first: dict[str, str] | None = None
    replays: int = 0
    other_weights: set[tuple[str, str | None]] = field(default_factory=set)

    def note(self, line: str) -> None:
        """Say something once."""
        if line not in self.notes:
            self.notes.append(line)


def diagnose(
    run: Mapping[str, Any], ports: Reopened, catalogue: Sequence[Fault], told: Progress = lambda _: None,
    limits: Limits = LIMITS,
) -> Diagnosis:  # fmt: skip
    """Explain a run.

    Args:
        run: contents of ``parity.json``.
        ports: on the run's weights.
        catalogue: faults to try.
        told: see `Progress`.
        limits: of the search.

    Raises:
        UsageError: the run cannot be run again.
    """
    clock, log = time.monotonic(), _Log()
    search = Search(catalogue, limits)
    units = list(_units(run))
    covered: set[str] = set()
    for unit in sorted(units, key=lambda one: (_SHARPEST_FIRST.index(one.dtype), one.mode != "isolated")):
        if set(unit.sources) <= covered:
            continue
        covered |= set(unit.sources)
        told(f"{unit.case.name}, {unit.dtype}")
        _investigate(unit, ports, search, log, limits)
    diagnosis = assemble(log.findings, log.unexplained, log.suspected)
    diagnosis.causes += _reference_too(run)
    diagnosis.notes = log.notes + diagnosis.notes
    diagnosis.first = log.first or run["first_divergence"]
    diagnosis.seconds = time.monotonic() - clock
    return diagnosis


def _reference_too(run: Mapping[str, Any]) -> list[Cause]:
    """Where the reference in a run's dtype is as far from the truth as the port: one cause a dtype."""
    causes: dict[str, Cause] = {}
    for row in run["cases"]:
        for bad in also_bad(row["checkpoints"]):
            fault = by_code("reference.also_bad")
            first = Cause(
                fault.code, fault.title, fault.fix, fault.seen, "likely", [], [f"{row['dtype']}: {bad.reason}"]
            )
            cause = causes.setdefault(row["dtype"], first)
            cause.where += [bad.name] if bad.name not in cause.where else []
            cause.evidence = cause.evidence or dict(bad.evidence)
    return list(causes.values())


def _units(run: Mapping[str, Any]) -> Iterator[_Unit]:
    """The cases in which something diverged; accumulated ones where there is no isolated one to show it."""
    isolated = {(row["name"], row["dtype"]) for row in run["cases"] if row["mode"] == "isolated" and row["sources"]}
    for row in run["cases"]:
        if not row["sources"] or (row["mode"] != "isolated" and (row["name"], row["dtype"]) in isolated):
            continue
        sources = row["sources"]
        wrong: dict[str, list[str]] = {}
        for one in row["checkpoints"]:
            if one["verdict"] == "diverged" and (row["mode"] == "isolated" or one["source"]):
                wrong.setdefault(one["stage"], []).append(one["name"])
        yield _Unit(case_of(row), row["dtype"], row["mode"], wrong, sources)


def _investigate(unit: _Unit, ports: Reopened, search: Search, log: _Log, limits: Limits) -> None:
    case = _looking_inside(unit)
    if place_class(case.component) is None:
        log.unexplained += [Unexplained(name, float("nan"), "no experiments are written for this component")
                            for name in unit.sources]  # fmt: skip
        return
    seen: dict[tuple[str, str | None], int] = {}
    isolated = unit.mode == "isolated"
    for stage, name, raised in ports.stages(case, unit.dtype, unit.flagged, isolated=isolated):
        if stage is None:
            log.unexplained.append(Unexplained(unit.flagged[name][0], float("nan"), f"the candidate raised {raised}"))
            continue
        wrong = wrong_of(stage, limits)
        if any(seen.get(_like(one.name), 0) < SEARCHED for one in wrong):
            stage.verify()
            wrong = wrong_of(stage, limits) if stage.unstable else wrong
        if not wrong:
            _say_not_reproduced(unit, name, log)
        for one in wrong:
            _explain(one, stage, search, seen, log, ports)
            if log.first is None:
                log.first = {"case": case.name, "mode": unit.mode, "dtype": unit.dtype, "checkpoint": one.name}
        if stage.unstable:
            log.note(
                f"the installed reference computes {', '.join(sorted(stage.unstable))} otherwise than this version "
                "knows; nothing is proven there"
            )


def _looking_inside(unit: _Unit) -> Case:
    """A pipeline's case with the transformer's checkpoints of the first step that went wrong."""
    steps = [parse(name).block for name in unit.sources if name.startswith("step.")]
    if not steps or not hasattr(unit.case, "looked_inside") or unit.case.inside:
        return unit.case
    return unit.case.looked_inside([min(int(name.split(".")[1]) for name in unit.sources if name.startswith("step."))])


def wrong_of(stage: Stage, limits: Limits = LIMITS) -> list[Local]:
    """Checkpoints of a stage that are not what the reference makes of their parents.

    What could only be held against the truth is wrong by itself only if its parents are not.
    """
    wrong: list[Local] = []
    names: set[str] = set()
    tainted: set[str] = set()
    for one in stage.local():
        parents = set(stage.values.own_parents(one.name))
        if one.excess > limits.wrong:
            if one.judged_by == "truth" and parents & (names | tainted):
                tainted.add(one.name)
                continue
            names.add(one.name)
            wrong.append(one)
    return wrong


def _like(name: str) -> tuple[str, str | None]:
    parts = parse(name)
    return parts.kind, parts.stream


def _explain(
    one: Local,
    stage: Stage,
    search: Search,
    seen: dict[tuple[str, str | None], int],
    log: _Log,
    ports: Reopened,
) -> None:
    like = _like(one.name)
    matches = search.explain(stage, one, quick=seen.get(like, 0) >= SEARCHED)
    seen[like] = seen.get(like, 0) + 1
    if matches:
        log.findings.append(Finding(one.name, one.excess, tuple(matches)))
        return
    first = seen[like] <= SEARCHED
    again = ports.backends if first and log.replays < REPLAYS else ()
    log.replays += bool(again)
    suspected = signs(one, stage if first else None, again, ports.bugs, known=like in log.other_weights)
    log.suspected += suspected
    log.other_weights |= {like for cause in suspected if (cause.code, cause.confidence) == ("weights.random", "proven")}
    if not any(cause.confidence != "possible" for cause in suspected):
        log.unexplained.append(Unexplained(one.name, one.excess, "", fingerprint(one, stage) if first else []))


def _say_not_reproduced(unit: _Unit, stage: str, log: _Log) -> None:
    names = [name for name in unit.flagged[stage] if name in unit.sources]
    for name in names:
        log.unexplained.append(
            Unexplained(
                name, float("nan"), "it diverges from the truth, but is what the reference makes of its parents"
            )
        )
