"""diffusers' AutoencoderKLQwenImage with named checkpoints, and cut into stages.

B batch, C channels, H W pixels, h w on the latent grid, z latent channels.

The instruments are module hooks; a tapped and an untapped pass are bit-equal. The stages are the parts of the model's
``encode`` and ``decode`` (diffusers 0.42.1) for one frame, for which the cache of earlier frames is empty: then a
layer called without a cache computes the same. What a pipeline does with the latents before and after is in them too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    QwenImageAttentionBlock,
    QwenImageResample,
    QwenImageResidualBlock,
    QwenImageUpsample,
)
from torch import nn

from parity.tap import tap

Tensors = dict[str, Any]


def build(config: dict[str, Any], dtype: torch.dtype) -> AutoencoderKLQwenImage:
    """An instrumented model without weights (all parameters on the meta device).

    Args:
        config: contents of ``config.json``.
        dtype: dtype of the weights to come; float64 also widens the model's float32 island.
    """
    with torch.device("meta"):
        model = AutoencoderKLQwenImage.from_config(config).eval()
    model.requires_grad_(False)
    if dtype == torch.float64:
        widen_islands(model)
    instrument(model)
    return model


def widen_islands(model: nn.Module) -> None:
    """Make a float64 model float64 throughout: diffusers upsamples in float32."""
    for module in model.modules():
        if isinstance(module, QwenImageUpsample):
            module.register_forward_hook(_upsampled)


def _upsampled(module: QwenImageUpsample, args: tuple[torch.Tensor, ...], _: torch.Tensor) -> torch.Tensor:
    return F.interpolate(args[0], scale_factor=module.scale_factor, mode=module.mode)


def instrument(model: AutoencoderKLQwenImage) -> None:
    """Put a tap at every checkpoint of the full level that a module gives; `encode_head` and `decode_in` have more."""
    encoder, decoder = model.encoder, model.decoder
    for module, name in (
        (encoder.conv_in, "vae.encode.conv_in"),
        (encoder.norm_out, "vae.encode.norm_out"),
        (encoder.conv_out, "vae.encode.conv_out"),
        (model.post_quant_conv, "vae.decode.post_quant_conv"),
        (decoder.conv_in, "vae.decode.conv_in"),
        (decoder.norm_out, "vae.decode.norm_out"),
        (decoder.conv_out, "vae.decode.image"),
    ):
        _tap_output(module, name)
    model.quant_conv.register_forward_hook(_tap_moments)
    for index, layer in enumerate(encoder.down_blocks):
        kind = "downsample" if isinstance(layer, QwenImageResample) else "resnet"
        _instrument_layer(layer, f"vae.encode.down.{index:02d}.{kind}")
    for where, of in (("encode", encoder), ("decode", decoder)):
        for index, resnet in enumerate(of.mid_block.resnets):
            _instrument_layer(resnet, f"vae.{where}.mid.resnet.{index:02d}")
        _instrument_layer(of.mid_block.attentions[0], f"vae.{where}.mid.attn")
    for index, block in enumerate(decoder.up_blocks):
        for number, resnet in enumerate(block.resnets):
            _instrument_layer(resnet, f"vae.decode.up.{index:02d}.resnet.{number:02d}")
        if block.upsamplers is not None:
            _instrument_layer(block.upsamplers[0], f"vae.decode.up.{index:02d}.upsample")


def _instrument_layer(layer: nn.Module, here: str) -> None:
    """A resnet, attention or resampling layer: its output, and what is inside."""
    inside: dict[str, str] = {}
    if isinstance(layer, QwenImageResidualBlock):
        inside = {kind: kind for kind in ("norm1", "conv1", "norm2", "conv2")}
        if not isinstance(layer.conv_shortcut, nn.Identity):
            inside["conv_shortcut"] = "shortcut"
    elif isinstance(layer, QwenImageAttentionBlock):
        inside = {"norm": "norm", "to_qkv": "qkv", "proj": "proj"}
    for attribute, kind in inside.items():
        _tap_output(getattr(layer, attribute), f"{here}.{kind}")
    _tap_output(layer, here)


def _tap_output(module: nn.Module, name: str) -> None:
    def hook(_module, _args, output) -> None:
        tap(name, output)

    module.register_forward_hook(hook)


def _tap_moments(_module, _args, output) -> None:
    for name, half in zip(("mean", "logvar"), output.chunk(2, dim=1), strict=True):
        tap(f"vae.encode.{name}", half)


def encode_head(model: AutoencoderKLQwenImage, hidden: torch.Tensor) -> torch.Tensor:
    """Last part of ``encode``, and the latents that a pipeline makes of its mean.

    Returns:
        B z 1 h w, normalised.
    """
    encoder = model.encoder
    moments = model.quant_conv(encoder.conv_out(encoder.nonlinearity(encoder.norm_out(hidden))))
    return tap("vae.encode.latents", normalize(model, moments.chunk(2, dim=1)[0]))


def decode_in(model: AutoencoderKLQwenImage, latents: torch.Tensor) -> torch.Tensor:
    """What a pipeline does with its latents, B z 1 h w, and the first part of ``decode``."""
    latents = tap("vae.decode.latents", denormalize(model, latents))
    return model.decoder.conv_in(model.post_quant_conv(latents))


def decode_head(model: AutoencoderKLQwenImage, hidden: torch.Tensor) -> torch.Tensor:
    """Last part of ``decode``: B 3 1 H W in -1…1."""
    decoder = model.decoder
    return decoder.conv_out(decoder.nonlinearity(decoder.norm_out(hidden))).clamp(-1, 1)


def normalize(model: AutoencoderKLQwenImage, latents: torch.Tensor) -> torch.Tensor:
    """Latents for the transformer, as QwenImageImg2ImgPipeline computes them (editing pipelines divide instead)."""
    mean, std = _statistics(model, latents)
    return (latents - mean) * (1.0 / std)


def denormalize(model: AutoencoderKLQwenImage, latents: torch.Tensor) -> torch.Tensor:
    """Latents for the decoder, as every Qwen-Image pipeline computes them."""
    mean, std = _statistics(model, latents)
    return latents / (1.0 / std) + mean


def _statistics(model: AutoencoderKLQwenImage, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The published mean and standard deviation of each latent channel, 1 z 1 1 1 in the latents' dtype."""
    config = model.config
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(like.device, like.dtype)
        for values in (config.latents_mean, config.latents_std)
    )
    return mean, std
