"""Two runs held against each other: what got better, worse, new, gone.

A pure function of two ``parity.json`` dicts that were judged by the same rules. Entries are paired by case, dtype
and mode, their checkpoints by name. A verdict that changed is a change whatever the figures; under the same verdict
the excess must have moved by more than noise does (`BEYOND`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from statistics import median
from typing import Any

from parity.errors import EXIT_DIVERGENCE, EXIT_INCOMPLETE, EXIT_PARITY
from parity.plotstyle import excess_of
from parity.safetensors_header import shown
from parity.sections import group_of, is_exact
from parity.settings import differences

Run = Mapping[str, Any]
Row = Mapping[str, Any]
Key = tuple[str, str, str]

# How often excess must be multiplied or divided to be beyond noise. Between two clean runs of one case the 932 excesses
# above 1 move by a factor of 2.05 at most, between two cases of one clean run by 1.99 (963, on which it was chosen) and
# by 2.15 (745 others).
BEYOND = 2.5
# Borders between a little, much and very much better or worse, the same in maps, plots and the terminal.
STEPS = (BEYOND, 10.0, 100.0)
# Below the floor, nobody can say which of two errors is the better one.
AT_FLOOR = 1.0
CHANGES = ("better", "worse", "other", "new", "gone", "same")
# What needs a look first.
ORDER = ("worse", "gone", "other", "better", "new")
_WORDS = {
    "worse": "got worse", "better": "got better", "other": "changed otherwise", "new": "are new", "gone": "are gone",
}  # fmt: skip
_TITLES = {"better": "Better", "worse": "Worse", "mixed": "Better and worse", "other": "No better and no worse"}
_RANK = {"match": 0, "suspect": 1, "diverged": 2}


def diff(before: Run, after: Run, folders: tuple[str, str] = ("", "")) -> dict[str, Any]:
    """What changed between two runs.

    Args:
        before, after: contents of ``parity.json``, judged by this version (`result.rejudge`).
        folders: where they lie, for people.

    Returns:
        ``verdict`` (``better``, ``worse``, ``mixed``, ``other``, ``same``, ``incomparable``), ``sentence``, ``before``
        and ``after`` (what each run says of itself), ``counts`` (checkpoints by `CHANGES`), ``failing`` (how many are
        `is_failing`), ``settings`` (what differs about the runs), ``notes``, ``entries``, ``checkpoints`` (those that
        are not ``same``, in order; ``alone``: of a case that one run has alone), ``points`` (excess before and after of
        all pairs, and the change).
    """
    pairs = _pairs(before["cases"], after["cases"], lambda case: (case["name"], case["dtype"], case["mode"]))
    entries, changed, points = [], [], []
    for key, (old, new) in pairs.items():
        found = list(_rows(key, old, new))
        counts = Counter(row["change"] for row in found)
        entries.append(_entry(key, old, new, counts) | {"extent": _extent(row["name"] for row in found)})
        changed += [row for row in found if row["change"] != "same"]
        points += [_point(row) for row in found if row["before"] and row["after"]]
    counts = {change: sum(entry["counts"][change] for entry in entries) for change in CHANGES}
    failing = sum(map(is_failing, changed))
    common = any(old and new for old, new in pairs.values())
    said = _verdict(counts, common)
    return {
        "schema": 1, "verdict": said, "sentence": _sentence(said, counts, changed, (before, after)),
        "before": _about(before, folders[0]), "after": _about(after, folders[1]), "counts": counts, "failing": failing,
        "settings": differences(before, after), "notes": _notes(before, after, pairs, changed) if common else [],
        "entries": entries, "checkpoints": changed, "points": [point for point in points if point],
    }  # fmt: skip


def exit_code(found: Mapping[str, Any]) -> int:
    """1 where a checkpoint got worse and is no match, 5 where one is gone or nothing could be paired, else 0."""
    if found["failing"]:
        return EXIT_DIVERGENCE
    lost = any(row["change"] == "gone" or row["lost"] for row in found["checkpoints"])
    return EXIT_INCOMPLETE if lost or found["verdict"] == "incomparable" else EXIT_PARITY


def gathered(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Changed checkpoints that recur over blocks, layers or steps as one line each, the worst changes first.

    Those of a case that one run has alone are left out: all of them are new or gone.

    Returns:
        ``change``, ``within``, ``entry``, ``group``, ``indices`` (unit -> set), ``count``, ``verdicts`` (before,
        after), ``excess`` (largest before, largest after; None where there is none), ``factor`` (median; None
        without one), ``name`` (the first), ``exact``.
    """
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["alone"]:
            continue
        sides = tuple((row[side] or {}).get("verdict") for side in ("before", "after"))
        key = (row["change"], row["within"], (row["case"], row["dtype"], row["mode"]), group_of(row["name"])[0], sides)
        found.setdefault(key, []).append(row)
    lines = [_line(*key, rows) for key, rows in found.items()]
    return sorted(lines, key=lambda line: (line["within"], ORDER.index(line["change"])))


