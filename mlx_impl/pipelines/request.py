"""What a pipeline is asked for, checked before any weights are read.

B prompts, L latent tokens of the picture made, C channels of a latent token, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..images import snap
from .latents import PIXELS_PER_TOKEN

if TYPE_CHECKING:
    from .components import Components
    from .prepared import Prepared

# The longest prompt the pipelines take, in tokens behind the template's head.
LONGEST_PROMPT = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Request(ABC):
    """What all pipelines are told.

    Attributes:
        prompts: one for each picture of the batch.
        negative: what to steer away from, one for each prompt; None turns guidance off.
        height, width: of the picture, in pixels; made multiples of 16, downwards, as diffusers does.
        steps: denoising steps.
        guidance: true classifier-free guidance scale; 1 or less turns it off.
        seed: of all noise, drawn by numpy's Philox generator. It is not torch's: the same seed
            gives another picture in diffusers. Inject `latents` for equal ones.
        latents: B L C float32, the initial noise, in place of that drawn.
        max_sequence_length: prompts are cut after so many tokens.

    Raises:
        ValueError: something that no picture can be made of; the message says what.
    """

    # Which of the prompt templates, and which components but text encoder, transformer, VAE and scheduler.
    template: ClassVar[str] = "image"
    folders: ClassVar[tuple[str, ...]] = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")

    prompts: tuple[str, ...]
    negative: tuple[str, ...] | None = None
    height: int | None = 1024
    width: int | None = 1024
    steps: int = 50
    guidance: float = 4.0
    seed: int = 0
    latents: np.ndarray | None = None
    max_sequence_length: int = 512

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("no prompt: at least one is needed (an empty one will do)")
        if self.negative is not None and len(self.negative) != len(self.prompts):
            raise ValueError(f"{len(self.negative)} negative prompts for {len(self.prompts)} prompts")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected at least 1")
        if not 0 < self.max_sequence_length <= LONGEST_PROMPT:
            raise ValueError(f"max_sequence_length is {self.max_sequence_length}, expected 1…{LONGEST_PROMPT}")
        for name in ("height", "width"):
            given = getattr(self, name)
            if given is not None and given < PIXELS_PER_TOKEN:
                raise ValueError(f"{name} is {given}, expected at least {PIXELS_PER_TOKEN} pixels")

    @property
    def guided(self) -> bool:
        """Whether there are two predictions a step, with and against the prompt."""
        return self.negative is not None and self.guidance > 1

    @property
    def asked_size(self) -> tuple[int, int]:
        """(height, width) before it is snapped."""
        return self.height, self.width

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture that is made."""
        return snap(*self.asked_size, PIXELS_PER_TOKEN)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should be told before the run."""
        said = []
        if self.size != self.asked_size:
            asked, made = (f"{height} × {width}" for height, width in (self.asked_size, self.size))
            said.append(f"size {asked} is not a multiple of {PIXELS_PER_TOKEN} pixels each way: {made} is made")
        if self.guidance > 1 and self.negative is None:
            said.append(f"guidance {self.guidance} does nothing without a negative prompt (an empty one will do)")
        if self.guidance <= 1 and self.negative is not None:
            said.append(f"the negative prompt does nothing with guidance {self.guidance}: 1 or less turns it off")
        return tuple(said)

    def finish(self, images: np.ndarray) -> np.ndarray:
        """What becomes of the decoded pictures, B H W 3 uint8."""
        return images

    @abstractmethod
    def prepare(self, components: Components) -> Prepared:
        """Everything the steps need: embeddings, latents, noise levels."""


def check_picture(name: str, picture: Any, channels: int = 3) -> None:
    """Raise a ValueError unless it is H W 3 uint8 (H W for a mask, with `channels` 0)."""
    shape, dtype = getattr(picture, "shape", None), getattr(picture, "dtype", type(picture).__name__)
    expected = f"height width {channels}" if channels else "height width"
    fits = shape is not None and len(shape) == (3 if channels else 2) and (not channels or shape[2] == channels)
    if not fits or dtype != np.uint8 or 0 in shape:
        raise ValueError(f"{name}: expected {expected} of uint8, found {shape} of {dtype}")
