"""Synthetic VAEs: AutoencoderKLQwenImage with random weights, fitted so that pictures look like pictures, on disk.

B batch, C channels, T frames, H W pixels, O I channels that a kernel makes and takes.

Every convolution is fitted when its input first reaches it, with weights rounded to bfloat16 as they are stored: one
pass of pictures through the encoder and one of random latents through the decoder fit everything. Then normalised
latents of rms 1 decode to colours of mean 0 and standard deviation `CONTRAST` that change gradually from pixel to
pixel, and pictures encode to latents with the published mean and standard deviation of every channel.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageRMS_norm
from torch import Tensor, nn

from reference.presets import FORMAT, SYNTHETIC

# Standard deviation of a decoded picture in -1…1: less than one value in a hundred is clipped.
CONTRAST = 0.4
# Mean and spread of the latents' log-variance: a posterior that is nearly a point, as a trained VAE's.
LOG_VARIANCE = (-8.0, 0.5)
# What a residual branch adds, against a residual that enters with standard deviation 1.
BRANCH = 0.5
# Standard deviation of queries and keys: softmax prefers some places without picking a single one.
SHARPNESS = 1.5
# Share of a 3 × 3 kernel's energy that is a blur; the rest is white. Textures without noise.
BLUR = 0.8
# Height and width of the pictures that everything is fitted on, and how many.
SIDE, PICTURES = 96, 4


def write(folder: Path, *, base_dim: int, seed: int) -> None:
    """Make ``vae`` in a model's folder: the published config, but for the width.

    Args:
        folder: the model's folder; ``vae`` must not be there yet.
        base_dim: channels of the finest resolution.
        seed: of the weights. Another machine or BLAS moves single weights by one unit of bfloat16.
    """
    target = folder / "vae"
    fitted(base_dim, seed).save_pretrained(target)
    for shard in target.glob("*.safetensors"):
        shard.chmod(0o644)  # safetensors makes files that only their owner can read
    about = {"schema": 1, "component": "vae", "base_dim": base_dim, "seed": seed, "format": FORMAT}
    (target / SYNTHETIC).write_text(json.dumps(about, indent=2) + "\n")


def fitted(base_dim: int, seed: int) -> AutoencoderKLQwenImage:
    """The model in bfloat16."""
    draw = torch.Generator().manual_seed(seed)
    # In float32, with every weight rounded as it is set: float32 is quick on every CPU.
    model = AutoencoderKLQwenImage(base_dim=base_dim).eval().requires_grad_(False)
    _draw_weights(model, draw)
    goals = _goals(model, draw)
    hooks = [module.register_forward_pre_hook(goal.fit) for module, goal in goals.items()]
    published = (model.config.latents_mean, model.config.latents_std)
    mean, std = (torch.tensor(each).view(1, -1, 1, 1, 1) for each in published)
    model.encode(pictures(draw))
    latents = torch.randn(PICTURES, mean.shape[1], 1, SIDE // 8, SIDE // 8, generator=draw)
    model.decode(latents * std + mean)
    for hook in hooks:
        hook.remove()
    return model.bfloat16()


def pictures(draw: torch.Generator) -> Tensor:
    """B 3 1 H W within -1…1: clouds of colour, whose spectrum falls with frequency as that of photographs does."""
    frequency = torch.hypot(torch.fft.fftfreq(SIDE)[:, None], torch.fft.rfftfreq(SIDE)[None])
    falloff = 1 / frequency.clamp_min(1 / SIDE) ** 1.5
    spectrum = torch.fft.rfft2(torch.randn(PICTURES, 3, SIDE, SIDE, generator=draw)) * falloff
    clouds = torch.fft.irfft2(spectrum, s=(SIDE, SIDE))
    clouds = clouds / clouds.std(dim=(2, 3), keepdim=True)
    return (CONTRAST * clouds).clamp(-1, 1)[:, :, None]


@dataclass(frozen=True)
class Goal:
    """What a convolution's output is to be like, channel by channel.

    Attributes:
        mean, std: O.
    """

    mean: Tensor
    std: Tensor

    def fit(self, conv: nn.Conv2d | nn.Conv3d, args: tuple[Tensor, ...]) -> None:
        """Scale the kernels and set the biases of a convolution that is about to be called. A forward pre-hook."""
        y = conv.forward(args[0]).transpose(0, 1).flatten(1) - conv.bias[:, None]
        gain = self.std / y.std(dim=1).clamp_min(1e-6)
        _set(conv.weight, conv.weight * gain.view(-1, *[1] * (conv.weight.ndim - 1)))
        _set(conv.bias, self.mean - gain * y.mean(dim=1))


def _goals(model: AutoencoderKLQwenImage, draw: torch.Generator) -> dict[nn.Module, Goal]:
    """The goals of everything that a picture passes through."""
    goals = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and not name.endswith("time_conv"):
            std = torch.ones(module.out_channels)
            if name.endswith((".conv2", ".proj")):
                std *= BRANCH
            elif name.endswith(".to_qkv"):
                std[: 2 * module.out_channels // 3] = SHARPNESS
            goals[module] = Goal(0.3 * std * torch.randn(std.shape, generator=draw), std)
    of_latents = (torch.tensor(model.config.latents_mean), torch.tensor(model.config.latents_std))
    goals[model.quant_conv] = Goal(
        *(torch.cat([each, torch.full_like(each, by)]) for each, by in zip(of_latents, LOG_VARIANCE, strict=True))
    )
    pixel = torch.ones(model.decoder.conv_out.out_channels)
    goals[model.decoder.conv_out] = Goal(0 * pixel, CONTRAST * pixel)
    return goals


def _draw_weights(model: nn.Module, draw: torch.Generator) -> None:
    """Random weights of everything, of the right size for inputs of rms 1.

    The slices of a kernel that look back in time, which a picture does not need, are as large as the others, so that
    a port that mixes them up gives another picture.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            _set(module.weight, _kernels(module.weight.shape, draw))
            _set(module.bias, 0.1 * torch.randn(module.bias.shape, generator=draw))
        elif isinstance(module, QwenImageRMS_norm):
            _set(module.gamma, 1 + 0.1 * torch.randn(module.gamma.shape, generator=draw).clamp(-2, 2))


def _kernels(shape: torch.Size, draw: torch.Generator) -> Tensor:
    """Random kernels O I (T) H W of unit gain; those of 3 × 3 are `BLUR` of a blur."""
    kernels = torch.randn(shape, generator=draw)
    if shape[-1] == 3:
        profile = torch.tensor([0.5, 1.0, 0.5])
        window = torch.outer(profile, profile)
        blurred = torch.randn(*shape[:-2], 1, 1, generator=draw) * window / window.square().mean().sqrt()
        kernels = BLUR**0.5 * blurred + (1 - BLUR) ** 0.5 * kernels
    return kernels / math.sqrt(kernels[0].numel())


def _set(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value.bfloat16())
