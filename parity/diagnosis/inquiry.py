"""Going through stages: what is wrong in each, what explains it, what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from parity.diagnosis.causes import Finding, assemble
from parity.diagnosis.evidence import Local, Stage
from parity.diagnosis.fault import Fault
from parity.diagnosis.fingerprint import fingerprint
from parity.diagnosis.result import Cause, Diagnosis, Unexplained
from parity.diagnosis.search import LIMITS, Limits, Search
from parity.diagnosis.signs import signs
from parity.diagnosis.ways import Backend
from parity.known_bugs import Bug
from parity.names import parse

# Checkpoints of one kind and stream that are searched through in full; others are held against what was found there.
SEARCHED = 2
# Unexplained checkpoints whose products are made once more by the candidate's library, some seconds each.
REPLAYS = 2

Like = tuple[str, str | None]


class Inquiry:
    """One diagnosis while it goes on.

    Args:
        catalogue: faults to try.
        limits: when a checkpoint is wrong, and when it is explained.
        backends: the candidate's library, to make single operations again.
        bugs: known ones of it.
    """

    def __init__(
        self, catalogue: Sequence[Fault], limits: Limits = LIMITS, backends: Sequence[Backend] = (),
        bugs: Sequence[Bug] = (),
    ) -> None:  # fmt: skip
        self._search, self._limits = Search(catalogue, limits), limits
        self._backends, self._bugs = backends, bugs
        self._seen: Counter[Like] = Counter()
        self._replays = 0
        self._other_weights: set[Like] = set()
        self._findings: list[Finding] = []
        self._suspected: list[Cause] = []
        self._unexplained: list[Unexplained] = []
        self._notes: dict[str, None] = {}

    def look(self, stage: Stage) -> list[Local]:
        """Explain what is wrong in a stage.

        Returns:
            the wrong checkpoints, in the graph's order.
        """
        wrong = wrong_of(stage, stage.local(), self._limits)
        if stage.isolated and any(self._is_new(one) for one in wrong):
            stage.verify()
            if stage.unstable:
                wrong = wrong_of(stage, stage.local(), self._limits)
                self._notes[
                    f"the installed reference computes {', '.join(sorted(stage.unstable))} otherwise than this version "
                    "knows; nothing is proven there"
                ] = None
        for one in wrong:
            self._explain(one, stage)
        return wrong

    def leave(self, name: str, reason: str) -> None:
        """Say that a checkpoint cannot be looked at."""
        self._unexplained.append(Unexplained(name, float("nan"), reason))

    def diagnosis(self) -> Diagnosis:
        """What was found."""
        found = assemble(self._findings, self._unexplained, self._suspected)
        found.notes += self._notes
        return found

    def _is_new(self, one: Local) -> bool:
        return self._seen[_like(one)] < SEARCHED

    def _explain(self, one: Local, stage: Stage) -> None:
        like, new = _like(one), self._is_new(one)
        # A recipe that is not the installed reference's predicts nothing, with a fault in it or without.
        stable = one.place.kind not in stage.unstable
        matches = self._search.explain(stage, one, quick=not new) if stable else []
        self._seen[like] += 1
        if matches:
            self._findings.append(Finding(one.name, one.excess, tuple(matches)))
            return
        suspected = self._suspect(one, stage, new) if stable else []
        self._suspected += suspected
        if all(cause.confidence == "possible" for cause in suspected):
            marks = fingerprint(one, stage) if new else []
            self._unexplained.append(Unexplained(one.name, one.excess, "", marks))

    def _suspect(self, one: Local, stage: Stage, new: bool) -> list[Cause]:
        like = _like(one)
        backends = self._backends if new and self._replays < REPLAYS else ()
        self._replays += bool(backends)
        found = signs(one, stage if new else None, backends, self._bugs, known=like in self._other_weights)
        if any((cause.code, cause.confidence) == ("weights.random", "proven") for cause in found):
            self._other_weights.add(like)
        return found


def wrong_of(stage: Stage, found: Iterable[Local], limits: Limits = LIMITS) -> list[Local]:
    """Checkpoints of a stage that are not what the reference makes of their parents.

    What could only be held against the truth is wrong by itself only if its parents are not.

    Args:
        found: of `Stage.local`.
    """
    wrong: list[Local] = []
    reached: set[str] = set()
    for one in found:
        if one.excess <= limits.wrong:
            continue
        follows = one.judged_by == "truth" and not reached.isdisjoint(stage.values.own_parents(one.name))
        reached.add(one.name)
        if not follows:
            wrong.append(one)
    return wrong


def _like(one: Local) -> Like:
    parts = parse(one.name)
    return parts.kind, parts.stream
