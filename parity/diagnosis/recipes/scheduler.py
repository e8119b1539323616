"""Recipes of the noise levels and Euler steps, as diffusers 0.42.1 computes them: levels in float32, steps in the dtype
of the run.

n steps, B batch, L image tokens, C channels of a latent token.

Every checkpoint of the scheduler must equal the reference's bit for bit, so the recipes round where it rounds. Values
that are float64 themselves (the truth's) are not rounded.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from parity.diagnosis.place import Array, Place

# What Qwen-Image-Lightning publishes in place of the checkpoint's own config.
LIGHTNING = {
    "base_image_seq_len": 256, "max_image_seq_len": 8192, "base_shift": math.log(3), "max_shift": math.log(3),
    "num_train_timesteps": 1000, "shift": 1.0, "shift_terminal": None, "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}  # fmt: skip
# Fields that a config may leave out, with the defaults of the diffusers class.
_DEFAULTS = LIGHTNING | {"base_shift": 0.5, "max_shift": 1.15, "max_image_seq_len": 4096, "use_dynamic_shifting": False}
_EXACT, _SINGLE = np.dtype(np.float64), np.dtype(np.float32)


class LevelsPlace(Place):
    """A checkpoint of a component with noise levels. A subclass says how many steps and tokens there are."""

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """The scheduler's config."""

    def steps(self) -> int:
        """n."""
        return int(self.fed("steps").item())

    @abstractmethod
    def tokens(self) -> int:
        """L."""

    def begin(self) -> int:
        """The first step that is done."""
        percent = self.optional("strength_percent")
        return 0 if percent is None else self.left_out(self.steps(), int(percent.item()) / 100)

    def left_out(self, steps: int, strength: float) -> int:
        """Steps that image-to-image leaves out."""
        return int(max(steps - min(steps * strength, steps), 0))

    # Noise levels, float32.

    def setting(self, key: str) -> Any:
        """One field of the config."""
        return self.settings.get(key, _DEFAULTS[key])

    def mu(self) -> float:
        """The dynamic shift, on the line through the config's two points."""
        base, most = self.setting("base_image_seq_len"), self.setting("max_image_seq_len")
        slope = (self.setting("max_shift") - self.setting("base_shift")) / (most - base)
        return self.tokens() * slope + self.setting("base_shift") - slope * base

    def level_mu(self) -> float:
        """The shift that the levels are made with."""
        return self.mu()

    def spacing(self, steps: int) -> Array:
        """Levels before the shift, n."""
        return np.linspace(1.0, 1 / steps, steps)

    def time_shift(self, sigmas: Array, mu: float) -> Array:
        """The dynamic shift."""
        weight = math.exp(mu) if self.setting("time_shift_type") == "exponential" else mu
        with np.errstate(divide="ignore"):  # a level of 0 stays 0
            return weight / (weight + (1 / sigmas - 1))

    def shifted(self, sigmas: Array, mu: float) -> Array:
        """Levels behind whichever shift the config asks for."""
        if self.setting("use_dynamic_shifting"):
            return self.time_shift(sigmas, mu)
        shift = self.setting("shift")
        return shift * sigmas / (1 + (shift - 1) * sigmas)

    def stretched(self, sigmas: Array) -> Array:
        """Levels moved apart below 1, so that the last is the config's ``shift_terminal``."""
        terminal = self.setting("shift_terminal")
        if not terminal:
            return sigmas
        below = 1 - sigmas
        return 1 - below / (below[-1] / (1 - terminal))

    def levels(self) -> Array:
        """The levels that are not 0, n."""
        sigmas = self.spacing(self.steps()).astype(np.float32)
        return self.stretched(self.shifted(sigmas, self.level_mu())).astype(np.float32)

    def ended(self, levels: Array) -> Array:
        """With the level after the last step, n + 1."""
        return np.append(levels, np.float32(0))

    def to_timesteps(self, sigmas: Array) -> Array:
        """Timesteps of n + 1 levels, n."""
        return sigmas[:-1].astype(np.float32) * np.float32(self.setting("num_train_timesteps"))

    # Steps.

    @property
    def dtype(self) -> np.dtype:
        """In which the reference computes a step: that of what the stage was fed; float64 for the truth's values."""
        captured = self.values.captured.get(self.name)
        if captured is None or captured.dtype == _EXACT:
            return _EXACT
        return next((self.values.state[key].dtype for key in ("latents", "sample") if key in self.values.state), _EXACT)

    def rounded(self, x: Array, dtype: np.dtype | None = None) -> Array:
        """To `dtype`, by default the run's, and widened again; float64 stays what it is."""
        return x if self.dtype == _EXACT else np.asarray(x).astype(dtype or self.dtype).astype(np.float64)

    def single(self, x: Array) -> Array:
        """To float32."""
        return self.rounded(x, _SINGLE)

    def sigma(self, index: int) -> Array:
        """One noise level of the stage's, as it was fed."""
        return self.fed("sched.sigmas")[index]

    def width(self, now: Array, following: Array) -> Array:
        """Width of a step, negative; torch rounds it to the velocity's dtype."""
        return self.rounded(self.single(following - now))

    def euler(self, sample: Array, velocity: Array, index: int) -> Array:
        """One step. The product is in the run's dtype, the sum in float32."""
        moved = self.rounded(self.width(self.sigma(index), self.sigma(index + 1)) * velocity)
        return self.rounded(self.single(sample + moved))

    def mixed(self, sample: Array, noise: Array, sigma: Array) -> Array:
        """sigma·noise + (1 - sigma)·sample, each operation rounded to the run's dtype."""
        sigma = self.rounded(sigma)
        return self.rounded(self.rounded(sigma * noise) + self.rounded(self.rounded(1 - sigma) * sample))


class SchedulerPlace(LevelsPlace):
    """A checkpoint of the scheduler."""

    component: ClassVar[str] = "scheduler"

    @staticmethod
    def state_key(name: str) -> str:
        """See `Place.state_key`."""
        if name in ("sched.sigmas", "sched.timesteps", "sched.begin"):
            return name
        if name.endswith(".sample"):
            return "sample"
        raise KeyError(name)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `LevelsPlace.settings`."""
        lightning = self.optional("lightning")
        return self.config if lightning is None or not lightning.item() else LIGHTNING

    def tokens(self) -> int:
        """See `LevelsPlace.tokens`."""
        return int(self.fed("image_tokens").item())

    def recipe(self) -> Array:
        """See `Place.recipe`."""
        return self._RECIPES[self.kind](self)

    def level_mu(self) -> float:
        """See `LevelsPlace.level_mu`. Of mu float32 is kept; where that is right, the reference goes on with more."""
        mu, kept = self.mu(), self.values["sched.mu"].item()
        return mu if np.float32(mu) == np.float32(kept) else kept

    _RECIPES: ClassVar = {
        "sched.mu": lambda p: np.array([p.mu()], np.float32),
        "sched.sigmas": lambda p: p.ended(p.levels()),
        "sched.timesteps": lambda p: p.to_timesteps(p.values["sched.sigmas"]),
        "sched.begin": lambda p: np.array([p.begin()], np.int64),
        "sched.noise.sample": lambda p: p.mixed(
            p.fed("sample"), p.fed("noise"), p.sigma(int(p.fed("sched.begin").item()))
        ),
        "sample": lambda p: p.euler(p.fed("sample"), p.fed(f"model_output.{p.block:02d}"), p.block),
    }
