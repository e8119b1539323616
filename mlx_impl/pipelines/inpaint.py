"""Inpainting, as diffusers' ``QwenImageInpaintPipeline``: image to image, but what is not masked comes back.

L latent tokens, C their channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from parity.tap import tap

from ..images import preprocess_mask
from .image_to_image import ImageToImage
from .latents import PIXELS_PER_LATENT, pack
from .prepared import Kept
from .request import check_picture


@dataclass(frozen=True, kw_only=True, eq=False)
class Inpaint(ImageToImage):
    """A picture of which a part is made anew.

    Attributes:
        mask: H W uint8 of the picture's size; from 128 on a pixel is made anew.
    """

    mask: np.ndarray

    def __post_init__(self) -> None:
        super().__post_init__()
        check_picture("mask", self.mask, channels=0)
        if self.mask.shape != self.picture.shape[:2]:
            raise ValueError(f"mask of {self.mask.shape} pixels for a picture of {self.picture.shape[:2]}")

    def _keep(self, picture: mx.array, added: mx.array) -> Kept:
        """See `ImageToImage._keep`."""
        mask = preprocess_mask(self.mask, *self.size)
        # The nearest pixel of each latent is its first; all channels of a latent share it.
        corners = mask[::PIXELS_PER_LATENT, ::PIXELS_PER_LATENT] > 0.5
        channels = picture.shape[-1] // 4
        repaint = pack(mx.broadcast_to(mx.array(corners)[None, :, :, None], (1, *corners.shape, channels)))
        return Kept(picture, added, tap("mask", mx.broadcast_to(repaint, picture.shape)))
