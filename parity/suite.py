"""Suites: which cases a run compares, in which dtypes and modes. One TOML file each.

title = "…"                 one line for people
weights = "synthetic:tiny"  used when --weights is not given; may be left out
ranges = "mine.toml"        range table for the values of all cases, beside the suite's file; may be left out
detail = "full"             kinds, block or full
draws = 3                   jittered runs of the reference that enter the floor
include = ["text", "vae"]   other suites whose cases come first, at their own detail and draws

[[case]]
component = "transformer"   which part of the model; the default. One from outside: "package.module:CaseClass",
                            found beside the suite's file or in the working directory
name = "square"
seed = 0
dtypes = ["float32"]
modes = ["isolated", "accumulated"]
images = [[256, 256]]       these and all other keys are the fields of the component's Case
text_tokens = [32]
timestep = 0.9
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from parity import outside
from parity.components import COMPONENTS, case_class
from parity.components.base import DTYPES, Case
from parity.errors import UsageError
from parity.names import LEVELS
from parity.rangetable import RangeTable

MODES = ("isolated", "accumulated")
FOLDER = Path(__file__).parent / "suites"

_SUITE_KEYS = {"title": str, "weights": str, "ranges": str, "detail": str, "draws": int}
_OPTIONAL_KEYS = ("weights", "ranges")
_PLAN_KEYS = {"dtypes": tuple[str, ...], "modes": tuple[str, ...]}


@dataclass(frozen=True)
class Planned:
    """One case with what is to be done with it.

    Attributes:
        detail: level of its checkpoints.
        draws: jittered runs of the reference that enter the floor.
    """

    case: Case
    dtypes: tuple[str, ...]
    modes: tuple[str, ...]
    detail: str
    draws: int


@dataclass(frozen=True)
class Suite:
    """A read suite; see the head of the file for the fields.

    Attributes:
        weights: empty where the suite names none.
        ranges: the table for all its cases; None for the documented one of Qwen-Image's transformer.
    """

    name: str
    title: str
    weights: str
    cases: tuple[Planned, ...]
    ranges: RangeTable | None = None

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders of the checkpoint that its cases need."""
        return tuple(dict.fromkeys(folder for planned in self.cases for folder in planned.case.folders))

    @property
    def plain(self) -> dict[str, tuple[str, ...]]:
        """Those of them that are plain: folder -> files that must be there; see `parity.components.base.Case`.

        Raises:
            UsageError: one component takes a folder for a plain one, another for one of Qwen-Image.
        """
        found: dict[str, tuple[str, ...]] = {}
        for case in (planned.case for planned in self.cases if planned.case.plain):
            for folder in case.folders:
                found[folder] = tuple(dict.fromkeys((*found.get(folder, ()), *case.files)))
        for case in (planned.case for planned in self.cases if not planned.case.plain):
            if both := found.keys() & set(case.folders):
                said = f"folder {min(both)!r} is a plain one of one component, and another layout's of {case.component}"
                raise UsageError(f"suite {self.name!r}: {said}")
        return found

    def narrowed(
        self,
        cases: Sequence[str] = (),
        dtypes: Sequence[str] = (),
        detail: str | None = None,
        inside: Sequence[int] = (),
    ) -> Suite:
        """Only the named cases, in the given dtypes, at another level; empty means as the suite says.

        Args:
            inside: steps of pipelines within which the transformer's checkpoints are compared too;
                -1 is the last.

        Raises:
            UsageError: a name or a step that is not there.
        """
        known = [planned.case.name for planned in self.cases]
        _check_known("case", cases, known)
        _check_known("dtype", dtypes, list(DTYPES))
        _check_known("detail", [detail] if detail else [], LEVELS)
        kept = tuple(
            replace(planned, dtypes=tuple(dict.fromkeys(dtypes)) or planned.dtypes, detail=detail or planned.detail)
            for planned in self.cases
            if not cases or planned.case.name in cases
        )
        if inside:
            looked = [planned for planned in kept if hasattr(planned.case, "inside")]
            if not looked:
                raise UsageError(f"suite {self.name!r} has no pipeline here to look inside of")
            kept = tuple(replace(one, case=one.case.looked_inside(inside)) if one in looked else one for one in kept)
        return replace(self, cases=kept)


def available() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Suite:
    """Read a suite by name or by the path of a TOML file.

    Raises:
        UsageError: there is no such suite, or something in it is wrong; the message says what.
    """
    return _load(name, ())


