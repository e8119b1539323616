"""Where the vision tower's tokens stand: windows, segments of attention, rotary positions.

N tokens (patches) of all pictures together, t h w a picture's grid of patches, m = 2 patches each
way of a merge block, d head width. All of it follows from the grids alone, is made on the host
and kept for the same grids. Indices equal transformers' bit for bit, in value and in type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import numpy as np

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Windows:
    """The order in which the tower works: one window after the other.

    Attributes:
        index: N/m², int64. Which merge block stands at each place.
        bounds: windows + 1, int32. Tokens before each window; only a picture's last row and
            column of windows are smaller than the others.
    """

    index: np.ndarray
    bounds: np.ndarray


@dataclass(frozen=True)
class Segments:
    """Runs of tokens that attend to themselves only, sorted by length so that equals are one batch.

    Attributes:
        groups: (how many, tokens of each).
        order: N. Tokens in the order of the groups, or None where that is the order they have.
        inverse: N. Takes them back.
    """

    groups: tuple[tuple[int, int], ...]
    order: mx.array | None = None
    inverse: mx.array | None = None


def check_grids(grids: Sequence[Grid], merge: int) -> None:
    """Refuse grids that are none.

    Raises:
        ValueError: no grid; one without patches, or whose sides are no multiples of m.
    """
    for grid in grids:
        if len(grid) != 3 or min(grid) < 1 or grid[1] % merge or grid[2] % merge:
            raise ValueError(
                f"grid {tuple(grid)}: expected (frames, rows, columns) of at least one patch, "
                f"rows and columns multiples of {merge}"
            )
    if not grids:
        raise ValueError("no grids; expected (frames, rows, columns) of at least one picture")


@lru_cache(maxsize=16)
def windows(grids: tuple[Grid, ...], merge: int, side: int) -> Windows:
    """Windows of each frame of each picture, row by row.

    Args:
        grids: (t, h, w) of each picture.
        merge: m.
        side: of a window, in merge blocks.
    """
    blocks, start = [], 0
    for frames, height, width in grids:
        rows, columns = height // merge, width // merge
        index = start + np.arange(frames * rows * columns).reshape(frames, rows, columns)
        blocks += [
            frame[top : top + side, left : left + side].ravel()
            for frame in index
            for top in range(0, rows, side)
            for left in range(0, columns, side)
        ]
        start += index.size
    lengths = [block.size * merge**2 for block in blocks]
    return Windows(_frozen(np.concatenate(blocks).astype(np.int64)), _bounds(lengths))


@lru_cache(maxsize=16)
def frames(grids: tuple[Grid, ...]) -> np.ndarray:
    """Tokens before each frame of each picture, int32: the bounds of full attention."""
    return _bounds([height * width for count, height, width in grids for _ in range(count)])


@lru_cache(maxsize=64)
def segments(bounds: tuple[int, ...]) -> Segments:
    """The batches of attention within these bounds.

    Args:
        bounds: tokens before each segment, and N.
    """
    edges = np.asarray(bounds)
    starts, lengths = edges[:-1], np.diff(edges)
    found, groups = [], []
    for length in dict.fromkeys(lengths.tolist()):
        of_group = starts[lengths == length]
        found.append((of_group[:, None] + np.arange(length)).ravel())
        groups.append((len(of_group), length))
    order = np.concatenate(found)
    if np.array_equal(order, np.arange(len(order))):
        return Segments(tuple(groups))
    return Segments(tuple(groups), mx.array(order), mx.array(np.argsort(order)))


@lru_cache(maxsize=16)
def rotary_table(grids: tuple[Grid, ...], merge: int, side: int, head_width: int, theta: float) -> mx.array:
    """Rotary table in the order of the windows: d/4 frequencies of the row, then as many of the column.

    Args:
        grids, merge, side: see `windows`.
        head_width: d.
        theta: base of the frequencies.

    Returns:
        N d/2 2, (cos, sin), float32.
    """
    order = windows(grids, merge, side).index
    positions = np.concatenate([_positions(grid, merge) for grid in grids])
    positions = positions.reshape(-1, merge**2, 2)[order].reshape(-1, 2)
    # Rounded to float32 at every step, as the reference computes them; the power from float64.
    axis = head_width // 2
    exponent = np.arange(0, axis, 2, dtype=np.float32) / np.float32(axis)
    frequency = np.float32(1) / np.power(theta, exponent.astype(np.float64)).astype(np.float32)
    angle = (positions[..., None].astype(np.float32) * frequency).reshape(len(positions), -1).astype(np.float64)
    return mx.array(np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32))


def _positions(grid: Grid, merge: int) -> np.ndarray:
    """(row, column) of each token of a picture, merge block by merge block; the same in every frame."""
    count, height, width = grid
    places = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
    places = places.reshape(height // merge, merge, width // merge, merge, 2).swapaxes(1, 2)
    return np.tile(places.reshape(-1, 2), (count, 1))


def _bounds(lengths: Sequence[int]) -> np.ndarray:
    return _frozen(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _frozen(array: np.ndarray) -> np.ndarray:
    """It is handed out more than once."""
    array.flags.writeable = False
    return array
