"""Graphs written out: any model's checkpoints, as a component from outside gives them and as a run keeps them.

A graph of this kind needs no code to be built again, so that a run folder is judged without importing anything::

    {"name": "listed", "checkpoints": [[name, stage, [parent, …]], …],
     "expected": [name, …], "exact": [name, …], "pictures": [name, …]}

`Listing` is how an author writes one; `build` checks every word of it, for a run folder is data from elsewhere.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from parity.names import LEVELS, Graph

NAME = "listed"
# Qwen-Image with 60 blocks and a look inside 50 steps has 150,000.
MOST_CHECKPOINTS = 200_000
MOST_PARENTS = 256
_WORD = re.compile(r"[A-Za-z0-9_][\w.\-]{0,199}", re.ASCII)
# What JSON has no numbers for is written in words.
_NUMBERS = ("nan", "inf")
_KEYS = {"name", "checkpoints", "expected", "exact", "pictures"}


class Listing:
    """Checkpoints in the order in which a model makes them; gives the description of their graph.

    ::

        graph = Listing()
        graph.stage("embed")
        hidden = graph.add("words")
        for i in range(layers):
            with graph.scope(f"layer.{i:02d}"):  # begins the names, and is a stage
                graph.add("attn", hidden)
                hidden = graph.add("out", "attn", hidden)
        return graph.listed(level)

    A name is given to `add` as it is tapped, without the open scope's prefix; so may a parent be that the same
    scope has made.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, tuple[str, ...]]] = []
        self._levels: dict[str, str] = {}
        self._exact: list[str] = []
        self._pictures: list[str] = []
        self._stage = ""
        self._prefixes: list[str] = []

    def stage(self, name: str) -> None:
        """What is added from here on is made by this stage."""
        self._stage = name

    def scope(self, prefix: str, *, stage: bool = True) -> _Scope:
        """Context manager: names added inside begin with ``prefix.``, as `parity.tap.scope` does it.

        Args:
            stage: what is added inside is a stage of that name.
        """
        return _Scope(self, prefix, stage)

    def add(self, name: str, *parents: str, level: str = "block", exact: bool = False, picture: bool = False) -> str:
        """Add a checkpoint.

        Args:
            name: as it is tapped, within the open scopes.
            parents: what it is computed from: full names, or names within the open scopes.
            level: the coarsest of `parity.names.LEVELS` that has it.
            exact: must equal the reference's bit for bit (token ids, masks).
            picture: B H W 3 in 0…1, kept to look at.

        Returns:
            the full name, to be a parent of others.

        Raises:
            ValueError: a name that is there already, a parent that is not, or an unknown level.
        """
        full = ".".join([*self._prefixes, name])
        if full in self._levels:
            raise ValueError(f"checkpoint {full!r} is listed twice")
        if level not in LEVELS:
            raise ValueError(f"{full}: level {level!r} is none of {', '.join(LEVELS)}")
        if not self._stage:
            raise ValueError(f"{full}: no stage makes it; call stage() or open a scope first")
        self._rows.append((full, self._stage, tuple(self._known(full, parent) for parent in parents)))
        self._levels[full] = level
        self._exact += [full] * exact
        self._pictures += [full] * picture
        return full

    def _known(self, name: str, parent: str) -> str:
        for depth in range(len(self._prefixes), -1, -1):
            full = ".".join([*self._prefixes[:depth], parent])
            if full in self._levels:
                return full
        raise ValueError(f"{name}: its parent {parent!r} is not listed before it")

    def listed(self, level: str = "full") -> dict[str, Any]:
        """The description that `parity.components.base.Case.graph` gives.

        Args:
            level: which of the checkpoints are compared; the others stay as ancestors.

        Raises:
            ValueError: an unknown level, or nothing listed at it.
        """
        if level not in LEVELS:
            raise ValueError(f"level {level!r} is none of {', '.join(LEVELS)}")
        within = LEVELS[: LEVELS.index(level) + 1]
        described = {
            "name": NAME,
            "checkpoints": [[name, stage, list(parents)] for name, stage, parents in self._rows],
            "expected": [name for name, own in self._levels.items() if own in within],
            "exact": self._exact,
            "pictures": self._pictures,
        }
        build(described)
        return described


