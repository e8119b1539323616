"""From what explains each checkpoint to the causes of a whole port: grouped, ranked, ties said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parity.diagnosis.result import CONFIDENCE, Cause, Diagnosis, Unexplained
from parity.diagnosis.search import LIMITS, Limits, Match, Step
from parity.names import parse


@dataclass(frozen=True)
class Finding:
    """A wrong checkpoint and all that explains it, best first.

    Attributes:
        name: of the checkpoint.
        before: its excess over the reference's own prediction.
        matches: at least one.
    """

    name: str
    before: float
    matches: tuple[Match, ...]


def assemble(
    findings: Sequence[Finding], unexplained: Sequence[Unexplained], suspected: Sequence[Cause] = (),
    limits: Limits = LIMITS,
) -> Diagnosis:  # fmt: skip
    """Causes, each with all its places.

    Among explanations of one checkpoint, one that also explains others of its kind comes first: chance agrees once.
    Then the one whose code explains most checkpoints of all.
    """
    shared, reach = _shared(findings), _reach(findings)
    causes: dict[str, Cause] = {}
    sources: dict[str, None] = {}
    for finding in findings:
        sources[finding.name] = None
        chosen, ties = _choose(finding, shared, reach, limits)
        for fault, detail in chosen.steps:
            cause = causes.setdefault(fault.code, Cause(fault.code, fault.title, fault.fix, fault.seen, "proven", []))
            _add(cause, finding, chosen, detail, ties, limits)
    for one in suspected:
        sources[one.where[0]] = None
        _merge(causes, one)
    diagnosis = Diagnosis("run", sources=list(sources), causes=list(causes.values()), unexplained=list(unexplained))
    for one in unexplained:
        if one.where not in sources:
            diagnosis.sources.append(one.where)
    diagnosis.causes.sort(key=lambda cause: CONFIDENCE.index(cause.confidence))
    return diagnosis


def _merge(causes: dict[str, Cause], one: Cause) -> None:
    """Put a suspicion under a cause of the same code, if there is one."""
    known = causes.setdefault(one.code, one)
    if known is not one:
        known.where += [name for name in one.where if name not in known.where]
        known.details += [detail for detail in one.details if detail not in known.details][: 3 - len(known.details)]
        known.evidence["checkpoints"] = len(known.where)


def _shared(findings: Sequence[Finding]) -> dict[tuple[str, str | None], dict[tuple[Step, ...], int]]:
    """Kind and stream -> explanation -> how many checkpoints it explains."""
    found: dict[tuple[str, str | None], dict[tuple[Step, ...], int]] = {}
    for finding in findings:
        parts = parse(finding.name)
        of_kind = found.setdefault((parts.kind, parts.stream), {})
        for match in finding.matches:
            of_kind[match.steps] = of_kind.get(match.steps, 0) + 1
    return found


def _reach(findings: Sequence[Finding]) -> Counter[str]:
    """Code -> how many checkpoints it explains."""
    return Counter(code for one in findings for code in {code for match in one.matches for code in match.codes})


def _choose(
    finding: Finding, shared: dict[tuple[str, str | None], dict[tuple[Step, ...], int]], reach: Mapping[str, int],
    limits: Limits,
) -> tuple[Match, list[str]]:  # fmt: skip
    """The explanation, and codes of others that are as good."""
    parts = parse(finding.name)
    often = shared[(parts.kind, parts.stream)]

    def breadth(match: Match) -> tuple[int, int, int]:
        return often[match.steps], -len(match.steps), min(reach[code] for code in match.codes)

    widest = max(map(breadth, finding.matches))
    rivals = [match for match in finding.matches if breadth(match) == widest]
    nearest = min(match.excess for match in rivals)
    # Of what noise cannot part, the first in the catalogue.
    rivals = [match for match in rivals if match.excess <= max(limits.tie * nearest, 1.0)]
    best = rivals[0]
    codes = dict.fromkeys(code for match in rivals for code in match.codes)
    return best, [code for code in codes if code not in best.codes]


def _add(cause: Cause, finding: Finding, match: Match, detail: str, ties: Sequence[str], limits: Limits) -> None:
    if finding.name not in cause.where:
        cause.where.append(finding.name)
    if detail not in cause.details:
        cause.details.append(detail)
    cause.ties += [code for code in ties if code not in cause.ties]
    if ties or not match.proves(limits):
        cause.confidence = "likely"
    evidence = cause.evidence
    evidence["checkpoints"] = len(cause.where)
    evidence["excess_without"] = max(evidence.get("excess_without", 0.0), finding.before)
    evidence["excess_with"] = max(evidence.get("excess_with", 0.0), match.excess)
    evidence["residual"] = max(evidence.get("residual", 0.0), match.found.rms)
    evidence["floor"] = max(evidence.get("floor", 0.0), match.floor.rms)
