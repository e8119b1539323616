"""Local checks, the search for a cause, causes put together: on faults made for these tests."""

from __future__ import annotations

import numpy as np
import pytest
from mini import write_checkpoint
from stages import stage_of

from parity.diagnosis.causes import Finding, assemble
from parity.diagnosis.evidence import RIGHT, Stage
from parity.diagnosis.fault import Fault
from parity.diagnosis.fingerprint import fingerprint
from parity.diagnosis.inquiry import wrong_of
from parity.diagnosis.result import Unexplained
from parity.diagnosis.search import Search, put_in

BLOCK = "block.01"
MODULATED = f"{BLOCK}.img.modulated"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"))


def _fault(code: str, variants, *kinds: str) -> Fault:
    return Fault(code, f"title of {code}", f"fix of {code}", "", "transformer", kinds or ("modulated",), variants)


def _swapped(p):
    yield "shift for scale", p.changed(modulate=lambda x, shift, scale: p.modulate(x, scale, shift))


def _no_one(p):
    yield "no one", p.changed(modulate=lambda x, shift, scale: p.modulate(x, shift, scale - 1))


def _negated(p):
    yield "negated", p.changed(modulate=lambda x, shift, scale: -p.modulate(x, shift, scale))


SWAPPED, NO_ONE, NEGATED = (
    _fault("m.swapped", _swapped), _fault("m.no_one", _no_one), _fault("m.negated", _negated)
)  # fmt: skip


def _as(fault: Fault):
    """The candidate's value at `MODULATED` with a fault in it."""
    return lambda values: next(iter(fault.variants(values.place(MODULATED))))[1].recipe()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["embed", "block.00", BLOCK, "head"])
def test_nothing_is_wrong_with_the_reference_itself(folder, name, dtype) -> None:
    stage = stage_of(folder, name, dtype=dtype)
    stage.verify()

    assert not stage.unstable
    assert len(stage.local()) == len(stage.values.graph.names_of(name))
    assert max(one.excess for one in stage.local()) <= RIGHT
    assert wrong_of(stage, stage.local()) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_wrong_checkpoint_is_seen_and_no_other(folder, dtype) -> None:
    changes = {MODULATED: _as(SWAPPED), f"{BLOCK}.txt.ffn": lambda values: values[f"{BLOCK}.txt.ffn"] * 1.5}
    stage = stage_of(folder, BLOCK, changes, dtype=dtype)

    # What is computed from them is right by itself, as their values are; the real parents' children are not.
    wrong = {one.name for one in wrong_of(stage, stage.local())}
    children = {f"{BLOCK}.img.{kind}" for kind in "qkv"} | {f"{BLOCK}.txt.out"}
    assert wrong == {MODULATED, f"{BLOCK}.txt.ffn"} | children


def test_the_fault_that_predicts_the_value_is_found_and_proven(folder) -> None:
    stage = stage_of(folder, BLOCK, {MODULATED: _as(SWAPPED)})
    wrong = next(one for one in wrong_of(stage, stage.local()) if one.name == MODULATED)

    matches = Search([NO_ONE, SWAPPED, NEGATED]).explain(stage, wrong)

    assert [match.codes for match in matches] == [("m.swapped",)]
    assert matches[0].excess <= 1 < 1000 < matches[0].before
    assert matches[0].proves()


def test_two_faults_at_one_checkpoint_are_found_on_top_of_one_another(folder) -> None:
    both = _fault("both", lambda p: ((d, q) for _, first in _swapped(p) for d, q in _negated(first)))
    stage = stage_of(folder, BLOCK, {MODULATED: _as(both)})
    wrong = next(one for one in wrong_of(stage, stage.local()) if one.name == MODULATED)

    (match,) = Search([NO_ONE, SWAPPED, NEGATED]).explain(stage, wrong)

    assert set(match.codes) == {"m.swapped", "m.negated"}
    assert put_in(wrong.place, match.steps) is not None


def test_what_no_fault_makes_is_not_given_the_nearest_name(folder) -> None:
    # Almost the swapped one.
    nearly = lambda values: _as(SWAPPED)(values) * (1 + 1e-3)  # noqa: E731
    stage = stage_of(folder, BLOCK, {MODULATED: nearly})
    wrong = next(one for one in wrong_of(stage, stage.local()) if one.name == MODULATED)

    assert Search([NO_ONE, SWAPPED, NEGATED]).explain(stage, wrong) == []


