"""Modules of any mlx.nn tree are watched from outside, found by path, and are what they were afterwards."""

# isort: off
import mlx_impl  # noqa: F401 - first, since it puts the BLAS in place
import mlx.core as mx
import mlx.nn as nn
# isort: on

import copy
import subprocess
import sys

import numpy as np
import pytest
from mlx.utils import tree_flatten

import parity
from parity import Call, instrument
from parity.errors import UsageError
from parity.tap import Recorder, changing, recording, scope


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def __call__(self, x, *, scale=1.0):
        return self.left(x) * scale, self.project(x, "right")

    def project(self, x, which):
        return self[which](x)


class Tree(nn.Module):
    def __init__(self):
        super().__init__()
        mx.random.seed(0)
        self.blocks = [Pair() for _ in range(3)]
        self.last = nn.Linear(4, 2)

    def __call__(self, x):
        for block in self.blocks:
            left, right = block(x, scale=mx.array(2.0))
            x = x + left * right
        return self.last(x)


NAMES = {"blocks.{n}": ("block.{n:02}.left", "block.{n:02}.right"), "last": "final"}
X = mx.array(np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4))


def record(model, x=X):
    with recording(Recorder()) as recorder:
        result = model(x)
    return result, recorder.values


def test_calls_get_the_names_of_their_paths_and_are_the_values_themselves():
    model = Tree()
    with instrument(model, NAMES) as handle:
        result, values = record(model)
    assert list(values) == [*(f"block.{i:02}.{s}" for i in range(3) for s in ("left", "right")), "final"]
    assert values["final"] is result
    x = X
    for i, block in enumerate(model.blocks):
        left, right = block(x, scale=mx.array(2.0))
        assert mx.array_equal(values[f"block.{i:02}.left"], left)
        x = x + left * right
    assert set(handle.names) == set(values)


def test_watching_changes_no_bit_and_leaves_the_module_what_it_was():
    model = Tree()
    plain = np.array(model(X))
    before, text = dict(tree_flatten(model.parameters())), repr(model)
    handle = instrument(model, NAMES)
    result, _ = record(model)
    assert (np.array(result) == plain).all()
    assert (np.array(model(X)) == plain).all()  # nobody records
    assert isinstance(model.blocks[0], Pair)
    assert repr(model) == text
    assert {k: v is before[k] for k, v in tree_flatten(model.parameters())} == dict.fromkeys(before, True)
    model.load_weights([(k, v + 1) for k, v in before.items()], strict=True)
    model.update({"last": {"bias": mx.array([7.0, 7.0])}})
    result, values = record(model)
    assert values["final"] is result
    assert (np.array(result) != plain).any()
    handle.remove()
    handle.remove()
    assert {type(m) for m in model.modules()} == {Tree, Pair, nn.Linear}
    assert record(model)[1] == {}


def test_arguments_methods_and_parts_that_have_to_be_cut_out():
    model = Tree()
    names = {
        "blocks.{n}": Call(takes={"x": "in.{n}", "scale": "scale.{n}"}),
        "blocks.{n}.project()": Call(returns="projected.{n}"),
        "last": lambda y: {"first": y[:, :1], "second": y[:, 1:]},
        "": "whole",
    }
    with instrument(model, names, prefix="mine"):
        result, values = record(model)
    assert values["mine.in.0"] is X
    assert values["mine.scale.2"].item() == 2
    assert mx.array_equal(values["mine.projected.0"], model.blocks[0].right(X))
    assert mx.array_equal(mx.concatenate([values["mine.first"], values["mine.second"]], axis=1), result)
    assert values["mine.whole"] is result


def test_a_later_change_of_the_class_is_seen(monkeypatch):
    model = Tree()
    with instrument(model, NAMES):
        monkeypatch.setattr(Pair, "__call__", lambda self, x, scale: (x, x))
        assert record(model)[1]["block.00.left"] is X


def test_none_leaves_out_and_dictionaries_are_named_by_key():
    class Says(nn.Module):
        def __call__(self, x):
            return {"a": x, "b": [x + 1, None]}

    with instrument(model := Says(), {"": {"b": ["later", "nothing"]}}):
        given, values = record(model)
        assert list(values) == ["later"]
        with changing({"later": lambda x: x * 0}):
            changed, _ = record(model)
    assert given["b"][0] is values["later"]
    assert changed["a"] is X
    assert not changed["b"][0].any()


def test_an_experiment_can_put_another_value_in_the_place_of_one():
    model = Tree()
    names = {"last": Call("final", {"x": "entering"})}
    with instrument(model, names), changing({"entering": mx.zeros_like}):
        result, values = record(model)
    assert not values["entering"].any()
    assert mx.array_equal(result, mx.broadcast_to(model.last.bias, (3, 2)))


