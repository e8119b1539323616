"""Latent tokens: pictures of the VAE packed two by two, their sizes, and the noise they start from.

B batch, L = h/2 · w/2 tokens, h w sizes in the VAE's latent pixels, z its channels, C = 4z.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

# A latent token covers 8 (VAE) × 2 (patch) pixels each way.
PIXELS_PER_LATENT = 8
PIXELS_PER_TOKEN = 16


def token_grid(height: int, width: int) -> tuple[int, int, int]:
    """(frames, rows, columns) in tokens of a picture of these pixels."""
    return 1, height // PIXELS_PER_TOKEN, width // PIXELS_PER_TOKEN


def pack(latents: mx.array) -> mx.array:
    """B h w z to B L 4z; a token holds all four values of a channel, then those of the next."""
    batch, height, width, channels = latents.shape
    blocks = latents.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return blocks.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, 4 * channels)


def unpack(tokens: mx.array, rows: int, columns: int) -> mx.array:
    """B L 4z to B h w z: what `pack` was given.

    Args:
        rows, columns: in tokens; their product is L.
    """
    batch, _, channels = tokens.shape
    blocks = tokens.reshape(batch, rows, columns, channels // 4, 2, 2)
    return blocks.transpose(0, 1, 4, 2, 5, 3).reshape(batch, 2 * rows, 2 * columns, channels // 4)


def noise(
    injected: np.ndarray | None, seed: int, stream: int, batch: int, size: tuple[int, int], channels: int
) -> np.ndarray:
    """Normal numbers for packed latents, B L C float32, injected or drawn.

    Args:
        injected: taken in place of a draw.
        seed: with `stream` the key of numpy's counter-based Philox generator, the same on every machine.
        stream: numbers of different use must not be the same ones.
        size: (height, width) in pixels.
        channels: C.

    Raises:
        ValueError: what is injected has another shape.
    """
    _, rows, columns = token_grid(*size)
    shape = (batch, rows * columns, channels)
    if injected is None:
        draw = np.random.Generator(np.random.Philox(key=seed | stream << 64))
        return draw.standard_normal(shape, dtype=np.float32)
    if injected.shape != shape:
        raise ValueError(f"injected noise of shape {injected.shape}, expected {shape} for {size[0]} × {size[1]} pixels")
    return injected
