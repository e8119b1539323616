"""Colours as people with each kind of colour blindness see them, and how far two colours are apart (CIEDE2000).

The matrices are those of Machado, Oliveira and Fernandes (2009) for complete dichromacy, on linear sRGB.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np

SEEN_BY = {
    "everybody": np.eye(3),
    "protanopes": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopes": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopes": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip
_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                 [0.0193339, 0.1191920, 0.9503041]])  # fmt: skip
_WHITE = _XYZ.sum(axis=1)


def linear(colour: str) -> np.ndarray:
    """Linear sRGB of ``#rrggbb``."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(colour: str, who: str = "everybody") -> tuple[float, float, float]:
    """CIELAB of a colour as `who` of `SEEN_BY` see it, under D65."""
    seen = np.clip(SEEN_BY[who] @ linear(colour), 0, 1)
    x, y, z = (_f(value) for value in _XYZ @ seen / _WHITE)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def _f(value: float) -> float:
    return value ** (1 / 3) if value > 216 / 24389 else (24389 / 27 * value + 16) / 116


def ciede2000(first: tuple[float, float, float], second: tuple[float, float, float]) -> float:
    """The difference of two colours in CIELAB: 1 can just be seen, 10 at a glance."""
    (l1, a1, b1), (l2, a2, b2) = first, second
    mean = (math.hypot(a1, b1) + math.hypot(a2, b2)) / 2
    g = 0.5 * (1 - math.sqrt(mean**7 / (mean**7 + 25**7)))
    c1, c2 = math.hypot(a1 * (1 + g), b1), math.hypot(a2 * (1 + g), b2)
    h1, h2 = (math.degrees(math.atan2(b, a * (1 + g))) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = 0.0 if not c1 * c2 else (h2 - h1 + 180) % 360 - 180
    c, light = (c1 + c2) / 2, (l1 + l2) / 2
    h = h1 + h2 if not c1 * c2 else (h1 + turn / 2) % 360
    t = (1 - 0.17 * _cos(h - 30) + 0.24 * _cos(2 * h) + 0.32 * _cos(3 * h + 6) - 0.2 * _cos(4 * h - 63))  # fmt: skip
    s_l = 1 + 0.015 * (light - 50) ** 2 / math.sqrt(20 + (light - 50) ** 2)
    s_c, s_h = 1 + 0.045 * c, 1 + 0.015 * c * t
    r = -2 * math.sqrt(c**7 / (c**7 + 25**7)) * math.sin(math.radians(60 * math.exp(-(((h - 275) / 25) ** 2))))
    lightness, chroma = (l2 - l1) / s_l, (c2 - c1) / s_c
    hue = 2 * math.sqrt(c1 * c2) * math.sin(math.radians(turn / 2)) / s_h
    return math.sqrt(lightness**2 + chroma**2 + hue**2 + r * chroma * hue)


def _cos(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def nearest(*groups: Iterable[str]) -> tuple[float, str]:
    """The smallest difference between colours of different groups to any of `SEEN_BY`, and which they are to whom."""
    found = (
        (ciede2000(lab(one, who), lab(other, who)), f"{one} and {other} to {who}")
        for first, second in itertools.combinations(map(tuple, groups), 2)
        for one, other in itertools.product(first, second) for who in SEEN_BY
    )  # fmt: skip
    return min(found)
