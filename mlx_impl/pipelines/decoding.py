"""Latent tokens to pictures.

B batch, L latent tokens, C their channels, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from parity.tap import scope, tap

from .. import vae_tiling
from .latents import PIXELS_PER_TOKEN, unpack

if TYPE_CHECKING:
    from ..vae import AutoencoderKLQwenImage


def decode(vae: AutoencoderKLQwenImage, latents: mx.array, grid: tuple[int, int, int]) -> mx.array:
    """Pictures in 0…1, B H W 3, in the VAE's dtype.

    Args:
        latents: B L C, free of noise.
        grid: (frames, rows, columns) in tokens.
    """
    _, rows, columns = grid
    unpacked = vae.denormalize(unpack(latents, rows, columns)[:, None])
    whole = rows * columns * PIXELS_PER_TOKEN**2 <= vae_tiling.LARGEST_WHOLE
    pictures = (vae.decode(unpacked) if whole else vae_tiling.decode(vae, unpacked))[:, 0]
    with scope("pipeline"):
        return tap("image", mx.clip(pictures * 0.5 + 0.5, 0, 1))


def to_pixels(pictures: mx.array) -> np.ndarray:
    """Pictures in 0…1 to uint8, rounded as numpy rounds.

    Raises:
        FloatingPointError: values that are not a number.
    """
    found = np.array(pictures.astype(mx.float32))
    if lost := np.count_nonzero(np.isnan(found)):
        raise FloatingPointError(f"{lost} of {found.size} values of the picture are not a number")
    return (found * 255).round().astype(np.uint8)
