"""Is the library at fault, or the port? One operation is replayed on the same inputs in many ways.

    findings = check("quantized_linear", arrays, [MlxReplay()], options={"group_size": 64, "bits": 4}, value=candidate)

The ways differ in device, dtype and cutting: whole, its inputs evaluated alone first, by rows, by columns or heads.
Each is held against the same operation in float64 in numpy, on inputs as its dtype holds them, and judged by what
rounding alone does to that operation in that dtype. Ways of one library that disagree beyond rounding say that the
library is wrong: ``backend.kernel``, or ``backend.precision_mode`` where the difference is that of a shorter
mantissa. Where all agree, the port is at fault, and nothing is found.

M rows, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.diagnosis import referee
from parity.diagnosis.judge import ACCUMULATOR, LIMIT, Judge, Measured
from parity.diagnosis.referee import Array, Arrays, Options
from parity.diagnosis.ways import Backend, Way, at, replay, sampled, ways
from parity.known_bugs import Bug
from parity.stats import unit_roundoff


@dataclass(frozen=True)
class Finding:
    """A library that is wrong.

    Attributes:
        code: ``backend.kernel`` or ``backend.precision_mode``.
        confidence: ``proven`` where the candidate has the wrong way's values, or the same operation on the same
            inputs is right in another way of the same library; ``likely`` where all ways are wrong, each otherwise.
        sentence: what was found.
        right, wrong: ways.
        evidence: figures by name.
        known: names of known bugs that describe it.
    """

    code: str
    confidence: str
    sentence: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    evidence: Mapping[str, Any]
    known: tuple[str, ...] = ()


def check(
    op: str, arrays: Arrays, backends: Sequence[Backend], *, options: Options | None = None,
    dtypes: Sequence[str] = tuple(referee.DTYPES), value: Array | None = None, bugs: Sequence[Bug] = (),
) -> list[Finding]:  # fmt: skip
    """What the libraries get wrong of one operation; nothing where the port is at fault.

    Args:
        op: of `referee.OPS`.
        arrays: its inputs, as the candidate had them; see ``mlx_impl.replay`` for names and shapes.
        backends: libraries.
        options: of the operation.
        dtypes: to try.
        value: what the candidate made of it, to see whether it is what a wrong way makes.
        bugs: `parity.known_bugs.matching` of the candidate's environment.

    Raises:
        KeyError: there is no such operation, or an array or option is not given.
    """
    options = options or {}
    measured = measure(op, arrays, backends, options=options, dtypes=dtypes)
    sizes = referee.OPS[op].sizes(arrays)
    rows = sampled(op, arrays)[1]
    value = None if value is None else np.asarray(value).reshape(_shape(op, arrays, value))[at(op, rows)]
    found = []
    for library in dict.fromkeys(one.way.library for one in measured):
        of_library = [one for one in measured if one.way.library == library]
        found += _findings(op, of_library, sizes, value, bugs)
    return found


def measure(
    op: str, arrays: Arrays, backends: Sequence[Backend], *, options: Options | None = None,
    dtypes: Sequence[str] = tuple(referee.DTYPES),
) -> list[Measured]:  # fmt: skip
    """Every way of every backend against the referee; see `check`."""
    options = options or {}
    found: list[Measured] = []
    for dtype in dtypes:
        judge = Judge.of(op, arrays, options, dtype)
        if judge is None:
            continue
        for backend in backends:
            tried = list(ways(op, arrays, backend, dtype))
            made = replay(op, judge.arrays, options, backend, tried, judge.rows)
            found += [judge(way, one) for way, one in zip(tried, made, strict=True)]
    return found


def _shape(op: str, arrays: Arrays, value: Array) -> tuple[int, ...]:
    """The shape in which a candidate's value has its rows where the operation has them."""
    if referee.OPS[op].rows == ("x", 0):
        return (arrays["x"].shape[0], -1)
    return np.shape(value)


def _findings(
    op: str, measured: Sequence[Measured], sizes: Mapping[str, int], value: Array | None, bugs: Sequence[Bug]
) -> Iterator[Finding]:
    """What the ways of one library say."""
    right = [one for one in measured if not one.wrong and not one.failed]
    reduced = [one for one in measured if one.wrong and one.mode]
    wrong = [one for one in measured if one.wrong and not one.mode]
    if not right:
        if not _disagree([*wrong, *reduced]):
            wrong = []  # another operation than the one described
        reduced = [one for one in reduced if one.mode != ACCUMULATOR]
    if wrong:
        yield _finding("backend.kernel", op, wrong, right, sizes, value, bugs)
    if reduced:
        yield _finding("backend.precision_mode", op, reduced, right, sizes, value, bugs)


