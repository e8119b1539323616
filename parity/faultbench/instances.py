"""The seeded list of instances: which fault, where, in which case and dtype, and in which half of the set."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parity.faultbench.catalogue import find, injections
from parity.faultbench.injection import EditError, Injection, Site, apply
from parity.faultbench.patient import own_streams, sources

# Limits of a diagnosis are chosen on half a, and figures are reported of half b.
HALVES = ("a", "b")
KINDS = ("fault", "pair", "unlisted", "clean")
DTYPES = ("float32", "bfloat16")
PAIRS = 48
# Unmodified copies, and copies that compute otherwise.
CLEAN = 128
# A fault of either stream: the image's, the text's, both.
_STREAMS = (("img",), ("txt",), None)


@dataclass(frozen=True)
class Instance:
    """One patient in one case.

    Attributes:
        number: in the whole list.
        planted: names of injections, and where each acts.
        case: key of `parity.faultbench.cases.CASES`.
        seed: of its inputs.
        half: ``a`` or ``b``; they differ in the inputs too.
    """

    number: int
    kind: str
    planted: tuple[tuple[str, Site], ...]
    case: str
    seed: int
    dtype: str
    half: str

    @property
    def injections(self) -> tuple[tuple[Injection, Site], ...]:
        """What is planted."""
        return tuple((find(name), site) for name, site in self.planted)

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of what is planted; none of a clean one."""
        return tuple(one.code for one, _ in self.injections if one.code)

    def describe(self, layers: int) -> dict[str, Any]:
        """For JSON."""
        return {
            "number": self.number, "kind": self.kind, "half": self.half, "case": self.case, "seed": self.seed,
            "dtype": self.dtype,
            "planted": [{"injection": name, "site": site.describe(layers)} for name, site in self.planted],
        }  # fmt: skip


def instances(layers: Mapping[str, int], seed: int = 0) -> list[Instance]:
    """All instances, the same for the same seed.

    Args:
        layers: case key -> blocks of its model, layers or steps.
        seed: of sites, cases and pairs.
    """
    draw = random.Random(seed)
    drawn: list[tuple[str, tuple[tuple[str, Site], ...], str, str]] = []
    for one in injections():
        if one.code is None:
            continue
        kind = "unlisted" if one.code.startswith("unlisted.") else "fault"
        for dtype in one.dtypes:
            case = draw.choice(one.cases)
            drawn.append((kind, ((one.name, _site(one, layers[case], draw)),), case, dtype))
    drawn += _pairs(layers, draw)
    drawn += _clean(draw)
    turn: Counter[str] = Counter()
    found = []
    for number, (kind, planted, case, dtype) in enumerate(drawn):
        code = kind if kind in ("pair", "clean") else find(planted[0][0]).code or ""
        # Alternately within a code. Those of one instance alone fall to either half in turn.
        if code not in turn:
            turn[code] = len(turn)
        half = HALVES[turn[code] % 2]
        turn[code] += 1
        # Unmodified copies each have inputs of their own; the others share those of their half.
        own = kind == "clean" and planted == (("clean:unchanged", Site()),)
        found.append(Instance(number, kind, planted, case, number if own else 1 + HALVES.index(half), dtype, half))
    return found


def _site(one: Injection, layers: int, draw: random.Random) -> Site:
    streams = own_streams(one) if len(one.streams) < 2 else draw.choice(_STREAMS)
    return Site(_blocks(layers, draw) if one.in_blocks else None, streams)


def _blocks(layers: int, draw: random.Random) -> tuple[int, ...] | None:
    """First, middle, last, all, every other one."""
    return draw.choice(((0,), (layers // 2,), (layers - 1,), None, tuple(range(0, layers, 2))))


def _pairs(layers: Mapping[str, int], draw: random.Random) -> Iterable[tuple[str, Any, str, str]]:
    """Two faults at once: in one block, in different ones, of one kind in both streams, before and in the blocks."""
    general = [one for one in injections() if one.code and not one.code.startswith("unlisted.")
               and {"square", "landscape", "batch"} <= set(one.cases)]  # fmt: skip
    inside = [one for one in general if one.in_blocks]
    either = [one for one in inside if len(one.streams) == 2]
    outside = [one for one in general if not any("{" in name for name in one.shows)]
    text, made = sources(), 0
    while made < PAIRS:
        case, dtype = draw.choice(("square", "landscape")), DTYPES[made % 3 == 2]
        count = layers[case]
        first, second = draw.randrange(count), draw.randrange(count)
        one, other = draw.sample(inside, 2)
        match made % 4:
            case 0:
                planted = ((one, Site((first,), own_streams(one))), (other, Site((first,), own_streams(other))))
            case 1:
                planted = ((one, Site((first,), own_streams(one))), (other, Site((second,), own_streams(other))))
            case 2:
                one = draw.choice(either)
                alike = [x for x in either if x.shows == one.shows and x.code != one.code] or either
                planted = ((one, Site((first,), ("img",))), (draw.choice(alike), Site((first,), ("txt",))))
            case _:
                planted = ((draw.choice(outside), Site()), (one, Site(None, own_streams(one))))
        if fits(planted, count, text):
            made += 1
            yield "pair", tuple((injection.name, site) for injection, site in planted), case, dtype


def fits(planted: Sequence[tuple[Injection, Site]], layers: int, text: Mapping[str, str]) -> bool:
    """Whether two faults can be planted together, show at different checkpoints, and have different codes."""
    (one, here), (other, there) = planted
    if one.code == other.code or not set(one.dtypes) & set(other.dtypes):
        return False
    if set(one.expected(here, layers)) & set(other.expected(there, layers)):
        return False
    try:
        apply(text, planted)
    except EditError:
        return False
    return True


def _clean(draw: random.Random) -> Iterable[tuple[str, Any, str, str]]:
    right = [one for one in injections() if one.code is None]
    unchanged = next(one for one in right if not one.edits)
    others = [one for one in right if one.edits]
    combinations = [(one, case, dtype) for one in others for case in one.cases for dtype in one.dtypes]
    draw.shuffle(combinations)
    for one, case, dtype in combinations[: CLEAN // 2]:
        yield "clean", ((one.name, Site()),), case, dtype
    plain = [(unchanged, case, dtype) for case in unchanged.cases for dtype in unchanged.dtypes]
    for index in range(CLEAN - min(CLEAN // 2, len(combinations))):
        one, case, dtype = plain[index % len(plain)]
        yield "clean", ((one.name, Site()),), case, dtype


def chosen(
    found: Sequence[Instance], *, half: str = "both", only: str = "", limit: int | None = None
) -> list[Instance]:
    """Some of the instances.

    Args:
        half: ``a``, ``b`` or ``both``.
        only: a code, the beginning of one, a kind, or an injection's name.
        limit: at most so many, spread over the list.
    """
    kept = [one for one in found if half in ("both", one.half)]
    if only:
        kept = [one for one in kept if one.kind == only
                or any(f"{code}.".startswith(f"{only}.") for code in one.codes)
                or any(name == only for name, _ in one.planted)]  # fmt: skip
    if limit is not None and limit < len(kept):
        kept = [kept[index * len(kept) // limit] for index in range(limit)]
    return kept
