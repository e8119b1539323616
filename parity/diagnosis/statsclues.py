"""What the statistics of two arrays say of their difference: by how much they part, how, and which faults do that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any

from parity.diagnosis.clue import Clue
from parity.names import parse

Stats = Mapping[str, Any]

# How far statistics of clean runs part, in the reference's rms (mean, std, rms) and in its absmax (ends): more is no
# rounding. Of 57 clean units of all components the even ones, on which this was chosen, reached 1.6e-6 and 2.7e-5 in
# float32, 0.011 and 0.053 in bfloat16; the odd ones 9.3e-7 and 1.3e-6, 0.0054 and 0.051. float16 was not measured.
LIMITS = {"float32": (2e-5, 3e-4), "bfloat16": (0.04, 0.2), "float16": (0.01, 0.06)}
_HALF_MAX = 65504.0
_MEANS, _ENDS = ("mean", "std", "rms"), ("min", "max")


def limits(stats: Stats, dtype: str) -> tuple[float, float]:
    """`LIMITS` of a run's dtype, or of an array's own where that says nothing."""
    return LIMITS.get(dtype) or LIMITS.get(str(stats["dtype"])) or LIMITS["bfloat16"]


def apart(candidate: Stats, reference: Stats, dtype: str) -> float:
    """By how many times the limit two arrays' statistics part; inf for other shapes, zeros, and what is not finite."""
    if list(candidate["shape"]) != list(reference["shape"]):
        return math.inf
    if _not_finite(reference):
        return 0.0  # nothing can be said of a reference that is not finite itself
    if _not_finite(candidate):
        return math.inf
    mean, ends = limits(reference, dtype)
    by = [_far(candidate, reference, key, "rms") / mean for key in _MEANS]
    by += [_far(candidate, reference, key, "absmax") / ends for key in _ENDS]
    for mine, theirs in zip(candidate["chunks"] or (), reference["chunks"] or (), strict=False):
        size = max(map(abs, theirs)) or 1.0
        by.append(max(abs(x - y) for x, y in zip(mine, theirs, strict=True)) / size / ends)
    return max(by)


def _far(candidate: Stats, reference: Stats, key: str, over: str) -> float:
    difference, size = abs(candidate[key] - reference[key]), reference[over]
    if math.isnan(difference):
        return math.inf
    return difference / size if size else (0.0 if difference == 0 else math.inf)


def _not_finite(stats: Stats) -> int:
    return stats["nan"] + stats["pos_inf"] + stats["neg_inf"]


def fingerprint(candidate: Stats, reference: Stats, dtype: str) -> list[dict[str, Any]]:
    """Relations between two arrays that their statistics show, nearest first."""
    return list(_relations(candidate, reference, *limits(reference, dtype)))


def _relations(candidate: Stats, reference: Stats, mean: float, ends: float) -> Iterator[dict[str, Any]]:
    if list(candidate["shape"]) != list(reference["shape"]):
        yield {"relation": "shape", "candidate": list(candidate["shape"]), "reference": list(reference["shape"])}
        return
    if _not_finite(candidate):
        kinds = {key: candidate[key] for key in ("nan", "pos_inf", "neg_inf") if candidate[key]}
        yield {"relation": "not finite", **kinds}
        return
    if candidate["zeros"] == candidate["count"]:
        yield {"relation": "zeros"}
        return
    factor = _scale(candidate, reference, mean, ends)
    if factor is not None:
        yield {"relation": "scale", "factor": factor}
    size = reference["rms"] or 1.0
    if abs(candidate["std"] - reference["std"]) <= mean * size < abs(candidate["mean"] - reference["mean"]):
        yield {"relation": "offset", "offset": candidate["mean"] - reference["mean"]}
    if _clamped(candidate, reference):
        yield {"relation": "clamped", "bound": candidate["absmax"]}
    order = _chunk_order(candidate["chunks"] or (), reference["chunks"] or (), ends)
    if order is not None:
        yield {"relation": "chunks permuted", "order": list(order)}


