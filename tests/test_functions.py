"""Two functions held against each other: truth, floor, names, and what is no array."""

import ml_dtypes
import numpy as np
import pytest

from parity.errors import UsageError
from parity.functions import compare
from parity.reporters import junit, text
from parity.result import rejudge

X = np.random.default_rng(0).standard_normal((8, 16))


def layer(state):
    hidden = np.tanh(state["x"] @ state["x"].T)
    return {"hidden": hidden, "out": hidden @ state["x"], "last": (hidden @ state["x"]) * 2}


def rows(run):
    return {row["name"]: row for row in run["cases"][0]["checkpoints"]}


def test_a_function_against_itself_is_at_parity_in_every_dtype():
    for dtype in ("float32", "float16", "bfloat16"):
        run = compare(layer, layer, {"x": X}, dtype=dtype)
        assert run["verdict"] == "parity"
        assert list(rows(run)) == ["hidden", "out", "last"]
        assert all(row["excess"] <= 1 for row in rows(run).values())
    assert 1e-3 < rows(run)["out"]["floor"] < 1e-1


def test_the_floor_is_that_of_the_dtype():
    floors = {
        dtype: rows(compare(layer, layer, {"x": X}, dtype=dtype))["out"]["floor"] for dtype in ("float32", "float16")
    }
    assert 1e-8 < floors["float32"] < 1e-6
    assert 1e-4 < floors["float16"] < 1e-2


def test_an_error_is_found_where_it_starts():
    def wrong(state):
        given = layer(state)
        given["out"][3, 2] *= 1.01
        return given | {"last": given["out"] * 2}

    run = compare(wrong, layer, {"x": X})
    found = rows(run)
    assert run["first_divergence"]["checkpoint"] == "out"
    assert found["last"]["propagated"]
    assert found["out"]["worst"][0][0] == [3, 2]
    assert found["hidden"]["verdict"] == "match"


def test_parents_say_what_is_computed_from_what():
    def wrong(state):
        given = layer(state)
        return {name: value * 1.01 for name, value in given.items()}

    chain = compare(wrong, layer, {"x": X})
    assert chain["cases"][0]["sources"] == ["hidden"]
    apart = compare(wrong, layer, {"x": X}, parents={"last": ["out"]})
    assert apart["cases"][0]["sources"] == ["hidden", "out"]


def test_the_reference_sees_float64_once_and_the_dtype_otherwise():
    seen = []

    def watched(state):
        seen.append(state["x"].dtype.name)
        return layer(state)

    compare(layer, watched, {"x": X}, dtype="float32", draws=2)
    assert seen == ["float64", "float32", "float32", "float32"]


def test_the_truth_is_computed_on_the_numbers_that_the_dtype_holds():
    seen = {}

    def watched(state):
        seen.setdefault(state["x"].dtype.name, state["x"])
        return layer(state)

    compare(layer, watched, {"x": X}, dtype="bfloat16")
    held = X.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(seen["float64"], held.astype(np.float64))
    assert (seen["float64"] != X).any()


def test_a_function_that_works_in_place_spoils_nothing():
    def in_place(state):
        state["x"] *= 2
        return state["x"]

    given = X.copy()
    assert compare(in_place, in_place, {"x": given})["verdict"] == "parity"
    np.testing.assert_array_equal(given, X)


def test_one_array_is_called_output():
    run = compare(lambda s: s["x"] * 2, lambda s: s["x"] + s["x"], {"x": X})
    assert list(rows(run)) == ["output"]
    assert run["verdict"] == "parity"


def test_integers_must_be_equal():
    def order(state):
        return {"order": np.argsort(state["x"][0])}

    assert compare(order, order, {"x": X})["verdict"] == "parity"
    run = compare(lambda s: {"order": order(s)["order"][::-1]}, order, {"x": X})
    assert rows(run)["order"]["mismatches"] == 16
    assert run["verdict"] == "divergence"


def test_integers_go_in_as_they_are():
    table = np.random.default_rng(1).standard_normal((20, 4))

    def embed(state):
        return state["table"][state["ids"]]

    assert compare(embed, embed, {"ids": np.array([3, 1]), "table": table})["verdict"] == "parity"


def test_what_the_candidate_does_not_give_makes_it_incomplete():
    run = compare(lambda s: {"hidden": layer(s)["hidden"], "Out": 1.0}, layer, {"x": X})
    assert run["verdict"] == "incomplete"
    assert rows(run)["out"]["verdict"] == "missing"
    assert run["notes"] == ["the candidate also gives Out"]


def test_a_candidate_that_raises_is_incomplete_and_says_why():
    run = compare(lambda s: s["y"], layer, {"x": X})
    assert run["verdict"] == "incomplete"
    assert "KeyError: 'y'" in rows(run)["hidden"]["reason"]


def test_what_a_test_runner_raises_is_not_the_candidates():
    def stop(state):
        pytest.fail("from within")

    with pytest.raises(pytest.fail.Exception, match="from within"):
        compare(stop, layer, {"x": X})


def float32_inside(state):
    return (state["x"].astype(np.float32) * 2).astype(np.float32)


def shape_by_dtype(state):
    return state["x"] if state["x"].dtype == np.float64 else state["x"][:4]


def name_by_dtype(state):
    return {"a" if state["x"].dtype == np.float64 else "b": state["x"]}


@pytest.mark.parametrize(
    ("reference", "inputs", "options", "said"),
    [
        (float32_inside, {"x": X}, {}, "gives output in float32 where its inputs are float64"),
        (shape_by_dtype, {"x": X}, {}, r"has shape \(8, 16\) in float64, and \(4, 16\) in float32"),
        (name_by_dtype, {"x": X}, {}, "gives a in float64, and not in float32"),
        (lambda s: {}, {"x": X}, {}, "gives nothing"),
        (lambda s: s["x"][:0], {"x": X}, {}, "has no elements"),
        (lambda s: {"a b": s["x"]}, {"x": X}, {}, "a b"),
        (lambda s: "text", {"x": X}, {}, "array of <U4; expected real numbers"),
        (lambda s: s["x"] + 1j, {"x": X}, {}, "complex128"),
        (layer, {}, {}, "a dictionary of arrays by name"),
        (layer, [X], {}, "a dictionary of arrays by name"),
        (layer, {"x": ["a"]}, {}, "input x is an array of <U1"),
        (layer, {"x": X}, {"dtype": "float8"}, "no dtype float8; known: float32"),
        (layer, {"x": X}, {"parents": {"output": []}}, "parents: output is nothing that the reference gives"),
        (layer, {"x": X}, {"parents": {"hidden": ["last"]}}, "hidden: parents .* are not made before it"),
    ],
)
def test_what_cannot_be_compared_is_one_line(reference, inputs, options, said):
    with pytest.raises(UsageError, match=said) as raised:
        compare(layer, reference, inputs, **options)
    assert "\n" not in str(raised.value)


def test_what_numpy_does_not_read_is_one_line():
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("on another device")

    with pytest.raises(UsageError, match="is a Tensor that numpy does not read"):
        compare(lambda s: Tensor(), layer, {"x": X})


def test_a_run_of_functions_is_a_run():
    run = compare(layer, layer, {"x": X})
    assert rejudge(run)["counts"] == run["counts"]
    assert "functions" in text.markdown(run)
    assert "call" in junit.render(run)