def _line(change: str, within: bool, entry: Key, group: str, verdicts: tuple, rows: list) -> dict[str, Any]:
    indices: dict[str, set[int]] = {}
    for row in rows:
        for unit, index in group_of(row["name"])[1].items():
            indices.setdefault(unit, set()).add(index)
    factors = [row["factor"] for row in rows if row["factor"] is not None]
    excess = [
        max((row[side]["excess"] for row in rows if row[side] and row[side]["excess"] is not None), default=None)
        for side in ("before", "after")
    ]
    return {
        "change": change, "within": within, "entry": entry, "group": group, "indices": indices, "count": len(rows),
        "verdicts": verdicts, "excess": excess, "factor": median(factors) if factors else None, "name": rows[0]["name"],
        "exact": all(row["exact"] for row in rows),
    }  # fmt: skip


def _pairs(old: Iterable[Any], new: Iterable[Any], key: Any) -> dict[Any, tuple[Any, Any]]:
    """Key -> (before, after), in order, None where there is none; of several with one key, the first."""
    sides = []
    for items in (old, new):
        side: dict[Any, Any] = {}
        for item in items:
            side.setdefault(key(item), item)
        sides.append(side)
    return {one: (sides[0].get(one), sides[1].get(one)) for one in {**sides[0], **sides[1]}}


def _rows(key: Key, old: Run | None, new: Run | None) -> Iterator[dict[str, Any]]:
    sides = [case["checkpoints"] if case else () for case in (old, new)]
    for name, (before, after) in _pairs(*sides, lambda row: row["name"]).items():
        what = {"case": key[0], "dtype": key[1], "mode": key[2], "name": name, "alone": old is None or new is None}
        yield what | change_of(before, after)


def change_of(before: Row | None, after: Row | None) -> dict[str, Any]:
    """What became of one checkpoint.

    Returns:
        ``change`` of `CHANGES`; ``within``: worse or better, and a match both times; ``lost``: it was compared and is
        not any more; ``factor``: excess after over before (of unequal values, their number), None where it says
        nothing; ``by_floor``: the reference's own noise moved more than the candidate's error did; ``exact``;
        ``before``, ``after``: verdict, excess, relative RMSE, floor, peak excess, mismatches, source, reason.
    """
    one = {"before": _figures(before), "after": _figures(after), "factor": None, "by_floor": False, "within": False,
           "lost": False, "exact": any(row is not None and is_exact(row) for row in (before, after))}  # fmt: skip
    if before is None or after is None:
        return one | {"change": "new" if before is None else "gone"}
    ranks = [_RANK.get(row["verdict"]) for row in (before, after)]
    if None in ranks:
        return one | {"change": _unjudged(before, after, ranks), "lost": ranks[0] is not None and ranks[1] is None}
    one["factor"] = factor = _factor(before, after)
    one["within"] = ranks == [0, 0]
    if ranks[0] != ranks[1]:
        change = "better" if ranks[1] < ranks[0] else "worse"
    elif (moved := _moved(before, after, factor)) is None:
        return one | {"change": "same"}
    else:
        change, one["factor"] = "better" if moved < 1 else "worse", moved
    return one | {"change": change, "by_floor": _by_floor(before, after, factor)}


def _unjudged(before: Row, after: Row, ranks: list[int | None]) -> str:
    """A change to or from a verdict that says nothing: it counts where what is known is no divergence."""
    if before["verdict"] == after["verdict"]:
        return "same"
    if ranks[1] in (0, 1):
        return "better"
    return "worse" if ranks[0] in (0, 1) and ranks[1] is None else "other"


