"""What the values of a picture tell: nothing in it, a wrong range, values that came round, few levels.

H height, W width; pictures are H W 3 uint8.
"""

from __future__ import annotations

import numpy as np

from parity.picturecheck.finding import Finding, rounded
from parity.picturecheck.steps import mean_steps

NEARLY_ZERO = 2
MOST_LEVELS = 40
# Steps that are taken back within two pixels: dots of a dithered picture, not bands.
MOST_REVERSALS = 0.66
BLACK_MID = (126, 129)
# Of a picture whose darker half is cut; one of high contrast has less, and as much white.
LEAST_ZERO = 0.3
MOST_WHITE = 0.04


def nothing(picture: np.ndarray) -> Finding | None:
    """A picture that is all black, or of one colour."""
    low, high = picture.min(axis=(0, 1)).astype(int), picture.max(axis=(0, 1)).astype(int)
    figures = {"least": low.tolist(), "largest": high.tolist()}
    if high.max() <= NEARLY_ZERO:
        return Finding("picture.black", "every value is zero, or nearly so", figures)
    if (high - low).max() <= NEARLY_ZERO:
        return Finding("picture.constant", "every pixel has the same colour", figures)
    return None


def value_range(picture: np.ndarray) -> Finding | None:
    """A range that was halved, or cut at its middle."""
    black = (picture <= NEARLY_ZERO).all(axis=2)
    picture = picture[~(black.mean(axis=1) > 0.98)][:, ~(black.mean(axis=0) > 0.98)]  # bars are not of the range
    if not picture.size:
        return None
    share = np.bincount(np.ascontiguousarray(picture).reshape(-1), minlength=256) / picture.size
    return _washed_out(picture, share) or _crushed(picture, share)


def _washed_out(picture: np.ndarray, share: np.ndarray) -> Finding | None:
    used = np.flatnonzero(share)
    low, high = int(used[0]), int(used[-1])
    if not (BLACK_MID[0] <= low <= BLACK_MID[1]) or high < 245 or used.size < 60:
        return None
    if share[: BLACK_MID[1] + 4].sum() < 2e-4 or share[245:].sum() < 2e-4 or _is_drawn(picture, 0.85):
        return None
    figures = {"least": low, "largest": high, "levels": int(used.size)}
    recovered = np.clip(2 * picture.astype(np.int16) - 255, 0, 255).astype(np.uint8)
    return Finding("image.range", "[0, 1] was taken for [-1, 1]: black is middle grey", figures, recovered=recovered)


def _crushed(picture: np.ndarray, share: np.ndarray) -> Finding | None:
    zero = float(share[0])
    if not LEAST_ZERO <= zero <= 0.965 or _is_drawn(picture):
        return None
    dark, middle = share[1:13].mean(), share[13:77].mean()
    levels = int(np.count_nonzero(share[1:]))
    white = float(share[254:].sum())
    parts = sum(float((part == 0).mean()) > 0.02 for part in _ninths(picture))
    beside = _beside_zero(picture)
    few = float(np.sort(share[1:255])[-8:].sum() / max(share[1:255].sum(), 1e-12))  # a chart or a drawing
    light = float(share[128:].sum() / max(share[1:].sum(), 1e-12))
    figures = {
        "zero": rounded(zero), "levels": levels, "dark_over_middle": rounded(dark / max(middle, 1e-12)),
        "beside_zero": rounded(beside), "eight_levels": rounded(few), "light": rounded(light), "white": rounded(white),
    }  # fmt: skip
    smooth = (
        levels > 80 and 0.55 * middle < dark < 1.5 * middle and zero > 12 * dark and 3 <= beside < 45 and light > 0.12
    )
    if not smooth or few > 0.35 or parts < 7 or white > MOST_WHITE:
        return None
    return Finding("image.range", "[-1, 1] was taken for [0, 1]: the darker half is black", figures)


def _ninths(picture: np.ndarray) -> list[np.ndarray]:
    """The nine parts of a picture."""
    return [part for rows in np.array_split(picture, 3) for part in np.array_split(rows, 3, axis=1) if part.size]


def _beside_zero(picture: np.ndarray) -> float:
    """Median of the values beside zeros: small where values fall to zero by and by, and are not cut out."""
    wide = picture.astype(np.int16)
    left, right = wide[:, :-1], wide[:, 1:]
    values = np.concatenate([right[(left == 0) & (right > 0)], left[(right == 0) & (left > 0)]])
    return float(np.median(values)) if values.size else 255.0


def _is_drawn(picture: np.ndarray, most_still: float = 0.7) -> bool:
    """Flat areas and hard edges, or a smooth gradient: a drawing, not a photograph."""
    steps = np.abs(np.diff(picture.astype(np.int16), axis=1)).max(axis=2)
    still = float(np.mean(steps[picture[:, 1:].max(axis=2) > 0] == 0)) if (picture > 0).any() else 1.0
    return still > most_still or float(np.quantile(steps, 0.98)) <= 2


