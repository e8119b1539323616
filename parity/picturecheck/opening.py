"""Picture files opened for a check: one frame, of a size that is bounded before anything is decoded.

H height, W width; what is opened is H W 3 uint8.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from parity.errors import UsageError
from parity.pictures import FORMATS, open_picture

# 33 million, such as 8192 × 4096: the checks hold a few copies of it.
MOST_PIXELS = 1 << 25
LEAST_SIDE = 2


def opened(path: Path) -> tuple[np.ndarray, list[str]]:
    """The pixels of a picture, and notes of what of its file is not in them.

    Raises:
        UsageError: no such file, no picture, damaged, animated, too many pixels, or one pixel wide.
    """
    if path.is_file() and path.stat().st_size == 0:
        raise UsageError(f"{path}: an empty file, expected a picture")
    _check_header(path)
    found = open_picture(path)
    if min(found.image.size) < LEAST_SIDE:
        width, height = found.image.size
        raise UsageError(f"{path}: {width} × {height} pixels show no symptom; give a picture of 2 × 2 or more")
    return np.array(found.image), list(found.notes)


def _check_header(path: Path) -> None:
    """Size and frames, from the header alone; what else is wrong with a file is left to `open_picture`."""
    if not path.is_file():
        return
    Image.init()
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=[*FORMATS, "MPO"]) as image:
            width, height = image.size
            frames = 1
            if width * height <= MOST_PIXELS:
                frames = getattr(image, "n_frames", 1)
            camera = image.format == "MPO"
    except Exception:  # a decoder may raise anything; `open_picture` says what it is
        return
    if width * height > MOST_PIXELS:
        raise UsageError(
            f"{path}: {width} × {height} pixels, more than the {MOST_PIXELS:,} that are checked; make it smaller"
        )
    if frames > 1 and not camera:
        raise UsageError(f"{path}: {frames} frames, expected a still picture; save one frame")
