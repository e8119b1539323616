"""What two runs were made with, held against each other: versions, devices, weights, commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Run = Mapping[str, Any]

PARTS = ("suite", "command", "weights", "environment", "ports", "ranges")
# More lines than these tell nothing more; longer texts are cut where they are shown.
MOST = 200
_DEEPEST = 6


def differences(before: Run, after: Run) -> list[dict[str, Any]]:
    """Settings that are not the same in two runs, in order, at most `MOST`.

    Returns:
        ``what`` (``environment.candidate.mlx``), ``before``, ``after``; None where a run has no such setting.
    """
    sides = [dict(_flat({part: run.get(part) for part in PARTS})) for run in (before, after)]
    found = [{"what": what, "before": sides[0].get(what), "after": sides[1].get(what)} for what in sides[0] | sides[1]]
    return [one for one in found if one["before"] != one["after"]][:MOST]


def _flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value and len(path) < _DEEPEST:
        for key, item in value.items():
            yield from _flat(item, (*path, str(key)))
    # An empty table of settings is none, and no setting that went.
    elif value is not None and value != {}:
        yield ".".join(path), value
