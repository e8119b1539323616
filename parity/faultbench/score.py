"""Running instances and judging what a diagnosis says of each.

A planted fault that a run does not see (everything within the floor) is no instance: it is counted as *invisible*
and listed. Of two faults at once each is also run alone, to know whether it can be seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from parity import workers
from parity.errors import ParityError
from parity.faultbench.cases import CASES, Models
from parity.faultbench.instances import Instance
from parity.faultbench.lab import Lab, Visit, sources_of

# What is given a run folder and says what is wrong with it, in the form of `parity diagnose --format json`.
Diagnose = Callable[[Path], Mapping[str, Any]]
# Confidences that name a cause; a possible one is a hint.
NAMING = ("proven", "likely")
# Instances of one case in one process, one after the other: they share the reference's side of it.
AT_ONCE = 24


@dataclass
class Outcome:
    """What came of one instance.

    Attributes:
        instance: as `Instance.describe` says.
        codes: of what is planted and can be seen.
        accepted: codes that are right, for each of `codes`.
        expected: checkpoints that are wrong by themselves.
        follows: those of them that need not be called so; see `Injection`.
        run_verdict: of the run.
        run_sources: of the run, in isolated mode.
        visible: the run sees it.
        sources: that the diagnosis names.
        causes: (code, confidence) that the diagnosis names, best first.
        unexplained: where the diagnosis says that something remains.
        explained: the diagnosis says that nothing does.
        seconds: of the diagnosis.
        error: what the run or the diagnosis raised.
    """

    instance: dict[str, Any]
    kind: str
    codes: tuple[str, ...] = ()
    accepted: tuple[tuple[str, ...], ...] = ()
    expected: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    run_verdict: str = ""
    run_sources: tuple[str, ...] = ()
    visible: bool = False
    sources: tuple[str, ...] = ()
    causes: tuple[tuple[str, str], ...] = ()
    unexplained: tuple[str, ...] = ()
    explained: bool = False
    seconds: float | None = None
    error: str = ""

    @property
    def named(self) -> tuple[str, ...]:
        """Codes that are named as causes, best first."""
        return tuple(code for code, confidence in self.causes if confidence in NAMING)

    @property
    def exact(self) -> bool:
        """Nothing else is called a source, and everything is that the run itself sees as one.

        Of a step of a pipeline, a checkpoint inside it is the step's.
        """
        told, expected = {_of_step(name, self.expected) for name in self.sources}, set(self.expected)
        return bool(told) and told <= expected and set(self.run_sources) & expected - set(self.follows) <= told

    @property
    def first_right(self) -> bool:
        """The best cause is one of those planted, however sure the diagnosis is of it."""
        return bool(self.causes) and any(self.causes[0][0] in right for right in self.accepted)

    @property
    def proven(self) -> bool:
        """The best cause is right, and proven."""
        return self.first_right and self.causes[0][1] == "proven"

    @property
    def all_right(self) -> bool:
        """Everything planted is named, nothing else is, and nothing remains."""
        known = {code for right in self.accepted for code in right}
        every = all(set(right) & set(self.named) for right in self.accepted)
        return self.explained and not self.unexplained and every and set(self.named) <= known

    @property
    def wrongly_named(self) -> bool:
        """Something is named that is not there."""
        return bool(set(self.named) - {code for right in self.accepted for code in right})

    @property
    def alarm(self) -> bool:
        """A clean copy is called wrong, by the run or by the diagnosis."""
        said = self.run_verdict == "divergence" or bool(self.run_sources)
        return said or bool(self.named or self.unexplained or self.sources or self.error)

    @property
    def good(self) -> bool:
        """As it should be, for its kind."""
        if self.error:
            return False
        if self.kind == "clean":
            return not self.alarm
        if self.kind == "unlisted":
            return not self.wrongly_named and bool(self.unexplained or (self.named and self.first_right))
        return self.all_right if self.kind == "pair" else self.exact and self.first_right

    def to_json(self) -> dict[str, Any]:
        """Every field, and what is judged of them."""
        judged = ("exact", "first_right", "proven", "all_right", "wrongly_named", "alarm", "good")
        return asdict(self) | {name: getattr(self, name) for name in judged}


def _of_step(name: str, expected: Sequence[str]) -> str:
    """A pipeline's step that a checkpoint is inside of, where the step is expected; else the checkpoint itself."""
    return next((one for one in expected if one.startswith("step.") and name.startswith(f"{one}.")), name)


