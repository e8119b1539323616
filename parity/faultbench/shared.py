"""Runs of many candidates in one process: the reference's side of a case is computed once.

Truth, reference and floors of a case do not depend on the candidate. Everything else is `parity.run` as it is: the
run folder of a patient is the one that ``parity run`` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from parity.lockstep import Chains, Lockstep, Prepared, Unit
from parity.ports import Port


class SharedLockstep(Lockstep):
    """A lockstep that keeps the reference's side of the last few units, whose candidates come one after the other."""

    # What is run -> its first chains, and of each stage the reference's side.
    _kept: ClassVar[dict[str, dict[str, Any]]] = {}
    # Of a small model a unit takes about 60 MB.
    KEPT = 2

    def __init__(self, unit: Unit, reference: Port, candidate: Port, weights: Path, adapters=(), original=None) -> None:
        super().__init__(unit, reference, candidate, weights, adapters, original)
        key = repr((unit.case, unit.dtype, unit.modes, unit.draws, unit.truth, weights, adapters, original))
        self._mine = self._kept.setdefault(key, {})
        while len(self._kept) > self.KEPT:
            del self._kept[next(one for one in self._kept if one != key)]

    def start(self, inputs: Mapping[str, np.ndarray]) -> Chains:
        """See `Lockstep.start`."""
        if "" not in self._mine:
            self._mine[""] = super().start(inputs)
        return dict(self._mine[""])

    def prepare(self, stage: str, chains: Chains) -> Prepared:
        """See `Lockstep.prepare`."""
        if stage not in self._mine:
            self._mine[stage] = super().prepare(stage, chains)
        # What the candidate adds is its own.
        return replace(self._mine[stage], after=dict(self._mine[stage].after))
