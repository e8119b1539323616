"""A model that cannot be cut into stages, as stages: it runs at once, and each stage shows its own checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx

from parity.tap import Recorder, recording, tap

from .family import Stage

# In the states of a chain that began here: a state of another side, as in isolated mode, does not have it.
_OWN = "own.chain"


def at_once(call: Callable[[Mapping[str, Any]], Any], stages: Sequence[str]) -> dict[str, Stage]:
    """Stages, for `ModelPort.stages`, of a model that only runs as a whole.

    The first stage calls the model and keeps everything that it taps (or that `parity.instrument` taps for it), all
    in memory; every stage hands out its own names. Such a model can be compared in accumulated mode alone: in
    isolated mode all stages but the first are skipped, and counted as that.

    Args:
        call: from the inputs of a case (`parity.ports` has their names) to anything.
        stages: those of the case's graph, in order.
    """
    made: dict[str, mx.array] = {}

    def run(inputs: Mapping[str, Any]) -> None:
        made.clear()
        with recording(Recorder()) as recorder:
            call(inputs)
        mx.eval(recorder.values)
        made.update(recorder.values)

    def stage(first: bool, state: dict[str, Any]) -> dict[str, Any]:
        if not first and _OWN not in state:
            raise ValueError(
                "this model runs as a whole and cannot be fed in the middle: only accumulated mode says more"
            )
        if first or not made:  # a resumed run begins in the middle, with the inputs in its state
            run(state)
        for name, value in made.items():
            tap(name, value)
        return {**state, _OWN: mx.array(1)}

    return {name: partial(stage, name == stages[0]) for name in stages}
