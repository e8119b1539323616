"""``parity diagnose`` on a picture: the checks, put into the words and the JSON of a diagnosis."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import MissingPackageError, UsageError
from parity.picture_metrics import measure
from parity.picturecheck import against, alone, overlay
from parity.picturecheck.catalogue import ENTRIES
from parity.picturecheck.finding import Finding
from parity.picturecheck.opening import opened
from parity.safetensors_header import shown

SCHEMA = 1
_ALONE = (
    "A picture alone shows neither the order of colour channels, nor mirroring, nor inversion, nor faults that leave "
    "a plausible picture; --reference shows them."
)


def examine(image: Path, reference: Path | None = None, out: Path | None = None) -> dict[str, Any]:
    """The diagnosis of a picture, as JSON can hold it.

    Args:
        image: the picture.
        reference: the picture as it should be.
        out: a folder for pictures of what was found; made where it is missing.

    Raises:
        UsageError: a file is no picture, damaged, animated, too large or one pixel wide, or the sizes differ.
    """
    start = time.monotonic()
    picture, notes = opened(image)
    wanted = None
    if reference is not None:
        wanted, more = opened(reference)
        notes += more
    found = look(picture, wanted)
    if wanted is not None and not found and wanted.shape != picture.shape:
        raise UsageError(
            f"pictures of different sizes: {image} is {_size(picture)}, {reference} is {_size(wanted)} (width × "
            "height); give pictures of one size"
        )
    said = _said(picture, wanted, found)
    said["picture"] = {"file": shown(image.name), "height": picture.shape[0], "width": picture.shape[1]}
    said["notes"] = notes + said["notes"]
    if out is not None and (found or wanted is not None):
        said["overlay"] = overlay.write(out, picture, wanted, found)
    said["seconds"] = round(time.monotonic() - start, 2)
    return said


def look(picture: np.ndarray, reference: np.ndarray | None = None) -> list[Finding]:
    """What is wrong with a picture, best first; with a reference, what makes the one of the other.

    Args:
        picture, reference: H W 3 uint8.
    """
    if reference is None:
        return alone.findings(picture)
    if reference.shape == picture.shape and np.array_equal(reference, picture):
        return []
    found = against.findings(picture, reference)
    return found or (alone.findings(picture) if reference.shape == picture.shape else [])


def _said(picture: np.ndarray, reference: np.ndarray | None, found: list[Finding]) -> dict[str, Any]:
    causes = [_cause(one) for one in found]
    metrics = None
    if reference is not None and reference.shape == picture.shape:
        metrics = _metrics(reference, picture)
    differ = metrics is not None and metrics["rmse"] > 0
    unexplained = []
    if differ and not causes:
        unexplained = [{"where": "picture", "reason": "no known fault makes this of the reference", **metrics}]
    return {
        "schema": SCHEMA, "subject": "picture", "sentence": _sentence(causes, reference is not None, differ),
        "first_divergence": None, "sources": ["picture"] if causes or unexplained else [], "causes": causes,
        "explained": bool(causes) and all(one["confidence"] != "possible" for one in causes),
        "unexplained": unexplained, "notes": [] if reference is not None else [_ALONE],
        "would_decide": list(dict.fromkeys(name for one in found for name in ENTRIES[one.code].confirm)),
        "metrics": metrics, "overlay": [],
    }  # fmt: skip


def _cause(one: Finding) -> dict[str, Any]:
    entry = ENTRIES[one.code]
    return {
        "code": one.code, "title": entry.title, "confidence": one.confidence, "where": ["picture"],
        "detail": one.detail, "evidence": one.evidence, "fix": entry.fix, "source": entry.source, "ties": one.ties,
        "confirm": ", ".join(entry.confirm),
    }  # fmt: skip


def _sentence(causes: list[dict[str, Any]], referenced: bool, differ: bool) -> str:
    if causes:
        first = causes[0]
        sure = {"proven": "", "likely": "Likely: ", "possible": "Possibly: "}[first["confidence"]]
        return f"{sure}{first['code']}: {first['title']}; {first['detail']}."
    if differ:
        return "Unexplained: no known fault makes this picture of the reference."
    return "The pictures are equal." if referenced else "Nothing in the picture speaks of a fault."


def _metrics(reference: np.ndarray, picture: np.ndarray) -> dict[str, Any]:
    try:
        found = measure(reference, picture).as_dict()
    except MissingPackageError:
        difference = reference.astype(np.float64) - picture
        square = float(np.mean(difference**2))
        found = {"rmse": math.sqrt(square), "psnr": 10 * math.log10(255**2 / square) if square else math.inf}
    keep = {name: found[name] for name in ("rmse", "max_abs", "psnr", "ssim", "flip") if name in found}
    return {name: (None if isinstance(value, float) and math.isinf(value) else value) for name, value in keep.items()}


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]} × {picture.shape[0]}"
