"""Multimodal rotary positions of Qwen2.5-VL's language model.

B prompts, N tokens, H heads, d head width. Positions have three axes: frame, row, column. Words have the same
number on all three.

Positions and tables are made on the host: they are whole numbers and float32 constants that a GPU would only round
worse.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

Grid = tuple[int, int, int]


def sequence_positions(mask: np.ndarray) -> np.ndarray:
    """The number of the column, on all three axes, padding counted.

    That is what transformers computes where nobody tells it which tokens are pictures, whatever the mask.

    Args:
        mask: B N.

    Returns:
        B 3 N int64.
    """
    batch, length = mask.shape
    return np.broadcast_to(np.arange(length, dtype=np.int64), (batch, 3, length)).copy()


def grid_positions(
    ids: np.ndarray, mask: np.ndarray, grids: Sequence[Grid], image_token_id: int, merge_size: int
) -> np.ndarray:
    """Pictures as frames, rows and columns (transformers' ``get_rope_index``).

    Tokens are numbered from 0 without padding. The tokens of a picture have the number where it begins plus their
    place in its grid; the text behind it goes on behind its longer side.

    Args:
        ids, mask: B N.
        grids: (frames, rows, columns) of each picture in patches, in the order of the prompts.
        merge_size: patches each way that make one token.

    Returns:
        B 3 N int64; 0 where the mask is not set.

    Raises:
        ValueError: the grids do not fit the picture tokens.
    """
    positions = np.zeros((len(ids), 3, ids.shape[1]), np.int64)
    pending = list(grids)
    for row, (sample, counts) in enumerate(zip(ids, mask.astype(bool), strict=True)):
        is_picture = sample[counts] == image_token_id
        parts, start = [], 0
        for run in np.split(is_picture, np.flatnonzero(np.diff(is_picture)) + 1):
            if not run.any():
                parts.append(np.broadcast_to(np.arange(start, start + len(run)), (3, len(run))))
                start += len(run)
                continue
            if not pending:
                raise ValueError("more pictures in the prompts than grids")
            frames, height, width = pending.pop(0)
            axes = (np.arange(frames), np.arange(height // merge_size), np.arange(width // merge_size))
            cells = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
            if cells.shape[1] != len(run):
                raise ValueError(f"{len(run)} tokens of a picture, but its grid makes {cells.shape[1]}")
            parts.append(cells + start)
            start += max(height, width) // merge_size
        positions[row][:, counts] = np.concatenate(parts, axis=1)
    if pending:
        raise ValueError(f"{len(pending)} grids more than pictures in the prompts")
    return positions


def rotary_table(position_ids: np.ndarray, sections: Sequence[int], theta: float, dtype: mx.Dtype) -> mx.array:
    """Cosines and sines of every pair of a head.

    Args:
        position_ids: B 3 N.
        sections: pairs that turn with frame, row, column; more of them go on with frame again.
        theta: base of the frequencies.
        dtype: of the model: the reference rounds the table to it.

    Returns:
        B N d/2 2, (cos, sin), in `dtype`.
    """
    pairs = sum(sections)
    # Rounded to float32 at every step, as the reference computes them.
    exponent = np.arange(0, 2 * pairs, 2, dtype=np.float32) / np.float32(2 * pairs)
    frequency = np.float32(1) / np.power(theta, exponent.astype(np.float64)).astype(np.float32)
    axis = np.repeat(np.arange(len(sections)) % 3, sections)
    angle = position_ids[:, axis].astype(np.float32).swapaxes(1, 2) * frequency
    # Rounded once from float64: the angle's own rounding is the reference's, the cosine's is nobody's.
    angle = angle.astype(np.float64)
    return mx.array(np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32)).astype(dtype)


def rotate(x: mx.array, table: mx.array) -> mx.array:
    """Rotate the pairs (x0, x_d/2), (x1, x_d/2+1), …, each product and sum rounded to the dtype of `x`.

    Args:
        x: B N H d.
        table: B N d/2 2, (cos, sin).
    """
    if table.shape != (*x.shape[:2], x.shape[3] // 2, 2):
        raise ValueError(f"rotary table of shape {table.shape} for queries or keys of shape {x.shape}")
    cos, sin = (table[:, :, None, :, part].astype(x.dtype) for part in (0, 1))
    first, second = mx.split(x, 2, axis=-1)
    return mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
