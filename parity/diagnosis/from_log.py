"""`parity diagnose` of a text log: what ranges of activations allow to say, and what would decide.

The ranges are held against the documented ones (`parity.rangetable`) and against each other. A range sees neither a
permutation nor an error that keeps it, so nothing here is ever proven, and ranges that are all as documented prove
no parity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parity.diagnosis.clue import Clue, concluded
from parity.diagnosis.result import Diagnosis
from parity.errors import UsageError
from parity.imports.loglines import Log, Pass, Range, parse, read_lines
from parity.names import BLOCK_KINDS, block_stage
from parity.names import parse as parts_of
from parity.rangetable import RangeTable
from parity.safetensors_header import shown

HALF_MAX = 65504.0
_EXAMPLE = "[IMG_IN] [-14.20, 15.31], [BLOCK 07] [ATTN] [-88.00, 118.00] or block.07.img.attn [-88, 118]"
_REASON = "ranges alone prove no cause"
# How much larger the output is where shift and scale of the last norm are exchanged: about three times.
_NORM_OUT = (2.0, 5.0)


@dataclass(frozen=True)
class Deviation:
    """A checkpoint of a pass whose range is not as documented, or says something by itself.

    Attributes:
        what: ``not finite``, ``zeros``, ``outside`` or ``absent``.
        factor: how far outside or absent, as `RangeTable.check` gives it.
        row: the documented range's name; empty where none is documented.
    """

    name: str
    what: str
    found: Range
    factor: float = math.inf
    row: str = ""


def from_log(path: Path) -> dict[str, Any]:
    """Diagnose a log; the JSON form of a diagnosis.

    Raises:
        UsageError: it cannot be read, or has no line of the forms that are known.
    """
    log = parse(read_lines(path))
    if not log.readings:
        held = f"{log.lines} lines and {log.truncated} of them cut off" if log.lines else "nothing"
        raise UsageError(f"{shown(path.name)}: no ranges found in {held}; expected lines such as {_EXAMPLE}")
    return diagnose(log).to_json()


def diagnose(log: Log) -> Diagnosis:
    """What the ranges of a log suggest."""
    table = RangeTable.load("qwen-image")
    clues: list[Clue] = []
    first: Deviation | None = None
    label = ""
    for one in log.passes:
        deviations = list(_deviations(one, table))
        if deviations:
            first, label = deviations[0], one.label
            clues = list(_suggestions(one, deviations, _largest(log)))
            break
    clues += _clamped(log)
    if first is None and clues:
        first = Deviation(clues[0].where[0], "clamped", (0.0, 0.0), 1.0)
    where = {"case": "log", "mode": "accumulated", "dtype": "", "checkpoint": first.name} if first else None
    found = concluded("log", clues, where, first.factor if first else 0.0, _REASON)
    found.notes = [*_notes(log, table), *([_told(first, label)] if first and label else [])]
    found.would_decide += [name for name in _not_logged(log, first) if name not in found.would_decide]
    return found


def _deviations(one: Pass, table: RangeTable) -> Iterator[Deviation]:
    """In the model's order."""
    last = max((block for name in one.ranges if (block := parts_of(name).block) is not None), default=None)
    for name in sorted(one.ranges, key=_order):
        low, high = found = one.ranges[name]
        if not (math.isfinite(low) and math.isfinite(high)):
            yield Deviation(name, "not finite", found)
        elif low == high == 0:
            yield Deviation(name, "zeros", found)
        else:
            # A range of some chunks is documented for the scales, one of all chunks for the whole.
            rows = [row for row in table.rows_for(name, last) if bool(row.chunks) == (name in one.scales)]
            stats = {"min": low, "max": high}
            judged = [table.check(replace(row, chunks=()), stats) for row in rows]
            off = [found for found in judged if found and found["verdict"] != "inside"]
            if off and len(off) == len(judged):
                worst = max(off, key=lambda check: check["verdict"] == "outside")
                yield Deviation(name, worst["verdict"], found, worst["factor"], worst["row"])


_BEFORE = ("img_in", "txt_norm", "txt_in", "time.proj", "time.linear_1", "time.silu", "temb")
_AFTER = ("norm_out.mod", "norm_out", "final")


def _order(name: str) -> tuple[int, int, int]:
    """Where a checkpoint is made."""
    parts = parts_of(name)
    if parts.block is not None:
        return 1, parts.block, BLOCK_KINDS.index(parts.kind) if parts.kind in BLOCK_KINDS else 0
    return (0, 0, _BEFORE.index(name)) if name in _BEFORE else (2, 0, _AFTER.index(name) if name in _AFTER else 0)


def _largest(log: Log) -> float:
    """The largest finite magnitude anywhere in a log."""
    ends = (abs(x) for one in log.passes for pair in one.ranges.values() for x in pair if math.isfinite(x))
    return max(ends, default=0.0)


