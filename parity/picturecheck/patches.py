"""Patches unpacked in the wrong order, and small pictures beside each other.

H height, W width; pictures are H W 3 uint8. A patch is 2 × 2 cells of `side` pixels: latents of two
by two make cells of 8 pixels, and a pixel shuffle cells of 1. For every order of the four cells the
steps over the borders of cells are known from sixteen pairings, so that all 24 are tried at once.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from parity.picturecheck.finding import Finding, rounded
from parity.picturecheck.steps import deviation, grey, is_black_and_white, mean_steps

SIDES = (1, 2, 4, 8, 16)
# Steps over borders of cells: left by the right order, and then against steps within cells.
LEFT = 0.62
LEFT_SHUFFLED = 0.85
LEFT_TOGETHER = 0.85
# Mean step over deviation of what was put together: printed dots are rougher.
ROUGH = 0.5
UNEVEN, EVEN = 0.8, 0.9
LEAST_LEVELS = 40
AS_INSIDE = 1.45
NOT_AS_INSIDE = 1.5
LEAST_STEP = 1.2
MOST_TILES = 8


def quarters(picture: np.ndarray, side: int, order: tuple[int, ...]) -> np.ndarray:
    """Each patch of 2 × 2 cells with cell ``order[i]`` at place i; what is no whole patch stays."""
    down, across = (n // (2 * side) for n in picture.shape[:2])
    cells = _cells(picture, side)[list(order)].reshape(2, 2, down, across, side, side, 3)
    done = picture.copy()
    done[: down * 2 * side, : across * 2 * side] = cells.transpose(2, 0, 4, 3, 1, 5, 6).reshape(
        down * 2 * side, across * 2 * side, 3
    )
    return done


def gathered(picture: np.ndarray, side: int) -> np.ndarray:
    """The cells of one place in their patches put together: four small pictures; sides are whole patches."""
    height, width, _ = picture.shape
    cells = picture.reshape(height // (2 * side), 2, side, width // (2 * side), 2, side, 3)
    return cells.transpose(1, 0, 2, 4, 3, 5, 6).reshape(picture.shape)


def spread(picture: np.ndarray, side: int) -> np.ndarray:
    """The inverse of `gathered`."""
    height, width, _ = picture.shape
    cells = picture.reshape(2, height // (2 * side), side, 2, width // (2 * side), side, 3)
    return cells.transpose(1, 0, 2, 4, 3, 5, 6).reshape(picture.shape)


def _cells(picture: np.ndarray, side: int) -> np.ndarray:
    """4 × down × across × side × side × 3: the cells by their place in the patch."""
    down, across = (n // (2 * side) for n in picture.shape[:2])
    whole = picture[: down * 2 * side, : across * 2 * side].reshape(down, 2, side, across, 2, side, 3)
    return whole.transpose(1, 4, 0, 3, 2, 5, 6).reshape(4, down, across, side, side, 3)


def patch_order(picture: np.ndarray) -> Finding | None:
    """The order of cells that makes the picture smooth; None where it is smooth as it is."""
    if min(picture.shape[:2]) < 64 or mean_steps(picture).mean() < LEAST_STEP / 2:
        return None
    dots = np.unique(picture[:512, :512, 1]).size < LEAST_LEVELS or is_black_and_white(picture)  # printed or dithered
    sides = SIDES[1:] if dots else SIDES
    found = [one for side in sides for one in (_quarters_order(picture, side), _scattered(picture, side)) if one]
    return min(found, key=lambda one: one.evidence["border_step_left"], default=None)


def _quarters_order(picture: np.ndarray, side: int) -> Finding | None:
    cells = _cells(picture[:1024, :1024], side).astype(np.int16)
    across, down = (
        _pairings(cells[..., -1, :], cells[..., 0, :], 2),
        _pairings(cells[..., -1, :, :], cells[..., 0, :, :], 1),
    )

    def cost(order: tuple[int, ...]) -> np.ndarray:
        a, b, c, d = order
        return np.array([
            across[0][a, b] + across[0][c, d] + across[1][b, a] + across[1][d, c],
            down[0][a, c] + down[0][b, d] + down[1][c, a] + down[1][d, b],
        ]) / 4  # fmt: skip

    given = cost((0, 1, 2, 3))
    order = min(permutations(range(4)), key=lambda one: cost(one).sum())
    left = cost(order)
    if order == (0, 1, 2, 3) or given.sum() < 2 * LEAST_STEP:
        return None
    ratio = left.sum() / given.sum()
    figures = {"border_step": rounded(given.mean()), "border_step_left": rounded(ratio)}
    if side == 1:
        if (left / np.maximum(given, 1e-9)).min() > LEFT_SHUFFLED or (left > 1.03 * given).any():
            return None
        if evenness(picture) > UNEVEN or evenness(quarters(picture, side, order)) < EVEN:
            return None
    else:
        inside = _inside(cells)
        figures["step_inside"] = rounded(inside.mean())
        if ratio > LEFT or (left > AS_INSIDE * inside + 1).any() or given.sum() < NOT_AS_INSIDE * inside.sum():
            return None
    if (left < 0.05 * given).any():  # flat along one axis: a pattern, such as a chessboard turned into stripes
        return None
    recovered = quarters(picture, side, order)
    detail = f"the {side}-pixel quarters of each {2 * side}-pixel patch are in the order {order}"
    return Finding("layout.patch_order", detail, {**figures, "cell": side}, recovered=recovered)


def _pairings(last: np.ndarray, first: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean step from the last line of cell a to the first of cell b: within a patch, and into the next."""

    def step(a: int, b: int, apart: int) -> float:
        one, other = last[a], first[b]
        if apart:
            one = one[:-1] if axis == 1 else one[:, :-1]
            other = other[1:] if axis == 1 else other[:, 1:]
        return float(np.abs(one - other).mean())

    return tuple(np.array([[step(a, b, apart) for b in range(4)] for a in range(4)]) for apart in (0, 1))


