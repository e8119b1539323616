"""Weights of a synthetic vision tower: random, and fitted on one picture so that every part of it matters.

N tokens (patches), D width, H heads, d head width, m patches each way of a merge block.

Random weights alone would let the residual grow or vanish and make attention uniform. Here each
block is run on a fixed picture and the gains of its last linear layers are set: what a half adds
to the residual has a fixed size, and the heads look about with different sharpness. Tensors are
rounded to bfloat16, as the published weights are, before the next part is fitted behind them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.tap import Recorder, recording
from reference import vision

# Of the tokens that enter the first block, of what attention and the MLP add to them, of the features.
EMBED_RMS, ADDED_RMS, FEATURES_RMS = 1.0, 0.5, 1.0
# Standard deviation of a query's scores over the keys, of the calmest and of the sharpest head.
CALM, SHARP = 1.0, 4.0
# Norm weights vary by so much about 1, biases by so much about 0.
SPREAD = 0.1
# Share of a patch's mean colour that its projection sees; it would drown everything else.
MEAN_COLOUR = 0.1
# Patches each way of the fixed picture, in merge blocks: ragged windows in both directions.
ROWS, COLUMNS = 10, 6


def tensors(vision_config: Mapping[str, Any], seed: int) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a vision tower by their published keys, in bfloat16.

    One block is in memory at a time. Another machine or BLAS rounds its matrix products
    differently and so moves single weights by one unit of bfloat16.

    Args:
        vision_config: as in the text encoder's ``config.json``.
        seed: of the weights; the picture is always the same.
    """
    draw = torch.Generator().manual_seed(seed)
    model = vision.build(dict(vision_config), torch.float32, torch.device("cpu"))
    state = _picture(model)
    _draw(model.patch_embed, draw)
    state = _fit_embed(model, state)
    yield from _store(model.patch_embed, "visual.patch_embed")
    for index, block in enumerate(model.blocks):
        _draw(block, draw)
        state = _fit_block(model, index, state)
        yield from _store(block, f"visual.blocks.{index}")
    _draw(model.merger, draw)
    _gain(model.merger.mlp[2], FEATURES_RMS / _rms(vision.merge(model, state)["image_features"]))
    yield from _store(model.merger, "visual.merger")


def _picture(model: nn.Module) -> dict[str, Any]:
    """Waves, an edge and noise, through the image processor, as the state before ``vision.embed``."""
    side = model.patch_size * model.spatial_merge_size
    noise = np.random.Generator(np.random.Philox(key=0))
    y, x = np.meshgrid(np.arange(ROWS * side), np.arange(COLUMNS * side), indexing="ij")
    waves = [np.sin(noise.uniform(0.02, 0.5) * y + noise.uniform(0.02, 0.5) * x) for _ in range(3)]
    edge = np.where(y + 2 * x > ROWS * side, 40, -40)
    picture = 128 + 50 * np.stack(waves, axis=-1) + edge[..., None] + noise.normal(0, 10, (*y.shape, 3))
    processor = vision.Qwen2VLImageProcessorPil(
        patch_size=model.patch_size, merge_size=model.spatial_merge_size,
        temporal_patch_size=model.config.temporal_patch_size, min_pixels=1,
    )  # fmt: skip
    return vision.patches(processor, [np.clip(picture, 0, 255).astype(np.uint8)], torch.float32)


def _draw(module: nn.Module, draw: torch.Generator) -> None:
    """Fill a part with random numbers: outputs of linear layers are about as large as their inputs."""
    module.to_empty(device="cpu")
    for name, parameter in module.named_parameters():
        parameter.normal_(generator=draw)
        if parameter.ndim > 1:
            parameter /= math.sqrt(parameter[0].numel())
        elif name.endswith("bias"):
            parameter *= SPREAD
        else:
            parameter.mul_(SPREAD).add_(1)


def _fit_embed(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    weight = model.patch_embed.proj.weight
    weight -= (1 - MEAN_COLOUR) * weight.mean(dim=(2, 3, 4), keepdim=True)
    weight *= EMBED_RMS / _rms(vision.embed(model, state)["vis"])
    _round(model.patch_embed)
    return vision.embed(model, state)


def _fit_block(model: nn.Module, index: int, state: dict[str, Any]) -> dict[str, Any]:
    """Set the gains of one block, each behind the ones before it, and run it."""
    block, here = model.blocks[index], f"vision.block.{index:02d}"

    def run(*kinds: str) -> list[Tensor]:
        with recording(Recorder({f"{here}.{kind}" for kind in kinds})) as recorder:
            vision.block(model, index, state)
        return [recorder.values[f"{here}.{kind}"] for kind in kinds]

    attention = block.attn
    scores = torch.einsum("nhd,khd->hnk", *run("q", "k")) * attention.scaling
    targets = torch.logspace(math.log2(CALM), math.log2(SHARP), attention.num_heads, base=2)
    gain = (targets / scores.std(dim=-1).mean(dim=-1)).sqrt()
    # Rows of queries, then of keys, then of values, head by head.
    gain = torch.cat([gain, gain, torch.ones_like(gain)]).repeat_interleave(attention.head_dim)
    attention.qkv.weight *= gain[:, None]
    attention.qkv.bias *= gain
    _gain(attention.proj, ADDED_RMS / _rms(*run("attn")))
    _gain(block.mlp.down_proj, ADDED_RMS / _rms(*run("ffn")))
    _round(block)
    return vision.block(model, index, state)


def _gain(layer: nn.Linear, gain: float) -> None:
    layer.weight *= gain
    layer.bias *= gain


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def _round(module: nn.Module) -> None:
    """What is fitted afterwards sees the part as it will be stored."""
    for parameter in module.parameters():
        parameter.copy_(parameter.bfloat16())


def _store(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The part's tensors; its memory is given back afterwards."""
    for name, parameter in module.named_parameters():
        yield f"{prefix}.{name}", parameter.detach().bfloat16()
    module.to("meta")