def _suggestions(one: Pass, deviations: list[Deviation], largest: float) -> Iterator[Clue]:
    """What the first deviation of a pass suggests, with what is known around it.

    Args:
        largest: finite magnitude in the whole log.
    """
    first = deviations[0]
    kind = parts_of(first.name).kind
    figures = {"range": list(first.found), **({"factor": first.factor} if math.isfinite(first.factor) else {})}
    if first.what == "not finite":
        yield from _not_finite(first, kind, figures, largest > HALF_MAX)
    elif first.what == "zeros":
        yield from _zeros(first, kind, figures)
    else:
        yield from _off(one, first, kind, figures)
        # Values may be off from block 0 on and run away later.
        gone = next((d for d in deviations if d.what == "not finite" and parts_of(d.name).block != 0), None)
        if gone is not None and kind == "attn":
            detail = f"attention of block 0 is {first.what} and values run to {_word(gone)} at {gone.name}"
            yield Clue("attention.scale_missing", "likely", (first.name,), detail, figures, _around(first.name, "qkv"))


def _not_finite(first: Deviation, kind: str, figures: Mapping[str, Any], beyond_half: bool) -> Iterator[Clue]:
    where, word = (first.name,), _word(first)
    block = parts_of(first.name).block
    if kind in ("ffn", "out", "mid") and not beyond_half:
        sure = "likely" if word == "inf" and kind != "mid" else "possible"
        detail = f"{word} first at {first.name}, and no finite value in the log exceeds {HALF_MAX:g}"
        yield Clue("ffn.fp16_overflow", sure, where, detail, figures, where)
    if kind in ("normed", "normed2") and block and not beyond_half:
        before = f"{block_stage(block - 1)}.img.out"
        detail = f"{word} first after a norm: what it was fed was not finite"
        yield Clue(
            "ffn.fp16_overflow", "possible", where, detail, figures, (before, f"{block_stage(block - 1)}.img.ffn")
        )
    if block is not None and block > 0 and kind in ("normed", "mid", "normed2", "modulated", "ffn", "out", "attn"):
        detail = f"block 0 is finite, values run to {word} at {first.name}"
        attention = f"{block_stage(0)}.img.attn"
        yield Clue(
            "attention.scale_missing", "possible", where, detail, figures, (attention, *_around(attention, "qkv"))
        )
    if kind == "attn":
        detail = f"{word} first at attention, while what it was fed is finite"
        yield Clue(
            "attention.row_all_masked", "possible", where, detail, figures, (first.name, *_around(first.name, "qkv"))
        )
        yield Clue("attention.scale_missing", "possible", where, detail, figures, _around(first.name, "qkv"))
    if kind in ("img_in", "txt_in", "mod", "temb", "final"):
        detail = f"{word} first at {first.name}: its weights or its input are not finite"
        yield Clue("weights.missing", "possible", where, detail, figures, where)


def _zeros(first: Deviation, kind: str, figures: Mapping[str, Any]) -> Iterator[Clue]:
    where = (first.name,)
    yield Clue("weights.missing", "possible", where, f"all values of {first.name} are zero", figures, where)
    if kind in ("img_in", "txt_in", "ffn", "mod", "final"):
        detail = f"all values of {first.name} are zero, as a quantized product of 64 inputs is with MLX 0.32.4 on CUDA"
        yield Clue("backend.kernel", "possible", where, detail, figures, where)


# Kind, what it is -> codes that make it so, most usual first.
_MAKERS: dict[tuple[str, str], tuple[str, ...]] = {
    ("img_in", "outside"): ("weights.random", "weights.swapped"),
    ("img_in", "absent"): ("weights.missing",),
    ("time.proj", "outside"): ("time.scale",),
    ("temb", "outside"): ("time.scale", "time.silu_missing"),
    ("temb", "absent"): ("time.scale", "weights.missing"),
    ("normed", "outside"): ("norm.rms_for_layer",),
    ("normed", "absent"): ("norm.eps", "norm.rms_for_layer"),
    ("mod", "outside"): ("modulation.silu_missing", "time.scale"),
    ("mod", "absent"): ("time.scale", "weights.missing"),
    ("attn", "outside"): ("attention.scale_missing", "attention.out_proj_swapped"),
    ("attn", "absent"): ("attention.scale_wrong", "attention.mask_inverted"),
    ("ffn", "outside"): ("ffn.activation", "weights.swapped"),
    ("ffn", "absent"): ("ffn.clamped", "ffn.activation"),
    ("mid", "outside"): ("modulation.gate_missing", "residual.missing"),
    ("mid", "absent"): ("modulation.gate_missing", "residual.missing"),
    ("out", "absent"): ("ffn.clamped", "ffn.gate_missing", "residual.missing"),
    ("out", "outside"): ("ffn.gate_missing",),
    ("norm_out", "outside"): ("norm_out.order",),
    ("norm_out", "absent"): ("norm_out.order",),
}


def _off(one: Pass, first: Deviation, kind: str, figures: Mapping[str, Any]) -> Iterator[Clue]:
    where = (first.name,)
    parents = _around(first.name, kind)
    detail = f"{first.name} is {first.what} the documented range" if first.what == "outside" else (
        f"the documented size of {first.name} is absent"
    )  # fmt: skip
    if kind == "modulated":
        yield from _modulated(one, first, detail, figures)
    elif kind == "final":
        near = first.what == "outside" and _NORM_OUT[0] <= first.factor <= _NORM_OUT[1]
        inside = f"; everything logged before it is as documented, and it is {first.factor:.3g} times as large"
        sure = "likely" if near and _has_block(one) else "possible"
        yield Clue("norm_out.order", sure, where, detail + inside, figures, ("norm_out", "norm_out.mod", "final"))
    for code in _MAKERS.get((kind, first.what), ()):
        yield Clue(code, "possible", where, detail, figures, (*where, *parents))