def _scale(candidate: Stats, reference: Stats, mean: float, ends: float) -> float | None:
    """The factor by which all statistics differ, negative where the ends changed places; None where there is none."""
    if not reference["rms"] or not reference["absmax"]:
        return None
    factor = candidate["rms"] / reference["rms"]
    if factor == 0:
        return None
    for sign in (1, -1):
        low, high = sorted((sign * factor * reference["min"], sign * factor * reference["max"]))
        pairs = [(candidate["min"], low), (candidate["max"], high)]
        straight = all(abs(x - y) <= ends * candidate["absmax"] for x, y in pairs)
        means = abs(candidate["mean"] - sign * factor * reference["mean"]) <= 2 * mean * candidate["rms"]
        if straight and means and (sign < 0 or abs(factor - 1) > mean):
            return sign * factor
    return None


def _clamped(candidate: Stats, reference: Stats) -> bool:
    """Equal up to a bound that is the same on both sides, where the reference goes on."""
    bound = candidate["absmax"]
    if candidate["min"] != -bound or candidate["max"] != bound or reference["absmax"] < 1.5 * bound:
        return False
    within = [
        (x, y) for x, y in zip(candidate["quantiles"] or (), reference["quantiles"] or (), strict=False) if y < bound
    ]
    return bool(within) and all(abs(x - y) <= 0.25 * max(y, 1e-30) for x, y in within)


def _chunk_order(mine: Sequence[Any], theirs: Sequence[Any], ends: float) -> tuple[int, ...] | None:
    """Which of the reference's chunks each of the candidate's has the range of, where that is another order."""
    if not 2 <= len(mine) == len(theirs) <= 6:
        return None

    def same(a: Sequence[float], b: Sequence[float]) -> bool:
        size = max(map(abs, b)) or 1.0
        return all(abs(x - y) <= ends * size for x, y in zip(a, b, strict=True))

    if all(same(a, b) for a, b in zip(mine, theirs, strict=True)):
        return None
    fitting = [p for p in permutations(range(len(mine))) if all(same(mine[i], theirs[j]) for i, j in enumerate(p))]
    return fitting[0] if len(fitting) == 1 else None


# Kind -> codes that change its statistics, most usual first. What only permutes, as rotary embeddings and head
# layouts do, leaves q, k and v as they are and shows at attention.
_SUSPECTS: dict[str, tuple[str, ...]] = {
    "img_in": ("weights.swapped", "weights.transposed", "layout.patch_order"),
    "txt_norm": ("norm.txt_missing", "norm.eps"),
    "txt_in": ("weights.swapped", "layout.rows_shifted"),
    "time.proj": ("time.scale", "time.freq_shift", "time.dtype"),
    "time.linear_1": ("weights.swapped", "time.halves"),
    "temb": ("time.linear_order", "time.silu_missing"),
    "mod": ("modulation.silu_missing", "weights.swapped", "quant.modulation_low_bits"),
    "normed": ("norm.rms_for_layer", "norm.eps"),
    "normed2": ("norm.rms_for_layer", "norm.eps"),
    "modulated": ("modulation.order", "modulation.one_plus_missing", "modulation.shift_missing"),
    "modulated2": ("modulation.order", "modulation.one_plus_missing", "modulation.shift_missing"),
    "q": ("norm.qk_missing", "norm.qk_swapped", "weights.swapped"),
    "k": ("norm.qk_missing", "norm.qk_swapped", "weights.swapped"),
    "v": ("weights.swapped", "weights.transposed"),
    "attn": ("attention.scale_missing", "rope.pairing", "attention.heads_layout", "attention.mask_missing"),
    "mid": ("modulation.gate_missing", "residual.missing"),
    "ffn": ("ffn.activation", "weights.swapped"),
    "out": ("ffn.gate_missing", "residual.missing"),
    "norm_out.mod": ("modulation.silu_missing", "weights.swapped"),
    "norm_out": ("norm_out.order",),
    "final": ("weights.swapped", "norm_out.order"),
    "rope.img": ("rope.not_centred", "rope.theta", "rope.axes_order"),
    "rope.txt": ("rope.text_offset", "rope.theta"),
}
_LINEAR = ("img_in", "txt_in", "time.linear_1", "temb", "mod", "v", "attn", "ffn", "norm_out.mod", "final")


