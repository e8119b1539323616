"""Editing one picture, as diffusers' ``QwenImageEditPipeline``.

M latent tokens of the picture that is edited, C their channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import mlx.core as mx
import numpy as np
from PIL import Image

from parity.tap import scope, tap

from ..images import VAE_AREA, calculate_dimensions, preprocess, resize
from .encoding import encode_picture, encode_prompts, initial_noise, noise_levels
from .latents import token_grid
from .prepared import Prepared
from .request import Request, check_picture

if TYPE_CHECKING:
    from .components import Components


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit(Request):
    """A picture changed as the prompt says.

    The prompt is not cut, and there is one picture at a time, as in diffusers.

    Attributes:
        pictures: H W 3 uint8; exactly one.
        height, width: of the picture that is made; by default 1024² pixels in the last picture's proportions.
        vae_area: pixels of a condition picture as the VAE and the vision tower are shown it.
    """

    template: ClassVar[str] = "edit"
    folders: ClassVar[tuple[str, ...]] = (*Request.folders, "processor")

    pictures: tuple[np.ndarray, ...]
    height: int | None = None
    width: int | None = None
    vae_area: int = VAE_AREA

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.prompts) != 1:
            raise ValueError(f"{len(self.prompts)} prompts: pictures are edited one at a time")
        self._check_count()
        for index, picture in enumerate(self.pictures):
            check_picture(f"picture {index + 1}", picture)
            for area in (self.vae_area, self._condition_area):
                _size_at(area, picture)  # no picture that becomes a line

    @property
    def asked_size(self) -> tuple[int, int]:
        """See `Request.asked_size`."""
        height, width = _size_at(VAE_AREA, self.pictures[-1])
        return self.height or height, self.width or width

    @property
    def _condition_area(self) -> int:
        """Pixels of a picture as the vision tower is shown it."""
        return self.vae_area

    def _check_count(self) -> None:
        if len(self.pictures) != 1:
            raise ValueError(f"{len(self.pictures)} pictures to edit, expected one (edit-plus takes several)")

    def prepare(self, components: Components) -> Prepared:
        """See `Request.prepare`."""
        shown = [
            np.array(resize(Image.fromarray(picture), *_size_at(self._condition_area, picture)))
            for picture in self.pictures
        ]
        with scope("pipeline"):
            for index, picture in enumerate(shown):
                tap(f"condition.{index:02d}", mx.array(picture.astype(np.int64)))
        prompt, negative = encode_prompts(components, self, shown)
        sizes = [_size_at(self.vae_area, picture) for picture in self.pictures]
        tokens = [
            encode_picture(components, preprocess(Image.fromarray(picture), *size))
            for picture, size in zip(self.pictures, sizes, strict=True)
        ]
        _, sigmas, timesteps = noise_levels(components, self)
        with scope("pipeline"):
            condition = tap("image_latents", mx.concatenate(tokens, axis=1))
            latents = tap("latents", initial_noise(components, self))
        grids = tuple(token_grid(*size) for size in (self.size, *sizes))
        return Prepared(latents, prompt, negative, self.guidance, sigmas, timesteps, grids, condition)


def _size_at(area: int, picture: np.ndarray) -> tuple[int, int]:
    """(height, width), multiples of 32 near `area` pixels in the picture's proportions."""
    height, width = picture.shape[:2]
    new_width, new_height = calculate_dimensions(area, width / height)
    return new_height, new_width
