"""Health alerts: what figures of a run are unhealthy by themselves, whatever the verdicts say.

A pure function of a ``parity.json`` dict; `parity.health_checks` has the checks. A check that looked at nothing is
neither an alert nor passed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from parity.health_checks import CHECKS, FINE, LIMITS, Check, Finding, Row, row_of
from parity.plotstyle import cut, short
from parity.sections import group_of, spans

SEVERITIES = ("error", "warning", "note")
# Groups of names that an alert lists; the others are counted.
MOST_NAMES = 12


@dataclass
class _Seen:
    """What a check found: rows looked at, and of the unhealthy ones the names by group and the worst."""

    looked: int = 0
    bad: int = 0
    worst: float = 0.0
    words: str = ""
    where: str = ""
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class _Largest:
    """The largest magnitude of both sides in a run, and where; of floating-point values."""

    value: float = 0.0
    where: str = ""

    def take(self, one: Row) -> None:
        for side, dtype in ((one.candidate, one.dtype), (one.reference, one.reference_dtype)):
            if dtype and side.absmax is not None and self.value < side.absmax < math.inf:
                self.value, self.where = side.absmax, one.row["name"]

    def words(self) -> str:
        """How far it is from overflow, whatever the run's own dtype is."""
        if not self.value:
            return ""
        rooms = [(dtype, LIMITS[dtype][0] / self.value) for dtype in ("bfloat16", "float16")]
        said = (
            f"{_times(room)} below {dtype}'s largest number" if room >= 1 else f"{_times(1 / room)} beyond {dtype}'s"
            for dtype, room in rooms
        )  # fmt: skip
        return f": the largest value, {short(self.value)} at {self.where}, is {', '.join(said)}"


def _times(factor: float) -> str:
    return f"{factor:,.0f} times" if 100 <= factor < 1e6 else f"{factor:.3g} times"


def alerts(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is unhealthy in a run, the severe first.

    Args:
        run: a ``parity.json`` dict, or anything that was read in its place.

    Returns:
        dicts of `code` (stable), `severity` (``error``, ``warning``, ``note``), `title`, `text` (figures of the
        worst place, and what to do), `looked` and `bad` (checkpoints, over all entries), `names` and `more`.
        `names` holds up to `MOST_NAMES` groups ``{group, where, first, entry, entries, count}``: the name
        with its indices taken out, the indices in words, the first name, the index in ``run["cases"]`` of the
        entry that it is in, labels of all entries, checkpoints; `more` counts the groups left out. Text is as
        the run holds it: to be escaped where it is shown.
    """
    return examine(run)[0]


def brief(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """`alerts` for a terminal: (severity, line), without notes, the severe first."""
    return [
        (alert["severity"], cut(f"{alert['severity']}: {alert['title']}. {alert['text']}", 500))
        for alert in alerts(run) if alert["severity"] != "note"
    ]  # fmt: skip


def passed(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The checks that looked at something and found nothing: `code`, `title`, `looked`."""
    return examine(run)[1]


def examine(run: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`alerts` and `passed`, looking once."""
    examined, largest = _examined(run)
    fine = [(check, seen.looked) for check, seen in examined if seen.looked and not seen.bad]
    told = {"headroom": largest.words()}
    return (
        [_alert(check, seen) for check, seen in examined if seen.bad],
        [{"code": check.code, "title": check.passed + told.get(check.code, ""), "looked": looked}
         for check, looked in fine],
    )  # fmt: skip


def _examined(run: Mapping[str, Any]) -> tuple[list[tuple[Check, _Seen]], _Largest]:
    seen, largest = [_Seen() for _ in CHECKS], _Largest()
    looks = [(check.look, so_far) for check, so_far in zip(CHECKS, seen, strict=True)]
    for index, label, one in _rows(run):
        largest.take(one)
        for look, so_far in looks:
            found = look(one)
            if found is None:
                continue
            so_far.looked += 1
            if found is not FINE and found[0] > 0:
                _enter(so_far, found, one.row["name"], index, label)
    return list(zip(CHECKS, seen, strict=True)), largest


def _rows(run: Mapping[str, Any]) -> Iterator[tuple[int, str, Row]]:
    """Index and label of the entry, and the row, of everything that has a name and statistics."""
    cases = run.get("cases") if isinstance(run, Mapping) else None
    for index, entry in enumerate(cases if isinstance(cases, list) else ()):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("checkpoints"), list):
            continue
        label = " · ".join(str(entry[key]) for key in ("name", "dtype", "mode") if key in entry)
        for row in entry["checkpoints"]:
            if isinstance(row, Mapping) and isinstance(row.get("name"), str):
                yield index, label, row_of(row)


def _enter(seen: _Seen, found: Finding, name: str, index: int, label: str) -> None:
    seen.bad += 1
    if found[0] > seen.worst:
        seen.worst, seen.words, seen.where = *found, f"{name} ({label})"
    group, indices = group_of(name)
    known = seen.groups.setdefault(group, {"first": name, "entry": index, "entries": {}, "indices": {}, "names": set()})
    known["entries"][label] = None
    known["names"].add(name)
    for unit, at in indices.items():
        known["indices"].setdefault(unit, set()).add(at)


def _alert(check: Check, seen: _Seen) -> dict[str, Any]:
    s = "s" * (seen.looked != 1)
    return {
        "code": check.code, "severity": check.severity, "title": check.title,
        "text": f"{seen.bad:,} of {seen.looked:,} checkpoint{s}; worst at {seen.where}: {seen.words}. {check.advice}",
        "looked": seen.looked, "bad": seen.bad,
        "names": [
            {
                "group": group, "first": known["first"], "entry": known["entry"], "entries": list(known["entries"]),
                "count": len(known["names"]),
                "where": "; ".join(
                    f"{unit}{'s' * (len(at) > 1)} {spans(at)}" for unit, at in known["indices"].items()
                ),
            }
            for group, known in list(seen.groups.items())[:MOST_NAMES]
        ],
        "more": max(0, len(seen.groups) - MOST_NAMES),
    }  # fmt: skip
