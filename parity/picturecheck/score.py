"""How often a picture is diagnosed right: seeded sets of broken and of clean pictures, and the table.

`python -m parity.picturecheck.score SEED…` prints the table of each seed. The limits of the checks were chosen on the
`TUNED` seeds; those of `HELD_OUT` were never looked at on the way.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.picturecheck.corruptions import CORRUPTIONS, Corruption
from parity.picturecheck.examine import look
from parity.picturecheck.samples import clean, rich, stretched

TUNED, HELD_OUT = (0, 1), (701, 702)
CLEAN = 150
EACH = 4
NOTHING = "nothing"


@dataclass(frozen=True, eq=False)
class Instance:
    """One picture to be diagnosed.

    Attributes:
        name: of the corruption or the kind of picture.
        code: the cause that is right; `NOTHING` for a clean picture.
        picture, reference: H W 3 uint8; the reference may be None.
    """

    name: str
    code: str
    picture: np.ndarray
    reference: np.ndarray | None


def instances(seed: int, *, each: int = EACH, cleans: int = CLEAN) -> Iterator[Instance]:
    """The pictures of one seed: `each` of every corruption without and with reference, and clean ones."""
    rng = np.random.default_rng([seed, 0])
    for one in CORRUPTIONS.values():
        for referenced in [False] * one.alone + [True] * one.referenced:
            for _ in range(each):
                picture, good = _broken(one, rng)
                yield Instance(one.name, one.code, picture, good if referenced else None)
    rng = np.random.default_rng([seed, 1])
    for _ in range(cleans):
        name, picture = clean(rng)
        yield Instance(name, NOTHING, picture, None)


def _broken(one: Corruption, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A broken picture and its reference, which differ."""
    while True:
        good = rich(rng, one.multiple, detailed=one.detailed)
        if one.name == "sides_exchanged" and abs(good.shape[0] - good.shape[1]) <= 8:
            continue
        good = stretched(good) if one.stretched else good
        picture = one.make(good, rng)
        if picture.shape != good.shape or not np.array_equal(picture, good):
            return picture, good


def score(seed: int, *, each: int = EACH, cleans: int = CLEAN) -> dict[str, Any]:
    """Diagnose the pictures of one seed.

    Returns:
        ``seed``; ``broken``, ``right`` and ``share``, and the same for ``alone`` and ``referenced`` apart;
        ``clean`` and ``flagged``; ``confusion``: of each right code, how often each code came first; ``wrong``:
        what was said of each picture that was not right; ``seconds`` a picture.
    """
    start, total = time.monotonic(), 0
    confusion: dict[str, Counter[str]] = {}
    tally = {(kind, right): 0 for kind in ("alone", "referenced", "clean") for right in (False, True)}
    wrong = []
    for one in instances(seed, each=each, cleans=cleans):
        found = look(one.picture, one.reference)
        said = found[0].code if found else NOTHING
        kind = "clean" if one.code == NOTHING else ("alone" if one.reference is None else "referenced")
        tally[kind, said == one.code] += 1
        confusion.setdefault(one.code, Counter())[said] += 1
        total += 1
        if said != one.code:
            detail = found[0].detail if found else ""
            wrong.append({"name": one.name, "kind": kind, "expected": one.code, "said": said, "detail": detail})
    parts = {
        kind: {"right": tally[kind, True], "of": tally[kind, True] + tally[kind, False]}
        for kind in ("alone", "referenced")
    }
    right, broken = (sum(part[name] for part in parts.values()) for name in ("right", "of"))
    return {
        "seed": seed, "broken": broken, "right": right, "share": round(right / max(broken, 1), 4), **parts,
        "clean": tally["clean", True] + tally["clean", False], "flagged": tally["clean", False],
        "confusion": {code: dict(counts) for code, counts in sorted(confusion.items())}, "wrong": wrong,
        "seconds": round((time.monotonic() - start) / max(total, 1), 3),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The result as lines of text."""
    lines = [
        "seed {seed}: {right} of {broken} broken pictures right ({share:.1%}); {flagged} of {clean} clean ones "
        "flagged; {seconds} s a picture".format(**result),
        "without reference {right} of {of}".format(**result["alone"])
        + ", with reference {right} of {of}".format(**result["referenced"]),
    ]
    lines += [
        f"  {one['name']} ({one['kind']}): {one['said']} for {one['expected']}  {one['detail']}"
        for one in result["wrong"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table of each seed that is named."""
    parser = argparse.ArgumentParser(description="how often a picture is diagnosed right")
    parser.add_argument("seeds", type=int, nargs="*", default=[*TUNED, *HELD_OUT])
    parser.add_argument("--each", type=int, default=EACH, help="pictures of every corruption")
    parser.add_argument("--clean", type=int, default=CLEAN, help="clean pictures")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    for seed in options.seeds:
        result = score(seed, each=options.each, cleans=options.clean)
        print(json.dumps(result) if options.json else table(result), flush=True)


if __name__ == "__main__":
    main()
