"""One denoising step: predictions with and against the prompt, guidance, the scheduler's step.

B batch, L latent tokens of the picture made, M of condition pictures, C channels of a latent token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from parity.tap import scope, tap

from ..scheduler import FlowMatchEulerDiscreteScheduler, SchedulerConfig

if TYPE_CHECKING:
    from ..transformer import QwenImageTransformer2DModel
    from .prepared import Prepared, Prompt

TRAINED_STEPS = 1000


def denoise(transformer: QwenImageTransformer2DModel, prepared: Prepared, index: int, latents: mx.array) -> mx.array:
    """Step `index` of `prepared`.

    Args:
        latents: B L C, at the step's noise level.

    Returns:
        B L C, at the next one.
    """
    with scope(f"step.{index:02d}"):
        timestep = tap("timestep", model_timestep(float(prepared.timesteps[index]), latents))
        noise_pred = tap("cond", predict(transformer, "cond", prepared.prompt, prepared, latents, timestep))
        if prepared.negative is not None:
            against = tap("uncond", predict(transformer, "uncond", prepared.negative, prepared, latents, timestep))
            noise_pred = guide(noise_pred, against, prepared.guidance)
        noise_pred = tap("noise_pred", noise_pred)
        return tap("latents", advance(prepared, index, latents, noise_pred))


def model_timestep(timestep: float, latents: mx.array) -> mx.array:
    """The transformer's timestep in 0…1, B: rounded to the latents' dtype before it is divided, as in diffusers."""
    rounded = mx.array(timestep, dtype=mx.float32).astype(latents.dtype).item()
    # Divided on the host: a GPU's division may be one unit off, and the sinusoid of 1000·t makes much of it.
    share = float(np.float32(rounded) / np.float32(TRAINED_STEPS))
    return mx.full((latents.shape[0],), share, dtype=mx.float32).astype(latents.dtype)


def predict(
    transformer: QwenImageTransformer2DModel,
    name: str,
    prompt: Prompt,
    prepared: Prepared,
    latents: mx.array,
    timestep: mx.array,
) -> mx.array:
    """The velocity of the picture's own tokens, B L C. Checkpoints inside are named below `name`."""
    tokens = latents if prepared.condition is None else mx.concatenate([latents, prepared.condition], axis=1)
    with scope(name):
        velocity = transformer(
            tokens, prompt.embeds, prompt.mask, timestep, img_shapes=[list(prepared.grids)] * latents.shape[0]
        )
    return velocity[:, : latents.shape[1]]


def guide(cond: mx.array, uncond: mx.array, scale: float) -> mx.array:
    """uncond + scale·(cond - uncond), each token with the norm it has in `cond`.

    Each operation rounds to the arrays' dtype, as the reference's do; only the scale and the
    sums of squares are in float32.
    """
    away = ((cond - uncond).astype(mx.float32) * scale).astype(cond.dtype)
    combined = uncond + away
    return combined * (_norm(cond) / _norm(combined))


def advance(prepared: Prepared, index: int, latents: mx.array, noise_pred: mx.array) -> mx.array:
    """The scheduler's step; when inpainting, what is kept comes back at the new noise level."""
    scheduler = FlowMatchEulerDiscreteScheduler(SchedulerConfig())
    scheduler.sigmas, scheduler.timesteps = prepared.sigmas, prepared.timesteps
    scheduler.set_begin_index(index)
    moved = scheduler.step(noise_pred, prepared.timesteps[index], latents)
    if prepared.kept is None:
        return moved
    back = prepared.kept.latents
    if following := list(prepared.timesteps[index + 1 : index + 2]):
        back = scheduler.scale_noise(back, following, prepared.kept.noise)
    return mx.where(prepared.kept.repaint, moved, back)


def _norm(x: mx.array) -> mx.array:
    """Euclidean norm of each token, B L 1, its squares summed in float32."""
    wide = x.astype(mx.float32)
    return mx.sqrt(mx.sum(wide * wide, axis=-1, keepdims=True)).astype(x.dtype)
