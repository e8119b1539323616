"""What a diagnosis says, and its JSON form (docs/diagnosis-json.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1
CONFIDENCE = ("proven", "likely", "possible")


@dataclass
class Cause:
    """One named cause.

    Attributes:
        code, title, fix, seen: see `parity.diagnosis.fault.Fault`.
        confidence: one of `CONFIDENCE`.
        where: checkpoints where it first shows, in the model's order.
        details: the variants of it that were found.
        evidence: figures and sentences by name.
        ties: other codes that explain the same to the same degree.
    """

    code: str
    title: str
    fix: str
    seen: str
    confidence: str
    where: list[str]
    details: list[str] = field(default_factory=list)
    evidence: dict[str, Any] = field(default_factory=dict)
    ties: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As JSON; ``source`` is where the fault is described."""
        return {
            "code": self.code, "title": self.title, "confidence": self.confidence, "where": self.where,
            "detail": "; ".join(self.details), "evidence": self.evidence, "fix": self.fix, "source": self.seen,
            "ties": self.ties,
        }  # fmt: skip


@dataclass
class Unexplained:
    """A checkpoint that is wrong in a way that no catalogued fault makes.

    Attributes:
        where: the checkpoint.
        excess: in units of the floor.
        reason: why there is no cause, where that is more than that none fits.
        fingerprint: what relates the candidate's value to the reference's, nearest first.
    """

    where: str
    excess: float
    reason: str = ""
    fingerprint: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"where": self.where, "excess": self.excess, "reason": self.reason, "fingerprint": self.fingerprint}


@dataclass
class Diagnosis:
    """The result.

    Attributes:
        subject: ``run``, ``trace``, ``log`` or ``picture``.
        first: ``case``, ``mode``, ``dtype`` and ``checkpoint`` of the first divergence; None where there is none.
        sources: checkpoints that are wrong while their parents are right, in the model's order.
        causes: best first.
        unexplained: what is left.
        notes: what the reader should know besides.
        would_decide: checkpoints or files that would settle what is open.
        seconds: it took.
    """

    subject: str
    first: dict[str, str] | None = None
    sources: list[str] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    unexplained: list[Unexplained] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    would_decide: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def explained(self) -> bool:
        """Whether all that is wrong has a cause that an experiment has met."""
        return bool(self.causes) and not self.unexplained and all(one.confidence != "possible" for one in self.causes)

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        if not self.sources and not self.causes:
            return "Nothing is wrong that could be explained."
        if not self.causes and self.unexplained and all(one.reason for one in self.unexplained):
            return f"Not explained: what is wrong at {self.sources[0]} could not be looked into."
        if not self.causes:
            return f"Unexplained: what is wrong at {self.sources[0]} is none of the faults in the catalogue."
        said = joined([f"{one.code} at {span(one.where)}" for one in self.causes])
        if self.explained:
            return f"This port is the reference with {said}."
        left = f"; {len(self.unexplained)} checkpoints remain unexplained" if self.unexplained else ""
        return f"Best explanation: {said}{left}."

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "schema": SCHEMA, "subject": self.subject, "sentence": self.sentence, "first_divergence": self.first,
            "sources": self.sources, "causes": [one.to_json() for one in self.causes], "explained": self.explained,
            "unexplained": [one.to_json() for one in self.unexplained], "notes": self.notes,
            "would_decide": self.would_decide, "seconds": round(self.seconds, 2),
        }  # fmt: skip


def joined(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def span(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    more = len(names) - 1
    return names[0] + (f" and {more} more checkpoint{'s' if more > 1 else ''}" if more else "")
