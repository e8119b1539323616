"""The elements furthest from the truth: which ones, in which order, and when they are looked for."""

import math

import ml_dtypes
import numpy as np
import pytest
from test_lockstep import run
from toy import ToyPort

from parity import worst
from parity.runfolder import from_json, to_json
from parity.stats import SLICE, Error

FLOOR = {"floor": 1e-7, "floor_by": "rounding", "peak_floor": 1e-6}


def off_at(shape, *places, by=1.0):
    truth = np.random.default_rng(3).standard_normal(shape)
    value = truth.copy()
    for number, place in enumerate(places):
        value[place] += by * (number + 1)
    return value, truth


def test_the_largest_come_first_with_index_and_both_values():
    value, truth = off_at((2, 30, 1000), (0, 3, 7), (1, 29, 999), (0, 0, 0))
    found = worst.elements(value, truth)
    assert [at for at, _, _ in found] == [[0, 0, 0], [1, 29, 999], [0, 3, 7]]
    assert found[1] == ([1, 29, 999], value[1, 29, 999], truth[1, 29, 999])


def test_there_are_at_most_five_over_all_slices():
    value, truth = off_at(3 * SLICE + 5, *range(0, 3 * SLICE, SLICE // 4))
    found = worst.elements(value, truth)
    assert len(found) == 5
    expected = np.argsort(-np.abs(value - truth))[:5]
    assert [at for at, _, _ in found] == [[int(i)] for i in expected]


def test_ties_keep_the_order_of_the_array():
    truth = np.zeros((2, SLICE))
    value = truth.copy()
    value[:, 5:9] = 1.0
    assert [at for at, _, _ in worst.elements(value, truth)] == [[0, 5], [0, 6], [0, 7], [0, 8], [1, 5]]


def test_what_is_not_finite_comes_before_everything():
    value, truth = off_at(20, 4, by=1e9)
    value[7], value[11] = math.nan, -math.inf
    truth[13] = value[13] = math.nan
    truth[14] = value[14] = math.inf
    found = worst.elements(value, truth)
    assert [at for at, _, _ in found] == [[7], [11], [4]]
    assert math.isnan(found[0][1])
    assert found[1][1] == -math.inf


def test_numbers_of_every_dtype_are_given():
    truth = np.array([1.0, 2.0, 3.0])
    assert worst.elements(np.array([1, 2, 4], ml_dtypes.bfloat16), truth) == [([2], 4.0, 3.0)]
    assert worst.elements(np.array([1, 5, 3]), np.array([1, 2, 3])) == [([1], 5.0, 2.0)]
    assert worst.elements(np.array([True]), np.array([False])) == [([0], 1.0, 0.0)]
    assert worst.elements(np.array(2.0), np.array(1.0)) == [([], 2.0, 1.0)]


def test_arrays_of_other_shapes_are_an_error():
    with pytest.raises(ValueError, match="differ"):
        worst.elements(np.zeros((2, 3)), np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("error", "looked"),
    [
        (Error(2.9e-7, 1.1e-5), False),
        (Error(3.1e-7, 1e-6), True),
        (Error(1e-7, 1.3e-5), True),
        (Error(math.nan, math.nan), True),
        (Error(math.inf, math.inf), True),
    ],
)
def test_they_are_looked_for_beyond_a_match_only(error, looked):
    value, truth = off_at(10, 3)
    assert (worst.of_measured(value, truth, error, FLOOR) is not None) == looked


def test_a_floor_that_is_not_finite_does_not_hide_them():
    value, truth = off_at(10, 3)
    assert worst.of_measured(value, truth, Error(1.0, 1.0), FLOOR | {"floor": math.nan})


def test_a_run_has_them_where_it_is_not_at_parity():
    def spoil(x):
        x = x.copy()
        x[0, 3, 2] += np.float32(0.5)
        return x

    judged, _ = run(ToyPort({"mid": spoil}))
    for rows in judged.values():
        assert rows["mid"]["worst"][0][0] == [0, 3, 2]
        _, ours, truth = rows["mid"]["worst"][0]
        assert ours - truth == pytest.approx(0.5, abs=1e-5)
        assert rows["img_in"]["worst"] is None
        # As it will be read back.
        [at, ours, truth] = from_json(to_json(rows["mid"]))["worst"][0]
        assert at == [0, 3, 2]
        assert isinstance(ours, float)


def test_another_shape_or_nothing_has_none():
    judged, _ = run(ToyPort({"final": lambda x: x[:, :-1]}, silent=("mid",)))
    assert judged["isolated"]["final"]["worst"] is None
    assert judged["isolated"]["mid"]["worst"] is None
