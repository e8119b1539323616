"""Which fault of the catalogue makes of the candidate's own parents what the candidate has."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from parity.diagnosis.evidence import IMPOSSIBLE, Local, Stage, predict
from parity.diagnosis.fault import Fault
from parity.diagnosis.measure import Residual, excess, larger, residual
from parity.diagnosis.place import Array, Place

# (fault, detail), more than one where several were put on top of one another.
Step = tuple[Fault, str]


@dataclass(frozen=True)
class Limits:
    """When a checkpoint is wrong, and when a prediction explains it, in units of the floor.

    Attributes:
        wrong: excess from which a checkpoint is not what the reference makes of its parents.
        met: largest excess of a prediction that explains it.
        gain: by how much a prediction must be nearer than the reference's own, to prove.
        tie: predictions within this factor of the best are not told apart.
        sharp: relative floor above which nothing is proven.
        share: of elements that must be met where a few are not, because a rounding fell to the other side.
    """

    wrong: float = 5.0
    met: float = 3.0
    gain: float = 4.0
    tie: float = 1.5
    sharp: float = 0.3
    share: float = 0.95


LIMITS = Limits()


@dataclass(frozen=True)
class Match:
    """A prediction that meets the candidate.

    Attributes:
        steps: faults that were put in, one on top of the other.
        found: what is left.
        floor: the noise under the fault.
        before: excess of the candidate over the reference's own prediction.
        share: of the elements that are met; less than 1 where the rest is a rounding that fell to the other side.
    """

    steps: tuple[Step, ...]
    found: Residual
    floor: Residual
    before: float
    share: float = 1.0

    @property
    def excess(self) -> float:
        """What is left, in units of the floor; of elements that are met only, where a few are not."""
        return excess(self.found, self.floor) if self.share == 1 else 1.0

    @property
    def codes(self) -> tuple[str, ...]:
        """Of the faults."""
        return tuple(fault.code for fault, _ in self.steps)

    def proves(self, limits: Limits = LIMITS) -> bool:
        """Whether the experiment settles it."""
        return self.share == 1 and self.before >= limits.gain * max(self.excess, 1.0) and self.floor.rms <= limits.sharp


class Search:
    """Tries the catalogue on locally wrong checkpoints, what has helped before first.

    Args:
        catalogue: the faults.
        limits: see `Limits`.
        seconds: that searches for two faults at one checkpoint may take, all together.
    """

    def __init__(self, catalogue: Sequence[Fault], limits: Limits = LIMITS, seconds: float = 6.0) -> None:
        self._faults = [one for one in catalogue if one.variants is not None]
        self._limits, self._seconds = limits, seconds
        self._known: dict[tuple[str, str | None], list[tuple[Step, ...]]] = {}
        self._anywhere: list[tuple[Step, ...]] = []
        self._searched: dict[tuple[str, str | None], int] = {}

    def explain(self, stage: Stage, wrong: Local, *, quick: bool = False) -> list[Match]:
        """All faults that explain a wrong checkpoint, best first.

        Args:
            stage: of the checkpoint.
            wrong: the checkpoint.
            quick: only what has explained its like before, if anything has.
        """
        like = (wrong.place.kind, wrong.place.stream)
        with np.errstate(all="ignore"):
            known = [m for steps in self._known.get(like, ()) if (m := self._match(stage, wrong, steps))]
            if quick and known:
                return _ranked(known)
            # What is wrong with all layers at once need not be found again for each of them.
            wide = [m for steps in self._anywhere if (m := self._match(stage, wrong, steps)) and m.proves()]
            matches = wide or self._singles(stage, wrong, late=False) or self._singles(stage, wrong, late=True)
            if not matches and self._searched.get(like, 0) < 2:
                self._searched[like] = self._searched.get(like, 0) + 1
                matches = self._pairs(stage, wrong)
        ranked = _ranked(matches)
        kept = self._known.setdefault(like, [])
        kept += [match.steps for match in ranked if match.steps not in kept]
        self._anywhere += [m.steps for m in ranked if _is_wide(m) and m.steps not in self._anywhere]
        return ranked

    def variants(self, place: Place, *, late: bool = False) -> Iterator[tuple[Step, Place]]:
        """Every way in which a place can be made wrong."""
        for fault in self._faults:
            if fault.late == late and fault.speaks_of(place):
                yield from _variants(fault, place)

    def _singles(self, stage: Stage, wrong: Local, *, late: bool) -> list[Match]:
        found = []
        for step, place in self.variants(wrong.place, late=late):
            if match := self._judged(stage, wrong, (step,), place):
                found.append(match)
        return found

    def _pairs(self, stage: Stage, wrong: Local) -> list[Match]:
        """Two faults at once; those that bring the prediction nearer come first."""
        started = time.monotonic()
        try:
            return self._two(stage, wrong, started + self._seconds)
        finally:
            self._seconds -= time.monotonic() - started

    def _two(self, stage: Stage, wrong: Local, until: float) -> list[Match]:
        ways = []
        for step, place in self.variants(wrong.place):
            if time.monotonic() > until:
                return []
            prediction = predict(place)
            if prediction is not None and prediction.shape == wrong.value.shape:
                ways.append((residual(wrong.value, prediction).rms, step, place))
        ways.sort(key=lambda way: way[0])
        for _, first, place in ways:
            for second, both in self.variants(place):
                if second[0] is not first[0] and (match := self._judged(stage, wrong, (first, second), both)):
                    return [match]
                if time.monotonic() > until:
                    return []
        return []

    def _match(self, stage: Stage, wrong: Local, steps: tuple[Step, ...]) -> Match | None:
        place = put_in(wrong.place, steps)
        return None if place is None else self._judged(stage, wrong, steps, place)

    def _judged(self, stage: Stage, wrong: Local, steps: tuple[Step, ...], place: Place) -> Match | None:
        """The match, if a changed place explains the candidate."""
        prediction = predict(place)
        if prediction is None or prediction.shape != wrong.value.shape:
            return None
        found = residual(wrong.value, prediction)
        # Noise under a fault is mostly that of the reference; where it is more, the near ones are worth measuring.
        if not found.rms < 0.5 * wrong.found.rms and np.isfinite(wrong.found.rms):
            return None
        floor = wrong.floor
        if excess(found, floor) > self._limits.met:
            floor = larger(floor, self._sensitivity(stage, wrong, steps, prediction))
        match = Match(steps, found, floor, wrong.excess)
        if match.excess <= self._limits.met:
            return match
        share = _share(wrong.value, prediction, floor)
        nearly = share >= self._limits.share and _share(wrong.value, wrong.expected, floor) <= 1 - self._limits.share
        return replace(match, share=share) if nearly else None

    def _sensitivity(self, stage: Stage, wrong: Local, steps: tuple[Step, ...], prediction: Array) -> Residual:
        jittered = put_in(stage.jittered.place(wrong.name), steps)
        return Residual(0.0, 0.0) if jittered is None else stage.sensitivity(jittered, prediction)


def _share(value: Array, prediction: Array | None, floor: Residual) -> float:
    """Share of elements that are equal but for the noise."""
    if prediction is None or prediction.shape != value.shape:
        return 0.0
    return float((np.abs(value.astype(np.float64) - prediction) <= floor.peak).mean())


def _variants(fault: Fault, place: Place) -> Iterator[tuple[Step, Place]]:
    """The variants of one fault that can be made here."""
    try:
        for detail, changed in fault.variants(place):
            yield (fault, detail), changed
    except IMPOSSIBLE:
        return


def put_in(place: Place, steps: Sequence[Step]) -> Place | None:
    """A place with faults in it, one on top of the other; None where they cannot be made."""
    for fault, detail in steps:
        place = next((changed for (_, found), changed in _variants(fault, place) if found == detail), None)
        if place is None:
            return None
    return place


def _is_wide(match: Match) -> bool:
    """Whether a match says the same of any layer."""
    return len(match.steps) == 1 and not match.steps[0][0].kinds and "transformer_blocks" not in match.steps[0][1]


def _ranked(matches: Sequence[Match]) -> list[Match]:
    """Fewest faults first, then the nearest; of those within the noise, in the catalogue's order."""
    return sorted(matches, key=lambda match: (match.share < 1, len(match.steps), max(match.excess, 1.0)))