def _finding(
    code: str, op: str, wrong: Sequence[Measured], right: Sequence[Measured], sizes: Mapping[str, int],
    value: Array | None, bugs: Sequence[Bug],
) -> Finding:  # fmt: skip
    worst = max(wrong, key=lambda one: one.excess)
    evidence: dict[str, Any] = {
        "op": op, "sizes": dict(sizes), "error": worst.error, "rounding": worst.floor, "excess": worst.excess,
        "ways_right": len(right), "ways_wrong": len(wrong), **{f"wrong_{k}": v for k, v in worst.pattern.items()},
    }  # fmt: skip
    if worst.mode:
        evidence["mode"] = worst.mode
    met = [one for one in wrong if value is not None and _same(one.made, value)]
    if value is not None:
        evidence["candidate_has_it"] = bool(met)
    known = [bug.name for bug in bugs if any(_described(bug, code, op, one, sizes) for one in wrong)]
    proven = bool(met) if value is not None else bool(right)
    ways_right, ways_wrong = (tuple(str(one.way) for one in ones) for ones in (right, wrong))
    sentence = _sentence(op, worst, wrong, right, sizes)
    return Finding(code, "proven" if proven else "likely", sentence, ways_right, ways_wrong, evidence, tuple(known))


def _sentence(
    op: str, worst: Measured, wrong: Sequence[Measured], right: Sequence[Measured], sizes: Mapping[str, int]
) -> str:
    place = _where(wrong, right, ", ", only=False) or f"in {len(wrong)} of {len(wrong) + len(right)} ways"
    words = f"{worst.way.library}: {op} of {_said(sizes)} is wrong {place}"
    words += f", with {worst.mode}" if worst.mode else ""
    safe = _where(right, wrong, ", and ", only=True)
    return words + (f"; right {safe}" if safe else "")


def _described(bug: Bug, code: str, op: str, one: Measured, sizes: Mapping[str, int]) -> bool:
    of_library = one.way.library == f"{bug.package} {one.way.library.rpartition(' ')[2]}"
    return bug.code == code and of_library and bug.speaks_of(op, one.way.dtype, sizes)


def _same(made: Array | None, value: Array) -> bool:
    """Whether a candidate's value is this result, but for a rounding to its own dtype."""
    if made is None or made.shape != value.shape:
        return False
    roundoff = unit_roundoff(value.dtype) if value.dtype.kind != "f" or value.dtype.itemsize < 4 else 1e-6
    value = value.astype(np.float64)
    if not np.array_equal(np.isfinite(made), np.isfinite(value)):
        return False
    both = np.isfinite(made)
    norm = float(np.linalg.norm(made[both]))
    far = float(np.linalg.norm(made[both] - value[both]))
    return far <= max(2 * roundoff, 1e-6) * norm


def _disagree(wrong: Sequence[Measured]) -> bool:
    """Whether ways of one dtype that are all wrong are wrong differently."""
    for dtype in {one.way.dtype for one in wrong}:
        first, *others = (one for one in wrong if one.way.dtype == dtype)
        with np.errstate(invalid="ignore"):
            norm = float(np.linalg.norm(np.nan_to_num(first.made))) or 1.0
            for one in others:
                far = np.where(one.made == first.made, 0.0, one.made - first.made)
                alike = np.isnan(one.made) & np.isnan(first.made)
                if not float(np.linalg.norm(far[~alike])) <= first.floor * LIMIT * norm:
                    return True
    return False


def _said(sizes: Mapping[str, int]) -> str:
    shown = [name for name in ("rows", "inputs", "outputs", "keys") if name in sizes]
    return ", ".join(f"{sizes[name]} {name}" for name in shown)


_FIELDS: dict[str, Callable[[Way], str]] = {
    "on {}": lambda way: way.device, "in {}": lambda way: way.dtype, "{}": lambda way: _CUTS[way.cut],
}  # fmt: skip
_CUTS = {
    "whole": "as a whole", "alone": "with inputs evaluated first", "rows": "cut by rows", "columns": "cut by columns",
    "sample": "of some rows",
}  # fmt: skip


def _where(these: Sequence[Measured], others: Sequence[Measured], joint: str, *, only: bool) -> str:
    """Values of device, dtype and cut that these ways have, as far as they tell them from the others.

    Args:
        only: leave out values that some of the others have as well.
    """
    words = []
    for form, get in _FIELDS.items():
        mine = dict.fromkeys(get(one.way) for one in these)
        theirs = {get(one.way) for one in others}
        said = [value for value in mine if not only or value not in theirs]
        if said and theirs - set(said):
            words.append(form.format(" and ".join(said)))
    return joint.join(words)
