"""`parity diagnose` of traces: where the statistics of a candidate part from the reference's, and what they suggest.

Statistics see a scale, an offset, zeros, what is not finite and clamped ends; they see no permutation. So nothing
here is ever proven, and it is said which checkpoints' tensors would decide. A trace without a reference is held
against the documented ranges only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from parity.diagnosis.clue import Clue, concluded
from parity.diagnosis.from_log import diagnose as by_ranges
from parity.diagnosis.result import Diagnosis, Unexplained
from parity.diagnosis.statsclues import apart, fingerprint, suggestions
from parity.errors import UsageError
from parity.imports.loglines import Log, Pass
from parity.imports.traces import imported_kind
from parity.names import Graph, qwen_image_transformer
from parity.safetensors_header import shown
from parity.tracefile import UNITS, Trace, of_dump, read_trace

_REASON = "statistics alone prove no cause"
_SIDES = ("candidate", "reference")
# Sources beyond these are counted; what follows from the first ones looks like them.
_SOURCES = 8


def from_trace(subject: Path, reference: Path | None = None) -> dict[str, Any]:
    """Diagnose a trace, a folder of traces or a dump; the JSON form of a diagnosis.

    Args:
        subject: a trace folder, a folder with ``candidate`` and ``reference``, a folder of such, or a
            ``.safetensors`` file whose keys are checkpoint names.
        reference: a trace folder or file; by default the ``reference`` that lies beside the candidate.

    Raises:
        UsageError: there is no trace, it is damaged, or the two do not belong together.
    """
    found = [
        one_sided(candidate) if other is None else compare(candidate, other)
        for candidate, other in _pairs(subject, reference)
    ]
    return _joined(found).to_json()


def _pairs(subject: Path, reference: Path | None) -> list[tuple[Trace, Trace | None]]:
    if subject.is_file() or reference is not None:
        other = None if reference is None else _open(reference, "reference")
        return [(_open(subject, "candidate"), other)]
    if (subject / "manifest.json").is_file():
        beside = subject.parent / "reference"
        if subject.name == "reference":
            raise UsageError(f"{shown(subject.name)}: the reference's own trace; name the candidate's")
        with_reference = subject.name == "candidate" and (beside / "manifest.json").is_file()
        return [(read_trace(subject), read_trace(beside) if with_reference else None)]
    units = [folder for folder in _folders(subject) if all((folder / side).is_dir() for side in _SIDES)]
    if not units:
        raise UsageError(
            f"{shown(subject.name)}: no trace here; expected manifest.json and stats.parquet, or folders candidate "
            "and reference with them"
        )
    return [(read_trace(unit / "candidate"), read_trace(unit / "reference")) for unit in units]


def _folders(subject: Path) -> Iterator[Path]:
    """The folder itself, those in it, and those of its ``trace``."""
    yield subject
    for where in (subject, subject / "trace"):
        if where.is_dir():
            inside = [folder for folder in sorted(where.iterdir()) if folder.is_dir()]
            if len(inside) > UNITS:
                raise UsageError(f"{shown(where.name)}: {len(inside)} folders, against a limit of {UNITS}")
            yield from inside


def _open(path: Path, side: str) -> Trace:
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UsageError(f"{shown(path.name)}: not a trace; expected a folder or a .safetensors file")
        return of_dump(path, _Known())
    if not path.is_dir():
        raise UsageError(f"{path}: there is no such file or folder")
    inside = path if (path / "manifest.json").is_file() else path / side
    if not inside.is_dir():
        raise UsageError(f"{shown(path.name)}: no trace here; expected manifest.json and stats.parquet")
    return read_trace(inside)


class _Known(frozenset[str]):
    """Names of the transformer's checkpoints; every name with the prefix of another component is known as well."""

    def __new__(cls) -> _Known:
        """Of a transformer of 60 blocks."""
        return super().__new__(cls, qwen_image_transformer(60, "full").parents)

    def __contains__(self, name: object) -> bool:
        other = str(name).startswith(("text.", "vision.", "vae.", "sched.", "step.", "pipeline."))
        return other or super().__contains__(name)


def one_sided(trace: Trace) -> Diagnosis:
    """A trace without a reference, by the documented ranges."""
    if trace.about.get("component", "transformer") != "transformer":
        raise UsageError(
            f"{trace.label}: documented ranges are of the transformer; give --reference for this component"
        )
    if imported_kind(trace.about) == "sketches":
        raise UsageError(f"{trace.label}: sketches have no ranges; `parity compare GOLDEN` judges them")
    ranges = Pass(trace.label)
    for name, stats in trace.stats.items():
        bad = stats["nan"] or stats["pos_inf"] or stats["neg_inf"]
        ends = (stats["min"], stats["max"])
        if bad:
            ends = (float("nan"),) * 2 if stats["nan"] else (-float("inf"), float("inf"))
        ranges.ranges[name] = ends
    log = Log([ranges], readings=len(trace.stats), numbered=True)
    found = by_ranges(log)
    found.subject = "trace"
    found.notes.append(f"{trace.label} was compared with documented ranges only; --reference TRACE allows more")
    return found


