"""What may be wrong with a dump rather than with the port: names, streams, numbering, axes, inputs.

Each hint follows from a measurement: another checkpoint's sketch that the values meet, or an order of axes in which
they meet their own. Nothing is renamed or transposed for a verdict; a hint says what to mend in the dump.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from parity.golden import Golden
from parity.imports.axes import Layout, Shape, layouts
from parity.imports.base import Imported, Reading
from parity.imports.spelling import listed, meant, suggested
from parity.names import STREAMS, parse
from parity.safetensors_header import shown
from parity.sketch import difference, sketch

# A verdict of match; see `parity.verdict`.
_MATCH, _UNCERTAIN = 3.0, 0.3
# Float64 sketches of equal arrays differ by no more.
_ROUNDING = 1e-12
# Arrays of so many elements tell their dtype; so many of them are looked at.
_TELLING, _LOOKED_AT = 64, 8
# Relative distance beyond which values are those of other inputs; independent ones are √2 apart.
_OTHERS = 0.1
# Unknown names whose values are looked at, arrays of a kind whose axes are turned, names that a hint spells out.
_STRANGERS, _TURNED, _SPELLED = 400, 2, 3


@dataclass(frozen=True)
class Hint:
    """One thing that a dump seems to have otherwise.

    Attributes:
        text: a sentence, safe to print.
        names: that it is of, in the dump's order.
    """

    text: str
    names: tuple[str, ...]

    @property
    def counted(self) -> int:
        """How many names it is of."""
        return len(self.names)


def hints(
    candidate: Imported, golden: Golden, diverged: Sequence[str], readings: Mapping[str, Reading]
) -> list[Hint]:  # fmt: skip
    """What a dump seems to have otherwise than the golden trace.

    Args:
        candidate: the dump.
        golden: the trace.
        diverged: checkpoints of the candidate that diverged, wrong shapes among them.
        readings: of the candidate's checkpoints, with sketches where there are some; arrays are read again.

    Returns:
        hints, those that explain most names first within each sort.
    """
    strangers = [name for name in candidate.names if name not in golden.graph.parents]
    spelled = meant(strangers, golden.graph.parents)
    unknown = [name for name in strangers if name not in spelled][:_STRANGERS]
    looked_at = {name: readings[name] for name in diverged if name in readings}
    looked_at |= {name: candidate.read(name) for name in unknown}
    held = held_elsewhere(golden, looked_at)
    found = list(fed_itself(candidate, golden, diverged))
    found += list(spelling([name for name in strangers if name not in held], golden.graph.parents))
    found += batch({name: readings[name] for name in golden.shapes if name in readings}, golden.shapes)
    found += renamed(held, candidate.names)
    left = [name for name in diverged if name not in held]
    turned = list(axes(candidate, golden, left, readings))
    found += turned
    explained = {name for hint in turned for name in hint.names}
    left = [name for name in left if name not in explained]
    found += joint(golden, left, readings)
    short = list(rounded(candidate, golden, left))
    found += short or other_inputs(candidate, golden, left, readings)
    return found


def fed_itself(candidate: Imported, golden: Golden, diverged: Sequence[str]) -> Iterator[Hint]:
    """A dump of a whole run held against noise floors of single stages."""
    isolated, said = golden.about["mode"] == "isolated", candidate.about.get("mode")
    if isolated and not said and candidate.case and diverged:
        yield Hint(
            "the golden trace is isolated, and the dump has the case of a whole run, in which a port feeds itself and "
            "errors add up: compare it with an accumulated one, or say parity.mode isolated in its metadata",
            tuple(diverged),
        )


def spelling(strangers: Sequence[str], known: Collection[str]) -> Iterator[Hint]:
    """Names that are no checkpoints: spelled otherwise, or unknown."""
    right = meant(strangers, known)
    if right:
        name, first = next(iter(right.items()))
        words = f"{_names(len(right))} spelled otherwise than checkpoints: write {first} for {shown(name)}"
        yield Hint(words, tuple(right))
    others = [name for name in strangers if name not in right]
    if others:
        what = "no checkpoint" if len(others) == 1 else "no checkpoints"
        yield Hint(f"{_names(len(others))} {what}: {suggested(others, known, _SPELLED)}", tuple(others))


def batch(readings: Mapping[str, Reading], expected: Mapping[str, Shape]) -> Iterator[Hint]:
    """Arrays with one leading axis of length 1 too many or too few."""
    lacking, having = [], []
    for name, reading in readings.items():
        shape, wanted = reading.shape, expected.get(name)
        if shape is None or wanted is None or shape == wanted:
            continue
        if (1, *shape) == wanted:
            lacking.append(name)
        elif shape == (1, *wanted):
            having.append(name)
    for names, what, how in ((lacking, "lack", "with one"), (having, "have", "without")):
        if names:
            yield Hint(
                f"{len(names):,} arrays {what} a batch dimension, {names[0]} first; compared {how}", tuple(names)
            )


def held_elsewhere(golden: Golden, readings: Mapping[str, Reading]) -> dict[str, str]:
    """Names whose values are those of another checkpoint: name -> that one.

    The nearest of the golden sketches is looked for with one product of matrices, and then compared as verdicts are.
    """
    mine = {name: one.sketch for name, one in readings.items() if one.sketch is not None}
    mine = {name: one for name, one in mine.items() if one.size == golden.spec.buckets and np.isfinite(one).all()}
    theirs = [name for name in golden.trace.sketches if golden.floors[name].floor <= _UNCERTAIN]
    if not mine or not theirs:
        return {}
    ours = np.stack(list(mine.values())).astype(np.float64)
    truth = np.stack([golden.trace.sketches[name] for name in theirs]).astype(np.float64)
    apart = np.sum(truth * truth, 1) - 2 * (ours @ truth.T)
    held = {}
    for (name, one), row in zip(mine.items(), apart, strict=True):
        for at in np.argsort(row)[:3]:
            other = theirs[int(at)]
            if other != name and _size_fits(readings[name], golden.shapes.get(other)) and meets(golden, other, one):
                held[name] = other
                break
    return held


def _size_fits(reading: Reading, shape: Shape | None) -> bool:
    return reading.shape is None or shape is None or math.prod(reading.shape) == math.prod(shape)


def meets(golden: Golden, name: str, found: np.ndarray) -> bool:
    """Whether a sketch meets a golden one within a match, with the uncertainty of the estimate."""
    floor = golden.floors[name]
    norm = floor.truth_rms * math.sqrt(math.prod(golden.shapes[name]))
    if not (math.isfinite(norm) and norm > 0) or name not in golden.trace.sketches:
        return False
    within = max(_MATCH * floor.floor * (1 + golden.spec.half_width), _ROUNDING)
    return difference(found, golden.trace.sketches[name]).norm <= within * norm


def exchanged(name: str) -> str:
    """The same name in the other stream."""
    swap = dict(zip(STREAMS, reversed(STREAMS), strict=True))
    return re.sub(r"\b(img|txt)(?=[._]|\b)", lambda match: swap[match[1]], name)


def renamed(held: Mapping[str, str], names: Sequence[str]) -> Iterator[Hint]:
    """What names that hold other checkpoints' values have in common."""
    rest = dict(held)
    swapped = {name for name, other in rest.items() if exchanged(name) == other}
    if swapped:
        yield Hint(
            f"img and txt are exchanged in {len(swapped):,} names, {_first(swapped, names)} first",
            _in_order(swapped, names),
        )
    rest = {name: other for name, other in rest.items() if name not in swapped}
    offsets = {name: offset for name, other in rest.items() if (offset := _offset(name, other))}
    for offset, count in Counter(offsets.values()).most_common():
        if count < 2:
            continue
        shifted = {name for name, one in offsets.items() if one == offset}
        yield Hint(_numbering(offset, shifted, names), _in_order(shifted, names))
        rest = {name: other for name, other in rest.items() if name not in shifted}
    kinds = Counter(pair for name, other in rest.items() if (pair := _kinds(name, other)))
    for (kind, other_kind), count in kinds.most_common():
        if count < 2:
            continue
        these = {name for name, other in rest.items() if _kinds(name, other) == (kind, other_kind)}
        name = _first(these, names)
        yield Hint(
            f"{kind} holds {other_kind} in {count:,} names: {shown(name)} holds {rest[name]}", _in_order(these, names)
        )
        rest = {name: other for name, other in rest.items() if name not in these}
    if rest:
        spelled = [f"{shown(name)} holds {other}" for name, other in list(rest.items())[:_SPELLED]]
        yield Hint(listed(spelled, len(rest)), tuple(rest))


