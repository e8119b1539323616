"""diffusers' pipelines as a session: ``pipeline.encode``, ``step.00`` and on, ``pipeline.decode``.

State keys are those of ``parity.components.pipeline``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel

from reference import pipeline, scheduler, transformer, vae
from reference.session import StagedSession
from reference.text_port import TextSession
from reference.vision_port import VisionSession
from reference.weights import Shards


class PipelineSession(StagedSession):
    """A model's pipelines in one dtype. How many steps there are is the case's, so `stages` is of no length.

    Args:
        folder: of the model.
        device, dtype, hold: see `StagedSession`.
    """

    stages = ()

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, hold: torch.dtype) -> None:
        super().__init__(None, device, dtype, hold)
        self._open = lambda: Components(folder, device, dtype, hold)
        self._components: Components | None = None

    def load(self, stage: str) -> None:
        """Components are loaded when the stage comes to them: which ones is the request's."""
        self._components = self._open()

    def free(self, stage: str) -> None:
        """See `StagedSession.free`."""
        self._components = None

    def take(self, key: str, array: np.ndarray) -> Any:
        """See `StagedSession.take`; the guidance scale stays as wide as it is."""
        return torch.from_numpy(array) if key == "sched.guidance" else super().take(key, array)

    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, Any]:
        """See `StagedSession.compute`."""
        components = self._components
        if stage == "pipeline.encode":
            made = pipeline.encode(components, pipeline.Request.of(state))
            return made | {"sched.guidance": state["sched.guidance"]}
        shapes = [tuple(shape) for shape in state["img_shapes"].tolist()]
        if stage == "pipeline.decode":
            return {"image": pipeline.decode(components.vae, state | {"img_shapes": shapes})}
        index = int(stage.rpartition(".")[2])
        inputs = state | {"img_shapes": shapes}
        latents = pipeline.step(components.transformer, components.scheduler, index, inputs, self.hold)
        return state | {"latents": latents}


class Components:
    """The parts of a model, each loaded at its first use; see `pipeline.Parts`.

    Args:
        folder: of the model.
        device, dtype, hold: see `StagedSession`.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, hold: torch.dtype) -> None:
        self.device, self.dtype, self.hold = device, dtype, hold
        self._folder = folder

    @cached_property
    def transformer(self) -> QwenImageTransformer2DModel:
        """With its weights."""
        shards = Shards(self._folder)
        return self._whole(shards, transformer.build(shards.config, self.dtype, self.device))

    @cached_property
    def vae(self) -> AutoencoderKLQwenImage:
        """With its weights."""
        shards = Shards(self._folder, "vae")
        return self._whole(shards, vae.build(shards.config, self.dtype))

    @property
    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """A new one."""
        return scheduler.build(scheduler.read_config(self._folder), self.dtype)

    def see(self, pictures: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """See `pipeline.Parts.see`."""
        shown = {f"image.{index:02d}": torch.from_numpy(picture) for index, picture in enumerate(pictures)}
        return _through(self._vision, shown)

    def read(
        self, template: int, prompts: Sequence[str], seen: dict[str, torch.Tensor], longest: int
    ) -> dict[str, torch.Tensor]:
        """See `pipeline.Parts.read`."""
        texts = {
            f"prompt.{index:02d}": torch.from_numpy(np.frombuffer(prompt.encode(), np.uint8).copy())
            for index, prompt in enumerate(prompts)
        }
        numbers = {"template": torch.tensor(template), "max_sequence_length": torch.tensor(longest)}
        return _through(self._text, texts | numbers | seen)

    @cached_property
    def _vision(self) -> VisionSession:
        return _loaded(VisionSession(self._folder, self.device, self.dtype, self.hold))

    @cached_property
    def _text(self) -> TextSession:
        return _loaded(TextSession(self._folder, self.device, self.dtype, self.hold))

    def _whole(self, shards: Shards, module: Any) -> Any:
        """A module with the weights of all its parts."""
        _loaded(_Whole(module, shards, self.device, self.dtype, self.hold))
        return module


class _Whole(StagedSession):
    """Loads a module that is not run in stages."""

    stages = ("all",)

    def __init__(self, module: torch.nn.Module, *session: Any) -> None:
        super().__init__(*session)
        self._module = module

    def parts(self, stage: str) -> list[tuple[str, torch.nn.Module]]:
        """See `StagedSession.parts`."""
        return list(self._module.named_children())


def _loaded(session: StagedSession) -> Any:
    """The session with the weights of all its stages."""
    for stage in session.stages:
        session.load(stage)
    return session


def _through(session: StagedSession, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state after all stages, and token ids, which no stage takes out."""
    ids = {}
    for stage in session.stages:
        state = session.compute(stage, state)
        ids |= {key: state[key] for key in ("ids",) if key in state}
    return ids | state