def compare(candidate: Trace, reference: Trace) -> Diagnosis:
    """A candidate's statistics against the reference's.

    Raises:
        UsageError: the two do not belong together.
    """
    for one in (candidate, reference):
        if imported_kind(one.about) in ("sketches", "ranges"):
            raise UsageError(f"{one.label}: read from {imported_kind(one.about)}, which are no statistics to compare")
    problem = strangeness(candidate, reference)
    if problem:
        raise UsageError(f"{candidate.label} and {reference.label} do not belong together: {problem}")
    dtype = str(candidate.about.get("dtype", ""))
    common = [name for name in reference.stats if name in candidate.stats]
    if not common:
        raise UsageError(f"{candidate.label} and {reference.label} have no checkpoint in common")
    excess = {name: apart(candidate.stats[name], reference.stats[name], dtype) for name in common}
    parted = [name for name in common if excess[name] > 1]
    graph = _graph(candidate)
    sources = [name for name in parted if not _behind(name, graph, common, set(parted))]
    clues: list[Clue] = []
    for name in sources[:_SOURCES]:
        parents = graph.visible_parents(name, common) if graph and name in graph.parents else ()
        clues += suggestions(name, candidate.stats[name], reference.stats[name], dtype, parents)
    first = _first(candidate, dtype, sources[0]) if sources else None
    found = concluded("trace", clues, first, excess[sources[0]] if sources else 0.0, _REASON)
    found.sources = sources
    found.unexplained = [
        Unexplained(name, excess[name], _REASON, fingerprint(candidate.stats[name], reference.stats[name], dtype))
        for name in sources[:_SOURCES]
    ]
    found.notes = [*_counted(candidate, reference, common, parted), *_said(sources)]
    if not found.would_decide and sources:
        found.would_decide = [sources[0]]
    return found


def strangeness(candidate: Trace, reference: Trace) -> str:
    """Why two traces do not belong together: the first field that differs, with both values; empty where none does."""
    a, b = candidate.about, reference.about
    if a and b:
        for field in ("component", "dtype", "mode"):
            if a[field] != b[field]:
                return f"{field} is {shown(a[field])} and {shown(b[field])}"
        for field in ("case", "configs"):
            differing = _differing(a[field], b[field], field)
            if differing:
                return differing
    if candidate.level != reference.level:
        return f"level of detail is {candidate.level or 'none'} and {reference.level or 'none'}"
    return ""


def _differing(a: Mapping[str, Any], b: Mapping[str, Any], path: str, depth: int = 0) -> str:
    for key in dict.fromkeys([*a, *b]):
        one, other = a.get(key), b.get(key)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict) and depth < 8:
            return _differing(one, other, f"{path}.{shown(key)}", depth + 1)
        return f"{path}.{shown(key)} is {shown(one)} and {shown(other)}"
    return ""


def _graph(candidate: Trace) -> Graph | None:
    """Of the transformer; other components are followed in the order in which they are made."""
    if candidate.about.get("component", "transformer") != "transformer" or not candidate.level:
        return None
    layers = candidate.about.get("configs", {}).get("transformer", {}).get("num_layers", 60)
    if type(layers) is not int or not 1 <= layers <= UNITS:
        return None
    return qwen_image_transformer(layers, "full")


def _behind(name: str, graph: Graph | None, common: list[str], parted: set[str]) -> bool:
    """Whether a checkpoint follows from another one that has parted."""
    if graph is None or name not in graph.parents:
        return any(one in parted for one in common[: common.index(name)])
    return any(parent in parted for parent in graph.visible_parents(name, common))


def _first(candidate: Trace, dtype: str, checkpoint: str) -> dict[str, str]:
    about = candidate.about
    case = about.get("case", {}).get("name", candidate.label)
    return {
        "case": shown(case),
        "mode": str(about.get("mode", "accumulated")),
        "dtype": dtype,
        "checkpoint": checkpoint,
    }


def _counted(candidate: Trace, reference: Trace, common: list[str], parted: list[str]) -> Iterator[str]:
    yield (
        f"{len(common)} of {len(reference.stats)} checkpoints compared by their statistics, {len(parted)} differ by "
        "more than rounding; statistics see no permutation"
    )
    missing = [name for name in reference.stats if name not in candidate.stats]
    extra = [name for name in candidate.stats if name not in reference.stats]
    for names, what in ((missing, "missing in the candidate"), (extra, "unknown to the reference")):
        if names:
            yield f"{len(names)} checkpoints {what}, {shown(names[0])} first"


def _said(sources: list[str]) -> Iterator[str]:
    if len(sources) > _SOURCES:
        yield f"the statistics part at {len(sources)} places of their own; the first {_SOURCES} were looked at"


def _joined(found: list[Diagnosis]) -> Diagnosis:
    """Several diagnoses as one: each code once, at all its places."""
    if len(found) == 1:
        return found[0]
    whole = Diagnosis("trace", next((one.first for one in found if one.first), None))
    causes: dict[str, Any] = {}
    for one in found:
        for cause in one.causes:
            kept = causes.setdefault(cause.code, cause)
            kept.where += [name for name in cause.where if name not in kept.where]
            kept.confidence = "likely" if "likely" in (kept.confidence, cause.confidence) else "possible"
    whole.causes = sorted(causes.values(), key=lambda cause: cause.confidence != "likely")
    for field in ("sources", "notes", "would_decide"):
        setattr(whole, field, list(dict.fromkeys(entry for one in found for entry in getattr(one, field))))
    seen = {entry.where: entry for one in reversed(found) for entry in one.unexplained}
    whole.unexplained = [seen[name] for name in whole.sources if name in seen]
    return whole