def examine(lab: Lab, instance: Instance, diagnose: Diagnose) -> Outcome:
    """Run one instance, have it diagnosed, and say what came of it."""
    setting = CASES[instance.case].with_seed(instance.seed)
    layers = lab.layers(setting)
    outcome = Outcome(instance.describe(layers), instance.kind)
    planted = instance.injections
    try:
        if instance.kind == "pair":
            planted = tuple(one for one in planted if _is_seen(lab.admit(setting, instance.dtype, (one,))))
        faulty = [(one, site) for one, site in planted if one.code]
        outcome.codes = tuple(one.code for one, _ in faulty)
        outcome.accepted = tuple((one.code, *one.also) for one, _ in faulty)
        outcome.expected = tuple(name for one, site in faulty for name in one.expected(site, layers))
        outcome.follows = tuple(name for one, _ in faulty for name in one.follows)
        with lab.admit(setting, instance.dtype, instance.injections) as visit:
            outcome.run_verdict, outcome.run_sources = visit.result["verdict"], sources_of(visit.result)
            outcome.visible = bool(outcome.run_sources)
            if instance.kind == "pair":
                outcome.visible = len(faulty) == 2
            if outcome.visible or instance.kind == "clean":
                clock = time.perf_counter()
                found = diagnose(visit.folder)
                outcome.seconds = round(time.perf_counter() - clock, 3)
                _take(found, outcome)
    except Exception as raised:
        outcome.error = f"{type(raised).__name__}: {raised}"[:400]
        outcome.visible = True
    return outcome


def _is_seen(visit: Visit) -> bool:
    with visit:
        return bool(sources_of(visit.result))


def _take(found: Mapping[str, Any], outcome: Outcome) -> None:
    outcome.sources = tuple(found["sources"])
    outcome.causes = tuple((cause["code"], cause["confidence"]) for cause in found["causes"])
    outcome.unexplained = tuple(one["where"] for one in found["unexplained"])
    outcome.explained = bool(found["explained"])


def tasks(found: Sequence[Instance], models: Models, scratch: Path, diagnose: Diagnose) -> list[workers.Task]:
    """Instances in groups of the same inputs, as tasks of `parity.workers`."""
    groups: dict[tuple[str, int, str], list[Instance]] = {}
    for one in found:
        groups.setdefault((one.case, one.seed, one.dtype), []).append(one)
    parts = [group[at : at + AT_ONCE] for group in groups.values() for at in range(0, len(group), AT_ONCE)]
    # The longest first, so that none is left alone at the end.
    parts.sort(key=len, reverse=True)
    return [partial(_examine_all, part, models, scratch / f"part-{i:03d}", diagnose) for i, part in enumerate(parts)]


def _examine_all(part: Sequence[Instance], models: Models, scratch: Path, diagnose: Diagnose) -> Iterator[Outcome]:
    scratch.mkdir(parents=True, exist_ok=True)
    lab = Lab(models, scratch)
    for one in part:
        yield examine(lab, one, diagnose)


