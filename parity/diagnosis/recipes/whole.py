"""Values of a component of which all stages are known at once: inside a pipeline, or computed from its inputs alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from parity.diagnosis.place import Array, Place, Values, widened


@dataclass(frozen=True)
class Change:
    """A fault that is everywhere in a component.

    Attributes:
        put: into every place of one of the kinds.
        kinds: of the places that it changes.
        base: the component without it, of which all is taken that does not depend on those places.
    """

    put: Callable[[Place], Place]
    kinds: tuple[str, ...]
    base: Whole = field(repr=False)

    @cached_property
    def reached(self) -> set[str]:
        """Checkpoints that may be others than those of `base`."""
        reached: set[str] = set()
        for name, parents in self.base.graph.parents.items():
            if self.base.place(name).kind in self.kinds or not reached.isdisjoint(parents):
                reached.add(name)
        return reached


class Whole(Values):
    """`Values` without borders between stages: what was not captured is computed, whichever stage makes it.

    Args:
        change: a fault that is in it; None for none.
    """

    def __init__(self, *values: Any, change: Change | None = None, **more: Any) -> None:
        super().__init__(*values, **more)
        self._change = change

    def place(self, name: str) -> Place:
        """See `Values.place`."""
        place = super().place(name)
        return self._change.put(place) if self._change and place.kind in self._change.kinds else place

    def _find(self, name: str) -> Array:
        if name in self.captured:
            return widened(self.captured[name])
        if self._change and name not in self._change.reached:
            return self._change.base[name]
        return self.place(name).recipe()
