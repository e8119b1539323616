"""What happens before the steps, shared by the pipelines: prompts, pictures, noise levels.

B prompts, S text tokens, J text-encoder width, L latent tokens, C their channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from parity.tap import scope, tap

from .. import vae_tiling
from ..prompts import encode
from ..vision_preprocess import Grid, preprocess
from .latents import noise, pack, token_grid, unpack
from .prepared import Prompt

if TYPE_CHECKING:
    from ..scheduler import FlowMatchEulerDiscreteScheduler
    from .components import Components
    from .request import Request


def encode_prompts(
    components: Components, request: Request, pictures: Sequence[np.ndarray] = ()
) -> tuple[Prompt, Prompt | None]:
    """Prompts and, with guidance, negative prompts, through the text encoder.

    Args:
        pictures: H W 3 uint8 each, at the size the vision tower is shown; they precede the prompt.
    """
    features, grids = _look(components, pictures) if pictures else (None, ())
    with components.use("text_encoder") as model:

        def encoded(name: str, prompts: tuple[str, ...]) -> Prompt:
            tokens = components.prompter(prompts, template=request.template, grids=grids)
            with scope("pipeline"):
                tap(f"{name}_ids", mx.array(tokens.ids))
            with scope(f"pipeline.{name}"):
                embeds, mask = encode(model, tokens, features, request.max_sequence_length)
            with scope("pipeline"):
                kept = mx.ones(embeds.shape[:2], dtype=mx.bool_) if mask is None else mask
                tap(f"{name}_mask", kept)
                embeds = tap(f"{name}_embeds", embeds)
            mx.eval(embeds)
            return Prompt(embeds, mask)

        prompt = encoded("prompt", request.prompts)
        return prompt, encoded("negative", request.negative) if request.guided else None


def _look(components: Components, pictures: Sequence[np.ndarray]) -> tuple[mx.array, Sequence[Grid]]:
    """What the vision tower makes of pictures, and the grids of its patches."""
    pixels, grids = preprocess(pictures, components.vision_settings)
    with components.use("vision") as model, scope("pipeline"):
        features = tap("features", model(mx.array(pixels).astype(components.dtype), grids))
        mx.eval(features)
    return features, grids


def noise_levels(
    components: Components, request: Request, strength: float = 1.0
) -> tuple[FlowMatchEulerDiscreteScheduler, np.ndarray, np.ndarray]:
    """The scheduler at its first step, and the n + 1 noise levels and n timesteps of the steps that are done.

    Args:
        strength: share of the steps that are done, the last ones.
    """
    scheduler = components.scheduler()
    _, rows, columns = token_grid(*request.size)
    scheduler.prepare(request.steps, rows * columns)
    timesteps = scheduler.truncate(strength)
    sigmas = scheduler.sigmas[scheduler.begin_index :]
    with scope("pipeline"):
        tap("sigmas", mx.array(sigmas))
        tap("timesteps", mx.array(timesteps))
    return scheduler, sigmas, timesteps


def initial_noise(components: Components, request: Request) -> mx.array:
    """B L C in the components' dtype."""
    drawn = noise(request.latents, request.seed, 0, len(request.prompts), request.size, components.latent_channels)
    return mx.array(drawn).astype(components.dtype)


def encode_picture(components: Components, picture: np.ndarray, posterior_noise: np.ndarray | None = None) -> mx.array:
    """A picture as latent tokens of the transformer's scale, 1 L C.

    Args:
        picture: 1 3 H W float32 in -1…1; sizes are multiples of 16.
        posterior_noise: 1 L C, to sample the VAE's posterior with, as image-to-image does; without it
            its mean is taken, as for edits.
    """
    _, rows, columns = token_grid(*picture.shape[2:])
    pixels = mx.array(picture).astype(components.dtype).transpose(0, 2, 3, 1)
    with components.use("vae_encoder") as vae:
        whole = pixels.shape[1] * pixels.shape[2] <= vae_tiling.LARGEST_WHOLE
        moments = vae.encode(pixels[:, None]) if whole else vae_tiling.encode(vae, pixels[:, None])
        if posterior_noise is None:
            latents = vae.normalize(moments.mean, divide=True)
        else:
            unpacked = unpack(mx.array(posterior_noise).astype(components.dtype), rows, columns)
            latents = vae.normalize(moments.sample(unpacked[:, None]))
        tokens = pack(latents[:, 0])
        mx.eval(tokens)
    return tokens
