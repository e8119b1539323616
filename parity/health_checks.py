"""What the figures of one checkpoint can have that is unhealthy: the checks behind `parity.health`.

Each looks at one row of a ``parity.json``, which may be an old one or from elsewhere: figures that are not there are
not looked at, text in place of a number is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from parity.plotstyle import short

# Below this headroom, one more residual or a larger prompt overflows; a healthy port in bfloat16 has 1e30.
HEADROOM = 10.0
# Largest finite and smallest normal number.
LIMITS = {
    "float16": (65504.0, 2.0**-14), "bfloat16": (3.3895313892515355e38, 2.0**-126),
    "float32": (3.4028234663852886e38, 2.0**-126), "float64": (1.7976931348623157e308, 2.0**-1022),
}  # fmt: skip
_WIDTH = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

# How bad (0: not at all), and the figures in words.
Finding = tuple[float, str]
# A row that was looked at and is healthy.
FINE: Finding = (0.0, "")


class Side(NamedTuple):
    """One side's figures as far as they are usable.

    Attributes:
        bad: how many values are NaN, how many infinite; None where neither is known.
        ends: smallest and largest value; None unless both are finite.
        rms, headroom, absmax: None where they are no numbers.
    """

    bad: tuple[int, int] | None
    ends: tuple[float, float] | None
    rms: float | None
    headroom: float | None
    absmax: float | None


class Row(NamedTuple):
    """A checkpoint's figures. `dtype` is the candidate's, where it is a floating-point one; so `reference_dtype`."""

    row: Mapping[str, Any]
    reference: Side
    candidate: Side
    dtype: str | None
    reference_dtype: str | None


def _side(stats: Any) -> Side:
    if not isinstance(stats, Mapping):
        return _NO_SIDE
    get = stats.get
    return Side(
        _bad_values(get("nan"), get("inf")), _ends(number(get("min")), number(get("max"))),
        number(get("rms")), number(get("headroom")), number(get("absmax")),
    )  # fmt: skip


_NO_SIDE = Side(None, None, None, None, None)


def row_of(row: Mapping[str, Any]) -> Row:
    """The figures of a row of ``parity.json`` that can be used."""
    dtype = row.get("dtype")
    dtype = dtype if isinstance(dtype, str) and dtype in LIMITS else None
    reference = _side(row.get("reference"))
    return Row(row, reference, _side(row.get("candidate")), dtype, _dtype_of(reference, dtype))


def _dtype_of(side: Side, likely: str | None) -> str | None:
    """A dtype from a side's figures: headroom times absmax is its largest number; else the `likely` one."""
    if side.headroom is None or side.absmax is None:
        return likely
    most = side.headroom * side.absmax
    if likely and math.isclose(most, LIMITS[likely][0], rel_tol=1e-5):
        return likely
    return next((name for name, (own, _) in LIMITS.items() if math.isclose(most, own, rel_tol=1e-5)), likely)


def _bad_values(nan: Any, inf: Any) -> tuple[int, int] | None:
    if type(nan) is type(inf) is int and 0 <= nan < 1 << 53 and 0 <= inf < 1 << 53:
        return nan, inf
    counts = number(nan), number(inf)
    if counts == (None, None):
        return None
    nan, inf = (int(count) if count is not None and 0 < count < math.inf else 0 for count in counts)
    return nan, inf


def _ends(low: float | None, high: float | None) -> tuple[float, float] | None:
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return None
    return low, high


@dataclass(frozen=True)
class Check:
    """One thing that can be unhealthy.

    Attributes:
        code: stable.
        severity: ``error``, ``warning`` or ``note``.
        title, passed: where something was found, and where nothing was.
        advice: what to do.
        look: what it finds in a row; None where the row has not the figures.
    """

    code: str
    severity: str
    title: str
    passed: str
    advice: str
    look: Callable[[Row], Finding | None]


