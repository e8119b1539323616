"""The catalogue: faults that really happen, each a small change to the reference's computation at its place.

    @fault("modulation.one_plus_missing", at=("modulated", "modulated2"), title=…, fix=…, seen=…)
    def one_plus_missing(p):
        yield "scale·x + shift", p.changed(modulate=lambda x, shift, scale: x * scale + shift)

A fault yields one variant for each way in which it is made: a detail, and the place with the fault in it.
What it predicts is that place's recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from parity.diagnosis.place import Place, Variants


@dataclass(frozen=True)
class Fault:
    """One entry of the catalogue.

    Attributes:
        code: ``component.what_is_wrong``.
        title: what is wrong, in a few words.
        fix: what to change, in one line.
        seen: where it is described: the guide, public issues or commits; empty where nowhere.
        component: of `parity.components`; ``*`` for all that have linear layers.
        kinds: of the checkpoints where it first shows; empty for all.
        variants: the experiment; None for what is found by other means than a counterfactual.
        late: tried only where nothing else explains a checkpoint, because there are many variants.
    """

    code: str
    title: str
    fix: str
    seen: str
    component: str
    kinds: tuple[str, ...]
    variants: Callable[[Any], Variants] | None = None
    late: bool = False

    def speaks_of(self, place: Place) -> bool:
        """Whether it can show at a checkpoint."""
        return self.component in ("*", place.component) and (not self.kinds or place.kind in self.kinds)


_CATALOGUE: list[Fault] = []


def fault(
    code: str,
    *,
    at: tuple[str, ...] = (),
    title: str,
    fix: str,
    seen: str = "",
    component: str = "transformer",
    late: bool = False,
) -> Callable[[Callable[[Any], Variants]], Callable[[Any], Variants]]:
    """Enter a function into the catalogue; see the head of the file. A code may have several functions."""

    def enter(function: Callable[[Any], Variants]) -> Callable[[Any], Variants]:
        _CATALOGUE.append(Fault(code, title, fix, seen, component, at, function, late))
        return function

    return enter


def known(code: str, *, title: str, fix: str, seen: str = "", component: str = "*") -> Fault:
    """Enter a fault that is found by other means than a counterfactual."""
    found = Fault(code, title, fix, seen, component, ())
    _CATALOGUE.append(found)
    return found


def catalogue() -> tuple[Fault, ...]:
    """All faults, in the order of their modules."""
    from parity.diagnosis import faults

    for module in sorted(iter_modules(faults.__path__), key=lambda one: one.name):
        import_module(f"{faults.__name__}.{module.name}")
    return tuple(_CATALOGUE)


def by_code() -> dict[str, Fault]:
    """Code -> the entry that speaks for it: the most general of those that it has."""
    general = sorted(catalogue(), key=lambda one: (one.component != "*", one.component != "transformer"))
    return {one.code: one for one in reversed(general)}
