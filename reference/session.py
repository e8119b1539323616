"""What the reference's sessions of all components share: stages with weights loaded and freed, numpy at the border."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch

from parity.tap import Recorder, recording
from reference import precision as precisions_
from reference.weights import Shards

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# Bytes of a weight that is widened when it is loaded: doing it at each use would show.
_SMALL = 4 << 20


class StagedSession(ABC):
    """One component of the reference in one dtype. A subclass gives `stages`, `parts` and `compute`.

    Args:
        shards: the component's weights.
        device: where it computes.
        dtype: of weights and activations.
        hold: dtype the weights are rounded to before they are widened to `dtype`.
    """

    stages: tuple[str, ...]

    def __init__(self, shards: Shards | None, device: torch.device, dtype: torch.dtype, hold: torch.dtype) -> None:
        self.shards, self.device, self.dtype, self.hold = shards, device, dtype, hold

    @abstractmethod
    def parts(self, stage: str) -> list[tuple[str, torch.nn.Module]]:
        """(prefix of the checkpoint's keys, module) of everything with weights that a stage owns."""

    @abstractmethod
    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, Any]:
        """The whole state after the stage; entries that are the same objects as in `state` are passed on."""

    def take(self, key: str, array: np.ndarray) -> Any:
        """One array of a state as the model takes it: rotary tables in float32, other floats in the dtype.

        In a float64 session everything stays in float64.
        """
        tensor = from_numpy(array).to(self.device)
        if not tensor.is_floating_point():
            return tensor
        if key.startswith(("rope.", "sched.")) and self.dtype != torch.float64:
            return tensor.to(torch.float32)
        return tensor.to(self.dtype)

    def load(self, stage: str) -> None:
        """Read the stage's weights, round them to the held dtype, widen to the session's.

        What packed weights stand for is rounded to the session's dtype only: the truth has it exactly.
        On a CPU those of large linear layers are left to `reference.precision` to widen.
        """
        packed = self.shards.packed if self.shards else frozenset()
        for prefix, module in self.parts(stage):
            linear = _linear_weights(module) if self.device.type == "cpu" else frozenset()
            weights = {}
            for key, tensor in self.shards.read(prefix + "."):
                hold = self.dtype if f"{prefix}.{key}" in packed else self.hold
                weights[key] = self._narrow(tensor, hold) if key in linear else self._wide(tensor, hold)
            module.load_state_dict(weights, strict=True, assign=True)

    def _wide(self, tensor: torch.Tensor, hold: torch.dtype) -> torch.Tensor:
        return tensor.to(hold).to(device=self.device, dtype=self.dtype)

    def _narrow(self, tensor: torch.Tensor, hold: torch.dtype) -> torch.Tensor:
        """A linear layer's weight on a CPU: held values, in as few bytes as they need; wide where they are few."""
        held = tensor if torch.promote_types(tensor.dtype, hold) == hold else tensor.to(hold)
        if tensor.nbytes > _SMALL:
            return held
        return held.to(torch.float32 if self.dtype in precisions_.HALF else self.dtype)

    def weight(self, stage: str, key: str) -> np.ndarray:
        """A loaded tensor by its key in the checkpoint, as it is held."""
        module, name = self._owner(stage, key)
        return to_numpy(getattr(module, name))

    def exchange(self, stage: str, key: str, value: np.ndarray | torch.nn.Parameter) -> torch.nn.Parameter:
        """Put another value in place of a loaded tensor, until the stage is freed.

        Returns:
            what was there, which can be put back.
        """
        module, name = self._owner(stage, key)
        before = getattr(module, name)
        if not isinstance(value, torch.nn.Parameter):
            tensor = from_numpy(value).to(self.device)
            # On a CPU linear layers widen narrower weights themselves.
            value = torch.nn.Parameter(tensor if self.device.type == "cpu" else tensor.to(self.dtype), False)
        setattr(module, name, value)
        return before

    def _owner(self, stage: str, key: str) -> tuple[torch.nn.Module, str]:
        for prefix, module in self.parts(stage):
            if key.startswith(f"{prefix}."):
                path, _, name = key[len(prefix) + 1 :].rpartition(".")
                return module.get_submodule(path), name
        raise KeyError(f"{stage} has no {key}")

    def free(self, stage: str) -> None:
        """Give the stage's weights back."""
        for _, module in self.parts(stage):
            module.to("meta")

    def run(
        self, stage: str, state: Mapping[str, np.ndarray], want: Collection[str], *, precision: str = "default"
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """See `parity.ports.Session.run`."""
        taken = {key: self.take(key, array) for key, array in state.items()}
        with (
            torch.no_grad(),
            precisions_.mode(precision, self.dtype, self.device),
            recording(Recorder(frozenset(want))) as recorder,
        ):
            after = self.compute(stage, dict(taken))
        # What a stage hands on as it got it stays the array it was, in its own dtype.
        passed = {key: state[key] for key, value in after.items() if key in taken and value is taken[key]}
        made = {key: to_numpy(value) for key, value in after.items() if key not in passed}
        return made | passed, {name: to_numpy(value) for name, value in recorder.values.items()}


def _linear_weights(module: torch.nn.Module) -> frozenset[str]:
    """Keys of the weights of all linear layers in a module, but for a LoRA's factors: their dtype says in which
    dtype PEFT computes with them.
    """
    return frozenset(
        f"{name}.weight".removeprefix(".")
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Linear) and ".lora_" not in f".{name}"
    )


def from_numpy(array: np.ndarray) -> torch.Tensor:
    """A numpy array in torch; bfloat16 by its bits."""
    array = np.ascontiguousarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor in numpy; complex numbers as pairs, bfloat16 as ``ml_dtypes.bfloat16``."""
    if not isinstance(tensor, torch.Tensor):
        return np.asarray(tensor)
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    tensor = tensor.cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
