"""Going through stages: what is explained, what is left, and what must not be proven."""

from __future__ import annotations

import numpy as np
import pytest
from mini import write_checkpoint
from stages import stage_of

from mlx_impl.replay import MlxReplay
from parity.diagnosis.evidence import Stage
from parity.diagnosis.fault import catalogue
from parity.diagnosis.inquiry import SEARCHED, Inquiry

BLOCK = "block.01"
MODULATED = f"{BLOCK}.img.modulated"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"))


def _swapped(values):
    place = values.place(MODULATED)
    return place.changed(modulate=lambda x, shift, scale: place.modulate(x, scale, shift)).recipe()


def _codes(inquiry: Inquiry) -> list[str]:
    return [cause.code for cause in inquiry.diagnosis().causes]


def test_a_fault_is_explained_where_it_is(folder) -> None:
    inquiry = Inquiry(catalogue())

    wrong = inquiry.look(stage_of(folder, BLOCK, {MODULATED: _swapped}))

    assert MODULATED in [one.name for one in wrong]
    assert "modulation.order" in _codes(inquiry)


def test_a_recipe_that_is_not_the_installed_reference_s_proves_nothing(folder) -> None:
    right = stage_of(folder, BLOCK, {MODULATED: _swapped})
    # As if the installed reference modulated otherwise than the recipe says.
    truth = {name: array * (1.01 if name.endswith("modulated") else 1) for name, array in right.truth.items()}
    inquiry = Inquiry(catalogue())

    inquiry.look(Stage(right.values, right.references, truth, right.dtype))

    found = inquiry.diagnosis()
    assert "modulation.order" not in [cause.code for cause in found.causes]
    assert MODULATED in [one.where for one in found.unexplained]
    assert any("modulated" in note and "nothing is proven there" in note for note in found.notes)


def test_a_clean_stage_leaves_nothing(folder) -> None:
    inquiry = Inquiry(catalogue())

    assert inquiry.look(stage_of(folder, BLOCK)) == []
    found = inquiry.diagnosis()
    assert (found.causes, found.unexplained, found.sources, found.explained) == ([], [], [], False)


def test_what_cannot_be_looked_at_is_left_with_its_reason() -> None:
    inquiry = Inquiry(catalogue())
    inquiry.leave("vision.patch", "no experiments are written for this component")

    (one,) = inquiry.diagnosis().unexplained
    assert (one.where, one.reason) == ("vision.patch", "no experiments are written for this component")


def test_the_fingerprint_is_taken_of_the_first_of_a_kind(folder) -> None:
    def bent(values):
        return np.tanh(values[MODULATED])

    inquiry = Inquiry(())
    for _ in range(SEARCHED + 1):
        inquiry.look(stage_of(folder, BLOCK, {MODULATED: bent}))

    told = [bool(one.fingerprint) for one in inquiry.diagnosis().unexplained if one.where == MODULATED]
    assert told == [True] * SEARCHED + [False]


class Zeros(MlxReplay):
    """A library whose product of more than six rows is zeros; cut into pieces it is right."""

    def run(self, calls):
        answers = super().run(calls)
        return [a * 0 if len(call["arrays"]["x"]) > 6 else a for call, a in zip(calls, answers, strict=True)]


@pytest.mark.parametrize(
    ("change", "accused"),
    [(lambda x: x * 0, True), (lambda x: np.sin(x), False)],
    ids=["the candidate has its zeros", "the candidate has something else"],
)
def test_a_broken_library_is_accused_of_what_the_candidate_has_and_of_nothing_else(folder, change, accused) -> None:
    name = f"{BLOCK}.txt.v"
    stage = stage_of(folder, BLOCK, {name: lambda values: change(values[name])})
    inquiry = Inquiry((), backends=[Zeros()])

    inquiry.look(stage)

    blamed = [one for one in inquiry.diagnosis().causes if one.code == "backend.kernel" and name in one.where]
    assert bool(blamed) is accused
