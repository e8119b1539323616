"""Values of a component of which all stages are known at once: inside a pipeline, or computed from its inputs alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parity.diagnosis.place import Array, Place, Values, widened

Change = Callable[[Place], Place]


class Whole(Values):
    """`Values` without borders between stages: what was not captured is computed, whichever stage makes it.

    Args:
        change: put into every place, for a fault that is everywhere; None for none.
    """

    def __init__(self, *values: Any, change: Change | None = None, **more: Any) -> None:
        super().__init__(*values, **more)
        self._change = change

    def place(self, name: str) -> Place:
        """See `Values.place`."""
        place = super().place(name)
        return self._change(place) if self._change else place

    def _find(self, name: str) -> Array:
        return widened(self.captured[name]) if name in self.captured else self.place(name).recipe()
