"""diffusers' pipelines as a session: ``pipeline.encode``, ``step.00`` and on, ``pipeline.decode``.

State keys are those of ``parity.components.pipeline``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel

from parity.layouts.lora import Adapter
from reference import pipeline, scheduler, vae
from reference.session import StagedSession
from reference.text_port import TextSession
from reference.transformer_port import with_adapters
from reference.vision_port import VisionSession
from reference.weights import Shards


class PipelineSession(StagedSession):
    """A model's pipelines in one dtype. How many steps there are is the case's, so `stages` is of no length.

    Args:
        folder: of the model.
        device, dtype, hold: see `StagedSession`.
        adapters: LoRAs of the transformer.
    """

    stages = ()

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        hold: torch.dtype,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        super().__init__(None, device, dtype, hold)
        self._components = Components(folder, device, dtype, hold, adapters)

    def parts(self, stage: str) -> list[tuple[str, torch.nn.Module]]:
        """None of its own: components are loaded when the stage comes to them; which ones is the request's."""
        return []

    def free(self, stage: str) -> None:
        """See `StagedSession.free`."""
        self._components.free()

    def take(self, key: str, array: np.ndarray) -> Any:
        """See `StagedSession.take`; the guidance scale stays as wide as it is."""
        return torch.from_numpy(array) if key == "sched.guidance" else super().take(key, array)

    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, Any]:
        """See `StagedSession.compute`."""
        components = self._components
        if stage == "pipeline.encode":
            made = pipeline.encode(components, pipeline.Request.of(state))
            return made | {"sched.guidance": state["sched.guidance"]}
        inputs = state | {"img_shapes": [tuple(shape) for shape in state["img_shapes"].tolist()]}
        if stage == "pipeline.decode":
            return {"image": pipeline.decode(components.vae, inputs)}
        index = int(stage.rpartition(".")[2])
        latents = pipeline.step(components.transformer, components.scheduler, index, inputs, self.hold)
        return state | {"latents": latents}


class Components:
    """The parts of a model, each made and loaded at its first use; see `pipeline.Parts`.

    Args:
        folder: of the model.
        device, dtype, hold: see `StagedSession`.
        adapters: LoRAs of the transformer.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        hold: torch.dtype,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        self.device, self.dtype, self.hold = device, dtype, hold
        self._folder, self._adapters = folder, tuple(adapters)
        self._sessions: dict[str, StagedSession] = {}
        self._loaded: set[str] = set()

    @property
    def transformer(self) -> QwenImageTransformer2DModel:
        """With its weights."""
        return self._session("transformer", self._whole).module

    @property
    def vae(self) -> AutoencoderKLQwenImage:
        """With its weights."""
        return self._session("vae", self._whole).module

    @property
    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """A new one."""
        return scheduler.build(scheduler.read_config(self._folder), self.dtype)

    def see(self, pictures: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """See `pipeline.Parts.see`."""
        shown = {f"image.{index:02d}": torch.from_numpy(picture) for index, picture in enumerate(pictures)}
        return _through(self._session("vision", self._staged), shown)

    def read(
        self, template: int, prompts: Sequence[str], seen: dict[str, torch.Tensor], longest: int
    ) -> dict[str, torch.Tensor]:
        """See `pipeline.Parts.read`."""
        texts = {
            f"prompt.{index:02d}": torch.from_numpy(np.frombuffer(prompt.encode(), np.uint8).copy())
            for index, prompt in enumerate(prompts)
        }
        numbers = {"template": torch.tensor(template), "max_sequence_length": torch.tensor(longest)}
        return _through(self._session("text", self._staged), texts | numbers | seen)

    def free(self) -> None:
        """Give all weights back; modules and tokenizers stay."""
        for name in self._loaded:
            session = self._sessions[name]
            for stage in session.stages:
                session.free(stage)
        self._loaded.clear()

    def _session(self, name: str, open_it: Callable[[str], StagedSession]) -> Any:
        """A component's session with the weights of all its stages."""
        if name not in self._sessions:
            self._sessions[name] = open_it(name)
        session = self._sessions[name]
        if name not in self._loaded:
            for stage in session.stages:
                session.load(stage)
            self._loaded.add(name)
        return session

    def _staged(self, name: str) -> StagedSession:
        kind = {"text": TextSession, "vision": VisionSession}[name]
        return kind(self._folder, self.device, self.dtype, self.hold)

    def _whole(self, name: str) -> StagedSession:
        shards = Shards(self._folder, name)
        if name == "vae":
            module: torch.nn.Module = vae.build(shards.config, self.dtype)
        else:
            module, shards = with_adapters(shards, self.dtype, self.device, self._adapters)
        return _Whole(module, shards, self.device, self.dtype, self.hold)


class _Whole(StagedSession):
    """A module with its weights, for callers that run it themselves."""

    stages = ("all",)

    def __init__(self, module: torch.nn.Module, *session: Any) -> None:
        super().__init__(*session)
        self.module = module

    def parts(self, stage: str) -> list[tuple[str, torch.nn.Module]]:
        """See `StagedSession.parts`."""
        return list(self.module.named_children())

    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, Any]:
        """See `StagedSession.compute`: the module is not run here."""
        return state


def _through(session: StagedSession, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state after all stages, with the token ids that the last one does not hand on."""
    ids = None
    for stage in session.stages:
        state = session.compute(stage, {key: tensor.to(session.device) for key, tensor in state.items()})
        ids = state.get("ids", ids)
    return state if ids is None else state | {"ids": ids}
