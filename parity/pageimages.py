"""Pictures for the page: read from the run folder, set beside their amplified difference, as data addresses.

A run's ``parity.json`` may come from elsewhere. A path in it is followed only to a PNG inside the run
folder; whatever else it names is said on the page in place of the picture.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from parity.errors import UsageError
from parity.pictures import open_picture

SIDES = ("reference", "candidate")
# What a difference is multiplied with: the largest of these that keeps it within 0…255.
FACTORS = (200, 100, 50, 20, 10, 5, 2, 1)
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Shot:
    """One picture of the page.

    Attributes:
        kind: ``reference``, ``candidate`` or ``difference``.
        title: what stands below it.
        source: a data address; empty where there is no picture.
        note: why there is none, or what there is to see.
        width, height: in pixels, 0 where there is none.
    """

    kind: str
    title: str
    source: str = ""
    note: str = ""
    width: int = 0
    height: int = 0


def shots(picture: Mapping[str, Any], folder: Path | None) -> list[Shot]:
    """Reference, candidate and their difference.

    Args:
        picture: one of the ``pictures`` of an entry.
        folder: the run folder; without it there is nothing to be read.
    """
    found, pixels = [], {}
    for side in SIDES:
        try:
            data, image = read_side(picture, side, folder)
        except UsageError as error:
            found.append(Shot(side, side.capitalize(), note=str(error)))
            continue
        pixels[side] = np.asarray(image)
        found.append(Shot(side, side.capitalize(), _address(data), "", image.width, image.height))
    return [*found, _difference(pixels)]


def read_side(picture: Mapping[str, Any], side: str, folder: Path | None) -> tuple[bytes, Image.Image]:
    """One side of a picture, a PNG below `folder`, as its bytes and as pixels.

    Raises:
        UsageError: there is none; the sentence stands on the page.
    """
    path = str(picture.get(side) or "")
    if folder is None:
        raise UsageError("This page was made without its run folder, which holds the pictures.")
    root = folder.resolve()
    place = (root / path).resolve() if "\x00" not in path else root
    if not place.is_relative_to(root) or place == root:
        raise UsageError(f"{path} is no file of the run folder.")
    try:
        data = place.read_bytes()
    except OSError:
        raise UsageError(f"{path} is not in the run folder.") from None
    if not data.startswith(PNG):
        raise UsageError(f"{path} is no PNG.")
    try:
        return data, open_picture(place).image
    except UsageError:
        # Its own words have the whole path, which is the machine's that made the page.
        raise UsageError(f"{path} cannot be read as a picture.") from None


def _difference(pixels: Mapping[str, np.ndarray]) -> Shot:
    apart, title, note = amplified(pixels)
    if apart is None:
        return Shot("difference", title, note=note)
    image = Image.fromarray(apart)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=9)
    return Shot("difference", title, _address(buffer.getvalue()), note, image.width, image.height)


def amplified(pixels: Mapping[str, np.ndarray]) -> tuple[np.ndarray | None, str, str]:
    """How far the sides are apart, [height, width, 3] of uint8, times one of `FACTORS`; a title, and what it shows.

    Without both sides, or where they differ in size, there is none, and the last says why.
    """
    if len(pixels) < len(SIDES):
        return None, "Difference", "It needs both pictures."
    reference, candidate = (pixels[side].astype(np.int16) for side in SIDES)
    if reference.shape != candidate.shape:
        return None, "Difference", "The two pictures differ in size."
    apart = np.abs(reference - candidate)
    largest = int(apart.max())  # times a factor beyond what int16 holds
    factor = next(factor for factor in FACTORS if largest * factor <= 255)
    off, all_of_them = int(apart.any(axis=-1).sum()), apart.shape[0] * apart.shape[1]
    title, note = f"Difference × {factor}", f"{off:,} of {all_of_them:,} pixels differ."
    if not off:
        title, note = "Difference", "The two pictures are equal."
    return (apart * factor).astype(np.uint8), title, note


def _address(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def metric_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Metric, of the reference, of the candidate: what `parity.picture_metrics` measured, as text.

    A figure of both pictures together stands in the last column.
    """
    for key, title, digits in (
        ("rmse", "RMSE, 0–255", 2), ("max_abs", "Largest difference, 0–255", 0), ("psnr", "PSNR, dB", 2),
        ("ssim", "SSIM", 5), ("flip", "FLIP", 5),
    ):  # fmt: skip
        yield title, "–", figure(metrics.get(key), digits)
        if key == "rmse":
            for part in ("mean", "std"):
                yield (part.capitalize(), *(figure((metrics.get(side) or {}).get(part), 2) for side in SIDES))


def in_short(metrics: Mapping[str, Any]) -> str:
    """The figures that one looks at first, in a line."""
    rmse, largest, psnr = (
        figure(metrics.get(key), digits) for key, digits in (("rmse", 2), ("max_abs", 0), ("psnr", 1))
    )
    return f"RMSE {rmse}, largest difference {largest}, PSNR {psnr} dB"


def figure(value: Any, digits: int) -> str:
    """A figure with fixed digits; a small one that is not zero is never shown as zero."""
    if value is None or isinstance(value, str):
        return value or "–"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    text = f"{value:.{digits}f}"
    return f"{value:.1e}" if value and float(text) == 0 else text.replace("-", "−")
