"""A reference of any PyTorch model, tapped from outside by hooks: weights, dtypes and sessions are here.

    class Mine(ModelPort):
        name = "mine"

        def build(self, folder, dtype):
            model = TheirModel.from_config(…)
            tap_output(model.embed, "embed")
            return model

        def stages(self, model):
            return {"embed": lambda state: {"hidden": model.embed(state["ids"])}, …}

Sessions in float64 are the truth: parameters and buffers are held as the run has them, and widened here. A module that
computes in float32 whatever it is given is an island, which `build` has to widen (`reference.precision.widen_islands`
does it for diffusers' own).
The whole model is in memory once a session has loaded its first stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from parity.tap import tap
from reference.port import ReferencePort
from reference.session import DTYPES, StagedSession

# From the state before a stage to the whole state after it; what is handed on is the same object.
Stage = Callable[[dict[str, Any]], dict[str, Any]]


def tap_output(module: nn.Module, name: str) -> None:
    """Tap what a module returns; of a tuple the first, as transformers' layers return it."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        tap(name, output[0] if isinstance(output, tuple) else output)

    module.register_forward_hook(hook)


def tap_input(module: nn.Module, name: str) -> None:
    """Tap the first thing that a module is given."""

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        tap(name, args[0])

    module.register_forward_pre_hook(hook)


class ModelPort(ABC):
    """A model as a reference (`parity.ports.Port`). A subclass gives `name`, `build` and `stages`.

    Args:
        device: a torch device; CUDA where there is one, else the CPU, when None.
    """

    name: str

    def __init__(self, device: str | None = None) -> None:
        self._torch = ReferencePort(device)
        self.device = self._torch.device

    @abstractmethod
    def build(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        """The model with its hooks; its weights are loaded over those that it is made with."""

    @abstractmethod
    def stages(self, model: nn.Module) -> Mapping[str, Stage]:
        """Stages in the order of the case's graph, each with what computes it."""

    def sanitize(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Stored tensors under the model's own names; as they are, unless a subclass changes them."""
        return weights

    def open(
        self, weights: Path, *, dtype: str, hold: str | None = None, component: str = "", **_: Any
    ) -> ModelSession:
        """See `parity.ports.Port.open`."""
        return ModelSession(self, Path(weights), self.device, DTYPES[dtype], DTYPES[hold or dtype])

    def precisions(self, dtype: str) -> tuple[str, ...]:
        """See `parity.ports.Port.precisions`."""
        return self._torch.precisions(dtype)

    def environment(self) -> dict[str, Any]:
        """See `parity.ports.Port.environment`."""
        return self._torch.environment()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What a model makes itself, buffers of constants, is in this dtype, as when transformers loads one; so the
    truth has the constants that the run has.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class ModelSession(StagedSession):
    """A whole model in one dtype.

    Args:
        port: whose model it is.
        folder: of the weights, ``*.safetensors``.
        device, dtype, hold: see `StagedSession`.
    """

    def __init__(
        self, port: ModelPort, folder: Path, device: torch.device, dtype: torch.dtype, hold: torch.dtype
    ) -> None:
        super().__init__(None, device, dtype, hold)
        self._port, self._folder = port, folder
        with _default_dtype(hold):
            self._model = port.build(folder, dtype).eval().requires_grad_(False)
        self._stages = port.stages(self._model)
        self._has_weights = False
        self.stages: tuple[str, ...] = tuple(self._stages)

    def parts(self, stage: str) -> list[tuple[str, nn.Module]]:
        """None: the model is loaded as a whole."""
        return []

    def load(self, stage: str) -> None:
        """All weights, with the first stage, rounded to the held dtype and widened to the session's.

        Raises:
            RuntimeError: missing, extra or misshaped tensors.
        """
        if self._has_weights:
            return
        stored = {key: x for file in sorted(self._folder.glob("*.safetensors")) for key, x in load_file(file).items()}
        weights = {key: self._held(tensor) for key, tensor in self._port.sanitize(stored).items()}
        self._model.load_state_dict(weights, strict=True, assign=True)
        self._model.requires_grad_(False).to(self.device)
        if self.dtype == torch.float64:
            self._model.to(torch.float64)  # buffers that no file holds
        self._has_weights = True

    def _held(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.hold).to(self.dtype) if tensor.is_floating_point() else tensor

    def free(self, stage: str) -> None:
        """Nothing: the other stages' weights are the same model's."""

    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, Any]:
        """See `StagedSession.compute`."""
        return self._stages[stage](state)
