"""diffusers' FlowMatchEulerDiscreteScheduler, and the same in float64 for the truth."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.overrides import TorchFunctionMode

# What Qwen-Image-Lightning publishes in place of the checkpoint's own config.
LIGHTNING: dict[str, Any] = {
    "base_image_seq_len": 256,
    "base_shift": math.log(3),
    "invert_sigmas": False,
    "max_image_seq_len": 8192,
    "max_shift": math.log(3),
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}


class _StaysWide(TorchFunctionMode):
    """``x.to(torch.float32)`` of a float64 tensor gives the tensor itself."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to and args[0].dtype == torch.float64 and args[1:] == (torch.float32,):
            return args[0]
        return func(*args, **(kwargs or {}))


class WideScheduler(FlowMatchEulerDiscreteScheduler):
    """The scheduler for float64 samples: its step is not narrowed to float32.

    Noise levels and timesteps are float32 by definition, as weights are of their dtype; the truth
    takes those same numbers and computes with them in float64.
    """

    # Pipelines look at the signature for whether levels of their own may be given.
    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None) -> None:
        """As diffusers'; the levels are widened afterwards."""
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
        self.sigmas = self.sigmas.double()

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """As diffusers', in float64."""
        with _StaysWide():
            return super().step(*args, **kwargs)


def build(config: dict[str, Any], dtype: torch.dtype) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of a config; float64 gives one that computes in float64."""
    kind = WideScheduler if dtype == torch.float64 else FlowMatchEulerDiscreteScheduler
    return kind.from_config(config)


def read_config(folder: Path) -> dict[str, Any]:
    """``scheduler_config.json`` of a pipeline's folder."""
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
