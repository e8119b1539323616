"""Figures of two pictures, against formulas and packages of their own."""

from __future__ import annotations

import builtins
import itertools
import json
import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from parity.errors import MissingPackageError, UsageError
from parity.picture_metrics import Moments, flip_map, markdown, measure, rows, table
from parity.runfolder import to_json

RNG = np.random.default_rng(0)
PICTURE = (np.add.outer(np.arange(40), np.arange(56))[..., None] * (1, 2, 1) + (60, 0, 30)).astype(np.uint8)


def noisy(amount: int) -> np.ndarray:
    moved = PICTURE.astype(int) + RNG.integers(-amount, amount + 1, PICTURE.shape)
    return moved.clip(0, 255).astype(np.uint8)


def test_equal_pictures():
    found = measure(PICTURE, PICTURE.copy())
    assert (found.rmse, found.max_abs, found.psnr, found.ssim, found.flip) == (0, 0, math.inf, 1, 0)
    assert found.reference == found.candidate == Moments(PICTURE.mean(), PICTURE.std())


def test_figures_of_known_pictures():
    """GIVEN one value that is off by 10, and another by 250 the other way round (no overflow of uint8)."""
    black = np.zeros((20, 30, 3), np.uint8)
    other = black.copy()
    other[3, 4, 1], other[7, 8, 2] = 10, 250
    for pair in ((black, other), (other, black)):
        found = measure(*pair)
        assert found.rmse == pytest.approx(math.sqrt((10**2 + 250**2) / black.size))
        assert (found.max_abs, found.max_at) == (250, (7, 8, 2))
        assert found.psnr == pytest.approx(peak_signal_noise_ratio(*pair, data_range=255))


def test_mean_and_std_are_of_each_picture():
    grey = np.full((16, 16, 3), 100, np.uint8)
    halves = grey.copy()
    halves[:8] = 200
    found = measure(grey, halves)
    assert (found.reference, found.candidate) == (Moments(100, 0), Moments(150, 50))


def test_measures_grow_with_noise():
    found = [measure(PICTURE, noisy(amount)) for amount in (1, 4, 16, 64)]
    for better, worse in itertools.pairwise(found):
        assert better.rmse < worse.rmse
        assert better.psnr > worse.psnr
        assert better.ssim > worse.ssim
        assert better.flip < worse.flip
    assert 0 < found[0].flip < found[-1].flip < 1


def test_ssim_is_that_of_wang():
    other = noisy(20)
    expected = structural_similarity(
        PICTURE, other, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert measure(PICTURE, other).ssim == expected


def test_flip_sees_where():
    other = PICTURE.copy()
    other[5:10, 40:50] = 255 - other[5:10, 40:50]
    found = flip_map(PICTURE, other)
    assert (found.shape, found.dtype) == ((40, 56), np.float32)
    assert found[5:10, 40:50].mean() > 10 * found[25:, :25].mean()
    assert measure(PICTURE, other).flip == pytest.approx(found.mean())


def test_nothing_is_printed(capfd):
    measure(PICTURE, noisy(3))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [(1, 1), (10, 40), (2, 3)])
def test_small_pictures_have_no_ssim(size):
    found = measure(PICTURE[: size[0], : size[1]], noisy(5)[: size[0], : size[1]])
    assert found.ssim is None
    assert 0 <= found.flip <= 1
    assert {name: figure for name, _, figure in rows(found)}["SSIM"] == "–"


def test_pictures_that_can_not_be_compared():
    with pytest.raises(UsageError, match=r"40 × 56 for the reference, 56 × 40 for the candidate"):
        measure(PICTURE, PICTURE.transpose(1, 0, 2))
    for strange in (PICTURE[..., 0], PICTURE.astype(np.float32), np.zeros((0, 4, 3), np.uint8), PICTURE[..., :2]):
        with pytest.raises(UsageError, match="expected H W 3 of uint8"):
            measure(PICTURE, strange)


@pytest.mark.parametrize(("module", "package"), [("flip_evaluator", "flip-evaluator"), ("skimage", "scikit-image")])
def test_a_package_that_is_missing(monkeypatch, module, package):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=f"pip install {package}"):
        measure(PICTURE, PICTURE)


def test_the_table_of_the_guide():
    other = PICTURE.copy()
    other[..., 0] += 1
    found = measure(PICTURE, other)
    assert [name for name, _, _ in rows(found)][:3] == ["RMSE", "Mean", "Std"]
    lines = markdown(found, ("diffusers", "MLX")).splitlines()
    assert lines[0] == "| Metric | diffusers | MLX |"
    assert lines[2] == f"| RMSE | – | {found.rmse:.2f} |" == "| RMSE | – | 0.58 |"
    assert lines[3] == f"| Mean | {PICTURE.mean():.2f} | {other.mean():.2f} |"
    shown = table(found).splitlines()
    assert len({len(line) for line in shown}) == 1
    assert max(map(len, shown)) <= 80
    assert table(measure(PICTURE, PICTURE)).splitlines()[5].split() == ["PSNR", "(dB)", "–", "∞"]


def test_figures_become_json():
    found = to_json(measure(PICTURE, PICTURE).as_dict())
    assert json.loads(json.dumps(found, allow_nan=False))["psnr"] == "inf"
    assert found["reference"]["mean"] == pytest.approx(PICTURE.mean())
