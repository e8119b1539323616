"""Inpainting, as diffusers' ``QwenImageInpaintPipeline``: image to image, but what is not masked comes back.

L latent tokens, C their channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from PIL import Image

from parity.tap import tap

from ..images import latent_mask, preprocess_mask
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
        height, width = self.size
        mask = preprocess_mask(Image.fromarray(self.mask), height, width)
        sparse = latent_mask(mask, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT) > 0
        # All channels of a latent share its place in the mask.
        shared = mx.broadcast_to(mx.array(sparse).transpose(0, 2, 3, 1), (1, *sparse.shape[2:], picture.shape[-1] // 4))
        repaint = pack(shared)
        return Kept(picture, added, tap("mask", mx.broadcast_to(repaint, picture.shape)))
