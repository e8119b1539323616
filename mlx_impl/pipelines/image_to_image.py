"""Image to image, as diffusers' ``QwenImageImg2ImgPipeline``: a picture, noised part of the way, denoised again.

B prompts, L latent tokens, C their channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from PIL import Image

from parity.tap import scope, tap

from ..images import preprocess
from .encoding import encode_picture, encode_prompts, initial_noise, noise_levels
from .latents import noise, token_grid
from .prepared import Kept, Prepared
from .request import Request, check_picture

if TYPE_CHECKING:
    from .components import Components


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageToImage(Request):
    """A picture from a prompt and another picture.

    Attributes:
        picture: H W 3 uint8, resized to the size that is made.
        strength: 0…1, the share of the steps that are done; at 1 nothing is left of the picture.
        posterior_noise: 1 L C float32, with which the picture's latents are sampled, in place of that drawn.
    """

    picture: np.ndarray
    strength: float = 0.6
    posterior_noise: np.ndarray | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_picture("picture", self.picture)
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}, expected 0…1")
        if int(self.steps - self.steps * self.strength) == self.steps:
            raise ValueError(f"strength {self.strength} leaves none of {self.steps} steps; raise one of the two")

    def prepare(self, components: Components) -> Prepared:
        """See `Request.prepare`."""
        prompt, negative = encode_prompts(components, self)
        picture = self._encode(components)
        scheduler, sigmas, timesteps = noise_levels(components, self, self.strength)
        added = initial_noise(components, self)
        with scope("pipeline"):
            picture = tap("image_latents", mx.broadcast_to(picture, added.shape))
            latents = tap("latents", scheduler.scale_noise(picture, timesteps[:1], added))
            kept = self._keep(picture, added)
        grids = (token_grid(*self.size),)
        return Prepared(latents, prompt, negative, self.guidance, sigmas, timesteps, grids, kept=kept)

    def _encode(self, components: Components) -> mx.array:
        """The picture's latents, sampled from the VAE's posterior, 1 L C."""
        sampled = noise(self.posterior_noise, self.seed, 1, 1, self.size, components.latent_channels)
        pixels = preprocess(Image.fromarray(self.picture), *self.size, **self._fitting)
        return encode_picture(components, pixels, sampled)

    @property
    def _fitting(self) -> dict[str, Any]:
        """How the picture is brought to its size, beside stretching: arguments of `images.preprocess`."""
        return {}

    def _keep(self, picture: mx.array, added: mx.array) -> Kept | None:
        """What is put back after each step.

        Args:
            picture, added: B L C, the picture's latents and the initial noise.
        """
        return None
