"""Suites: which cases a run compares, in which dtypes and modes. One TOML file each.

title = "…"                 one line for people
weights = "synthetic:tiny"  used when --weights is not given
detail = "full"             kinds, block or full
draws = 3                   jittered runs of the reference that enter the floor
[[case]]
name = "square"
images = [[256, 256]]       height, width in pixels; more than one: condition pictures
text_tokens = [32]          length of each prompt of the batch
timestep = 0.9
seed = 0
dtypes = ["float32"]
modes = ["isolated", "accumulated"]
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parity.case import DTYPES, Case
from parity.errors import UsageError
from parity.names import LEVELS

MODES = ("isolated", "accumulated")
FOLDER = Path(__file__).parent / "suites"

_SUITE_KEYS = {"title": str, "weights": str, "detail": str, "draws": int, "case": list}
_CASE_KEYS = {
    "name": str, "images": list, "text_tokens": list, "timestep": float, "seed": int, "dtypes": list, "modes": list,
}  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """One case with what is to be done with it."""

    case: Case
    dtypes: tuple[str, ...]
    modes: tuple[str, ...]


@dataclass(frozen=True)
class Suite:
    """A read suite; see the head of the file for the fields."""

    name: str
    title: str
    weights: str
    detail: str
    draws: int
    cases: tuple[Planned, ...]

    def narrowed(self, cases: Sequence[str] = (), dtypes: Sequence[str] = (), detail: str | None = None) -> Suite:
        """Only the named cases, in the given dtypes, at another level; empty means as the suite says.

        Raises:
            UsageError: a name that is not there.
        """
        known = [planned.case.name for planned in self.cases]
        _check_known("case", cases, known)
        _check_known("dtype", dtypes, list(DTYPES))
        _check_known("detail", [detail] if detail else [], LEVELS)
        kept = tuple(
            replace(planned, dtypes=tuple(dict.fromkeys(dtypes)) or planned.dtypes)
            for planned in self.cases
            if not cases or planned.case.name in cases
        )
        return replace(self, cases=kept, detail=detail or self.detail)


def available() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Suite:
    """Read a suite by name or by the path of a TOML file.

    Raises:
        UsageError: there is no such suite, or something in it is wrong; the message says what.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise UsageError(f"no suite {name!r}; known: {', '.join(available())}, or the path of a .toml file")
    try:
        data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"suite {path}: not TOML: {error}") from None
    where = f"suite {path.name}"
    _check_keys(where, data, _SUITE_KEYS)
    _check_known("detail", [data["detail"]], LEVELS, where)
    if data["draws"] < 1:
        raise UsageError(f"{where}: draws is {data['draws']}; a floor needs at least one")
    cases = tuple(_planned(where, entry) for entry in data["case"])
    names = [planned.case.name for planned in cases]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"{where}: case names must be there and differ: {', '.join(names) or 'none'}")
    return Suite(path.stem, data["title"], data["weights"], data["detail"], data["draws"], cases)


def _planned(where: str, entry: dict[str, Any]) -> Planned:
    where = f"{where}, case {entry.get('name', '?')!r}"
    _check_keys(where, entry, _CASE_KEYS)
    _check_known("dtype", entry["dtypes"], list(DTYPES), where)
    _check_known("mode", entry["modes"], MODES, where)
    for key in ("dtypes", "modes"):
        if not entry[key] or len(set(entry[key])) < len(entry[key]):
            raise UsageError(f"{where}: {key} must be there and differ: {', '.join(entry[key]) or 'none'}")
    if not re.fullmatch(r"\w[\w.-]{0,99}", entry["name"], re.ASCII):  # it becomes part of file names
        raise UsageError(f"{where}: a name is of letters, digits, '-', '_' and '.', at most 100")
    if entry["seed"] < 0:
        raise UsageError(f"{where}: seed is {entry['seed']}, expected 0 or more")
    try:
        images = tuple((int(height), int(width)) for height, width in entry["images"])
        tokens = tuple(int(n) for n in entry["text_tokens"])
    except (TypeError, ValueError):
        raise UsageError(f"{where}: images is a list of [height, width], text_tokens a list of numbers") from None
    case = Case(entry["name"], images, tokens, entry["timestep"], entry["seed"])
    return Planned(case, tuple(entry["dtypes"]), tuple(entry["modes"]))


def _check_keys(where: str, data: dict[str, Any], kinds: dict[str, type]) -> None:
    unknown, missing = sorted(set(data) - set(kinds)), sorted(set(kinds) - set(data))
    if unknown or missing:
        said = [f"unknown key {key!r}" for key in unknown] + [f"missing key {key!r}" for key in missing]
        raise UsageError(f"{where}: {', '.join(said)}; the keys are {', '.join(kinds)}")
    for key, kind in kinds.items():
        value = float(data[key]) if kind is float and isinstance(data[key], int) else data[key]
        if not isinstance(value, kind):
            raise UsageError(f"{where}: {key} is {value!r}, expected {kind.__name__}")


def _check_known(what: str, given: Iterable[str], known: Iterable[str], where: str = "") -> None:
    unknown = [str(one) for one in given if one not in known]
    if unknown:
        raise UsageError(f"{where}{': ' if where else ''}no {what} {', '.join(unknown)}; known: {', '.join(known)}")