def _load(name: str, within: tuple[str, ...]) -> Suite:
    if name in within:
        raise UsageError(f"suite {name!r} includes itself: {' → '.join((*within, name))}")
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise UsageError(f"no suite {name!r}; known: {', '.join(available())}, or the path of a .toml file")
    try:
        data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"suite {path}: not TOML: {error}") from None
    where = f"suite {path.name}"
    if path.parent != FOLDER:
        outside.look_in(path.parent)  # the author's modules lie beside the suite, components and ports
    included, own = data.pop("include", []), data.pop("case", [])
    data = {"weights": "", "ranges": ""} | _checked(where, data, _SUITE_KEYS, _OPTIONAL_KEYS)
    included = _converted(f"{where}: include", included, tuple[str, ...])
    _check_known("detail", [data["detail"]], LEVELS, where)
    if data["draws"] < 1:
        raise UsageError(f"{where}: draws is {data['draws']}; a floor needs at least one")
    if not isinstance(own, list) or not all(isinstance(entry, dict) for entry in own):
        raise UsageError(f"{where}: case is no list of [[case]] tables")
    cases = tuple(planned for one in included for planned in _load(one, (*within, name)).cases)
    cases += tuple(_planned(where, entry, data["detail"], data["draws"]) for entry in own)
    names = [planned.case.name for planned in cases]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"{where}: case names must be there and differ: {', '.join(names) or 'none'}")
    ranges = RangeTable.load(path.parent / data["ranges"]) if data["ranges"] else None
    return Suite(path.stem, data["title"], data["weights"], cases, ranges)


def _planned(where: str, entry: dict[str, Any], detail: str, draws: int) -> Planned:
    where = f"{where}, case {entry.get('name', '?')!r}"
    component = entry.pop("component", "transformer")
    kind = _case_class(component, where)
    hints = get_type_hints(kind)
    wanted = {field.name: hints[field.name] for field in fields(kind)}
    optional = {f.name for f in fields(kind) if f.default is not MISSING or f.default_factory is not MISSING}
    values = _checked(where, entry, wanted | _PLAN_KEYS, optional)
    dtypes, modes = values.pop("dtypes"), values.pop("modes")
    _check_known("dtype", dtypes, list(DTYPES), where)
    _check_known("mode", modes, MODES, where)
    for key, given in (("dtypes", dtypes), ("modes", modes)):
        if not given or len(set(given)) < len(given):
            raise UsageError(f"{where}: {key} must be there and differ: {', '.join(given) or 'none'}")
    if not re.fullmatch(r"\w[\w.-]{0,99}", values["name"], re.ASCII):  # it becomes part of file names
        raise UsageError(f"{where}: a name is of letters, digits, '-', '_' and '.', at most 100")
    if values["seed"] < 0:
        raise UsageError(f"{where}: seed is {values['seed']}, expected 0 or more")
    try:
        return Planned(kind(**values), dtypes, modes, detail, draws)
    except UsageError:
        raise
    except Exception as error:
        if component in COMPONENTS:
            raise
        raise UsageError(f"{where}: {component} raised {outside.spell(error)}") from error


def _case_class(component: Any, where: str) -> type[Case]:
    """The class of a component's cases; one with a colon in its name is the user's own."""
    if isinstance(component, str) and ":" in component:
        return outside.case_class(component, where)
    _check_known("component", [component], COMPONENTS, where)
    return case_class(component)


def _checked(
    where: str, data: Mapping[str, Any], kinds: Mapping[str, Any], optional: Iterable[str] = ()
) -> dict[str, Any]:
    """The values of a table, in the types of `kinds`."""
    unknown, missing = sorted(set(data) - set(kinds)), sorted(set(kinds) - set(data) - set(optional))
    if unknown or missing:
        said = [f"unknown key {key!r}" for key in unknown] + [f"missing key {key!r}" for key in missing]
        raise UsageError(f"{where}: {', '.join(said)}; the keys are {', '.join(kinds)}")
    return {key: _converted(f"{where}: {key}", data[key], kind) for key, kind in kinds.items() if key in data}


def _converted(where: str, value: Any, kind: Any) -> Any:
    """A TOML value as a field's type: lists become tuples, whole numbers floats."""
    try:
        return _as(value, kind)
    except (TypeError, ValueError):
        raise UsageError(f"{where} is {value!r}, expected {_spell(kind)}") from None


def _as(value: Any, kind: Any) -> Any:
    if get_origin(kind) in (UnionType,):
        kind = next(one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise TypeError
        inner = get_args(kind)
        if inner[-1] is Ellipsis:
            return tuple(_as(one, inner[0]) for one in value)
        return tuple(_as(one, of) for one, of in zip(value, inner, strict=True))
    if kind is float and type(value) is int:
        return float(value)
    if kind not in (str, int, float, bool) or type(value) is not kind:
        raise TypeError
    return value


def _spell(kind: Any) -> str:
    """A field's type as TOML has it."""
    if get_origin(kind) is UnionType:
        return _spell(get_args(kind)[0])
    if get_origin(kind) is tuple:
        inner = list(get_args(kind))
        return f"a list of {_spell(inner[0])}" if inner[-1] is Ellipsis else f"[{', '.join(map(_spell, inner))}]"
    return kind.__name__


def _check_known(what: str, given: Iterable[str], known: Iterable[str], where: str = "") -> None:
    unknown = [str(one) for one in given if one not in known]
    if unknown:
        raise UsageError(f"{where}{': ' if where else ''}no {what} {', '.join(unknown)}; known: {', '.join(known)}")
