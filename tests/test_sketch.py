"""Sketches: equal to their definition, linear, blind to nothing that statistics are blind to."""

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity import sketch as sketches
from parity.sketch import DEFAULT, Spec, Sum, difference, hashes, sketch

VECTORS = json.loads((Path(__file__).parent / "data" / "sketch.json").read_text())


def mix(index, seed):
    """The definition, written with Python's integers."""
    x = (index + seed * 0x9E3779B9) % 2**32
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def by_definition(values, spec):
    buckets = [0.0] * spec.buckets
    for index, value in enumerate(values):
        x = mix(index, spec.seed)
        buckets[x % spec.buckets] += -value if x >> 31 else value
    return np.array(buckets)


@pytest.mark.parametrize("one", VECTORS["hashes"], ids=lambda one: f"{one['index']}-{one['seed']}")
def test_hashes_are_those_of_the_vectors(one):
    assert mix(one["index"], one["seed"]) == one["hash"]
    assert int(hashes(one["index"], one["index"] + 1, one["seed"])[0]) == one["hash"]


@pytest.mark.parametrize("one", VECTORS["vectors"], ids=lambda one: f"{one['buckets']}-{one['seed']}")
def test_sketches_are_those_of_the_vectors(one):
    spec, expected = Spec(one["buckets"], one["seed"]), one["sketch"]
    if isinstance(expected, dict):
        expected = [expected.get(str(i), 0.0) for i in range(spec.buckets)]
    np.testing.assert_array_equal(sketch(np.array(one["input"], np.float32), spec), expected)


@given(st.integers(1, 5000), st.sampled_from([2, 64, 2048, 32768]), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_any_sketch_is_the_definition(count, buckets, seed):
    values = np.random.default_rng(count).integers(-8, 9, count) / 4  # sums of these are exact in any order
    spec = Spec(buckets, seed)
    np.testing.assert_array_equal(sketch(values, spec), by_definition(values.tolist(), spec))


def test_indices_count_modulo_two_to_the_32():
    np.testing.assert_array_equal(
        hashes(2**32 - 2, 2**32 + 2, 5), [mix(i % 2**32, 5) for i in range(2**32 - 2, 2**32 + 2)]
    )


def test_a_sketch_is_linear_and_needs_the_values_only():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 40, 50))
    np.testing.assert_allclose(sketch(a) - sketch(b), sketch(a - b), atol=1e-12)
    np.testing.assert_allclose(sketch(a), sketch(a.reshape(-1)), atol=0)
    half = a.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(sketch(half), sketch(half.astype(np.float64)))


def test_slices_add_up_to_the_whole():
    x = np.random.default_rng(1).integers(-9, 9, 30_000).astype(np.float64)
    made = Sum(x.size)
    for start in range(0, x.size, 7001):
        made.add(x[start : start + 7001])
    np.testing.assert_array_equal(made.buckets, sketch(x))


@pytest.mark.parametrize("count", [100, 3072, 300_000])
def test_the_norm_of_a_difference_is_met(count):
    rng, ratios = np.random.default_rng(2), []
    for seed in range(60):
        a, e = rng.standard_normal((2, count))
        found = difference(sketch(a + e * 1e-3, Spec(seed=seed)), sketch(a, Spec(seed=seed)))
        ratios.append(found.norm / (1e-3 * np.linalg.norm(e)) - 1)
    assert np.mean(np.abs(ratios) <= DEFAULT.half_width) >= 0.85
    assert abs(np.mean(ratios)) < 0.01
    assert np.std(ratios) <= 1.35 / math.sqrt(2 * DEFAULT.buckets)


def test_an_error_in_one_channel_is_met():
    a = np.random.default_rng(3).standard_normal((1, 256, 3072))
    b = a.copy()
    b[..., 17] += 0.5
    true = np.linalg.norm(a - b)
    # A fold of every 2048th element would put the whole channel into a few buckets.
    assert difference(sketch(a), sketch(b)).norm == pytest.approx(true, rel=0.1)


def test_permutations_are_seen():
    x = np.random.default_rng(4).standard_normal((1, 64, 96))
    moved = np.roll(x, 1, axis=1)
    found = difference(sketch(x), sketch(moved))
    assert found.norm == pytest.approx(np.linalg.norm(x - moved), rel=0.08)


@pytest.mark.parametrize("count", [60, 3000, 500_000])
def test_a_single_large_error_sticks_out_with_its_size(count):
    rng = np.random.default_rng(5)
    a = rng.standard_normal(count)
    noisy = a + 1e-7 * rng.standard_normal(count)
    noisy[count // 3] += 1e-3
    found = difference(sketch(noisy), sketch(a))
    assert found.peak == pytest.approx(1e-3, rel=0.05)


def test_noise_alone_has_no_peak():
    rng = np.random.default_rng(6)
    for _ in range(50):
        a, e = rng.standard_normal((2, 200_000))
        assert difference(sketch(a + e * 1e-3), sketch(a)).peak is None


def test_equal_arrays_have_no_difference():
    x = np.random.default_rng(7).standard_normal(999)
    found = difference(sketch(x), sketch(x))
    assert (found.norm, found.peak) == (0.0, None)


def test_values_that_are_not_finite_are_left_out():
    x = np.random.default_rng(8).standard_normal(20_000)
    bad = x.copy()
    bad[[3, 9000, 19_999]] = [np.nan, np.inf, -np.inf]
    x[[3, 9000, 19_999]] = 0
    np.testing.assert_array_equal(sketch(bad), sketch(x))
    assert not math.isfinite(difference(sketch(x) + np.nan, sketch(x)).norm)


@pytest.mark.parametrize("wrong", [{"buckets": 100}, {"buckets": 1}, {"buckets": 65536}, {"seed": -1}, {"seed": 2**32}])
def test_impossible_sketches_are_refused(wrong):
    with pytest.raises(ValueError, match=r"buckets|seed"):
        Spec(**wrong)


def test_the_kept_places_grow_and_are_of_one_kind(monkeypatch):
    monkeypatch.setattr(sketches, "_made", {})
    short = sketches.places(10).copy()
    np.testing.assert_array_equal(sketches.places(200_000)[:10], short)
    sketches.places(10, Spec(seed=1))
    assert list(sketches._made) == [Spec(seed=1)]