def run(
    found: Sequence[Instance], models: Models, scratch: Path, diagnose: Diagnose, jobs: int,
    told: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:  # fmt: skip
    """Examine instances in some processes.

    Args:
        found: instances.
        models: of the cases.
        scratch: an empty folder.
        diagnose: a function of a module, as other processes have to find it.
        jobs: processes; 1 is this one.
        told: called with each outcome as it comes.

    Returns:
        outcomes in the order of the list.
    """
    outcomes: list[Outcome] = []

    def heard(outcome: Outcome) -> None:
        outcomes.append(outcome)
        told(outcome)

    waiting = tasks(found, models, scratch, diagnose)
    if jobs > 1:
        workers.run(waiting, jobs, heard)
    else:
        for task in waiting:
            for outcome in task():
                heard(outcome)
    return sorted(outcomes, key=lambda one: one.instance["number"])


@dataclass
class Line:
    """One line of the confusion table.

    Attributes:
        name: a code, or a kind of instances.
        instances: that can be seen.
        exact, right, proven, unexplained, wrong: how many have the exact sources, the right cause first (of pairs: all
            of both), and that proven, something left unexplained, something named that is not there.
        good: how many are as they should be.
        invisible: planted, and within the floor everywhere.
        seconds: of each diagnosis.
        taken_for: other codes that were named.
    """

    name: str
    instances: int = 0
    exact: int = 0
    right: int = 0
    proven: int = 0
    unexplained: int = 0
    wrong: int = 0
    good: int = 0
    invisible: int = 0
    seconds: list[float] = field(default_factory=list)
    taken_for: dict[str, int] = field(default_factory=dict)

    def add(self, one: Outcome) -> None:
        """Count one outcome."""
        if not one.visible and one.kind != "clean":
            self.invisible += 1
            return
        self.instances += 1
        self.exact += one.exact
        self.right += one.all_right if one.kind == "pair" else one.first_right
        self.proven += one.proven
        self.unexplained += bool(one.unexplained)
        self.wrong += one.alarm if one.kind == "clean" else one.wrongly_named
        self.good += one.good
        self.seconds += [] if one.seconds is None else [one.seconds]
        known = {code for right in one.accepted for code in right}
        for code in set(one.named) - known:
            self.taken_for[code] = self.taken_for.get(code, 0) + 1

    def to_json(self) -> dict[str, Any]:
        """For the file of the score."""
        spent = {"median": round(median(self.seconds), 3), "largest": max(self.seconds)} if self.seconds else None
        return asdict(self) | {"seconds": spent}


def lines_of(outcomes: Sequence[Outcome]) -> dict[str, Line]:
    """The confusion table: catalogued codes one by one, then all of a kind."""
    codes: dict[str, Line] = {}
    kinds = {kind: Line(kind) for kind in ("fault", "pair", "unlisted", "clean")}
    for one in outcomes:
        kinds[one.kind].add(one)
        if one.kind == "fault":
            code = one.accepted[0][0] if one.accepted else one.instance["planted"][0]["injection"].partition(":")[0]
            codes.setdefault(code, Line(code)).add(one)
    return dict(sorted(codes.items())) | {
        kind: line for kind, line in kinds.items() if line.instances or line.invisible
    }


def diagnose_run(folder: Path) -> dict[str, Any]:
    """What ``parity diagnose FOLDER --format json`` says of a run.

    Raises:
        ParityError: the run cannot be diagnosed.
    """
    from rich.console import Console

    from parity.commands.weights_option import open_loras, open_model
    from parity.diagnosis.fault import catalogue
    from parity.diagnosis.from_run import diagnose
    from parity.diagnosis.reopen import Reopened, case_of
    from parity.ports import open_port
    from parity.runfolder import read_run

    run, quiet = read_run(folder), Console(quiet=True)
    if "ports" not in run:
        raise ParityError(f"{folder}: this run does not say what its ports are")
    folders = dict.fromkeys(name for row in run["cases"] for name in case_of(row).folders)
    model = open_model(run["ports"]["weights"], folders, quiet, later=lambda _: True)
    loras = open_loras(run["ports"]["lora"], model, quiet)
    ports = Reopened(model, open_port("reference"), open_port(run["ports"]["candidate"]), loras)
    return diagnose(run, ports, catalogue()).to_json()
