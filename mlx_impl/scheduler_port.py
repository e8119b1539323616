"""The scheduler as a component of the port. State keys are those of ``parity.components.scheduler``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from parity.tap import tap

from .scheduler import LIGHTNING, FlowMatchEulerDiscreteScheduler, SchedulerConfig
from .session import StagedSession


class SchedulerSession(StagedSession):
    """Noise levels, added noise and steps. How many steps there are is the case's, so `stages` is of no length.

    Args:
        folder: the pipeline's.
    """

    stages = ()

    def __init__(self, folder: Path, dtype: mx.Dtype, hold: mx.Dtype) -> None:
        super().__init__(dtype, hold)
        self._config = SchedulerConfig.from_folder(folder / "scheduler")

    def load_stage(self, stage: str) -> None:
        """There are no weights."""

    def free_stage(self, stage: str) -> None:
        """There are no weights."""

    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, Any]:
        """See `StagedSession.compute`."""
        if stage == "sched.set":
            return state | self._set(state)
        scheduler = FlowMatchEulerDiscreteScheduler(self._config)
        scheduler.sigmas, scheduler.timesteps = (np.array(state[f"sched.{name}"]) for name in ("sigmas", "timesteps"))
        if stage == "sched.noise":
            begin = int(state["sched.begin"].item())
            scheduler.set_begin_index(begin)
            timesteps = np.repeat(scheduler.timesteps[begin], len(state["sample"]))
            sample = scheduler.scale_noise(state["sample"], timesteps, state.pop("noise"))
        else:
            step = int(stage.rpartition(".")[2])
            scheduler.set_begin_index(step)
            velocity = state.pop(f"model_output.{step:02d}")
            sample = scheduler.step(velocity, scheduler.timesteps[step], state["sample"])
        return state | {"sample": tap(f"{stage}.sample", sample)}

    def _set(self, state: dict[str, Any]) -> dict[str, mx.array]:
        config = LIGHTNING if state["lightning"].item() else self._config
        scheduler = FlowMatchEulerDiscreteScheduler(config)
        mu = scheduler.prepare(state["steps"].item(), state["image_tokens"].item())
        if "strength_percent" in state:
            scheduler.truncate(state["strength_percent"].item() / 100)
        tap("sched.mu", mx.array([mu]))
        levels = {
            "sigmas": scheduler.sigmas,
            "timesteps": scheduler.timesteps,
            "begin": np.array([scheduler.begin_index or 0], np.int64),
        }
        return {f"sched.{name}": tap(f"sched.{name}", mx.array(value)) for name, value in levels.items()}
