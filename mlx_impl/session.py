"""What the sessions of all components share: numpy at the border, taps recorded, lazy work done at once.

A component's session says which stages there are, how the weights of one are loaded and freed, and
what one computes. Keys, shapes and dtypes of the states are given in ``parity.ports``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np

from parity.tap import Recorder, recording

State = dict[str, np.ndarray]


class StagedSession(ABC):
    """One component in one dtype. A subclass gives `stages`, `load_stage`, `free_stage` and `compute`.

    Args:
        dtype: dtype of weights and activations.
        hold: dtype the weights are rounded to first.
    """

    stages: tuple[str, ...]

    def __init__(self, dtype: mx.Dtype, hold: mx.Dtype) -> None:
        self.dtype, self.hold = dtype, hold
        self._loaded: set[str] = set()

    @abstractmethod
    def load_stage(self, stage: str) -> None:
        """Bring the stage's weights into memory."""

    @abstractmethod
    def free_stage(self, stage: str) -> None:
        """Let go of the stage's weights."""

    @abstractmethod
    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, mx.array]:
        """The whole state after the stage; entries that are the same objects as in `state` are passed on."""

    def take(self, key: str, array: np.ndarray) -> Any:
        """One array of a state as the model takes it: rotary tables in float32, other floats in the dtype."""
        if key.startswith(("rope.", "sched.")):
            return mx.array(np.asarray(array, dtype=np.float32))
        taken = from_numpy(array)
        return taken.astype(self.dtype) if mx.issubdtype(taken.dtype, mx.floating) else taken

    def show(self, name: str, value: mx.array) -> mx.array:
        """A recorded checkpoint in the reference's shape; a component with another layout moves its axes here."""
        return value

    def load(self, stage: str) -> None:
        """See `parity.ports.Session.load`."""
        self.load_stage(stage)
        self._loaded.add(stage)

    def free(self, stage: str) -> None:
        """See `parity.ports.Session.free`."""
        self.free_stage(stage)
        self._loaded.discard(stage)
        mx.clear_cache()

    def run(
        self, stage: str, state: Mapping[str, np.ndarray], want: Collection[str], *, precision: str = "default"
    ) -> tuple[State, State]:
        """See `parity.ports.Session.run`.

        Raises:
            ValueError: the stage is not loaded, or there is no such precision mode.
        """
        if stage not in self._loaded:
            raise ValueError(f"stage {stage} is not loaded")
        if precision != "default":
            raise ValueError(f"precision mode {precision!r}: this port has only 'default'")
        taken = {key: self.take(key, array) for key, array in state.items()}
        with recording(Recorder(frozenset(want))) as recorder:
            after = self.compute(stage, dict(taken))
        # What a stage hands on as it got it stays the array it was, in its own dtype.
        passed = {key: state[key] for key, value in after.items() if key in taken and value is taken[key]}
        made = {key: value for key, value in after.items() if key not in passed}
        shown = {name: self.show(name, value) for name, value in recorder.values.items()}
        mx.eval(list(made.values()), list(shown.values()))
        return {key: to_numpy(value) for key, value in made.items()} | passed, {
            name: to_numpy(value) for name, value in shown.items()
        }


def from_numpy(array: np.ndarray) -> mx.array:
    """A numpy array in MLX; bfloat16 by its bits, float64 as float32."""
    array = np.ascontiguousarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        return mx.array(array.view(np.uint16)).view(mx.bfloat16)
    return mx.array(array.astype(np.float32) if array.dtype == np.float64 else array)


def to_numpy(array: mx.array) -> np.ndarray:
    """An MLX array in numpy; bfloat16 as ``ml_dtypes.bfloat16``."""
    if array.dtype == mx.bfloat16:
        return np.array(array.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.array(array)
