"""Tiles that were decoded apart: each has its own shade, so that steps lie on a regular grid.

H height, W width; pictures are H W 3 uint8. The step over a column, less the slope beside it, is averaged
with its sign over bands of rows. What belongs to the picture changes its sign from row to row and cancels;
the shade of a tile does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from parity.picturecheck.finding import Finding, rounded
from parity.picturecheck.steps import grey

BAND = 32
WINDOW = 17
STRIDES = range(32, 1025, 8)
# A line's score is its step over that of the lines around it, at most 8, as a mean over bands of rows.
MOST_SCORE = 8.0
LEAST_SCORE = 3.4
OVER_OTHERS = 1.3
# Of the seam's step: beside a lone line the steps are as large; levels; share of the picture's deviation.
BESIDE = 0.7
LEAST_LEVELS = 1.0
LEAST_DETAIL = 0.3
OF_CONTRAST = 0.42
LEAST_LINES = 3
LEAST_OF_AXIS = 0.6


@dataclass(frozen=True, eq=False)
class _Lines:
    """Of each column of a picture (between pixels x − 1 and x): its score, and its step in levels."""

    score: np.ndarray
    level: np.ndarray


def seams(picture: np.ndarray) -> Finding | None:
    """The grid of tiles that shows; None where there is none."""
    height, width, _ = picture.shape
    if min(height, width) < 96:
        return None
    values = grey(picture).astype(np.float32) / 3
    if min(float(np.median(np.abs(np.diff(values, axis=axis)).mean(axis=1 - axis))) for axis in (0, 1)) < LEAST_DETAIL:
        return None
    best = _stride([_lines(values), _lines(values.T)])
    if best is None:
        return None
    stride, ratio, score, level = best
    if ratio < OVER_OTHERS or score < LEAST_SCORE or not LEAST_LEVELS <= level <= OF_CONTRAST * float(values.std()):
        return None
    figures = {"stride": stride, "step_levels": rounded(level), "over_other_lines": rounded(ratio),
               "over_lines_beside": rounded(score)}  # fmt: skip
    return Finding(
        "vae.tiling", f"steps every {stride} pixels", figures,
        columns=list(range(stride, width - 4, stride)), rows=list(range(stride, height - 4, stride)),
    )  # fmt: skip


def _lines(values: np.ndarray) -> _Lines:
    height, width = values.shape
    bands = height // BAND
    step = np.zeros_like(values)
    difference = np.diff(values, axis=1)
    step[:, 2:-1] = difference[:, 1:-1] - (difference[:, :-2] + difference[:, 2:]) / 2
    means = np.abs(step[: bands * BAND].reshape(bands, BAND, width).mean(axis=1))
    around = ndimage.median_filter(means, (1, WINDOW), mode="nearest") + 0.15
    return _Lines(np.minimum(means / around, MOST_SCORE).mean(axis=0), np.median(means, axis=0))


@dataclass(frozen=True)
class _Grid:
    """The lines of one axis at the multiples of a stride, as means: their score, that of others, steps, how many.

    `weakest` and `strongest` are scores of a line.
    """

    score: float
    weakest: float
    strongest: float
    others: float
    level: float
    beside: float
    count: int


def _stride(axes: list[_Lines]) -> tuple[int, float, float, float] | None:
    """The stride whose lines stand out most: the stride, over other lines, score and step.

    Each axis must show it a little, and both together, each line counted alike, clearly.
    """
    best = None
    for stride in STRIDES:
        grids = [grid for lines in axes if (grid := _grid(lines, stride)) is not None]
        count = sum(grid.count for grid in grids)
        if count < LEAST_LINES or any(grid.weakest < LEAST_OF_AXIS * grid.others for grid in grids):
            continue
        score, others, level, beside = (
            sum(getattr(grid, name) * grid.count for grid in grids) / count
            for name in ("score", "others", "level", "beside")
        )
        score = (score * count - max(grid.strongest for grid in grids)) / (count - 1)  # one edge makes no grid
        ratio = score / others if beside <= BESIDE * level else 0.0
        if best is None or ratio > best[1] * 1.05:
            best = stride, ratio, score, level
    return best


def _grid(lines: _Lines, stride: int) -> _Grid | None:
    places = np.arange(stride, lines.score.size - 4, stride)
    if not places.size:
        return None
    beside = max(float(lines.level[places - 1].mean()), float(lines.level[places + 1].mean()))
    others = np.delete(lines.score, np.concatenate([places + off for off in (-1, 0, 1)]))
    usual = max(float(np.quantile(others, 0.99)), 1.0)
    scores = lines.score[places]
    return _Grid(
        float(scores.mean()),
        float(scores.min()),
        float(scores.max()),
        usual,
        float(lines.level[places].mean()),
        beside,
        places.size,
    )
