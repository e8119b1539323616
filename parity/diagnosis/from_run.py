"""The causes of a finished run's divergence: its ports are opened again, and what is wrong is explained."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parity.components import COMPONENTS
from parity.components.base import Case
from parity.diagnosis.fault import Fault, by_code
from parity.diagnosis.inquiry import Inquiry
from parity.diagnosis.recipes import place_class
from parity.diagnosis.reference_bad import also_bad
from parity.diagnosis.reopen import Reopened, case_of
from parity.diagnosis.result import Cause, Diagnosis
from parity.diagnosis.search import LIMITS, Limits

_SHARPEST_FIRST = ("float32", "bfloat16", "float16")
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


def diagnose(
    run: Mapping[str, Any], ports: Reopened | None, catalogue: Sequence[Fault], told: Progress = lambda _: None,
    limits: Limits = LIMITS,
) -> Diagnosis:  # fmt: skip
    """Explain a run.

    Args:
        run: contents of ``parity.json``.
        ports: on the run's weights; None where all its components are from outside.
        catalogue: faults to try.
        told: see `Progress`.
        limits: of the search.

    Raises:
        UsageError: the run cannot be run again.
    """
    clock = time.monotonic()
    inquiry = Inquiry(catalogue, limits, *((ports.backends, ports.bugs) if ports else ()))
    for component, name in _foreign(run):
        inquiry.leave(name, f"no experiments are written for {component}, a component from outside")
    first: dict[str, str] | None = None
    covered: set[str] = set()
    for unit in sorted(_units(run), key=lambda one: (_SHARPEST_FIRST.index(one.dtype), one.mode != "isolated")):
        if set(unit.sources) <= covered:
            continue
        covered |= set(unit.sources)
        told(f"{unit.case.name}, {unit.dtype}")
        wrong = _investigate(unit, ports, inquiry)
        if first is None and wrong:
            first = {"case": unit.case.name, "mode": unit.mode, "dtype": unit.dtype, "checkpoint": wrong}
    diagnosis = inquiry.diagnosis()
    diagnosis.causes += _reference_too(run)
    diagnosis.first = first or run["first_divergence"]
    diagnosis.seconds = time.monotonic() - clock
    return diagnosis


def _foreign(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(Component, source) of what cannot be run again: what a file names is never imported."""
    found = {
        (row["component"], name): None
        for row in run["cases"]
        if row["component"] not in COMPONENTS
        for name in row["sources"]
    }
    yield from found


def _reference_too(run: Mapping[str, Any]) -> list[Cause]:
    """Where the reference in a run's dtype is as far from the truth as the port: one cause a dtype."""
    causes: dict[str, Cause] = {}
    for row in run["cases"]:
        for bad in also_bad(row["checkpoints"]):
            fault = by_code()["reference.also_bad"]
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
        if row["component"] not in COMPONENTS:
            continue
        sources = row["sources"]
        wrong: dict[str, list[str]] = {}
        for one in row["checkpoints"]:
            if one["verdict"] == "diverged" and (row["mode"] == "isolated" or one["source"]):
                wrong.setdefault(one["stage"], []).append(one["name"])
        yield _Unit(case_of(row), row["dtype"], row["mode"], wrong, sources)


def _investigate(unit: _Unit, ports: Reopened, inquiry: Inquiry) -> str:
    """Explain one unit; gives the first checkpoint that is wrong, empty where none is found."""
    case, first = _looking_inside(unit), ""
    if place_class(case.component) is None:
        for name in unit.sources:
            inquiry.leave(name, "no experiments are written for this component")
        return first
    for stage, name, raised in ports.stages(case, unit.dtype, unit.flagged, isolated=unit.mode == "isolated"):
        if stage is None:
            inquiry.leave(unit.flagged[name][0], f"the candidate raised {raised}")
            continue
        wrong = inquiry.look(stage)
        first = first or (wrong[0].name if wrong else "")
        for source in () if wrong else set(unit.flagged[name]) & set(unit.sources):
            inquiry.leave(source, "it diverges from the truth, but is what the reference makes of its parents")
    return first


def _looking_inside(unit: _Unit) -> Case:
    """A pipeline's case with the transformer's checkpoints of the first step that went wrong."""
    steps = [int(name.split(".")[1]) for name in unit.sources if name.startswith("step.")]
    if not steps or not hasattr(unit.case, "looked_inside") or unit.case.inside:
        return unit.case
    return unit.case.looked_inside([min(steps)])