def _modulated(one: Pass, first: Deviation, detail: str, figures: Mapping[str, Any]) -> Iterator[Clue]:
    """The order of modulation, where the norm before it is right and the result is not."""
    prefix = first.name.rpartition(".")[0]
    normed, scale = one.ranges.get(f"{prefix}.normed"), one.ranges.get(f"{prefix}.mod")
    around = (f"{prefix}.mod", f"{prefix}.normed", first.name)
    if first.what == "absent":
        for code in ("modulation.order", "modulation.one_plus_missing"):
            yield Clue(code, "possible", (first.name,), detail, figures, around)
        return
    sure = "possible"
    if normed is not None:
        detail += ", the norm before it is inside"
    if normed is not None and scale is not None and first.name.replace("modulated", "mod") in one.scales:
        # (1 + scale)·normed + shift, with the documented shifts and the slack of the table, cannot be larger.
        most = (1 + max(map(abs, scale))) * max(map(abs, normed)) + 45.0
        figures = {**figures, "largest_possible": most}
        if max(map(abs, first.found)) > most:
            sure = "likely"
            detail += f"; (1 + scale)·normed + shift is at most {most:.4g} with the scales logged"
    yield Clue("modulation.order", sure, (first.name,), detail, figures, around)


def _clamped(log: Log) -> Iterator[Clue]:
    """Ends that several readings share to the digit, on both sides of zero: somebody clamped."""
    counts: dict[float, list[str]] = {}
    for one in log.passes:
        for name, (low, high) in one.ranges.items():
            if low == -high and high > 100 and math.isfinite(high):
                counts.setdefault(high, []).append(name)
    for bound, names in sorted(counts.items(), key=lambda item: -len(item[1])):
        places = tuple(dict.fromkeys(names))
        if len(names) < 2:
            continue
        kinds = {parts_of(name).kind for name in places}
        if not kinds & {"ffn", "out", "mid", "attn"}:
            continue
        detail = f"{len(names)} ranges end at ±{bound:g} on both sides"
        if bound == HALF_MAX:
            detail += ", the limit of half precision: in float16 the reference clips as well"
        yield Clue("ffn.clamped", "likely", places[:3], detail, {"bound": bound, "readings": len(names)}, places[:1])
        return


def _around(name: str, what: str) -> tuple[str, ...]:
    """Checkpoints near one whose tensors would decide."""
    prefix, _, kind = name.rpartition(".")
    near = {
        "qkv": ("q", "k", "v"), "attn": ("q", "k", "v"), "normed": (), "ffn": ("modulated2",), "mid": ("attn", "mod"),
        "out": ("mid", "ffn", "mod"),
    }.get(what, ())  # fmt: skip
    if prefix.startswith("block"):
        return tuple(f"{prefix}.{one}" for one in near)
    return {"norm_out": ("norm_out.mod",), "temb": ("time.proj", "time.linear_1")}.get(kind or name, ())


def _has_block(one: Pass) -> bool:
    return any(parts_of(name).block is not None for name in one.ranges)


def _word(one: Deviation) -> str:
    return "NaN" if any(map(math.isnan, one.found)) else "inf"


def _told(first: Deviation, label: str) -> str:
    how = first.what
    if how == "outside":
        how = f"outside {first.row!r} by a factor of {first.factor:.3g}"
    elif how == "absent":
        how = f"{first.factor:.2g} of the size documented as {first.row!r}"
    low, high = first.found
    return f"the first range that is off is {first.name} [{low:g}, {high:g}] in pass {label}: {how}"


def _notes(log: Log, table: RangeTable) -> Iterator[str]:
    names = {name for one in log.passes for name in one.ranges}
    documented = sum(bool(table.rows_for(name, None)) for name in names)
    passes = f"{len(log.passes)} passes" if len(log.passes) > 1 else "one pass"
    yield (
        f"{log.readings} ranges of {len(names)} checkpoints in {passes}, {documented} of them with a documented range; "
        "ranges see no permutation and prove no parity"
    )
    if not log.numbered and any(parts_of(name).block is not None for name in names):
        yield "the log numbers no blocks: the n-th line of a kind in a pass is taken for block n"
    if log.truncated:
        yield log.cut_lines
    if log.cut:
        yield log.cut


def _not_logged(log: Log, first: Deviation | None) -> Iterable[str]:
    """What else should be logged: ends of the model that a documented range speaks of."""
    names = {name for one in log.passes for name in one.ranges}
    wanted = ["img_in", *(f"block.00.img.{kind}" for kind in ("modulated", "attn", "ffn", "out")), "norm_out", "final"]
    return [name for name in wanted if name not in names] if first is None or first.what != "zeros" else []
