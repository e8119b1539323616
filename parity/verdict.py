"""From measures to verdicts: floor, excess, the source rule, counts.

*Truth* is the reference in float64. The *floor* of a checkpoint is the largest relative RMSE
against truth among runs of the reference itself that nobody would call wrong: in the run's
dtype, with its inputs moved by one unit in the last place, in another legitimate precision
mode. *Excess* is the candidate's error over the floor. There is no other tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from parity import errors
from parity.names import Graph

VERDICTS = ("match", "suspect", "diverged", "uncertain", "missing", "skipped")
COMPARED = ("match", "suspect", "diverged")


@dataclass(frozen=True)
class Thresholds:
    """The constants of all verdicts. `parity bench clean` measures what clean runs reach.

    Attributes:
        match: largest excess of a match.
        suspect: largest excess of a suspect; above it, a checkpoint has diverged.
        peak_match, peak_suspect: the same for the largest single error over the floor runs'
            largest. Wider, because an extreme of many draws varies more than their mean.
        uncertain: floor above which nothing can be said.
    """

    match: float = 3.0
    suspect: float = 10.0
    peak_match: float = 12.0
    peak_suspect: float = 40.0
    uncertain: float = 0.3

    def as_dict(self) -> dict[str, float]:
        """For ``parity.json``."""
        return asdict(self)


DEFAULT = Thresholds()
Row = dict[str, Any]


def judge(rows: Sequence[Row], graph: Graph, *, isolated: bool, thresholds: Thresholds = DEFAULT) -> list[Row]:
    """Give each measured row its verdict and find the sources.

    Args:
        rows: one row for each expected checkpoint, in order, as the run measured them
            (docs/parity-json.md); verdicts they already have are ignored.
        graph: names, parents and stages.
        isolated: whether each stage was fed the reference's state, so that divergence cannot
            cross from one stage to the next.

    Returns:
        new rows with ``verdict``, ``reason``, ``excess``, ``peak_excess``, ``source``, ``propagated``.

    Raises:
        ValueError: the rows are not the expected names in order. A check that compared
            something else must not be green.
    """
    names = [row["name"] for row in rows]
    if names != list(graph.expected):
        raise ValueError(f"{len(names)} rows do not cover the {len(graph.expected)} expected checkpoints in order")
    judged = [row | judge_row(row, thresholds, exact=row["name"] in graph.exact) for row in rows]
    verdict_of = {row["name"]: row["verdict"] for row in judged}
    telling = frozenset(name for name, verdict in verdict_of.items() if verdict in COMPARED)
    trail: set[str] = set()  # what a divergence has reached: diverged, or suspect behind something on the trail
    for row in judged:
        parents = graph.visible_parents(row["name"], telling, within_stage=isolated)
        reached = any(parent in trail for parent in parents)
        diverged = row["verdict"] == "diverged"
        if diverged or (reached and row["verdict"] == "suspect"):
            trail.add(row["name"])
        row["propagated"] = diverged and reached
        row["source"] = diverged and not reached
    return judged


def judge_row(row: Row, limits: Thresholds = DEFAULT, *, exact: bool = False) -> Row:
    """``verdict``, ``reason``, ``excess`` and ``peak_excess`` of one measured row, whatever the others are."""
    if row["status"] != "measured":
        return {"verdict": row["status"], "excess": None, "peak_excess": None}
    if row["shape"] != row["expected_shape"]:
        expected, found = (tuple(row[key]) for key in ("expected_shape", "shape"))
        return _said("diverged", f"shape {found}, expected {expected}")
    reference, candidate = row["reference"], row["candidate"]
    if reference["nan"] or reference["inf"] or not math.isfinite(row["floor"]):
        return _said("uncertain", "the reference itself is not finite here")
    if exact:
        return _must_equal(row)
    # Of sketches from elsewhere no statistics are known.
    bad, evidence = (candidate["nan"] + candidate["inf"] if candidate else 0), row.get("evidence")
    if bad or (evidence != "range" and not math.isfinite(row["rel_rmse"])):
        return _said("diverged", f"{bad or 'some'} values are not finite where the reference's are")
    if row["floor"] > limits.uncertain:
        return _said("uncertain", f"the reference's own floor is {row['floor']:.2g}")
    if evidence == "range":
        return _by_range(row, limits)
    excess = row["rel_rmse"] / row["floor"]
    if evidence == "statistics":
        return _by_bound(excess, limits)
    if row["peak"] is None:  # no single error sticks out of a sketch
        return _by_estimate(row, excess, limits)
    peak = row["peak"] / row["peak_floor"] if row["peak_floor"] else (0.0 if row["peak"] == 0 else math.inf)
    by_mean = _grade(excess, limits.match, limits.suspect)
    by_peak = _grade(peak, limits.peak_match, limits.peak_suspect)
    worst = max(by_mean, by_peak)
    reason = "" if by_mean >= by_peak else f"a few elements are off by {peak:.3g} times the floor's largest error"
    return {"verdict": VERDICTS[worst], "reason": reason, "excess": excess, "peak_excess": peak}


def _by_estimate(row: Row, excess: float, limits: Thresholds) -> Row:
    """A verdict from sketches: as from values, and where the interval holds a limit that is said."""
    grade = _grade(excess, limits.match, limits.suspect)
    near = [limit for limit in (limits.match, limits.suspect) if abs(excess - limit) <= row["uncertainty"] * excess]
    reason = f"an estimate, within its uncertainty of the limit {near[0]:g}" if near else ""
    return {"verdict": VERDICTS[grade], "reason": reason, "excess": excess, "peak_excess": None}


def _by_bound(excess: float, limits: Thresholds) -> Row:
    """A verdict from statistics, whose differences are a lower bound of the error."""
    if excess > limits.suspect:
        return _said("diverged", "its mean or root mean square is off: the error is at least this") | {"excess": excess}
    return _said("uncertain", "its statistics agree with the reference's; they don't see order")


def _by_range(row: Row, limits: Thresholds) -> Row:
    """A verdict from a range alone: an end that is off is an error of at least that much, in some element."""
    found, expected = row["ends"]
    off = [abs(a - b) for a, b in zip(found, expected, strict=True)]
    worst = max((0, 1), key=lambda end: math.inf if math.isnan(off[end]) else off[end])
    if not off[worst] - row["resolution"] <= limits.peak_suspect * row["peak_floor"]:
        return _said("diverged", f"its {('min', 'max')[worst]} is {found[worst]:.6g}, expected {expected[worst]:.6g}")
    return _said("uncertain", "its range agrees with the reference's; a range sees neither order nor inner values")


def _must_equal(row: Row) -> Row:
    if row["mismatches"] is None:
        return _said("uncertain", "its values were not compared")
    if row["mismatches"]:
        found = _said("diverged", f"{row['mismatches']} of {math.prod(row['shape'])} values differ; all must be equal")
        return found | {"excess": math.inf, "peak_excess": math.inf}
    return {"verdict": "match", "reason": "", "excess": 0.0, "peak_excess": 0.0}


def _said(verdict: str, reason: str) -> Row:
    return {"verdict": verdict, "reason": reason, "excess": None, "peak_excess": None}


def _grade(excess: float, match: float, suspect: float) -> int:
    return 0 if excess <= match else 1 if excess <= suspect else 2


def count(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Counts of a list of judged rows. An uncertain checkpoint was looked at, not compared."""
    counts = dict.fromkeys(("expected", "compared", *VERDICTS), 0)
    for row in rows:
        counts["expected"] += 1
        counts[row["verdict"]] += 1
        counts["compared"] += row["verdict"] in COMPARED
    return counts


def add(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sum of several counts."""
    total = dict.fromkeys(("expected", "compared", *VERDICTS), 0)
    for one in counts:
        for key in total:
            total[key] += one[key]
    return total


def overall(counts: Mapping[str, int]) -> str:
    """``parity``, ``divergence`` or ``incomplete``. A run that compared nothing is incomplete."""
    if counts["diverged"]:
        return "divergence"
    if counts["compared"] < counts["expected"] or counts["compared"] == 0:
        return "incomplete"
    return "parity"


def exit_code(verdict: str) -> int:
    """Exit code of a command that ends with this verdict."""
    return {
        "parity": errors.EXIT_PARITY,
        "divergence": errors.EXIT_DIVERGENCE,
        "incomplete": errors.EXIT_INCOMPLETE,
    }[verdict]
