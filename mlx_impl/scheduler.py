"""FlowMatchEulerDiscrete: the noise levels of a picture and the Euler step along them, as diffusers 0.42.1 has them.

n steps, B batch, L image tokens, C channels of a latent token.

Noise levels are small float32 arrays in numpy, made by the reference's operations in the
reference's order and precision, so that they are equal bit for bit; samples are MLX arrays.
Attributes and arguments are named as in diffusers' ``FlowMatchEulerDiscreteScheduler``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

CLASS_NAME = "FlowMatchEulerDiscreteScheduler"
CONFIG = "scheduler_config.json"
# Fields of the diffusers class that no Qwen-Image checkpoint switches on. Each would change every number.
SWITCHES = ("invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "stochastic_sampling")
SHIFT_TYPES = ("exponential", "linear")


@dataclass(frozen=True)
class SchedulerConfig:
    """``scheduler_config.json``, with the defaults of the diffusers class.

    Attributes:
        num_train_timesteps: timesteps are noise levels times this.
        shift: static shift, where `use_dynamic_shifting` is off.
        use_dynamic_shifting: shift by the size of the picture.
        base_shift, max_shift: shift at `base_image_seq_len` and at `max_image_seq_len` image tokens.
        shift_terminal: the last noise level before 0; None leaves it where the shift puts it.
        time_shift_type: ``exponential`` or ``linear``.

    Raises:
        ValueError: a value that this scheduler does not support.
    """

    num_train_timesteps: int = 1000
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    shift_terminal: float | None = None
    time_shift_type: str = "exponential"

    def __post_init__(self) -> None:
        if self.time_shift_type not in SHIFT_TYPES:
            raise ValueError(f"time_shift_type {self.time_shift_type!r}: expected {' or '.join(SHIFT_TYPES)}")
        if self.num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps {self.num_train_timesteps}: expected at least 1")
        if self.base_image_seq_len == self.max_image_seq_len:
            raise ValueError(f"base_image_seq_len and max_image_seq_len are both {self.max_image_seq_len}")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> SchedulerConfig:
        """Read a config. Keys with a leading underscore (class name, version) set nothing.

        Raises:
            ValueError: another scheduler's config, keys that are not known, or a switch that is not supported.
        """
        made_for = config.get("_class_name", CLASS_NAME)
        if made_for != CLASS_NAME:
            raise ValueError(f"scheduler {made_for}: only {CLASS_NAME} is supported")
        given = {key: value for key, value in config.items() if not key.startswith("_")}
        known = {field.name for field in fields(cls)}
        if strangers := sorted(given.keys() - known - set(SWITCHES)):
            raise ValueError(f"config has unknown keys {', '.join(strangers)}; known: {', '.join(sorted(known))}")
        if switched_on := [key for key in SWITCHES if given.pop(key, False)]:
            raise ValueError(f"scheduler config sets {', '.join(switched_on)}, which is not supported")
        return cls(**given)

    @classmethod
    def from_folder(cls, folder: Path) -> SchedulerConfig:
        """Read ``scheduler_config.json`` of a scheduler's folder."""
        return cls.from_dict(json.loads((folder / CONFIG).read_text()))


# The published settings of Qwen-Image-Lightning: the same shift for every size, and no stretch at the end.
LIGHTNING = SchedulerConfig(
    use_dynamic_shifting=True, base_shift=math.log(3), max_shift=math.log(3), max_image_seq_len=8192
)


def calculate_shift(image_tokens: int, config: SchedulerConfig) -> float:
    """mu: the dynamic shift of a picture, on the straight line through the config's two points."""
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    offset = config.base_shift - slope * config.base_image_seq_len
    return image_tokens * slope + offset


