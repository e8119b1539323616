"""A candidate from elsewhere as comparisons see it, whatever file it was read from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity.sketch import DEFAULT, Spec


@dataclass(frozen=True)
class Reading:
    """What is known of one checkpoint; whatever the file does not say is None.

    Attributes:
        shape, dtype: of the values.
        stats: figures as `parity.stats.ArrayStats.brief` gives them; of a range, ``min`` and ``max`` alone.
        sketch: float64, of the comparison's `Spec`.
        array: the values, mapped.
        resolution: of a printed range, half a unit of its last digit: how far min and max may be off.
    """

    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    stats: dict[str, Any] | None = None
    sketch: np.ndarray | None = None
    array: np.ndarray | None = None
    resolution: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Imported(ABC):
    """One candidate: tensors, sketches, a trace, or ranges.

    Attributes:
        label: what messages call it; safe to print.
        kind: ``tensors``, ``sketches``, ``trace`` or ``ranges``.
        names: of its checkpoints, in its own order; any text, since they are from elsewhere.
        case: hash of the case that it says it was made from; empty where it says nothing.
        spec: of the sketches that it has; of tensors, any is made.
        about: what it says of itself: dtype, mode, environment.
        notes: sentences on what was mended or passed over while reading.
    """

    label: str
    kind: str
    names: tuple[str, ...]
    case: str = ""
    spec: Spec = DEFAULT
    about: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @abstractmethod
    def read(self, name: str, *, chunks: int = 0, sketched: bool = True) -> Reading:
        """What is known of a checkpoint.

        Args:
            name: one of `names`.
            chunks: also take the ranges of that many equal parts of the last axis, where values are known.
            sketched: also make the sketch, of `spec`, where values are known.
        """