def suggestions(name: str, candidate: Stats, reference: Stats, dtype: str, parents: Sequence[str]) -> Iterator[Clue]:
    """Faults that could make a checkpoint part from the reference while its parents do not.

    Args:
        name: of the checkpoint.
        parents: the nearest ones that were compared.
    """
    kind, where, decide = parse(name).kind, (name,), (name, *parents)
    found = fingerprint(candidate, reference, dtype)
    relations = {one["relation"]: one for one in found}
    evidence = {"fingerprint": found, "std_ratio": _ratio(candidate["std"], reference["std"])}
    if "not finite" in relations:
        yield from _not_finite_clues(kind, where, relations["not finite"], evidence, decide, reference, dtype)
    elif "zeros" in relations:
        for code in ("weights.missing", "backend.kernel") if kind in _LINEAR else ("weights.missing",):
            yield Clue(code, "possible", where, "all values are zero, the reference's are not", evidence, decide)
    elif "clamped" in relations:
        detail = f"both ends are {relations['clamped']['bound']:g}, the reference goes beyond, quantiles agree"
        yield Clue("ffn.clamped", "likely", where, detail, evidence, decide)
    elif "chunks permuted" in relations:
        detail = f"its chunks have the ranges of the reference's in the order {relations['chunks permuted']['order']}"
        code = "norm_out.order" if kind == "norm_out.mod" else "modulation.order"
        yield Clue(code, "likely", where, detail, evidence, decide)
    else:
        yield from _by_kind(kind, where, relations, evidence, decide, candidate, reference)


def _not_finite_clues(
    kind: str, where: tuple[str, ...], what: Mapping[str, Any], evidence: Mapping[str, Any], decide: tuple[str, ...],
    reference: Stats, dtype: str,
) -> Iterator[Clue]:  # fmt: skip
    half = dtype == "float16"
    if kind in ("ffn", "attn", "mid", "out") and (half or reference["absmax"] > _HALF_MAX):
        sure = "likely" if half and "nan" not in what else "possible"
        detail = (
            f"not finite where the reference reaches {reference['absmax']:.3g}; half precision ends at {_HALF_MAX:g}"
        )
        yield Clue("ffn.fp16_overflow", sure, where, detail, evidence, decide)
    if kind == "attn":
        for code in ("attention.row_all_masked", "attention.scale_missing"):
            yield Clue(code, "possible", where, "not finite, while what it was fed is", evidence, decide)
    elif kind in _LINEAR and not half:
        yield Clue("weights.missing", "possible", where, "not finite, while what it was fed is", evidence, decide)


def _by_kind(
    kind: str, where: tuple[str, ...], relations: Mapping[str, Mapping[str, Any]], evidence: Mapping[str, Any],
    decide: tuple[str, ...], candidate: Stats, reference: Stats,
) -> Iterator[Clue]:  # fmt: skip
    detail = "its statistics part from the reference's, those of what it is made from do not"
    if "scale" in relations:
        detail = f"all its statistics are {relations['scale']['factor']:.4g} times the reference's"
    if "offset" in relations and kind in _LINEAR:
        words = f"shifted by {relations['offset']['offset']:.4g}, with the same spread"
        yield Clue("weights.bias_missing", "possible", where, words, evidence, decide)
    if kind in ("normed", "normed2") and abs(candidate["mean"]) > 0.05 * candidate["rms"]:
        words = f"its mean is {candidate['mean']:.3g}, and a LayerNorm leaves none"
        yield Clue("norm.rms_for_layer", "likely", where, words, evidence, decide)
    amplified = _ratio(candidate["std"], reference["std"])
    for code in _SUSPECTS.get(kind, ()):
        near = code == "norm_out.order" and kind == "norm_out" and 2 <= amplified <= 5
        yield Clue(code, "likely" if near else "possible", where, detail, evidence, decide)


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.inf
