"""What the denoising steps need, whichever pipeline prepared it.

B batch, L latent tokens of the picture made, M of condition pictures, S text tokens, J text-encoder
width, C channels of a latent token, n steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class Prompt:
    """Encoded prompts.

    Attributes:
        embeds: B S J.
        mask: B S bool, True for tokens that count; None where all do.
    """

    embeds: mx.array
    mask: mx.array | None


@dataclass(frozen=True)
class Kept:
    """What inpainting puts back after each step.

    Attributes:
        latents: B L C, of the given picture.
        noise: B L C, the initial noise.
        repaint: B L C bool, True where the picture is made anew.
    """

    latents: mx.array
    noise: mx.array
    repaint: mx.array


@dataclass(frozen=True)
class Prepared:
    """Inputs of the steps.

    Attributes:
        latents: B L C, at the first noise level.
        prompt: what to make.
        negative: what to steer away from; None without guidance.
        guidance: scale.
        sigmas: n + 1 noise levels, float32.
        timesteps: n, float32, noise levels times 1000.
        grids: (frames, rows, columns) in tokens of the picture made, then of condition pictures.
        condition: B M C, latents of condition pictures.
        kept: for inpainting.
    """

    latents: mx.array
    prompt: Prompt
    negative: Prompt | None
    guidance: float
    sigmas: np.ndarray
    timesteps: np.ndarray
    grids: tuple[tuple[int, int, int], ...]
    condition: mx.array | None = None
    kept: Kept | None = None