def _figures(row: Row | None) -> dict[str, Any] | None:
    if row is None:
        return None
    kept = ("verdict", "rel_rmse", "floor", "peak_excess", "mismatches", "source", "reason")
    return {key: row.get(key) for key in kept} | {"excess": excess_of(row)}


def _factor(before: Row, after: Row) -> float | None:
    if is_exact(before) and is_exact(after):
        a, b = before.get("mismatches"), after.get("mismatches")
    else:
        a, b = excess_of(before), excess_of(after)
    if a is None or b is None or a == b:
        return None if a is None or b is None else 1.0
    return math.inf if not a or math.isinf(b) else b / a


def _moved(before: Row, after: Row, factor: float | None) -> float | None:
    """By how much a checkpoint under one verdict moved, where that is beyond noise: its excess, or its peak excess
    where a few elements made that verdict."""
    if factor is not None and _beyond(factor, before, after):
        return factor
    a, b = (row.get("peak_excess") for row in (before, after))
    if before["verdict"] == "match" or not a or not b or not (math.isfinite(a) and math.isfinite(b)):
        return None
    return None if 1 / BEYOND <= b / a <= BEYOND else b / a


def _beyond(factor: float, before: Row, after: Row) -> bool:
    """Whether an excess moved by more than noise; the width of an estimate is noise too."""
    if max(excess_of(before) or 0.0, excess_of(after) or 0.0) <= AT_FLOOR:
        return False
    width = sum(float(row.get("uncertainty") or 0.0) for row in (before, after))
    return not 1 / (BEYOND * (1 + width)) <= factor <= BEYOND * (1 + width)


def _by_floor(before: Row, after: Row, factor: float | None) -> bool:
    values = [row.get(key) for key in ("floor", "rel_rmse") for row in (before, after)]
    if factor is None or not all(isinstance(value, int | float) and 0 < value < math.inf for value in values):
        return False
    floors, errors = values[1] / values[0], values[3] / values[2]
    return abs(math.log(floors)) > abs(math.log(errors))


def _point(row: Mapping[str, Any]) -> tuple[float, float, str] | None:
    a, b = row["before"]["excess"], row["after"]["excess"]
    return None if a is None or b is None or row["exact"] else (a, b, row["change"])


def _entry(key: Key, old: Run | None, new: Run | None, counts: Mapping[str, int]) -> dict[str, Any]:
    sources = [case["sources"] if case else [] for case in (old, new)]
    return {
        "case": key[0], "dtype": key[1], "mode": key[2],
        "before": state_of(old), "after": state_of(new),
        "counts": {change: counts.get(change, 0) for change in CHANGES},
        "sources": {
            "went": [name for name in sources[0] if new and name not in set(sources[1])],
            "came": [name for name in sources[1] if name not in set(sources[0])],
            "stayed": [name for name in sources[1] if name in set(sources[0])],
        },
    }  # fmt: skip


def _extent(names: Iterable[str]) -> dict[str, int]:
    """How far what repeats goes, ``{"block": 59}``: the highest index of each unit among names with one index."""
    highest: dict[str, int] = {}
    for name in names:
        indices = group_of(name)[1]
        if len(indices) == 1:
            [(unit, index)] = indices.items()
            highest[unit] = max(index, highest.get(unit, 0))
    return highest


def state_of(case: Run | None) -> dict[str, Any] | None:
    """An entry in short: ``verdict``, ``counts``, ``worst`` excess and ``where``, ``differ``: how many checkpoints
    that must be equal bit for bit are not."""
    if case is None:
        return None
    known = [(value, row["name"]) for row in case["checkpoints"]
             if not is_exact(row) and (value := excess_of(row)) is not None]  # fmt: skip
    worst, where = max(known, key=lambda pair: pair[0], default=(None, ""))
    differ = sum(is_exact(row) and row["verdict"] == "diverged" for row in case["checkpoints"])
    return {"verdict": case["verdict"], "counts": case["counts"], "worst": worst, "where": where, "differ": differ}


