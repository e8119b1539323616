"""What a check found in a picture, before it is put into words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(eq=False)
class Finding:
    """One symptom.

    Attributes:
        code: of the cause; see `parity.picturecheck.catalogue`.
        detail: which variant, in a few words.
        evidence: figures by name.
        confidence: ``proven``, ``likely`` or ``possible``.
        recovered: the picture with the fault undone, where that can be done.
        columns, rows: places of lines that show it.
        boxes: (top, left, bottom, right) of parts that show it.
        ties: other codes that make the same picture.
    """

    code: str
    detail: str
    evidence: dict[str, Any]
    confidence: str = "likely"
    recovered: np.ndarray | None = None
    columns: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    ties: list[str] = field(default_factory=list)


def rounded(value: float) -> float:
    """A figure with four significant digits, as evidence is shown."""
    return float(f"{float(value):.4g}")
