"""What two runs were made with, held against each other: versions, devices, weights, commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

Run = Mapping[str, Any]

PARTS = ("suite", "command", "weights", "environment", "ports", "ranges")
# More lines than these tell nothing more; longer texts are cut where they are shown.
MOST = 200
_DEEPEST = 6
# Parts of the first level are taken apart even where a run has none of them.
_WHOLE = 2


def differences(before: Run, after: Run) -> list[dict[str, Any]]:
    """Settings that are not the same in two runs, in order, at most `MOST`.

    Returns:
        ``what`` (``environment.candidate.mlx``), ``before``, ``after``; None where a run has no such setting. A table
        that one run has alone, such as what its weights were quantized from, is one setting.
    """
    return list(islice(_differing({part: before.get(part) for part in PARTS},
                                  {part: after.get(part) for part in PARTS}, ()), MOST))  # fmt: skip


def _differing(old: Any, new: Any, path: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    old, new = (None if side in ({}, [], "") else side for side in (old, new))
    both = isinstance(old, Mapping) and isinstance(new, Mapping)
    alone = len(path) < _WHOLE and all(side is None or isinstance(side, Mapping) for side in (old, new))
    if (both or (alone and (old or new))) and len(path) < _DEEPEST:
        for key in dict.fromkeys([*(old or {}), *(new or {})]):
            yield from _differing((old or {}).get(key), (new or {}).get(key), (*path, str(key)))
    elif old != new:
        yield {"what": ".".join(path), "before": old, "after": new}