def _offset(name: str, other: str) -> int:
    """How much too high a name's block number is, where that is all that differs; 0 otherwise."""
    mine, theirs = parse(name), parse(other)
    same = (mine.kind, mine.stream) == (theirs.kind, theirs.stream)
    return mine.block - theirs.block if same and mine.block is not None and theirs.block is not None else 0


def _numbering(offset: int, shifted: set[str], names: Sequence[str]) -> str:
    blocks = {block for name in names if (block := parse(name).block) is not None}
    if offset == 1 and 0 not in blocks:
        return f"block numbers begin at 1 in {len(shifted):,} names; checkpoints count from block.00"
    way = "high" if offset > 0 else "low"
    return f"block numbers are {abs(offset)} too {way} in {len(shifted):,} names, {_first(shifted, names)} first"


def _kinds(name: str, other: str) -> tuple[str, str] | None:
    mine, theirs = parse(name), parse(other)
    same = (mine.block, mine.stream) == (theirs.block, theirs.stream) and mine.block is not None
    return (mine.kind, theirs.kind) if same else None


def axes(
    candidate: Imported, golden: Golden, left: Sequence[str], readings: Mapping[str, Reading]
) -> Iterator[Hint]:  # fmt: skip
    """Arrays that meet their checkpoint once their axes are turned; a shape alone is said to be only that."""
    heads = _heads(golden)
    tried: Counter[tuple[str, Shape]] = Counter()
    known: dict[tuple[str, Shape], Layout | None] = {}
    groups: dict[str, list[str]] = {}
    examples: dict[str, str] = {}
    for name in left:
        reading, expected = readings.get(name), golden.shapes.get(name)
        if reading is None or reading.shape is None or name not in golden.trace.sketches:
            continue
        key = (parse(name).kind, reading.shape)
        if known.get(key) is None and tried[key] < _TURNED:
            tried[key] += 1
            known[key] = _layout(candidate, golden, name, reading, heads)
        layout, how = known.get(key), ""
        example = f"{name} is {list(reading.shape)}, expected {list(expected)}"
        if layout is not None and layout.expected == expected:
            how, example = layout.words, f"{name} as {list(layout.axes)}"
        elif reading.sketch is not None and reading.shape != expected and meets(golden, name, reading.sketch):
            how = "have another shape and the right order: reshape"
        elif sorted(reading.shape) == sorted(expected) and reading.shape != expected:
            how = "have another order of axes"
        if how:
            groups.setdefault(how, []).append(name)
            examples.setdefault(how, example)
    for how, names in groups.items():
        kinds = ", ".join(dict.fromkeys(parse(name).kind for name in names))
        yield Hint(f"{kinds} in {len(names):,} names {how} ({examples[how]})", tuple(names))


