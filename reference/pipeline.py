"""diffusers' Qwen-Image pipelines, cut into what happens before the steps, the steps, and the decoding.

B prompts, L latent tokens of the picture made, M of condition pictures, S text tokens, J text-encoder
width, C channels of a latent token, H W pixels.

`encode`, `step` and `decode` are the three parts of the pipelines' ``__call__`` (diffusers 0.42.1):
what is a method there is called on the pipeline's own class, the lines between the methods are
written out. In float32 they give what the call gives, bit for bit. Noise is always injected.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel

from parity.tap import scope, tap

Tensors = dict[str, Any]


def step(
    model: QwenImageTransformer2DModel,
    scheduler: FlowMatchEulerDiscreteScheduler,
    index: int,
    state: Tensors,
    hold: torch.dtype,
) -> torch.Tensor:
    """Body of the denoising loop.

    Args:
        model: the transformer.
        scheduler: of the model; its noise levels are those of the state.
        index: which of the steps that are done.
        state: see ``parity.components.pipeline``.
        hold: dtype of the run. The truth's timestep is the one that the run's dtype holds: another
            would be another point of the sinusoid.

    Returns:
        B L C, the latents after the step.
    """
    latents, timesteps = state["latents"], state["sched.timesteps"]
    scheduler.sigmas, scheduler.timesteps = state["sched.sigmas"], timesteps
    scheduler.set_begin_index(index)
    timestep = timesteps[index].expand(len(latents)).to(hold) / 1000
    with scope(f"step.{index:02d}"):
        timestep = tap("timestep", timestep.to(latents.dtype))
        noise_pred = tap("cond", _predict(model, "cond", "prompt", state, timestep))
        if "negative_embeds" in state:
            uncond = tap("uncond", _predict(model, "uncond", "negative", state, timestep))
            noise_pred = _guide(noise_pred, uncond, float(state["sched.guidance"]))
        tap("noise_pred", noise_pred)
        latents = scheduler.step(noise_pred, timesteps[index], latents, return_dict=False)[0]
        if "repaint" in state:
            latents = _put_back(scheduler, timesteps[index + 1 : index + 2], state, latents)
        return tap("latents", latents)


def _predict(
    model: QwenImageTransformer2DModel, name: str, prompt: str, state: Tensors, timestep: torch.Tensor
) -> torch.Tensor:
    """The velocity of the picture's own tokens, B L C; checkpoints inside are named below `name`."""
    latents = tokens = state["latents"]
    if "image_latents" in state and "repaint" not in state:
        tokens = torch.cat([latents, state["image_latents"]], dim=1)
    with scope(name):
        velocity = model(
            hidden_states=tokens,
            timestep=timestep,
            guidance=None,
            encoder_hidden_states_mask=state.get(f"{prompt}_mask"),
            encoder_hidden_states=state[f"{prompt}_embeds"],
            img_shapes=[state["img_shapes"]] * len(latents),
            attention_kwargs={},
            return_dict=False,
        )[0]
    return velocity[:, : latents.size(1)]


def _guide(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    combined = uncond + scale * (cond - uncond)
    cond_norm = torch.norm(cond, dim=-1, keepdim=True)
    combined_norm = torch.norm(combined, dim=-1, keepdim=True)
    return combined * (cond_norm / combined_norm)


def _put_back(
    scheduler: FlowMatchEulerDiscreteScheduler, following: torch.Tensor, state: Tensors, latents: torch.Tensor
) -> torch.Tensor:
    """Inpainting: the given picture, at the step's new noise level, where nothing is made anew."""
    kept = state["image_latents"]
    if len(following):
        kept = scheduler.scale_noise(kept, following, state["noise"])
    mask = state["repaint"].to(latents.dtype)
    return (1 - mask) * kept + mask * latents
