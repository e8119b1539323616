"""The scheduler as a component: noise levels of a picture's size, added noise, and Euler steps along given velocities.

B batch, L image tokens, C channels of a latent token, SS a step.

State keys. Inputs of a case: ``steps``, ``image_tokens`` and ``lightning`` 1 int · ``sample``
B L C · ``model_output.SS`` B L C for each step that is done · with a strength also
``strength_percent`` 1 int and ``noise`` B L C. After ``sched.set``: ``sched.sigmas`` n + 1,
``sched.timesteps`` n and ``sched.begin`` 1 int. ``sched.noise`` and ``sched.step.SS`` replace
``sample``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from parity.components.base import DTYPES, Case, Configs, State
from parity.components.transformer import PIXELS_PER_TOKEN
from parity.errors import UsageError
from parity.names import LEVELS, Graph

SETTINGS = ("checkpoint", "lightning")
# Of a latent token of Qwen-Image; a step treats them all alike.
CHANNELS = 64


@dataclass(frozen=True, kw_only=True)
class SchedulerCase(Case):
    """Samples and velocities drawn at random.

    Attributes:
        image: (height, width) in pixels; its tokens set the shift.
        steps: number of noise levels.
        batch: B.
        settings: ``checkpoint`` takes the model's scheduler config, ``lightning`` the published one of
            Qwen-Image-Lightning.
        strength: of image-to-image, in whole percents; noise is added and the first steps are left out.
            None is text-to-image.
    """

    component: ClassVar[str] = "scheduler"
    plain: ClassVar[bool] = False
    folders: ClassVar[tuple[str, ...]] = ("scheduler",)

    image: tuple[int, int]
    steps: int
    batch: int = 1
    settings: str = "checkpoint"
    strength: float | None = None

    def __post_init__(self) -> None:
        where = f"case {self.name!r}"
        if min(self.image) < 1 or any(pixels % PIXELS_PER_TOKEN for pixels in self.image):
            height, width = self.image
            raise UsageError(f"{where}: image {height} × {width} is not of multiples of {PIXELS_PER_TOKEN} pixels")
        if self.steps < 1 or self.batch < 1:
            raise UsageError(f"{where}: steps is {self.steps} and batch {self.batch}, expected at least 1 of each")
        if self.settings not in SETTINGS:
            raise UsageError(f"{where}: settings {self.settings!r}, expected {' or '.join(SETTINGS)}")
        if self.strength is not None:
            percent = round(self.strength * 100)
            if percent / 100 != self.strength or not 0 < percent <= 100:
                raise UsageError(f"{where}: strength {self.strength} is not a whole percentage within 0…1")

    @property
    def image_tokens(self) -> int:
        """L."""
        height, width = self.image
        return height // PIXELS_PER_TOKEN * (width // PIXELS_PER_TOKEN)

    @property
    def begin(self) -> int:
        """The first step that is done."""
        return 0 if self.strength is None else int(self.steps - self.steps * self.strength)

    def describe(self) -> dict[str, Any]:
        """See `Case.describe`."""
        return {
            "batch": self.batch,
            "image_tokens": self.image_tokens,
            "steps": self.steps,
            "settings": self.settings,
            "strength": self.strength,
            "seed": self.seed,
        }

    def graph(self, configs: Configs, level: str) -> dict[str, Any]:
        """See `Case.graph`; the function is `scheduler_graph`.

        Raises:
            UsageError: one step up to a terminal level, for which the reference gives not-a-number.
        """
        terminal = self.settings == "checkpoint" and configs["scheduler"].get("shift_terminal")
        if self.steps == 1 and terminal:
            raise UsageError(
                f"case {self.name!r}: with shift_terminal {terminal} diffusers divides 0 by 0 for a single step; "
                'take 2 steps or more, or settings = "lightning"'
            )
        noised = self.strength is not None
        return {"name": self.component, "begin": self.begin, "steps": self.steps, "noised": noised, "level": level}

    def inputs(self, configs: Configs, dtype: str) -> State:
        """See `Case.inputs`."""
        draw = self.draw()
        shape = (self.batch, self.image_tokens, CHANNELS)
        names = ["sample", *(f"model_output.{step:02d}" for step in range(self.begin, self.steps))]
        if self.strength is not None:
            names.append("noise")
        state = {name: draw.standard_normal(shape, dtype=np.float32).astype(DTYPES[dtype]) for name in names}
        numbers = {
            "steps": self.steps,
            "image_tokens": self.image_tokens,
            "lightning": int(self.settings == "lightning"),
        }
        if self.strength is not None:
            # As a whole number, since float32 has no 0.6, and steps are counted off with it.
            numbers["strength_percent"] = round(self.strength * 100)
        return state | {name: np.array([number], np.int64) for name, number in numbers.items()}


def scheduler_graph(begin: int, steps: int, noised: bool, level: str) -> Graph:
    """Graph of the scheduler: the same at every level, and exact throughout.

    Every operation of a step is a product or a sum that each port must round as the reference does.

    Args:
        begin: the first step that is done.
        steps: number of noise levels.
        noised: noise is added before the first step.
        level: one of `parity.names.LEVELS`.

    Raises:
        ValueError: an unknown level.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is none of {', '.join(LEVELS)}")
    parents: dict[str, tuple[str, ...]] = {
        "sched.mu": (),
        "sched.sigmas": ("sched.mu",),
        "sched.timesteps": ("sched.sigmas",),
        "sched.begin": (),
    }
    stage = dict.fromkeys(parents, "sched.set")
    before: tuple[str, ...] = ()
    if noised:
        parents["sched.noise.sample"] = ("sched.sigmas", "sched.begin")
        stage["sched.noise.sample"] = "sched.noise"
        before = ("sched.noise.sample",)
    for step in range(begin, steps):
        name = f"sched.step.{step:02d}.sample"
        parents[name] = ("sched.sigmas", *before)
        stage[name] = f"sched.step.{step:02d}"
        before = (name,)
    return Graph(parents, stage, tuple(parents), exact=frozenset(parents))
