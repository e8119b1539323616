"""What figures without tensors suggest: codes with a confidence that is never ``proven``, and what would decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parity.diagnosis.fault import by_code
from parity.diagnosis.result import CONFIDENCE, Cause, Diagnosis, Unexplained
from parity.errors import UsageError


@dataclass(frozen=True)
class Clue:
    """One suggestion.

    Attributes:
        code: of the catalogue.
        confidence: ``likely`` or ``possible``.
        where: checkpoints it was seen at.
        detail: what was seen, in words.
        evidence: figures by name.
        decide: checkpoints whose tensors would decide.
    """

    code: str
    confidence: str
    where: tuple[str, ...]
    detail: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    decide: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.confidence not in ("likely", "possible"):
            raise ValueError(f"figures alone are never {self.confidence}")

    def cause(self) -> Cause:
        """With title, fix and source from the catalogue."""
        try:
            known = by_code()[self.code]
            title, fix, seen = known.title, known.fix, known.seen
        except UsageError:
            title, fix, seen = self.code, "", ""
        where, evidence = list(self.where), dict(self.evidence)
        return Cause(self.code, title, fix, seen, self.confidence, where, [self.detail], evidence)


def concluded(
    subject: str, clues: Sequence[Clue], first: Mapping[str, str] | None, excess: float, reason: str
) -> Diagnosis:
    """A diagnosis of clues; a code that comes twice is said once, with its better confidence.

    Args:
        subject: ``trace`` or ``log``.
        clues: in any order.
        first: of the diagnosis; None where nothing is wrong.
        excess: how far off the first checkpoint is.
        reason: why nothing is proven.
    """
    best: dict[str, Clue] = {}
    for clue in sorted(clues, key=lambda one: CONFIDENCE.index(one.confidence)):
        best.setdefault(clue.code, clue)
    found = Diagnosis(subject, dict(first) if first else None, causes=[one.cause() for one in best.values()])
    if first:
        found.sources = [first["checkpoint"]]
        found.unexplained = [Unexplained(first["checkpoint"], excess, reason)]
    found.would_decide = list(dict.fromkeys(name for clue in best.values() for name in clue.decide))
    return found