def _inside(cells: np.ndarray) -> np.ndarray:
    """Mean step within cells beside their borders: across, down."""
    across = np.abs(np.diff(cells, axis=-2)).mean()
    down = np.abs(np.diff(cells, axis=-3)).mean()
    return np.array([across, down])


def _scattered(picture: np.ndarray, side: int) -> Finding | None:
    """Cells of one place in their patches lie together, or apart, where it should be the other way."""
    height, width = (n // (2 * side) * 2 * side for n in picture.shape[:2])
    if (height, width) != picture.shape[:2]:
        return None
    given = _border_steps(picture, side)
    inside = _border_steps(picture, side, side // 2) if side > 1 else given * 0.5
    for undo, detail in (
        (spread, "cells of one place in their patches lie together"),
        (gathered, "four small pictures lie in each other, cell by cell"),
    ):
        if side < 8 and undo is gathered:  # the dots of printed pictures come near it
            continue
        recovered = undo(picture, side)
        left = _border_steps(recovered, side)
        ratio = left.sum() / max(given.sum(), 1e-9)
        smooth = (left < 0.85 * given).all() and (left > 0.05 * given).all() and (
            evenness(recovered) > EVEN if side == 1
            else (left < AS_INSIDE * inside + 1).all() and given.sum() > NOT_AS_INSIDE * inside.sum()
        )  # fmt: skip
        most = LEFT_TOGETHER if side == 1 and undo is spread else LEFT
        if side == 1 and left.mean() > ROUGH * deviation(picture).mean():
            continue
        if smooth and ratio < most and given.sum() > 2 * LEAST_STEP:
            figures = {"border_step": rounded(given.mean()), "border_step_left": rounded(ratio), "cell": side}
            return Finding("layout.patch_order", f"{detail} ({side} pixels a cell)", figures, recovered=recovered)
    return None


def evenness(picture: np.ndarray) -> float:
    """Mean step from even lines to odd ones against that from odd to even, the smaller over the larger.

    1 where pairs of lines leave no trace; the worse of the two axes.
    """
    part = picture[:, :, 1].astype(np.int16)
    ratios = []
    for turned in (part, part.T):
        steps = np.abs(np.diff(turned, axis=1)).mean(axis=0)
        even, odd = float(steps[::2].mean()), float(steps[1::2].mean())
        ratios.append(min(even, odd) / max(even, odd, 1e-9))
    return min(ratios)


def _border_steps(picture: np.ndarray, side: int, offset: int = 0) -> np.ndarray:
    """Mean step over the lines that are `offset` beyond borders of cells: across, down."""
    part = picture[:, :, 1].astype(np.int16)
    places = [np.arange(side + offset, n, side) for n in part.shape]
    across = np.abs(part[:, places[1]] - part[:, places[1] - 1]).mean()
    down = np.abs(part[places[0]] - part[places[0] - 1]).mean()
    return np.array([across, down])


# Tiles: difference of pixels one tile apart over that of pixels half a tile apart; the seam's step over
# that of the 97th percentile of lines, on the axis where it is sharper and on the other.
ALIKE, FINER = 0.12, 0.33
SEAM_LINES = 1.25
OTHER_SEAM_LINES = 0.7


def tiled(picture: np.ndarray) -> Finding | None:
    """The same small picture beside and below itself, with a seam between; None for patterns, which have none."""
    height, width, _ = picture.shape
    if min(height, width) < 48:
        return None
    values = grey(picture).astype(np.float32)
    across, down = _repeats(values), _repeats(values.T)
    if across is None or down is None:
        return None
    if max(across[2], down[2]) < SEAM_LINES or min(across[2], down[2]) < OTHER_SEAM_LINES:
        return None
    figures = {
        "tiles_across": across[0], "tiles_down": down[0], "difference_left": rounded(max(across[1], down[1])),
        "seam_across_over_other_lines": rounded(across[2]), "seam_down_over_other_lines": rounded(down[2]),
    }  # fmt: skip
    return Finding(
        "picture.tiled", f"{down[0]} × {across[0]} copies", figures,
        columns=[width * i // across[0] for i in range(1, across[0])],
        rows=[height * i // down[0] for i in range(1, down[0])],
    )  # fmt: skip


def _repeats(values: np.ndarray) -> tuple[int, float, float] | None:
    """How many copies lie across, the difference between them and how sharp the seam is; None for no seam."""
    width = values.shape[1]
    lines = np.abs(np.diff(values, axis=1)).mean(axis=0)
    usual = np.quantile(lines, 0.97)
    spread_of_all = max(float(values.std()), 1e-6)
    for times in range(MOST_TILES, 1, -1):
        tile = round(width / times)
        if tile < 16:
            continue
        shifts = range(tile - 1, tile + 2)
        apart = min(float(np.abs(values[:, d:] - values[:, :-d]).mean()) for d in shifts) / spread_of_all
        if apart > ALIKE:
            continue
        finer = any(
            np.abs(values[:, tile // n :] - values[:, : -(tile // n)]).mean() / spread_of_all < FINER
            for n in (2, 3, 4, 5) if tile // n >= 4
        )  # fmt: skip
        places = [tile * i + off for i in range(1, times) for off in (-2, -1, 0) if 0 <= tile * i + off < lines.size]
        seam = np.median([lines[places[i : i + 3]].max() for i in range(0, len(places), 3)])
        wide = [float(np.abs(values[:, tile * i + 3] - values[:, tile * i - 4]).mean()) for i in range(1, times)]
        if np.median(lines) < 0.01 * spread_of_all or np.median(wide) < 0.6 * seam:  # a drawing, or drawn lines
            return None
        sharp = float(seam / max(usual, 1e-6))
        return (times, apart, sharp) if not finer else None
    return None
