"""Taps are the identity, scopes make names, recorders keep what they are asked for."""

import pytest

from parity.tap import Recorder, changing, current, recording, scope, tap


def model(x):
    x = tap("in", x)
    with scope("block.00"), scope("img"):
        x = tap("attn", [*x, 1])
    return tap("out", x)


def test_without_a_recorder_a_tap_returns_the_object_itself():
    value = object()
    with scope("block.00"):
        assert tap("attn", value) is value


def test_names_are_made_of_the_open_scopes():
    with recording(Recorder()) as recorder:
        model([0])
    assert recorder.values == {"in": [0], "block.00.img.attn": [0, 1], "out": [0, 1]}


def test_the_open_scopes_can_be_asked_for_while_somebody_records():
    with scope("block.00"):
        assert current() == ""
    with recording(Recorder()):
        assert current() == ""
        with scope("block.00"), scope("img"):
            assert current() == "block.00.img."
        assert current() == ""


def test_only_wanted_names_are_kept():
    with recording(Recorder({"out"})) as recorder:
        model([0])
    assert list(recorder.values) == ["out"]


def test_keep_stores_its_result_and_leaves_the_value_alone():
    with recording(Recorder(keep=len)) as recorder:
        assert model([0]) == [0, 1]
    assert recorder.values == {"in": 1, "block.00.img.attn": 2, "out": 2}


def test_a_second_value_under_a_name_is_an_error():
    with recording(Recorder()):
        model([0])
        with pytest.raises(ValueError, match="'in' was tapped twice"):
            model([0])


def test_a_scope_ends_when_the_body_raises():
    with recording(Recorder()) as recorder:
        with pytest.raises(RuntimeError), scope("block.00"):
            raise RuntimeError
        tap("after", 1)
    assert list(recorder.values) == ["after"]


def test_scopes_opened_outside_do_not_reach_into_a_recording():
    with recording(Recorder()) as outer, scope("step.03"):
        with recording(Recorder()) as inner:
            tap("temb", 1)
        tap("temb", 2)
    assert inner.values == {"temb": 1}
    assert outer.values == {"step.03.temb": 2}


def test_a_changed_value_goes_on_into_the_model_and_into_the_recorder():
    with changing({"block.00.img.attn": lambda x: [9]}), recording(Recorder()) as recorder:
        assert model([0]) == [9]
    assert recorder.values["block.00.img.attn"] == [9]
    with recording(Recorder()):
        assert model([0]) == [0, 1]