def _about(run: Run, folder: str) -> dict[str, Any]:
    kept = ("verdict", "sentence", "suite", "command", "started", "seconds", "counts")
    weights = run.get("weights") or {}
    said = {key: run.get(key) for key in kept} | {key: weights.get(key) for key in ("path", "synthetic", "preset")}
    return {"folder": folder} | said


def _verdict(counts: Mapping[str, int], common: bool) -> str:
    if not common:
        return "incomparable"
    up, down = counts["better"], counts["worse"]
    if not up and not down:
        return "other" if any(counts[change] for change in ("other", "new", "gone")) else "same"
    return "mixed" if up and down else "better" if up else "worse"


def _sentence(verdict: str, counts: Mapping[str, int], changed: list[dict[str, Any]], runs: tuple[Run, Run]) -> str:
    """What changed in one sentence."""
    if verdict == "incomparable":
        suites = [shown(str(run.get("suite") or "?")) for run in runs]
        which = f" (suite {suites[0]} before, {suites[1]} after)" if suites[0] != suites[1] else ""
        return f"Nothing to compare: the runs have no case in the same dtype and mode in common{which}."
    both = sum(counts[change] for change in ("better", "worse", "other", "same"))
    if counts["same"] == sum(counts.values()):
        return f"No change: all {both:,} checkpoints are as they were, as far as noise lets see."
    said = [f"{counts[change]:,} {word}" for change, word in _WORDS.items() if counts[change]]
    same = f"{counts['same']:,} of the {both:,}" if counts["same"] < both else f"all {both:,}"
    text = f"{_TITLES[verdict]}: {', '.join(said)}; {same} in both runs are as they were"
    failing = [row for row in changed if is_failing(row)]
    if failing:
        # Where several got worse, the ones that a divergence starts at say more than those behind them.
        first = next((row for row in failing if row["after"]["source"]), failing[0])
        where = ", ".join(shown(first[key]) for key in ("case", "dtype", "mode"))
        return f"{text}. The first that got worse is {shown(first['name'])} (case {where})."
    return f"{text}. What is further off is still a match." if any(map(_drifted, changed)) else f"{text}."


def is_failing(row: Mapping[str, Any]) -> bool:
    """Whether a checkpoint got worse, is compared in both runs or became so, and is no match."""
    return row["change"] == "worse" and not row["within"] and not row["lost"]


def _drifted(row: Mapping[str, Any]) -> bool:
    return row["change"] == "worse" and row["within"]


def _packed(run: Run) -> Any:
    return (run.get("weights") or {}).get("bits") or {}


def _began(run: Run) -> float:
    """Seconds since 1970; not a number, which is before and after nothing, where the run does not say so."""
    try:
        when = datetime.fromisoformat(run.get("started"))
    except (TypeError, ValueError):
        return math.nan
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _notes(before: Run, after: Run, pairs: Mapping[Key, tuple[Any, Any]], changed: list[dict[str, Any]]) -> list[str]:
    """What makes two runs less comparable than they look."""
    said = []
    for what, keys in (
        ("are of different models", ("configs", "parameters")),
        ("have different weights", ("path", "lora", "bits")),
    ):
        sides = [[(run.get("weights") or {}).get(key) for key in keys] for run in (before, after)]
        if sides[0] != sides[1]:
            said.append(f"The two runs {what}: a change may come from that.")
            break
    for part, words in (("component", "another component"), ("inputs", "other inputs")):
        pairs_of_both = ((key[0], old, new) for key, (old, new) in pairs.items() if old and new)
        other = list(dict.fromkeys(name for name, old, new in pairs_of_both if old.get(part) != new.get(part)))
        if other:
            more = f" and {len(other) - 3} more" if len(other) > 3 else ""
            said.append(
                f"Case{'s' * (len(other) > 1)} {', '.join(map(shown, other[:3]))}{more}: the same name, but {words}."
            )
    if _packed(before) != _packed(after):
        said.append("Each run is held against the reference on its own weights: what quantization costs is in the "
                    "error budget of the run's page, not here.")  # fmt: skip
    if _began(after) < _began(before):
        said.append(
            "The run given second began before the first one: better and worse are the other way round in time."
        )
    if moved := sum(row["by_floor"] for row in changed):
        said.append(f"At {moved:,} checkpoints the reference's own noise moved more than the candidate's error.")
    return said