def wrapped(picture: np.ndarray) -> Finding | None:
    """Values that left the range and came in at its other end."""
    count, natural, middling = _comes_round(picture) + _comes_round(picture.transpose(1, 0, 2))
    specks = _specks(picture)
    size = picture.shape[0] * picture.shape[1]
    figures = {"wrapping_steps": int(count), "steps_that_do_not": int(natural), "specks": int(specks)}
    if count > max(40, 4e-4 * size) and count > 4 * natural and count > 0.6 * middling:
        detail = "values beyond white begin again at black, or those below black at white"
        return Finding("image.wrapped", detail, figures)
    if specks > max(12, 5e-5 * size):
        return Finding("image.wrapped", "lone zeros amid white: 256 has become 0", figures)
    return None


def _comes_round(picture: np.ndarray) -> np.ndarray:
    """Steps across the whole range: those the slope beside goes against, those it goes with; and half-way steps.

    Steps from or to a colour that covers areas, such as paper or ink, are left out.
    """
    wide = picture.astype(np.int16)
    slope = np.diff(wide, axis=1)
    step, before, after = slope[:, 1:-1], slope[:, :-2], slope[:, 2:]
    size = np.abs(step)
    far = size >= 190
    if not far.any():
        return np.zeros(3, int)
    for channel in range(3):
        share = np.bincount(picture[..., channel].reshape(-1), minlength=256) / picture[..., channel].size
        common = (share > 0.04) | (np.convolve(share, np.ones(17), "same") > 0.25)
        plain = common[picture[..., channel]]
        far[..., channel] &= ~(plain[:, 1:-2] | plain[:, 2:-1])
    calm = (np.abs(before) <= 60) & (np.abs(after) <= 60)
    trend = (before + after) * np.sign(step)
    against = calm & (trend < -2)
    middling = against & (size > 110) & (size < 190)
    return np.array([(far & against).sum(), (far & calm & (trend > 2)).sum(), middling.sum()])


def _specks(picture: np.ndarray) -> int:
    """Zeros of one or two channels with white on all four sides."""
    white, zero = picture >= 248, picture <= 1
    amid = white[:-2, 1:-1] & white[2:, 1:-1] & white[1:-1, :-2] & white[1:-1, 2:] & zero[1:-1, 1:-1]
    return int((amid.any(axis=2) & ~amid.all(axis=2)).sum())


def banding(picture: np.ndarray) -> Finding | None:
    """Few levels at equal distances in every channel, in a picture that is no drawing of few colours."""
    if min(picture.shape[:2]) < 48 or mean_steps(picture).mean() < 0.2:
        return None
    levels = [np.unique(picture[..., c]) for c in range(3)]
    counts = [one.size for one in levels]
    if min(counts) < 3 or max(counts) > MOST_LEVELS:
        return None
    gaps = [np.diff(one.astype(int)) for one in levels]
    usual = int(np.median(np.concatenate(gaps)))
    even = float(np.mean([np.mean(np.abs(gap - usual * np.rint(gap / usual)) <= 1) for gap in gaps]))
    combined = picture.astype(np.int32) @ np.array([65536, 256, 1])
    colours = np.unique(combined).size
    steps = np.abs(np.diff(picture.astype(np.int16), axis=1)).max(axis=2)
    moved = steps[steps > 0]
    by_one = float(np.mean(moved <= usual + 1)) if moved.size else 0.0
    busy, dithered = float(np.mean(steps > 0)), _reversals(picture)
    figures = {
        "levels": counts, "distance": usual, "evenly": rounded(even), "colours": int(colours),
        "steps_of_one_level": rounded(by_one), "pixels_that_step": rounded(busy), "reversals": rounded(dithered),
    }  # fmt: skip
    grey_only = colours == counts[0]
    if min(float((steps > 0).any(axis=axis).mean()) for axis in (0, 1)) < 0.6:  # straight bars, as in a chart
        return None
    if usual < 5 or even < 0.9 or by_one < 0.35 or busy < 0.03 or dithered > MOST_REVERSALS:
        return None
    if colours < (5 if grey_only else 2 * max(counts)):
        return None
    return Finding("picture.banding", f"{max(counts)} levels a channel", figures, confidence="possible")


def _reversals(picture: np.ndarray) -> float:
    """Share of steps across that one of the next two takes back."""
    sign = np.sign(np.diff(picture[..., 1].astype(np.int16), axis=1))
    here, back = sign[:, :-2], (sign[:, :-2] * sign[:, 1:-1] < 0) | (sign[:, :-2] * sign[:, 2:] < 0)
    moved = here != 0
    return float(back[moved].mean()) if moved.any() else 0.0
