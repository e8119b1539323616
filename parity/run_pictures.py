"""The pictures of a run: both sides' results as PNG files in the run folder, and how far apart they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from parity import picture_metrics
from parity.lockstep import Pictures
from parity.pictures import write_png

FOLDER = "pictures"


def keep(folder: Path, unit: str, pictures: Pictures) -> list[dict[str, Any]]:
    """Write the pictures of one stage.

    Args:
        folder: of the run.
        unit: key of the unit they are of.
        pictures: checkpoint -> reference's and candidate's, B H W 3 in 0…1.

    Returns:
        the entries of the key ``pictures`` of a case in ``parity.json``.
    """
    found = []
    for checkpoint, sides in pictures.items():
        for index, pair in enumerate(zip(*map(_bytes, sides), strict=True)):
            files = {side: f"{FOLDER}/{unit}/{side}.{index:02d}.png" for side in ("reference", "candidate")}
            about = {"checkpoint": checkpoint, "index": index}
            for (side, file), picture in zip(files.items(), pair, strict=True):
                write_png(folder / file, picture, {"side": side, "unit": unit, **about}, force=True)
            metrics = picture_metrics.measure(*pair).as_dict()
            found.append({**about, "size": list(pair[0].shape[:2]), **files, "metrics": metrics})
    return found


def _bytes(picture: np.ndarray) -> np.ndarray:
    """To uint8 as the pipelines do: clamped, rounded half to even. What is not a number becomes black."""
    wide = np.nan_to_num(np.asarray(picture, np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    return (wide.clip(0, 1) * 255).round().astype(np.uint8)