class _Scope:
    def __init__(self, listing: Listing, prefix: str, stage: bool) -> None:
        self._listing, self._prefix, self._makes = listing, prefix, stage

    def __enter__(self) -> None:
        self._listing._prefixes.append(self._prefix)
        self._before = self._listing._stage
        if self._makes:
            self._listing._stage = ".".join(self._listing._prefixes)

    def __exit__(self, *_: object) -> None:
        self._listing._prefixes.pop()
        self._listing._stage = self._before


def listed(graph: Graph) -> dict[str, Any]:
    """The description of a graph that was made some other way."""
    return {
        "name": NAME,
        "checkpoints": [[name, graph.stage[name], list(parents)] for name, parents in graph.parents.items()],
        "expected": list(graph.expected),
        "exact": [name for name in graph.parents if name in graph.exact],
        "pictures": list(graph.pictures),
    }


def build(described: Mapping[str, Any]) -> Graph:
    """The graph of a description.

    Raises:
        ValueError: it is none: a key too many or too few, a wrong type, too many names, names that are none, come
            twice, or have parents that are not made before them.
    """
    if described.keys() - _KEYS or {"checkpoints", "expected"} - described.keys():
        raise ValueError(f"a listed graph has the keys {', '.join(sorted(_KEYS))}")
    rows = described["checkpoints"]
    if not isinstance(rows, list | tuple) or not 0 < len(rows) <= MOST_CHECKPOINTS:
        raise ValueError(f"checkpoints is no list of 1 to {MOST_CHECKPOINTS:,} entries")
    parents: dict[str, tuple[str, ...]] = {}
    stages: dict[str, str] = {}
    closed: set[str] = set()
    last = ""
    for row in rows:
        name, stage, its_parents = _row(row)
        if name in parents:
            raise ValueError(f"checkpoint {name} is listed twice")
        if stage != last:
            closed.add(last)
            last = stage
        if stage in closed:
            raise ValueError(f"{name}: stage {stage} was over before it; a stage's checkpoints stand together")
        parents[name], stages[name] = its_parents, stage
    expected, exact, pictures = (_names(described, key, parents) for key in ("expected", "exact", "pictures"))
    if not expected:
        raise ValueError("nothing is expected")
    order = {name: place for place, name in enumerate(parents)}
    if any(order[a] >= order[b] for a, b in itertools.pairwise(expected)):
        raise ValueError("expected names stand in the order of the checkpoints, each once")
    return Graph(parents, stages, expected, frozenset(exact), pictures)


def _row(row: Any) -> tuple[str, str, tuple[str, ...]]:
    right = isinstance(row, list | tuple) and len(row) == 3 and isinstance(row[2], list | tuple)
    if not right or len(row[2]) > MOST_PARENTS or not all(map(_is_word, (row[0], row[1], *row[2]))):
        raise ValueError(f"{ascii(row)[:80]} is no [name, stage, [parents]] of words of letters, digits, '_', '-', '.'")
    return row[0], row[1], tuple(row[2])


def _names(described: Mapping[str, Any], key: str, known: Mapping[str, Any]) -> tuple[str, ...]:
    names = described.get(key, [])
    if not isinstance(names, list | tuple) or len(names) > MOST_CHECKPOINTS:
        raise ValueError(f"{key} is no list of names")
    strangers = [one for one in names if not isinstance(one, str) or one not in known]
    if strangers:
        raise ValueError(f"{key} has {ascii(strangers[0])[:80]}, which is no checkpoint")
    return tuple(names)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None and value.lower() not in _NUMBERS
