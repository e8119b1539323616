"""What maps the values of one picture on those of another, place by place: a table of 256 values a channel.

H height, W width; pictures are H W 3 uint8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Levels that rounding twice, or a conversion of colours, may move a value.
TOLERANCE = 2
# Of the values, this share must be met.
MET = 0.998
_PROBES = 20_000


@dataclass(frozen=True, eq=False)
class Mapping:
    """A value of the reference's channel ``channels[c]`` becomes ``table[c][value]`` in channel c.

    Attributes:
        channels: of the reference, for each channel of the picture.
        table: (3, 256) float.
        used: (3, 256) bool: values that occur.
        met: share of values that are met to `TOLERANCE`.
    """

    channels: tuple[int, int, int]
    table: np.ndarray
    used: np.ndarray
    met: float

    @property
    def exact(self) -> bool:
        """Whether the picture is the mapped reference, to its rounding."""
        return self.met >= MET

    @property
    def identity(self) -> bool:
        """Whether values stay as they are."""
        return bool((np.abs(self.table - np.arange(256)) <= TOLERANCE)[self.used].all())


def channel_match(reference: np.ndarray, picture: np.ndarray, places: np.ndarray) -> tuple[tuple[int, ...], float]:
    """For each channel of the picture the one of the reference that goes with it, and how closely: 0…1.

    Args:
        reference, picture: N 3 at the same places, or H W 3 of which `places` are looked at.
        places: indices of pixels.
    """
    one = reference.reshape(-1, 3)[places].astype(np.float32)
    other = picture.reshape(-1, 3)[places].astype(np.float32)
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    size = np.sqrt((one**2).sum(axis=0))[:, None] * np.sqrt((other**2).sum(axis=0))[None]
    alike = np.abs(one.T @ other) / np.maximum(size, 1e-6)
    own = np.diag(alike)
    best = alike.argmax(axis=0)
    chosen = [c if own[c] > alike[best[c], c] - 1e-3 else int(best[c]) for c in range(3)]
    if len(set(chosen)) < 3:
        chosen = [0, 1, 2]
    return tuple(chosen), float(np.mean([alike[chosen[c], c] for c in range(3)]))


def probes(shape: tuple[int, ...]) -> np.ndarray:
    """Indices of pixels to look at, the same at every call."""
    return np.random.default_rng(0).integers(0, shape[0] * shape[1], _PROBES)


def fitted(reference: np.ndarray, picture: np.ndarray, channels: tuple[int, ...] = (0, 1, 2)) -> Mapping:
    """The table that maps one on the other best: of each value of the reference, the median it becomes."""
    table, used, met = np.zeros((3, 256)), np.zeros((3, 256), bool), 0
    for channel in range(3):
        before, after = reference[..., channels[channel]].reshape(-1), picture[..., channel].reshape(-1)
        joint = np.bincount(before.astype(np.int32) * 256 + after, minlength=65536).reshape(256, 256)
        total = joint.sum(axis=1)
        middle = (np.cumsum(joint, axis=1) * 2 >= np.maximum(total, 1)[:, None]).argmax(axis=1)
        table[channel], used[channel] = middle, total > 0
        near = np.abs(np.arange(256)[None] - middle[:, None]) <= TOLERANCE
        met += int(joint[near].sum())
    return Mapping(tuple(channels), table, used, met / picture.size)


def named(mapping: Mapping) -> tuple[str, str]:
    """The code of a table that is not the identity, and what it does."""
    values = np.arange(256.0)
    for code, detail, expected in (
        ("image.inverted", "each value is 255 less what it should be", 255 - values),
        ("image.range", "[0, 1] was taken for [-1, 1]: black is middle grey", values / 2 + 127.5),
        ("image.range", "[-1, 1] was taken for [0, 1]: the darker half is black", np.clip(2 * values - 255, 0, 255)),
    ):
        if _meets(mapping, expected, 3):
            return code, detail
    if (wrap := _wraps(mapping)) is not None:
        return "image.wrapped", wrap
    if (levels := _levels(mapping)) is not None:
        return "picture.banding", f"{levels} levels a channel"
    if (line := _line(mapping)) is not None:
        return "image.tone", "each value becomes {:.3g} × value {:+.3g}, clipped to 0…255".format(*line)
    return "image.tone", "each value becomes another, by one curve"


def _meets(mapping: Mapping, expected: np.ndarray, tolerance: float) -> bool:
    return float(np.mean((np.abs(mapping.table - expected) <= tolerance)[mapping.used])) > 0.97


def _wraps(mapping: Mapping) -> str | None:
    """A line that begins again at the other end of the range: in angles of 256 levels it is straight."""
    values = np.broadcast_to(np.arange(256.0), (3, 256))[mapping.used]
    table = mapping.table[mapping.used]
    slopes = np.linspace(0.5, 3, 501)
    turns = np.exp(2j * np.pi * (table[None] - slopes[:, None] * values[None]) / 256).mean(axis=1)
    best = int(np.abs(turns).argmax())
    offset = float(np.angle(turns[best]) * 256 / (2 * np.pi))
    line = slopes[best] * values + offset
    if np.abs(turns[best]) < 0.985 or not ((line > 256) | (line < -1)).any():
        return None
    return f"{slopes[best]:.3g} × value {offset:+.0f} is not clipped: it begins again at the range's other end"


def _levels(mapping: Mapping) -> int | None:
    """How many levels are left, where each value becomes the nearest of few."""
    counts = [np.unique(mapping.table[c][mapping.used[c]]).size for c in range(3)]
    held = [int(mapping.used[c].sum()) for c in range(3)]
    near = np.abs(mapping.table - np.arange(256))[mapping.used]
    few = all(count < 0.6 * had for count, had in zip(counts, held, strict=True))
    return max(counts) if few and near.max() <= 255 / max(min(counts) - 1, 1) else None


def _line(mapping: Mapping) -> tuple[float, float] | None:
    """Slope and offset, where the table is a line that is clipped."""
    values = np.broadcast_to(np.arange(256.0), (3, 256))
    inner = mapping.used & (mapping.table > 0) & (mapping.table < 255)
    if inner.sum() < 6:
        return None
    slope, offset = np.polyfit(values[inner], mapping.table[inner], 1)
    expected = np.clip(slope * values + offset, 0, 255)
    return (slope, offset) if np.abs(expected - mapping.table)[mapping.used].max() <= 4 else None
