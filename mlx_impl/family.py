"""A port of any model in MLX, for whoever has a module with taps: weights, numpy at the border and sessions are here.

    class Mine(ModelPort):
        name = "mine"

        def build(self, folder):
            return MyModel(json.loads((folder / "config.json").read_text()))

        def stages(self, model):
            return {"embed": lambda state: {"hidden": model.embed(state["ids"])}, …}

The whole model is in memory once a session has loaded its first stage. A model larger than memory wants a
`StagedSession` of its own, which loads and frees a stage at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .port import MlxPort
from .session import StagedSession
from .weights import mlx_dtype

# From the state before a stage to the whole state after it; what is handed on is the same object.
Stage = Callable[[dict[str, Any]], dict[str, Any]]


class ModelPort(ABC):
    """A model as a port (`parity.ports.Port`). A subclass gives `name`, `build` and `stages`."""

    name: str

    @abstractmethod
    def build(self, folder: Path) -> nn.Module:
        """The model without its weights; paths of its parameters are the keys that `sanitize` gives."""

    @abstractmethod
    def stages(self, model: nn.Module) -> Mapping[str, Stage]:
        """Stages in the order of the case's graph, each with what computes it."""

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Stored tensors under the model's own names and axes; as they are, unless a subclass changes them."""
        return weights

    def open(
        self, weights: Path, *, dtype: str, hold: str | None = None, component: str = "", **_: Any
    ) -> ModelSession:
        """See `parity.ports.Port.open`."""
        return ModelSession(self, Path(weights), mlx_dtype(dtype), mlx_dtype(hold or dtype))

    def precisions(self, dtype: str) -> tuple[str, ...]:
        """See `parity.ports.Port.precisions`."""
        return MlxPort().precisions(dtype)

    def environment(self) -> dict[str, Any]:
        """See `parity.ports.Port.environment`."""
        return MlxPort().environment()


class ModelSession(StagedSession):
    """A whole model in one dtype.

    Args:
        port: whose model it is.
        folder: of the weights, ``*.safetensors``.
        dtype, hold: see `StagedSession`.
    """

    def __init__(self, port: ModelPort, folder: Path, dtype: mx.Dtype, hold: mx.Dtype) -> None:
        super().__init__(dtype, hold)
        self._port, self._folder = port, folder
        self._model = port.build(folder)
        self._stages = port.stages(self._model)
        self._has_weights = False
        self.stages: tuple[str, ...] = tuple(self._stages)

    def load_stage(self, stage: str) -> None:
        """All weights, with the first stage.

        Raises:
            ValueError: missing, extra or misshaped arrays.
        """
        if self._has_weights:
            return
        stored = {
            key: array
            for file in sorted(self._folder.glob("*.safetensors"))
            for key, array in mx.load(str(file)).items()
        }
        weights = [(key, self._cast(array)) for key, array in self._port.sanitize(stored).items()]
        self._model.load_weights(weights, strict=True)
        self._model.eval()
        mx.eval(self._model.parameters())
        self._has_weights = True

    def _cast(self, array: mx.array) -> mx.array:
        return array.astype(self.hold).astype(self.dtype) if mx.issubdtype(array.dtype, mx.floating) else array

    def free_stage(self, stage: str) -> None:
        """Nothing: the other stages' weights are the same model's."""

    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, Any]:
        """See `StagedSession.compute`."""
        return self._stages[stage](state)
