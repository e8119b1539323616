"""Roughness against contrast: how much neighbours differ, which a wrong reading of the buffer raises.

H height, W width; pictures are H W 3 uint8. Large pictures are measured on bands of rows.
"""

from __future__ import annotations

import numpy as np

# Values that a measure looks at; larger pictures are sampled by bands.
MOST_VALUES = 3_000_000
BANDS = 8


def bands(picture: np.ndarray) -> list[np.ndarray]:
    """The picture, or where it is large, bands of its rows at equal distances."""
    height, width = picture.shape[:2]
    rows = max(8, MOST_VALUES // (3 * width * BANDS))
    if height <= rows * BANDS:
        return [picture]
    tops = np.linspace(0, height - rows, BANDS).astype(int)
    return [picture[top : top + rows] for top in tops]


def mean_steps(picture: np.ndarray, distance: int = 1) -> np.ndarray:
    """Mean absolute difference of pixels `distance` apart: (2, 3), down and across, per channel."""
    total, count = np.zeros((2, 3)), np.zeros((2, 1))
    for band in bands(picture):
        wide = np.ascontiguousarray(band).astype(np.int16)
        for axis in (0, 1):
            if wide.shape[axis] <= distance:
                continue
            later = wide[distance:] if axis == 0 else wide[:, distance:]
            earlier = wide[:-distance] if axis == 0 else wide[:, :-distance]
            total[axis] += np.abs(later - earlier).sum(axis=(0, 1), dtype=np.int64)
            count[axis] += later.shape[0] * later.shape[1]
    return total / np.maximum(count, 1)


def roughness(picture: np.ndarray) -> np.ndarray:
    """Mean absolute step over standard deviation: (2, 3). White noise has 1.1, photographs 0.05…0.4."""
    return mean_steps(picture) / np.maximum(deviation(picture), 1e-9)


def deviation(picture: np.ndarray) -> np.ndarray:
    """Standard deviation of each channel: (3,)."""
    parts = bands(picture)
    values = np.concatenate([np.ascontiguousarray(band).reshape(-1, 3) for band in parts])
    return values.astype(np.float32).std(axis=0, dtype=np.float64)


def grey(picture: np.ndarray) -> np.ndarray:
    """Sum of the channels: H W int32."""
    return picture.sum(axis=2, dtype=np.int32)


def is_black_and_white(picture: np.ndarray) -> bool:
    """Nearly all values are nearly black or nearly white, as in printed dots: they line up in many ways."""
    share = np.bincount(np.ascontiguousarray(picture[:512, :512]).reshape(-1), minlength=256)
    return float(share[:32].sum() + share[224:].sum()) > 0.7 * share.sum()
