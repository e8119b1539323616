"""Known bugs of libraries by package, version and device (known_bugs.toml), and which of them speak of a machine.

`parity doctor` shows what matches the installed versions; `parity diagnose` names an entry where a replayed
operation fails in the way it describes.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from parity.errors import UsageError

SCHEMA = 1
PATH = Path(__file__).with_name("known_bugs.toml")
BACKENDS = ("cpu", "cuda", "metal", "mps")
SIZES = ("rows", "inputs", "outputs", "products", "keys", "scores", "elements")
# Packages whose version a side's environment gives.
PACKAGES = ("mlx", "torch", "diffusers", "transformers")

_ISSUE = re.compile(r"https://github\.com/[^/]+/([^/]+)/(?:issues|pull)/(\d+)")

Environments = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Bug:
    """One entry of the table; see the head of known_bugs.toml.

    Attributes:
        sizes: name of a size -> its smallest and largest value, None where there is no such end.
    """

    name: str
    package: str
    versions: str
    condition: str
    symptom: str
    fix: str
    sources: tuple[str, ...]
    op: str = ""
    code: str = "backend.kernel"
    backends: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    sizes: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    tf32: bool | None = None

    @property
    def line(self) -> str:
        """When, what, and where it is described, in one line."""
        seen = ", ".join(_ISSUE.sub(r"\1#\2", source) for source in self.sources)
        return f"{self.package} {self.versions}: {self.condition}: {self.symptom} ({seen})"

    def on(self, environment: Mapping[str, Any]) -> bool:
        """Whether one side's versions and device are those of the bug.

        Args:
            environment: of a port, as `parity.ports.Port.environment` gives it.
        """
        wanted = {self.package: self.versions, **self.needs}
        if not all(_within(environment.get(package), versions) for package, versions in wanted.items()):
            return False
        if self.tf32 is not None and bool(environment.get("tf32")) != self.tf32:
            return False
        device = str(environment.get("device", ""))
        if self.backends and backend_of(self.package, device) not in self.backends:
            return False
        return not self.devices or any(part in device for part in self.devices)

    def speaks_of(self, op: str, dtype: str, sizes: Mapping[str, int]) -> bool:
        """Whether an operation of these sizes can show it; a size that is not known excludes nothing."""
        if self.op != op or (self.dtypes and dtype not in self.dtypes):
            return False
        for name, (low, high) in self.sizes.items():
            found = sizes.get(name)
            if found is not None and ((low is not None and found < low) or (high is not None and found > high)):
                return False
        return True


def backend_of(package: str, device: str) -> str:
    """``cpu``, ``cuda``, ``metal`` or ``mps``, from the device that an environment names."""
    if device in ("", "cpu"):
        return "cpu"
    if package == "mlx":
        return "metal" if "Apple" in device else "cuda"
    return "mps" if "mps" in device or "Apple" in device else "cuda"


def matching(environments: Environments) -> list[Bug]:
    """The bugs that speak of these versions and devices, in the table's order.

    Args:
        environments: side -> its environment, as in ``parity.json``.
    """
    return [bug for bug in load() if any(bug.on(environment) for environment in environments.values())]


@lru_cache(maxsize=4)
def load(path: Path = PATH) -> tuple[Bug, ...]:
    """Read and check the table.

    Raises:
        UsageError: unreadable, or not of the form that the head of the table describes; all problems are named.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"table of known bugs {path}: {error}") from None
    entries = content.get("bug")
    problems = [f"unknown key {key!r}" for key in content if key not in ("schema", "bug")]
    if content.get("schema") != SCHEMA:
        problems.append(f"schema is {content.get('schema')!r}, expected {SCHEMA}")
    if not isinstance(entries, list) or not entries or not all(isinstance(one, dict) for one in entries):
        entries = []
        problems.append("no [[bug]] entries")
    for number, entry in enumerate(entries, 1):
        label = entry["name"] if isinstance(entry.get("name"), str) else f"bug {number}"
        problems += [f"{label}: {problem}" for problem in _problems(entry)]
    names = [entry.get("name") for entry in entries]
    problems += [f"{name}: two bugs have this name" for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UsageError(f"table of known bugs {path}: {problems[0]}{more}", problems)
    return tuple(map(_bug, entries))


_TEXTS = ("name", "package", "versions", "condition", "symptom", "fix")
_LISTS = ("sources", "backends", "devices", "dtypes")


def _problems(entry: Mapping[str, Any]) -> list[str]:
    known = {one.name for one in fields(Bug)}
    problems = [f"unknown key {key!r}" for key in entry if key not in known]
    problems += [f"{key} is missing or no text" for key in _TEXTS if not _is_text(entry.get(key))]
    problems += [f"{key} is no text" for key in ("op", "code") if not isinstance(entry.get(key, ""), str)]
    for key in _LISTS:
        if not isinstance(entry.get(key, []), list) or not all(map(_is_text, entry.get(key, []))):
            problems.append(f"{key} is no list of texts")
    if not entry.get("sources"):
        problems.append("sources are missing")
    if isinstance(entry.get("backends"), list):
        strangers = [one for one in entry["backends"] if one not in BACKENDS]
        problems += [f"backend {one!r} is none of {', '.join(BACKENDS)}" for one in strangers]
    if not isinstance(entry.get("tf32", True), bool):
        problems.append("tf32 is neither true nor false")
    needs = entry.get("needs", {})
    if not isinstance(needs, dict) or not all(map(_is_text, needs.values())):
        problems.append("needs is no table of versions")
        needs = {}
    for package, versions in {entry.get("package"): entry.get("versions"), **needs}.items():
        if package not in PACKAGES:
            problems.append(f"package {package!r} is none of {', '.join(PACKAGES)}")
        if _is_text(versions) and (wrong := _version_problem(versions)):
            problems.append(wrong)
    return problems + _size_problems(entry.get("sizes", {}))


def _size_problems(sizes: object) -> list[str]:
    if not isinstance(sizes, dict):
        return ["sizes is no table"]
    problems = [f"size {name!r} is none of {', '.join(SIZES)}" for name in sizes if name not in SIZES]
    for name, ends in sizes.items():
        right = isinstance(ends, dict) and ends and set(ends) <= {"min", "max"}
        if not right or not all(type(end) is int for end in ends.values()):
            problems.append(f"size {name!r} is not {{min = …, max = …}}")
    return problems


def _bug(entry: Mapping[str, Any]) -> Bug:
    lists = {key: tuple(entry.get(key, ())) for key in _LISTS}
    sizes = {name: (ends.get("min"), ends.get("max")) for name, ends in entry.get("sizes", {}).items()}
    return Bug(**{**entry, **lists, "sizes": sizes})


def _version_problem(versions: str) -> str:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        SpecifierSet(versions)
    except InvalidSpecifier:
        return f"versions {versions!r} cannot be read; expected something like >=0.30,<0.32"
    return ""


def _within(version: object, versions: str) -> bool:
    """Whether a version lies in a range; a build that names none, or none that can be read, does not."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion

    try:
        return isinstance(version, str) and SpecifierSet(versions).contains(version, prereleases=True)
    except InvalidVersion:
        return False


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()