def _heads(golden: Golden) -> int:
    """Number of attention heads, from the golden trace's shapes or config; 0 where neither tells."""
    for name, shape in golden.shapes.items():
        if parse(name).kind == "q" and len(shape) == 4:
            return shape[2]
    config = golden.about.get("configs", {}).get("transformer", {})
    heads = config.get("num_attention_heads") if isinstance(config, dict) else None
    return heads if type(heads) is int else 0


def _layout(candidate: Imported, golden: Golden, name: str, reading: Reading, heads: int) -> Layout | None:
    """The order of axes in which an array meets its checkpoint."""
    if candidate.kind not in ("tensors", "trace"):
        return None
    found = list(layouts(reading.shape, golden.shapes[name], heads))
    array = candidate.read(name, sketched=False).array if found else None
    if array is None:
        return None
    return next((one for one in found if meets(golden, name, sketch(one.read(array), golden.spec))), None)


def joint(golden: Golden, left: Sequence[str], readings: Mapping[str, Reading]) -> Iterator[Hint]:
    """Arrays with the tokens of both streams."""
    names = []
    for name in left:
        shape, mine = readings[name].shape if name in readings else None, golden.shapes.get(name)
        other = golden.shapes.get(exchanged(name))
        if shape and mine and other and len(shape) == len(mine) == len(other) >= 3 and exchanged(name) != name:
            both = (mine[0], mine[1] + other[1], *mine[2:])
            names += [name] if shape == both else []
    if names:
        shape, mine = readings[names[0]].shape, golden.shapes[names[0]]
        yield Hint(
            f"{_names(len(names))} of both streams: {names[0]} has {shape[1]} tokens, expected {mine[1]}; "
            "dump each stream's on its own",
            tuple(names),
        )


