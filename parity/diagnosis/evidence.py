"""What one stage of a candidate shows, checked checkpoint by checkpoint against recipes.

A checkpoint is judged by what the reference makes of the candidate's own parents, so several faults in one stage
are seen apart, and none hides behind another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from parity.diagnosis.measure import FAR, Residual, excess, larger, residual, resolution
from parity.diagnosis.place import Array, Place, Values, widened
from parity.rounding import jitter

# A recipe that is not the truth's to this much does not describe the installed reference.
RECIPE_LIMIT = 1e-7
# Excess up to which nothing more has to be known of a checkpoint.
RIGHT = 2.0
# Why a computation with exchanged parts may be impossible: no such weight, no such shape.
IMPOSSIBLE = (KeyError, ValueError, IndexError, ZeroDivisionError, TypeError)


@dataclass
class Stage:
    """One stage in one dtype.

    Attributes:
        values: the candidate's.
        references: of the reference in the run's dtype, one for each precision mode.
        truth: the truth's arrays, from the state that the stage was fed (isolated), or from the truth's own.
        dtype: of the run.
        isolated: whether candidate, reference and truth were fed the same state.
        again: runs the candidate's stage once more on another state, and gives its checkpoints; None where it cannot.
        unstable: kinds whose recipe was found not to be the truth's.
    """

    values: Values
    references: Sequence[Values]
    truth: Mapping[str, Array]
    dtype: np.dtype
    isolated: bool = True
    again: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None = None
    unstable: set[str] = field(default_factory=set)
    _locals: dict[frozenset[str], list[Local]] = field(default_factory=dict, repr=False)

    @cached_property
    def jittered(self) -> Values:
        """The candidate's values with one unit in the last place more or less at random, and recipes that round."""
        of, key = self.values, (len(self.values.stage), sum(self.values.stage.encode()))
        moved = Values(
            of.domain, of.graph, of.stage, jitter(of.captured, (*key, 1)), jitter(of.state, (*key, 2)), of.weights,
            of.config, truth=of.truth,
        )  # fmt: skip
        moved.candidate, moved.noisy = of.captured, self.dtype
        return moved

    def local(self) -> list[Local]:
        """Every captured checkpoint of the stage, in the graph's order; kept while `unstable` stays the same."""
        key = frozenset(self.unstable)
        if key not in self._locals:
            names = self.values.graph.names_of(self.values.stage)
            with np.errstate(all="ignore"):
                self._locals = {key: [self._local(name) for name in names if name in self.values]}
        return self._locals[key]

    def _local(self, name: str) -> Local:
        place = self.values.place(name)
        value = self.values.captured[name]
        if name in self.values.graph.exact:
            return self._exact(place, value)
        prediction = predict(place)
        if prediction is None or place.kind in self.unstable:
            return self._against_truth(place, value)
        found = residual(value, prediction)
        floor = resolution(self._kept_in(name, value), prediction)
        for more in (*(partial(self._left_by, one, name) for one in self.references),
                     lambda: self.sensitivity(self.jittered.place(name), prediction)):  # fmt: skip
            # Most checkpoints are right by a part of the floor already.
            if excess(found, floor) <= RIGHT:
                break
            floor = larger(floor, more())
        return Local(place, value, prediction, found, floor, "recipe")

    def _kept_in(self, name: str, value: Array) -> np.dtype:
        """The run's dtype, or the one in which both sides keep a checkpoint: rotary tables stay in float32."""
        kept = {one.captured[name].dtype for one in self.references if name in one}
        return value.dtype if kept == {value.dtype} and value.dtype.kind not in "biu" else self.dtype

    @staticmethod
    def _left_by(reference: Values, name: str) -> Residual:
        """What the reference's own rounding leaves at a checkpoint."""
        if name not in reference or (own := predict(reference.place(name))) is None:
            return Residual(0.0, 0.0)
        return residual(reference.captured[name], own)

    def sensitivity(self, jittered: Place, prediction: Array) -> Residual:
        """What one unit in the last place of the parents does to a prediction."""
        moved = predict(jittered)
        found = FAR if moved is None else residual(moved, prediction)
        return found if np.isfinite(found.rms) else Residual(0.0, 0.0)

    def _exact(self, place: Place, value: Array) -> Local:
        """What must equal the reference bit for bit; a prediction of it may be off by the rounding of its dtype."""
        expected = self._must_equal(place)
        none = Residual(0.0, 0.0)
        if expected is None:
            return Local(place, value, None, none, none, "nothing")
        floor = none if value.dtype.kind in "biu" else resolution(value.dtype, expected)
        return Local(place, value, expected, none if equal(value, expected) else FAR, floor, "equality")

    def _must_equal(self, place: Place) -> Array | None:
        """What the recipe makes of the candidate's own parents, if it makes of the reference's what that has."""
        expected = predict(place)
        for one in self.references:
            if place.name in one:
                own = predict(one.place(place.name))
                known = own is not None and equal(one.captured[place.name], own)
                return expected if known else widened(one.captured[place.name])
        return self.truth.get(place.name)

    def _against_truth(self, place: Place, value: Array) -> Local:
        """Without a recipe: against the truth, where both were fed the same."""
        expected, none = self.truth.get(place.name), Residual(0.0, 0.0)
        if expected is None or not self.isolated:
            return Local(place, value, None, none, none, "nothing")
        floor = resolution(self.dtype, expected)
        for one in self.references:
            if place.name in one:
                floor = larger(floor, residual(one.captured[place.name], expected))
        return Local(place, value, expected, residual(value, expected), floor, "truth")

    def verify(self) -> None:
        """Note kinds whose recipe does not make of the truth's parents what the truth has: another reference."""
        of = self.values
        exact = Values(of.domain, of.graph, of.stage, self.truth, of.state, of.weights, of.config)
        with np.errstate(all="ignore"):
            for name in of.graph.names_of(of.stage):
                if name not in exact or name in of.graph.exact or not self.isolated:
                    continue
                made = predict(exact.place(name))
                if made is not None and not residual(exact.captured[name], made).rms < RECIPE_LIMIT:
                    self.unstable.add(exact.place(name).kind)


@dataclass(frozen=True)
class Local:
    """One checkpoint of a candidate beside what it should be.

    Attributes:
        place: where.
        value: the candidate's.
        expected: what the reference makes of the candidate's own parents; None where nothing is known.
        found: what is left between the two.
        floor: the same of the reference itself, and what one unit in the last place does.
        judged_by: ``recipe``, ``truth``, ``equality`` or ``nothing``.
    """

    place: Place
    value: Array
    expected: Array | None
    found: Residual
    floor: Residual
    judged_by: str

    @property
    def name(self) -> str:
        """Of the checkpoint."""
        return self.place.name

    @property
    def excess(self) -> float:
        """The difference in units of the floor."""
        return excess(self.found, self.floor)


def equal(value: Array, expected: Array) -> bool:
    """Whether two arrays are the same, whatever their dtypes."""
    return value.shape == expected.shape and np.array_equal(widened(value), widened(expected))


def predict(place: Place) -> Array | None:
    """What a place's recipe gives; None where it cannot be computed."""
    try:
        return place.recipe()
    except IMPOSSIBLE:
        return None
