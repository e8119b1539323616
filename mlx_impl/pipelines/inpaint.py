"""Inpainting, as diffusers' ``QwenImageInpaintPipeline``: image to image, but what is not masked comes back.

L latent tokens, C their channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from parity.tap import tap

from ..images import apply_overlay, get_crop_region, latent_mask, preprocess_mask
from .image_to_image import ImageToImage
from .latents import PIXELS_PER_LATENT, pack
from .prepared import Kept
from .request import check_picture


@dataclass(frozen=True, kw_only=True, eq=False)
class Inpaint(ImageToImage):
    """A picture of which a part is made anew.

    Attributes:
        mask: H W uint8 of the picture's size; from 128 on a pixel is made anew.
        crop_padding: take only the masked part of the picture and so many pixels around it, enlarge it
            to the size that is made, and put it back into the whole picture afterwards.
    """

    mask: np.ndarray
    crop_padding: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_picture("mask", self.mask, channels=0)
        if self.mask.shape != self.picture.shape[:2]:
            raise ValueError(f"mask of {self.mask.shape} pixels for a picture of {self.picture.shape[:2]}")
        if self.crop_padding is not None and self.crop_padding < 0:
            raise ValueError(f"crop_padding is {self.crop_padding}, expected 0 or more")
        if self.crop_padding is not None and not self.mask.any():
            raise ValueError("the mask is black everywhere: there is nothing to crop to")

    def finish(self, images: np.ndarray) -> np.ndarray:
        """See `Request.finish`; what was cropped out goes back into the given picture."""
        if self.crop_padding is None:
            return images
        mask, picture, box = Image.fromarray(self.mask), Image.fromarray(self.picture), self._fitting["crops_coords"]
        return np.stack([np.array(apply_overlay(mask, picture, Image.fromarray(image), box)) for image in images])

    @property
    def _fitting(self) -> dict[str, Any]:
        """See `ImageToImage._fitting`."""
        if self.crop_padding is None:
            return {}
        height, width = self.asked_size
        box = get_crop_region(Image.fromarray(self.mask), width, height, self.crop_padding)
        return {"resize_mode": "fill", "crops_coords": box}

    def _keep(self, picture: mx.array, added: mx.array) -> Kept:
        """See `ImageToImage._keep`."""
        height, width = self.size
        mask = preprocess_mask(Image.fromarray(self.mask), height, width, **self._fitting)
        sparse = latent_mask(mask, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT) > 0
        # All channels of a latent share its place in the mask.
        shared = mx.broadcast_to(mx.array(sparse).transpose(0, 2, 3, 1), (1, *sparse.shape[2:], picture.shape[-1] // 4))
        repaint = pack(shared)
        return Kept(picture, added, tap("mask", mx.broadcast_to(repaint, picture.shape)))
