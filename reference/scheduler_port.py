"""diffusers' scheduler as a component. State keys are those of ``parity.components.scheduler``."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageImg2ImgPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift, retrieve_timesteps

from parity.tap import tap
from reference.scheduler import LIGHTNING, build, read_config
from reference.session import StagedSession


class SchedulerSession(StagedSession):
    """Noise levels, added noise and steps. How many steps there are is the case's, so `stages` is of no length.

    Args:
        folder: the pipeline's.
    """

    stages = ()

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, hold: torch.dtype) -> None:
        super().__init__(None, device, dtype, hold)
        self._config = read_config(folder)

    def parts(self, stage: str) -> list[tuple[str, torch.nn.Module]]:
        """There are no weights."""
        return []

    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, Any]:
        """See `StagedSession.compute`."""
        if stage == "sched.set":
            return state | self._set(state)
        scheduler = build(self._config, self.dtype)
        scheduler.sigmas, scheduler.timesteps = state["sched.sigmas"], state["sched.timesteps"]
        if stage == "sched.noise":
            begin = int(state["sched.begin"])
            scheduler.set_begin_index(begin)
            timesteps = scheduler.timesteps[begin : begin + 1].repeat(len(state["sample"]))
            sample = scheduler.scale_noise(state["sample"], timesteps, state.pop("noise"))
        else:
            step = int(stage.rpartition(".")[2])
            scheduler.set_begin_index(step)
            velocity = state.pop(f"model_output.{step:02d}")
            sample = scheduler.step(velocity, scheduler.timesteps[step], state["sample"], return_dict=False)[0]
        return state | {"sample": tap(f"{stage}.sample", sample)}

    def _set(self, state: dict[str, Any]) -> dict[str, torch.Tensor]:
        """As the text-to-image pipeline sets the levels, and image-to-image leaves some out."""
        steps = int(state["steps"])
        scheduler = build(LIGHTNING if int(state["lightning"]) else self._config, self.dtype)
        mu = _shift(scheduler, int(state["image_tokens"]))
        sigmas = np.linspace(1.0, 1 / steps, steps)
        retrieve_timesteps(scheduler, steps, self.device, sigmas=sigmas, mu=mu)
        if "strength_percent" in state:
            strength = int(state["strength_percent"]) / 100
            QwenImageImg2ImgPipeline.get_timesteps(SimpleNamespace(scheduler=scheduler), steps, strength, self.device)
        tap("sched.mu", torch.tensor([mu], dtype=torch.float32))
        levels = {
            "sigmas": scheduler.sigmas,
            "timesteps": scheduler.timesteps,
            "begin": torch.tensor([scheduler.begin_index or 0]),
        }
        return {f"sched.{name}": tap(f"sched.{name}", value) for name, value in levels.items()}


def _shift(scheduler: FlowMatchEulerDiscreteScheduler, image_tokens: int) -> float:
    config = scheduler.config
    return calculate_shift(
        image_tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
    )
