"""``parity weights scan``: which class of layers costs most when it is quantized, measured one class at a time.

A chain a class runs beside one on the original weights, all of them stage by stage, so that one stage is in memory.
A chain on which nothing is quantized yet is the original one, and is not run again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from parity.layer_classes import CLASSES, class_of, linear_layers
from parity.layouts import Entry
from parity.layouts.packing import packed_shape
from parity.names import block_stage
from parity.ports import Session, State
from parity.prefetch import number_in
from parity.safetensors_header import DTYPE_BYTES
from parity.stats import error

FINAL = "final"
# Of the whole error that classes cause at the output, squared, this much is to be kept at more bits.
COSTLY = 0.8
KEPT_BITS = 8
# Layer and its weight -> what is left of the weight once it is packed.
Restore = Callable[[str, np.ndarray], np.ndarray]


class OpenSession(Session, Protocol):
    """A session whose loaded weights can be looked at and replaced."""

    def exchange(self, stage: str, key: str, value: Any) -> Any:
        """Put a value in place of a loaded tensor; gives what was there, which can be put back."""

    def weight(self, stage: str, key: str) -> np.ndarray:
        """A loaded tensor."""


@dataclass(frozen=True)
class Cost:
    """What quantizing one class does.

    Attributes:
        name: of the class.
        pattern: of its layers, for a rule.
        layers: number of them that can be packed.
        error: relative RMSE at the transformer's output that this class alone causes; the rms over cases.
        saved: bytes that packing it saves.
    """

    name: str
    pattern: str
    layers: int
    error: float
    saved: int

    @property
    def per_gib(self) -> float:
        """Error for each GiB saved."""
        return self.error / (self.saved / 2**30) if self.saved > 0 else math.inf

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"error_per_gib": self.per_gib}


def classes_of(entries: Mapping[str, Entry], group_size: int) -> dict[str, list[str]]:
    """Class -> its layers whose width the group size divides; classes without any are left out."""
    found: dict[str, list[str]] = {name: [] for name in CLASSES}
    for layer in linear_layers({name: entry.true_shape for name, entry in entries.items()}):
        name = class_of(layer)
        if name and entries[f"{layer}.weight"].true_shape[1] % group_size == 0:
            found[name].append(layer)
    return {name: layers for name, layers in found.items() if layers}


def scan(
    session: OpenSession, inputs: State, classes: Mapping[str, Sequence[str]], restore: Restore,
    progress: Callable[[str, int, int], None],
) -> dict[str, float]:  # fmt: skip
    """Class -> relative RMSE at the output when its layers alone are quantized.

    Args:
        session: on the original weights, in the truth's dtype.
        inputs: of one case.
        classes: class -> layers.
        restore: what packing leaves of a weight.
        progress: told stage, stages done, and their number, before each stage.
    """
    truth, chains = inputs, dict.fromkeys(classes, None)
    final: dict[str | None, np.ndarray] = {}
    for done, stage in enumerate(session.stages):
        progress(stage, done, len(session.stages))
        session.load(stage)
        try:
            after, values = session.run(stage, truth, (FINAL,))
            final[None] = values.get(FINAL)
            for name, layers in classes.items():
                mine = [layer for layer in layers if stage_of(layer) == stage]
                if not mine and chains[name] is None:
                    continue
                state = truth if chains[name] is None else chains[name]
                chains[name], final[name] = _run_quantized(session, stage, state, mine, restore)
            truth = after
        finally:
            session.free(stage)
    exact = final[None]
    return {name: error(final[name], exact).rel_rmse if name in final else 0.0 for name in classes}


def _run_quantized(
    session: OpenSession, stage: str, state: State, layers: Sequence[str], restore: Restore
) -> tuple[State, np.ndarray | None]:
    """One stage with some layers quantized, which are put back afterwards."""
    before = {}
    try:
        for layer in layers:
            key = f"{layer}.weight"
            before[key] = session.exchange(stage, key, restore(layer, session.weight(stage, key)))
        after, values = session.run(stage, state, (FINAL,))
    finally:
        for key, value in before.items():
            session.exchange(stage, key, value)
    return after, values.get(FINAL)


def stage_of(layer: str) -> str:
    """The stage of the transformer that a layer belongs to."""
    number = number_in(layer)
    if number is not None:
        return block_stage(number)
    return "head" if layer.startswith(("norm_out", "proj_out")) else "embed"


def costs(
    entries: Mapping[str, Entry], classes: Mapping[str, Sequence[str]], errors: Sequence[Mapping[str, float]],
    bits: int, group_size: int,
) -> list[Cost]:  # fmt: skip
    """The costs of all classes, the largest error first.

    Args:
        entries: of the original weights.
        classes: class -> layers.
        errors: class -> error, of each case.
        bits, group_size: as they were quantized.
    """

    def saved(layer: str) -> int:
        entry = entries[f"{layer}.weight"]
        words, scales = packed_shape(entry.true_shape, bits, group_size)
        wide = DTYPE_BYTES[entry.dtype]
        return wide * math.prod(entry.true_shape) - 4 * math.prod(words) - 2 * wide * math.prod(scales)

    found = [
        Cost(
            name, CLASSES[name], len(layers), math.sqrt(sum(one[name] ** 2 for one in errors) / len(errors)),
            sum(map(saved, layers)),
        )
        for name, layers in classes.items()
    ]  # fmt: skip
    return sorted(found, key=lambda cost: -cost.error)


def rules(found: Sequence[Cost], bits: int) -> list[str]:
    """``--rule`` lines that keep the costliest classes at 8 bits: as few as have most of the squared error."""
    if bits >= KEPT_BITS:
        return []
    total, have, lines = sum(cost.error**2 for cost in found), 0.0, []
    for cost in found:
        if have >= COSTLY * total:
            break
        have += cost.error**2
        lines.append(f"--rule '{cost.pattern}={KEPT_BITS}'")
    return lines