def test_second_calls_are_refused_or_counted():
    model = Pair()
    twice = lambda: (model.left(X), model.left(X + 1))  # noqa: E731
    with (
        instrument(model, {"left": "left"}),
        pytest.raises(UsageError, match=r"left gives checkpoint 'left' a second time .*call 2.*\{call\}"),
        recording(Recorder()),
    ):
        twice()
    with instrument(model, {"left": "left.{call}"}) as handle:
        for _ in range(2):  # counted anew in each recording, and in each scope
            with recording(Recorder()) as recorder:
                twice()
                with scope("step.01"):
                    twice()
            assert list(recorder.values) == ["left.0", "left.1", "step.01.left.0", "step.01.left.1"]
    assert handle.names == ()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"blok.{n}": "x.{n}"}, r"no module matches 'blok.\{n\}'; nearest paths: blocks.\{n\}"),
        ({"blocks.{n}": ("left.{m}", None)}, r"name 'left.\{m\}' of blocks.0 cannot be filled in; .* \{n\}, \{call\}"),
        ({"blocks.{n}.left": "one"}, "blocks.0.left and blocks.1.left both give checkpoint 'one'"),
        ({"last": ("same", "same")}, "both give checkpoint 'same'"),
        ({"last": "a", "l{rest}": "b"}, "are one module"),
        ({"blocks.{n}.project": "x"}, "no module matches"),
        ({"blocks.{n}.missing()": "x.{n}"}, r"blocks.0.missing\(\): Pair has no such method"),
        ({"blocks.{n}": Call(takes={"y": "in.{n}"})}, "has no parameter 'y'; it has x, scale"),
        ({"last": 5}, "5 names nothing"),
        ({"blocks.{1n}": "x"}, "pattern"),
    ],
)
def test_names_that_fit_nothing_are_one_line_before_anything_is_changed(names, said):
    model = Tree()
    with pytest.raises(UsageError, match=said) as caught:
        instrument(model, names)
    assert "\n" not in caught.value.message
    assert {type(m) for m in model.modules()} == {Tree, Pair, nn.Linear}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("one", "returns is a tuple and no array"),
        (("a", "b", "c"), "3 names for 2 values"),
        ({"left": "a"}, "a tuple without 'left'"),
    ],
)
def test_a_value_of_another_form_than_its_names_is_one_line(wanted, said):
    with instrument(model := Pair(), {"": wanted}), pytest.raises(UsageError, match=said):
        record(model)


def test_instrumenting_twice_is_refused_and_other_modules_are_not():
    model = Tree()
    with instrument(model, {"last": "final"}):
        with pytest.raises(UsageError, match=r"last is instrumented already; remove\(\) that first"):
            instrument(model, {"last": "again"})
        with instrument(model, {"blocks.0.left": "left"}):
            assert list(record(model)[1]) == ["left", "final"]
        assert list(record(model)[1]) == ["final"]


def test_only_modules_can_be_instrumented():
    for thing in (mx.compile(lambda x: x), Tree, 5):
        with pytest.raises(UsageError, match="named_modules"):
            instrument(thing, {"": "x"})


def test_a_compiled_module_is_told_and_gives_no_false_values():
    model = Tree()
    compiled = mx.compile(model)
    handle = instrument(model, NAMES)
    with pytest.raises(UsageError, match=r"blocks.0 is called inside mx.compile"):
        record(compiled)
    mx.eval(compiled(X))  # traced while nobody records: from now on no module is called
    _, values = record(compiled)
    assert values == {}
    with recording(Recorder()) as recorder:
        compiled(X)
    assert set(handle.missing(recorder)) == set(handle.names)
    with recording(Recorder()) as recorder:
        model(X)
    assert handle.missing(recorder) == ()


def test_a_compiled_part_is_told_as_well():
    model = Tree()
    model.blocks[1].project = mx.compile(lambda x, which: model.blocks[1].right(x))
    with instrument(model, {"blocks.{n}.right": "right.{n}"}), pytest.raises(UsageError, match=r"blocks.1.right is"):
        record(model)


def test_what_replaces_a_module_is_not_watched_and_not_touched():
    model = Tree()
    handle = instrument(model, NAMES)
    model.last = nn.Linear(4, 2)
    assert "final" not in record(model)[1]
    handle.remove()
    assert type(model.last) is nn.Linear


def test_a_copy_is_equal_and_can_be_called():
    model = Tree()
    with instrument(model, NAMES):
        other = copy.deepcopy(model)
        assert mx.array_equal(other(X), model(X))


def test_it_is_loaded_when_it_is_asked_for_and_loads_no_framework():
    program = (
        "import sys, parity; assert 'parity.instrumentation' not in sys.modules; parity.instrument; "
        "assert 'mlx' not in sys.modules; import parity.instrumentation; assert callable(parity.instrument)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'instruments'"):
        _ = parity.instruments
