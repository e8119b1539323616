"""The reference as a port: stages with weights loaded and freed, numpy at the border."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from parity.names import block_stage
from parity.tap import Recorder, recording
from reference import precision as precisions_
from reference import transformer
from reference.weights import Shards

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# The modules that a stage outside the blocks owns.
EMBED_PARTS = ("img_in", "txt_norm", "txt_in", "time_text_embed")
HEAD_PARTS = ("norm_out", "proj_out")


class ReferencePort:
    """diffusers on the best device of this machine.

    Args:
        device: a torch device; CUDA where there is one, else the CPU, when None.
    """

    name = "diffusers"

    def __init__(self, device: str | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def open(self, weights: Path, *, dtype: str, hold: str | None = None) -> ReferenceSession:
        """See `parity.ports.Port.open`."""
        return ReferenceSession(Shards(Path(weights)), self.device, DTYPES[dtype], DTYPES[hold or dtype])

    def precisions(self, dtype: str) -> tuple[str, ...]:
        """See `parity.ports.Port.precisions`."""
        return precisions_.modes(DTYPES[dtype], self.device)

    def environment(self) -> dict[str, Any]:
        """Versions, device, threads and matmul precision of this process."""
        cuda = self.device.type == "cuda"
        return {
            "torch": torch.__version__,
            "diffusers": version("diffusers"),
            "transformers": version("transformers"),
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "threads": torch.get_num_threads(),
            "tf32": bool(cuda and torch.backends.cuda.matmul.allow_tf32),
            "half_gemm": "native" if cuda else "float32 accumulation, rounded once",
        }


class ReferenceSession:
    """One diffusers transformer in one dtype, on one checkpoint."""

    def __init__(self, shards: Shards, device: torch.device, dtype: torch.dtype, hold: torch.dtype) -> None:
        self._shards, self._device, self._dtype, self._hold = shards, device, dtype, hold
        self._model = transformer.build(shards.config, dtype, device)
        layers = len(self._model.transformer_blocks)
        self._index = {block_stage(i): i for i in range(layers)}
        self.stages: tuple[str, ...] = ("embed", *self._index, "head")

    def load(self, stage: str) -> None:
        """Read the stage's weights, round them to the held dtype, widen to the session's."""
        for prefix, module in self._parts(stage):
            weights = {
                key: tensor.to(self._hold).to(device=self._device, dtype=self._dtype)
                for key, tensor in self._shards.read(prefix + ".")
            }
            module.load_state_dict(weights, strict=True, assign=True)
            if self._device.type == "cpu" and self._dtype in precisions_.HALF:
                _widen_linears(module)

    def free(self, stage: str) -> None:
        """Give the stage's weights back."""
        for _, module in self._parts(stage):
            module.to("meta")

    def run(
        self, stage: str, state: Mapping[str, np.ndarray], want: Collection[str], *, precision: str = "default"
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """See `parity.ports.Session.run`."""
        with (
            torch.no_grad(),
            precisions_.mode(precision, self._dtype, self._device),
            recording(Recorder(frozenset(want))) as recorder,
        ):
            after = self.run_tensors(stage, self._take(state))
        passed_on = {key: state[key] for key in after if key in state and key not in ("img", "txt")}
        made = {key: _to_numpy(value) for key, value in after.items() if key not in passed_on}
        return made | passed_on, {name: _to_numpy(value) for name, value in recorder.values.items()}

    def run_tensors(self, stage: str, state: transformer.Tensors) -> transformer.Tensors:
        """The same on torch tensors, within whatever recorder and precision are active."""
        if stage == "embed":
            carried = {key: state[key] for key in state if key == "img_shapes" or key.startswith("controlnet.")}
            return transformer.embed(self._model, state) | carried
        if stage == "head":
            return transformer.head(self._model, state)
        return transformer.block(self._model, self._index[stage], state)

    def module(self, stage: str) -> torch.nn.Module:
        """The block behind a block stage; the whole model for ``embed`` and ``head``."""
        return self._model.transformer_blocks[self._index[stage]] if stage in self._index else self._model

    def _parts(self, stage: str) -> list[tuple[str, torch.nn.Module]]:
        if stage in self._index:
            return [(f"transformer_blocks.{self._index[stage]}", self.module(stage))]
        return [(part, getattr(self._model, part)) for part in (EMBED_PARTS if stage == "embed" else HEAD_PARTS)]

    def _take(self, state: Mapping[str, np.ndarray]) -> transformer.Tensors:
        return {key: self._tensor(key, array) for key, array in state.items()}

    def _tensor(self, key: str, array: np.ndarray) -> Any:
        if key == "img_shapes":
            return [tuple(int(n) for n in shape) for shape in array]
        tensor = _from_numpy(array).to(self._device)
        if key.startswith("rope."):
            exact = self._dtype == torch.float64
            return torch.view_as_complex(tensor.to(torch.float64 if exact else torch.float32).contiguous())
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


def _widen_linears(module: torch.nn.Module) -> None:
    """Hold the weights of linear layers in float32, so that they are widened once, not at each call."""
    for part in module.modules():
        if isinstance(part, torch.nn.Linear):
            part.float()


def _from_numpy(array: np.ndarray) -> torch.Tensor:
    array = np.ascontiguousarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if not isinstance(tensor, torch.Tensor):
        return np.asarray(tensor)
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    tensor = tensor.cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
