"""Values of a component of which all stages are known at once: inside a pipeline, or computed from its inputs alone."""

from __future__ import annotations

from parity.diagnosis.place import Array, Values, widened


class Whole(Values):
    """`Values` without borders between stages: what was not captured is computed, whichever stage makes it."""

    def _find(self, name: str) -> Array:
        return widened(self.captured[name]) if name in self.captured else self.place(name).recipe()