def test_equal_predictions_are_a_tie_and_not_proven(folder) -> None:
    twin = _fault("m.twin", _swapped)
    stage = stage_of(folder, BLOCK, {MODULATED: _as(SWAPPED)})
    wrong = next(one for one in wrong_of(stage, stage.local()) if one.name == MODULATED)
    matches = Search([SWAPPED, twin]).explain(stage, wrong)

    diagnosis = assemble([Finding(MODULATED, wrong.excess, tuple(matches))], [])

    (cause,) = diagnosis.causes
    assert {cause.code, *cause.ties} == {"m.swapped", "m.twin"}
    assert cause.confidence == "likely"


def test_a_tie_is_settled_by_another_block(folder) -> None:
    twin = _fault("m.twin", lambda p: _swapped(p) if p.block == 1 else iter(()))
    findings = []
    for name in ("block.00", "block.01"):
        place = f"{name}.img.modulated"
        change = {place: lambda values, place=place: next(_swapped(values.place(place)))[1].recipe()}
        stage = stage_of(folder, name, change)
        wrong = next(one for one in wrong_of(stage, stage.local()) if one.name == place)
        findings.append(Finding(place, wrong.excess, tuple(Search([twin, SWAPPED]).explain(stage, wrong))))

    (cause,) = assemble(findings, []).causes

    assert (cause.code, cause.confidence, cause.ties) == ("m.swapped", "proven", [])
    assert cause.where == ["block.00.img.modulated", "block.01.img.modulated"]
    assert cause.evidence["checkpoints"] == 2


def test_what_is_left_makes_a_diagnosis_unexplained() -> None:
    diagnosis = assemble([], [Unexplained("img_in", 12.0)])

    assert not diagnosis.explained
    assert diagnosis.sources == ["img_in"]
    assert "img_in" in diagnosis.sentence


def test_a_reference_that_computes_otherwise_is_noted_and_proves_nothing(folder) -> None:
    stage = stage_of(folder, BLOCK)
    truth = {name: array * (1.001 if name == MODULATED else 1) for name, array in stage.truth.items()}
    other = Stage(stage.values, stage.references, truth, stage.dtype)

    other.verify()

    # The checkpoints made of it are not what the recipes make of a false parent either.
    assert "modulated" in other.unstable
    assert "normed2" not in other.unstable


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x * 1.5, "1.5 times the reference's"),
        (lambda x: x + 0.25, "the reference's and 0.25 more everywhere"),
        (lambda x: x * 0, "all zeros"),
        (lambda x: x * 0 + 2, "one constant, 2"),
        (lambda x: np.where(x > 1, np.nan, x), "NaN and 0 infinite"),
        (lambda x: np.roll(x, 1, axis=1), "rows rolled by 1"),
        (lambda x: x[..., ::-1], "channels permuted: reversed"),
        (lambda x: np.roll(x, x.shape[-1] // 2, -1), "channels permuted: halves exchanged"),
        (lambda x: x.swapaxes(1, 2).reshape(x.shape), "a view with axes (0, 2, 1) was read as a flat buffer"),
        (lambda x: x.reshape(*x.shape[:2], -1, 2).swapaxes(-1, -2).reshape(x.shape), "interleaved from"),
        (lambda x: np.clip(x, -1, 1), "clamped to -1 … 1"),
        (lambda x: np.where(np.arange(x.shape[1])[:, None] == 3, 0.0, x), "only in row 3 of"),
    ],
    ids=["scale", "offset", "zeros", "constant", "nan", "rows", "reversed", "halves", "flat", "interleaved", "clamp",
         "row"],
)  # fmt: skip
def test_fingerprints_name_what_relates_the_two(folder, change, expected) -> None:
    stage = stage_of(folder, BLOCK, {MODULATED: lambda values: change(values[MODULATED])})
    wrong = next(one for one in wrong_of(stage, stage.local()) if one.name == MODULATED)

    marks = fingerprint(wrong, stage)

    assert any(expected in mark["relation"] for mark in marks), marks


def test_a_fingerprint_says_what_it_leaves(folder) -> None:
    stage = stage_of(folder, BLOCK, {MODULATED: lambda values: values[MODULATED] * 1.5})
    wrong = next(one for one in wrong_of(stage, stage.local()) if one.name == MODULATED)

    first = fingerprint(wrong, stage)[0]

    assert first["exact"]
    assert first["residual"] < 1e-6