class FlowMatchEulerDiscreteScheduler:
    """Noise levels from almost pure noise (1) to the picture (0), and the steps between them.

    Attributes:
        sigmas: n + 1 noise levels, float32; the last one is 0.
        timesteps: n, float32: the first n levels times `num_train_timesteps`.
        begin_index: where the steps begin; None looks the first timestep up.
        step_index: which step comes next; None before the first.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.sigmas = np.zeros(1, np.float32)
        self.timesteps = np.zeros(0, np.float32)
        self.begin_index: int | None = None
        self.step_index: int | None = None

    def prepare(self, steps: int, image_tokens: int, sigmas: Sequence[float] | None = None) -> float:
        """Set the noise levels as the Qwen-Image pipelines do: from 1 to 1/n in even steps, then shifted.

        Args:
            steps: n, at least 1; with `sigmas` their number is n.
            image_tokens: L of the picture that is made.
            sigmas: n levels of the caller's own, before the shift.

        Returns:
            mu.

        Raises:
            ValueError: no steps.
        """
        if sigmas is None:
            if steps < 1:
                raise ValueError(f"steps is {steps}, expected at least 1")
            sigmas = np.linspace(1.0, 1 / steps, steps)
        mu = calculate_shift(image_tokens, self.config)
        self.set_timesteps(sigmas=sigmas, mu=mu)
        return mu

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        *,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Set the noise levels, and begin at the first one.

        Args:
            num_inference_steps: n; levels from the highest trained to the lowest, if none are given.
            sigmas: n levels before the shift.
            mu: the dynamic shift, where the config asks for one.
            timesteps: n timesteps, kept as they are; without `sigmas` the levels come from them.

        Raises:
            ValueError: nothing is given, numbers that do not agree, or `mu` is missing.
        """
        lengths = {len(given) for given in (sigmas, timesteps) if given is not None}
        lengths |= {num_inference_steps} - {None}
        if len(lengths) != 1 or min(lengths) < 1:
            said = f"{num_inference_steps} steps, {_count(sigmas)} sigmas, {_count(timesteps)} timesteps"
            raise ValueError(f"{said}: at least one of the three must be given, the same number of each, at least 1")
        if self.config.use_dynamic_shifting and mu is None:
            raise ValueError("mu is needed where the config sets use_dynamic_shifting")
        own_timesteps = None if timesteps is None else np.array(timesteps).astype(np.float32)
        if sigmas is not None:
            levels = np.array(sigmas).astype(np.float32)
        elif own_timesteps is not None:
            levels = own_timesteps / self.config.num_train_timesteps
        else:
            # In float64 up to the end, as in the reference.
            ends = [sigma * self.config.num_train_timesteps for sigma in self._trained_ends()]
            levels = np.linspace(*ends, num_inference_steps) / self.config.num_train_timesteps
        levels = self._shifted(levels, mu).astype(np.float32)
        self.timesteps = levels * self.config.num_train_timesteps if own_timesteps is None else own_timesteps
        self.sigmas = np.append(levels, np.float32(0))
        self.begin_index = self.step_index = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the steps at this one."""
        self.begin_index = begin_index

    def truncate(self, strength: float) -> np.ndarray:
        """Leave out the first steps, as image-to-image does: a strength of 0.6 keeps the last 60 % of them.

        Args:
            strength: 0…1.

        Returns:
            the timesteps that are left.

        Raises:
            ValueError: a strength outside of 0…1, or one that leaves no step.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength {strength} is not within 0…1")
        steps = len(self.timesteps)
        begin = int(max(steps - min(steps * strength, steps), 0))
        if begin == steps:
            raise ValueError(f"strength {strength} leaves none of {steps} steps; raise one of the two")
        self.set_begin_index(begin)
        return self.timesteps[begin:]

    def scale_noise(self, sample: mx.array, timestep: Sequence[float] | np.ndarray, noise: mx.array) -> mx.array:
        """Mix noise in, up to a noise level: sigma·noise + (1 - sigma)·sample, in the sample's dtype.

        Args:
            sample, noise: B ….
            timestep: one for each sample, or one for all. They are looked up only without `begin_index`;
                otherwise the level is that of the next step.
        """
        if self.begin_index is None:
            indices = [self._index_of(float(one)) for one in timestep]
        else:
            indices = [self.begin_index if self.step_index is None else self.step_index] * len(timestep)
        sigma = mx.array(self.sigmas[indices]).astype(sample.dtype)
        sigma = sigma.reshape(-1, *[1] * (sample.ndim - 1))
        return sigma * noise + (1.0 - sigma) * sample

    def step(self, model_output: mx.array, timestep: float, sample: mx.array) -> mx.array:
        """One Euler step: sample + (next sigma - sigma)·model_output.

        Args:
            model_output: the velocity, B L C.
            timestep: one of `timesteps`; looked up at the first step if there is no `begin_index`.
            sample: B L C.

        Returns:
            B L C in the dtype of `model_output`.

        Raises:
            ValueError: there is no step left, or no such timestep.
        """
        if self.step_index is None:
            self.step_index = self._index_of(float(timestep)) if self.begin_index is None else self.begin_index
        if self.step_index >= len(self.timesteps):
            raise ValueError(f"all {len(self.timesteps)} steps are done")
        sigma, following = self.sigmas[self.step_index : self.step_index + 2]
        # torch rounds the step width to the velocity's dtype and multiplies there; only the sum is in float32.
        width = mx.array(following - sigma).astype(model_output.dtype)
        moved = sample.astype(mx.float32) + width * model_output
        self.step_index += 1
        return moved.astype(model_output.dtype)

    def _shifted(self, sigmas: np.ndarray, mu: float | None) -> np.ndarray:
        """The levels after the config's shift and stretch, in the dtype they came in."""
        with np.errstate(divide="ignore"):  # a level of 0 stays 0
            if not self.config.use_dynamic_shifting:
                sigmas = self._static_shift(sigmas)
            else:
                weight = math.exp(mu) if self.config.time_shift_type == "exponential" else mu
                sigmas = weight / (weight + (1 / sigmas - 1))
        return self._stretched(sigmas) if self.config.shift_terminal else sigmas

    def _static_shift(self, sigmas: np.ndarray) -> np.ndarray:
        return self.config.shift * sigmas / (1 + (self.config.shift - 1) * sigmas)

    def _stretched(self, sigmas: np.ndarray) -> np.ndarray:
        """The levels moved apart below 1, so that the last one is `shift_terminal`.

        A schedule that never leaves 1 (a single step) has nothing to stretch; the reference divides
        0 by 0 there and goes on with not-a-number.
        """
        below = 1 - sigmas
        if below[-1] == 0:
            return sigmas
        return 1 - below / (below[-1] / (1 - self.config.shift_terminal))

    def _trained_ends(self) -> tuple[float, float]:
        """The highest and the lowest noise level of training."""
        count = self.config.num_train_timesteps
        ends = np.array([count, 1], np.float32) / count
        first, last = ends if self.config.use_dynamic_shifting else self._static_shift(ends)
        return float(first), float(last)

    def _index_of(self, timestep: float) -> int:
        """Where a timestep stands; the second place if it stands in several, as in the reference."""
        found = np.flatnonzero(self.timesteps == np.float32(timestep))
        if not len(found):
            raise ValueError(f"{timestep} is none of the scheduler's {len(self.timesteps)} timesteps")
        return int(found[min(1, len(found) - 1)])


def _count(given: Sequence[float] | None) -> str:
    return "no" if given is None else str(len(given))
