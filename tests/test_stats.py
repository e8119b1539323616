"""Measures of one array and of two, each against a formula written out."""

import math

import ml_dtypes
import numpy as np
import pytest

from parity import stats

DRAW = np.random.default_rng(0)
# Longer than one slice, so that the running figures are put together.
LONG = (DRAW.standard_normal((7, 3001)) * np.exp(DRAW.standard_normal((7, 1)) * 4)).astype(np.float32)


def test_statistics_of_one_array():
    found, x = stats.describe(LONG), LONG.astype(np.float64)
    assert (found.min, found.max, found.count) == (x.min(), x.max(), x.size)
    assert found.mean == pytest.approx(x.mean(), rel=1e-9)
    assert found.std == pytest.approx(x.std(), rel=1e-12)
    assert found.rms == pytest.approx(np.sqrt((x**2).mean()), rel=1e-12)
    assert abs(LONG[found.absmax_at]) == found.absmax == np.abs(x).max()
    assert found.headroom == np.finfo(np.float32).max / found.absmax
    assert sum(found.histogram) == x.size
    ordered = np.sort(np.abs(LONG).ravel())
    assert found.quantiles == tuple(float(ordered[math.ceil(q * x.size) - 1]) for q in stats.QUANTILES)


def test_spread_does_not_cancel_when_the_mean_is_large():
    x = 1e6 + DRAW.standard_normal(20_000)
    assert stats.describe(x).std == pytest.approx(x.std(), rel=1e-9)


def test_histogram_counts_binades():
    x = np.array([0.0, 1.0, 1.5, -2.0, 3.9, 2.0**-60, -(2.0**70)], np.float32)
    counts = dict(enumerate(stats.describe(x).histogram, start=stats.HISTOGRAM_LOW - 1))
    assert {k: n for k, n in counts.items() if n} == {-41: 1, 0: 2, 1: 2, 40: 1}


def test_non_finite_values_are_counted_and_left_out_of_the_rest():
    x = np.array([[1.0, np.nan, -3.0], [np.inf, -np.inf, 0.0]], np.float32)
    found = stats.describe(x)
    assert (found.nan, found.pos_inf, found.neg_inf, found.zeros) == (1, 1, 1, 1)
    assert (found.min, found.max, found.absmax, found.absmax_at) == (-3, 1, 3, (0, 2))
    assert found.mean == pytest.approx(-2 / 3)
    assert found.brief()["inf"] == 2


def test_an_array_without_a_finite_value():
    found = stats.describe(np.full(9000, np.nan, np.float32))
    assert found.nan == 9000
    assert all(math.isnan(x) for x in (found.min, found.mean, found.rms, found.absmax, *found.quantiles))


def test_bfloat16_is_measured_exactly():
    x = LONG.astype(ml_dtypes.bfloat16)
    assert stats.describe(x).max == float(x.astype(np.float32).max())
    assert stats.describe(x).headroom == pytest.approx(3.3895314e38 / stats.describe(x).absmax)
    np.testing.assert_array_equal(stats.float64(x), x.astype(np.float32).astype(np.float64))


def test_ranges_of_chunks():
    x = np.array([[1.0, 2, 30, 40], [5, 6, -7, 8]])
    assert stats.describe(x, chunks=2).chunks == ((1, 6), (-7, 40))
    assert stats.describe(x, chunks=3).chunks == ()


def test_error_and_distance_of_two_arrays():
    other = LONG.astype(np.float64) + 1e-3 * DRAW.standard_normal(LONG.shape)
    difference = LONG - other
    rmse = np.sqrt((difference**2).mean())
    found, far = stats.error(LONG, other), stats.distance(LONG, other)
    assert found.rel_rmse == pytest.approx(rmse / np.sqrt((other**2).mean()), rel=1e-9)
    assert far.rel_rmse == pytest.approx(found.rel_rmse, rel=1e-9)
    assert found.max_abs == far.max_abs == np.abs(difference).max()
    assert abs(difference[far.max_at]) == far.max_abs
    norms = np.linalg.norm(LONG.astype(float)) * np.linalg.norm(other)
    assert far.cosine == pytest.approx((LONG * other).sum() / norms)
    assert far.psnr == pytest.approx(20 * np.log10(np.ptp(other) / rmse))


def test_one_wrong_element_far_behind_is_found():
    other = np.zeros(50_000)
    x = other.copy()
    x[43_210] = -2.0
    far = stats.distance(x, other)
    assert (far.max_abs, far.max_at) == (2.0, (43_210,))
    assert stats.error(x, other).max_abs == 2.0


@pytest.mark.parametrize("position", [0, 12_345, 49_999])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_value_never_disappears(position, value):
    x = np.ones(50_000)
    x[position] = value
    found, far = stats.error(x, np.ones(50_000)), stats.distance(x, np.ones(50_000))
    assert not math.isfinite(found.rel_rmse)
    assert not math.isfinite(found.max_abs)
    assert not math.isfinite(far.rmse)
    assert far.max_at == (position,)


def test_equal_and_zero_arrays():
    zero, one = np.zeros(5), np.ones(5)
    assert stats.error(one, one) == stats.Error(0.0, 0.0)
    assert stats.distance(one, one).psnr == math.inf
    assert stats.error(zero, zero).rel_rmse == 0
    assert stats.error(one, zero).rel_rmse == math.inf
    assert math.isnan(stats.distance(one, zero).cosine)


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="differ"):
        stats.error(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="nothing to compare"):
        stats.distance(np.ones((0, 3)), np.ones((0, 3)))
    with pytest.raises(ValueError, match="nothing to measure"):
        stats.describe(np.ones((0, 3)))


def test_unequal_values_are_counted_whatever_their_type():
    ids = np.arange(20_000).reshape(2, -1)
    assert stats.mismatches(ids, ids.astype(np.int32)) == 0
    other = ids.copy()
    other[1, [3, 9_999]] += 1
    assert stats.mismatches(ids, other) == 2
    x = np.array([0.0, np.nan, np.inf, 1.0], np.float32)
    assert stats.mismatches(x, np.array([-0.0, np.nan, np.inf, 1.0], np.float32)) == 0
    assert stats.mismatches(x, np.array([0.0, 0.0, -np.inf, np.nextafter(np.float32(1), 2)], np.float32)) == 3
    assert stats.mismatches(np.array([True, False]), np.array([True, True])) == 1
    with pytest.raises(ValueError, match="differ"):
        stats.mismatches(ids, ids[:1])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int32", "bool"])
def test_binades_are_the_histogram_without_sorting(dtype):
    draw = np.random.default_rng(0)
    kind = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(ml_dtypes.bfloat16)
    with np.errstate(over="ignore"):
        x = (
            draw.standard_normal(20_003) * 10.0 ** draw.uniform(-45 if kind.kind not in "ib" else 0, 8, 20_003)
        ).astype(kind)
        if kind.kind not in "ib":
            x[:9] = [np.nan, np.inf, -np.inf, 0.0, -0.0, 2.0**-40, 2.0**-41, 1e38, 1e-45]
        found = stats.binades(x.reshape(1, -1))
        assert found == stats.describe(x).histogram
    assert sum(found) > 4_000
