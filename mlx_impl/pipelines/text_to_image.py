"""Text to image, as diffusers' ``QwenImagePipeline``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from parity.tap import scope, tap

from .encoding import encode_prompts, initial_noise, noise_levels
from .latents import token_grid
from .prepared import Prepared
from .request import Request

if TYPE_CHECKING:
    from .components import Components


@dataclass(frozen=True, kw_only=True, eq=False)
class TextToImage(Request):
    """A picture from a prompt. Every field is one of `Request`."""

    def prepare(self, components: Components) -> Prepared:
        """See `Request.prepare`."""
        prompt, negative = encode_prompts(components, self)
        _, sigmas, timesteps = noise_levels(components, self)
        with scope("pipeline"):
            latents = tap("latents", initial_noise(components, self))
        return Prepared(latents, prompt, negative, self.guidance, sigmas, timesteps, (token_grid(*self.size),))
