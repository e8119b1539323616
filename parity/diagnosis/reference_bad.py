"""Is the reference itself as wrong as the candidate? ``reference.also_bad``, from the rows that a run measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from parity.verdict import DEFAULT, Thresholds

# The two sides are about as far off where neither error is more than this many times the other.
_ALIKE = 4.0


@dataclass(frozen=True)
class AlsoBad:
    """A checkpoint at which the reference in the run's dtype is as wrong as the candidate.

    Attributes:
        name: of the checkpoint.
        reason: what is wrong with both, in a few words.
        evidence: figures by name.
    """

    name: str
    reason: str
    evidence: Mapping[str, Any]


def also_bad(rows: Iterable[Mapping[str, Any]], thresholds: Thresholds = DEFAULT) -> list[AlsoBad]:
    """Checkpoints where reference and candidate are both far from the truth.

    A reference that is not finite, or whose own error is beyond what a verdict can be given for, says nothing about
    a candidate with the same trouble: the dtype, the weights or the library is at fault, not the port.

    Args:
        rows: of one case, as ``parity.json`` has them (docs/parity-json.md).
        thresholds: `uncertain` is where the reference's own error says nothing any more.
    """
    return [found for row in rows if row["status"] == "measured" and (found := _judge(row, thresholds)) is not None]


def _judge(row: Mapping[str, Any], thresholds: Thresholds) -> AlsoBad | None:
    reference, candidate = row["reference"], row["candidate"]
    bad = {side: one["nan"] + one["inf"] for side, one in (("reference", reference), ("candidate", candidate))}
    if bad["reference"] and bad["candidate"]:
        return AlsoBad(
            row["name"], "both have values that are not finite", {f"{k}_not_finite": n for k, n in bad.items()}
        )
    own, other = row.get("precision"), row["rel_rmse"]
    if bad["reference"] or bad["candidate"] or own is None or other is None or not math.isfinite(own):
        return None
    if own <= thresholds.uncertain or not math.isfinite(other) or not own / _ALIKE <= other <= own * _ALIKE:
        return None
    return AlsoBad(row["name"], "both are far from the truth", {"reference_error": own, "candidate_error": other})