_INPUTS = {"time.proj": "timestep", "img_in": "latents", "txt_norm": "prompt embeddings"}


def other_inputs(
    candidate: Imported, golden: Golden, left: Sequence[str], readings: Mapping[str, Reading]
) -> Iterator[Hint]:  # fmt: skip
    """That all that is made of the inputs at once is off, in a dump that names no case."""
    there = [name for name in _INPUTS if name in readings]
    off = [name for name in there if name in set(left) and _far(golden, name, readings[name])]
    if candidate.case or len(there) < 2 or len(off) < len(there):
        return
    inputs = " and ".join([", ".join([_INPUTS[name] for name in off][:-1]), _INPUTS[off[-1]]])
    yield Hint(
        f"{', '.join(off)} are all off while their shapes fit: the port probably had another {inputs}; "
        "feed it the file that `parity case export` writes, and repeat its parity.case in the dump's metadata",
        tuple(off),
    )


def _far(golden: Golden, name: str, reading: Reading) -> bool:
    """Whether values are as far off as others would be, not merely imprecise."""
    if reading.sketch is None or name not in golden.trace.sketches or not _size_fits(reading, golden.shapes.get(name)):
        return False
    norm = golden.floors[name].truth_rms * math.sqrt(math.prod(golden.shapes[name]))
    return difference(reading.sketch, golden.trace.sketches[name]).norm > _OTHERS * norm


def rounded(candidate: Imported, golden: Golden, left: Sequence[str]) -> Iterator[Hint]:
    """Values of a shorter mantissa than the golden trace's run has: the port ran in another dtype."""
    if golden.about["dtype"] != "float32" or candidate.kind != "tensors":
        return
    large = [name for name in left if math.prod(golden.shapes.get(name, ())) >= _TELLING][:_LOOKED_AT]
    short = [name for name in large if _is_short(candidate.read(name, sketched=False).array)]
    if short and len(short) == len(large):
        yield Hint(
            f"values of {short[0]} have no more digits than bfloat16 or float16, and the golden trace is of a "
            "float32 run: record one in the port's dtype",
            tuple(short),
        )


def _is_short(array: np.ndarray | None) -> bool:
    if array is None or (array.dtype.kind not in "f" and array.dtype != ml_dtypes.bfloat16):
        return False
    x = array.reshape(-1)[: 1 << 16].astype(np.float32)
    with np.errstate(all="ignore"):
        return any(np.array_equal(x, x.astype(kind).astype(np.float32)) for kind in (ml_dtypes.bfloat16, np.float16))


def _names(count: int) -> str:
    return "1 name is" if count == 1 else f"{count:,} names are"


def _in_order(some: set[str], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in some)


def _first(some: set[str], names: Sequence[str]) -> str:
    return shown(_in_order(some, names)[0])