def number(value: Any) -> float | None:
    """A figure of ``parity.json``, NaN and infinities spelled out or not; None for what is no number."""
    if type(value) is float:
        return value
    if isinstance(value, str):
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}.get(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _candidate_not_finite(one: Row) -> Finding | None:
    found, expected = one.candidate.bad, one.reference.bad
    if found is None or (expected is not None and any(expected)):
        return None
    if not any(found):
        return FINE
    return float(sum(found)), f"{found[0]:,} NaN and {found[1]:,} infinite values, none in the reference"


def _reference_not_finite(one: Row) -> Finding | None:
    found = one.reference.bad
    if found is None or not any(found):
        return None if found is None else FINE
    return float(sum(found)), f"{found[0]:,} NaN and {found[1]:,} infinite values in the reference"


def _headrooms(one: Row) -> list[tuple[float, str, str]]:
    """(headroom, side, dtype) of the sides whose values are of a floating-point dtype."""
    sides = (
        (one.candidate.headroom, "candidate", one.dtype), (one.reference.headroom, "reference", one.reference_dtype)
    )  # fmt: skip
    return [(room, side, dtype) for room, side, dtype in sides if dtype and room is not None and room > 0]


def _saturated(one: Row) -> Finding | None:
    known = _headrooms(one)
    full = [(side, dtype) for room, side, dtype in known if room <= 1 + 1e-6]
    if not full:
        return FINE if known else None
    words = " and ".join(f"the {side}'s largest value is {dtype}'s largest number" for side, dtype in full)
    return float(len(full)), words


def _near_overflow(one: Row) -> Finding | None:
    known = _headrooms(one)
    if not known:
        return None
    room, side, dtype = min(known)
    if not 1 + 1e-6 < room < HEADROOM:
        return FINE
    others = [f", the reference's {other:.3g}" for other, whose, _ in known if whose == "reference" != side]
    return 1 / room, f"the {side}'s headroom in {dtype} is {room:.3g}{''.join(others)}"


def _zeros(one: Row) -> Finding | None:
    ours, theirs = one.candidate.ends, one.reference.ends
    if ours is None or theirs is None or theirs == (0.0, 0.0):
        return None
    return (1.0, f"all zeros, where the reference is {_range(theirs)}") if ours == (0.0, 0.0) else FINE


def _constant(one: Row) -> Finding | None:
    ours, theirs = one.candidate.ends, one.reference.ends
    if ours is None or theirs is None or theirs[0] == theirs[1]:
        return None
    if not ours[0] == ours[1] != 0.0:
        return FINE
    return 1.0, f"every value is {ours[0]:.4g}, where the reference is {_range(theirs)}"


def _denormal(one: Row) -> Finding | None:
    rms, expected = one.candidate.rms, one.reference.rms
    if one.dtype is None or rms is None or not rms > 0:
        return None
    least = LIMITS[one.dtype][1]
    if rms >= least:
        return FINE
    said = f" (the reference's {expected:.3g})" if expected is not None else ""
    return least / rms, f"rms {rms:.3g}{said}; {one.dtype} is normal from {least:.3g} on"


def _dtype_differs(one: Row, wider: bool) -> Finding | None:
    # What a comparison reads was written by somebody, in a dtype that files have.
    if one.dtype is None or one.reference.absmax is None or one.row.get("evidence") is not None:
        return None
    if one.reference_dtype == one.dtype:
        return FINE
    ours, theirs = _WIDTH[one.dtype], _WIDTH[one.reference_dtype or one.dtype]
    off = ours > theirs if wider else ours < theirs
    return (1.0, f"{one.dtype}, the reference has {one.reference_dtype}") if off else FINE


def _outside(one: Row) -> Finding | None:
    return _documented(one, "outside", same=False)


def _outside_both(one: Row) -> Finding | None:
    return _documented(one, "outside", same=True)


def _absent(one: Row) -> Finding | None:
    return _documented(one, "absent", same=False)


def _absent_both(one: Row) -> Finding | None:
    return _documented(one, "absent", same=True)


def _documented(one: Row, verdict: str, *, same: bool) -> Finding | None:
    """A range verdict of rows whose reference has the same range, or has not."""
    found = one.row.get("range")
    if not isinstance(found, Mapping) or found.get("verdict") not in ("inside", "outside", "absent"):
        return None
    ours, theirs = one.candidate.ends, one.reference.ends
    if theirs is None or any(one.reference.bad or ()):
        return None
    parts = _parts(one.row)
    pairs = parts or [(ours, theirs)]
    if found["verdict"] != verdict or all(_alike(*pair) for pair in pairs) != same:
        return FINE
    low, high, factor = (number(found.get(key)) for key in ("low", "high", "factor"))
    documented = _range((low, high)) if low is not None and high is not None else "another range"
    if isinstance(found.get("row"), str):
        documented += f" as “{found['row'][:80]}”"
    if factor is not None and math.isfinite(factor):
        documented += f", {factor:.3g} {'times that' if verdict == 'outside' else 'of that'}"
    badness = 1.0 if factor is None or math.isnan(factor) else factor if verdict == "outside" else 1 / max(factor, 1e-9)
    reference = "" if same else f", the reference {_range(theirs)}"
    whole = " in all its parts" if parts and ours else ""
    said = f"{_range(ours) if ours else 'not finite'}{whole}{reference}, documented {documented}"
    return max(badness, 1e-9), said


def _parts(row: Mapping[str, Any]) -> list[tuple[tuple[float, float] | None, tuple[float, float]]]:
    """Both sides' ranges of the parts of a modulation vector, of which documented ranges speak: scale and shift that
    are exchanged have the range of the whole. Empty where they are not known."""
    sides = []
    for side in ("candidate", "reference"):
        chunks = row[side].get("chunks") if isinstance(row.get(side), Mapping) else None
        pairs = chunks if isinstance(chunks, list) else []
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            return []
        sides.append([_ends(*map(number, pair)) for pair in pairs])
    ours, theirs = sides
    return list(zip(ours, theirs, strict=True)) if len(ours) == len(theirs) and None not in theirs else []


def _alike(ours: tuple[float, float] | None, theirs: tuple[float, float]) -> bool:
    if ours is None:
        return False
    size = max(map(abs, theirs))
    return all(abs(a - b) <= 0.1 * size for a, b in zip(ours, theirs, strict=True))


def _range(ends: tuple[float, float]) -> str:
    return " … ".join(short(end).replace("−", "-") if 1e4 <= abs(end) < 1e15 else f"{end:.4g}" for end in ends)


_SAME = "The reference has the same range: the prompt, the size or the weights differ from the table's, not the port."
# The severe first.
CHECKS = (
    Check("nonfinite", "error", "NaN or infinity in the candidate",
           "No NaN or infinity in the candidate where the reference is finite",
           "Everything behind the first of them is lost: look there, at overflow in a narrow dtype first.",
           _candidate_not_finite),
    Check("zeros", "error", "Zeros where the reference has values", "No array of zeros",
           "A weight that was not loaded, a gate or a mask that blanks everything.", _zeros),
    Check("constant", "error", "One value everywhere", "No array of one value",
           "A clamp, a saturated activation, or an index that always takes the same row.", _constant),
    Check("saturated", "warning", "Values at the dtype's largest number", "Nothing is clipped at the largest number",
           "They were clipped, or overflow next: use bfloat16 or float32 there.", _saturated),
    Check("headroom", "warning", f"Less than {HEADROOM:g} times to overflow",
           f"At least {HEADROOM:g} times to overflow everywhere",
           "Another prompt or size may overflow: use bfloat16 or float32 there.", _near_overflow),
    Check("reference-nonfinite", "warning", "The reference itself is not finite", "The reference is finite",
           "Nothing can be said of the port there: run it in another dtype.", _reference_not_finite),
    Check("outside", "warning", "Outside the documented range", "No range outside the table that the reference keeps",
           "The port leaves a range that the reference does not.", _outside),
    Check("absent", "warning", "A documented size is not reached", "Documented sizes are reached",
           "The growth that the model is known for is not there: a gate, a residual or a scale is missing.", _absent),
    Check("denormal", "warning", "Denormal numbers", "No array of denormal numbers",
           "Most values have lost digits, and devices that flush them give zeros.", _denormal),
    Check("wider", "warning", "Wider than the reference's dtype", "No array is wider than the reference's",
           "A float32 constant has promoted the values: the same picture, slower.",
           lambda one: _dtype_differs(one, wider=True)),
    Check("narrower", "warning", "Narrower than the reference's dtype", "No array is narrower than the reference's",
           "The reference computes this in more digits.", lambda one: _dtype_differs(one, wider=False)),
    Check("outside-both", "note", "Both sides outside the documented range", "Both sides within the documented ranges",
           _SAME, _outside_both),
    Check("absent-both", "note", "Both sides below a documented size", "Both sides reach the documented sizes",
           _SAME, _absent_both),
)  # fmt: skip
