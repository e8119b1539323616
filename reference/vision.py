"""transformers' Qwen2.5-VL vision tower with named checkpoints, and cut into stages.

N tokens (patches) of all pictures together, D width, H heads, d head width, m = 2 patches each
way of a merge block, J text-encoder width.

The instruments are module hooks and an attention module of our own that calls the library's
rotation and attention; a tapped and an untapped forward pass are bit-equal. `patches`, `embed`,
`block` and `merge` are the image processor and the three parts of the model's ``forward``
(transformers 5.24.0), called one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLRMSNorm,
    Qwen2_5_VLVisionAttention,
    Qwen2_5_VLVisionRotaryEmbedding,
    apply_rotary_pos_emb_vision,
)

# transformers loads this one where torchvision is missing, and the one that resizes in torchvision where it is not.
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from parity.tap import tap

Tensors = dict[str, Any]


def build(
    vision_config: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> Qwen2_5_VisionTransformerPretrainedModel:
    """An instrumented vision tower without weights (all parameters on the meta device).

    Args:
        vision_config: of the text encoder's ``config.json``.
        dtype: dtype of the weights to come; float64 also widens the model's float32 islands.
        device: where the rotary frequencies live.
    """
    config = Qwen2_5_VLVisionConfig(**vision_config)
    with torch.device("meta"):
        model = Qwen2_5_VisionTransformerPretrainedModel._from_config(config, attn_implementation="sdpa").eval()
        for index, block in enumerate(model.blocks):
            block.attn = TappedAttention(config, f"vision.block.{index:02d}", exact=dtype == torch.float64)
    with torch.device(device):
        model.rotary_pos_emb = Qwen2_5_VLVisionRotaryEmbedding(config)
    if dtype == torch.float64:
        widen_islands(model)
    model.requires_grad_(False)
    instrument(model)
    return model


def widen_islands(model: Qwen2_5_VisionTransformerPretrainedModel) -> None:
    """Make the norms and the rotary tables of a float64 model float64 throughout, by hooks that replace outputs."""
    for module in model.modules():
        if isinstance(module, Qwen2_5_VLRMSNorm):
            module.register_forward_hook(_rms_norm_float64)
    model.rotary_pos_emb.register_forward_hook(_rotary_float64)


def _rms_norm_float64(norm: Qwen2_5_VLRMSNorm, args: tuple, _: torch.Tensor) -> torch.Tensor:
    (x,) = args
    return norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon))


def _rotary_float64(
    rotary: Qwen2_5_VLVisionRotaryEmbedding, args: tuple, _: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    _hidden, position_ids = args
    axis = 2 * rotary.inv_freq.numel()
    exponent = torch.arange(0, axis, 2, dtype=torch.float64, device=position_ids.device) / axis
    frequency = 1.0 / rotary.config.rope_parameters["rope_theta"] ** exponent
    angle = position_ids[..., None].double() * frequency
    return rotary.recomposition_frequencies(angle.cos()), rotary.recomposition_frequencies(angle.sin())


class TappedAttention(Qwen2_5_VLVisionAttention):
    """Attention within segments as the library's module computes it, with q, k and v tapped.

    Args:
        config: of the tower.
        here: the block's scope, ``vision.block.07``.
        exact: rotate in float64 (the library rotates in float32 whatever the dtype).
    """

    def __init__(self, config: Qwen2_5_VLVisionConfig, here: str, *, exact: bool) -> None:
        super().__init__(config)
        self._here = here
        self._rotate = _rotate_float64 if exact else apply_rotary_pos_emb_vision

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: Any,
    ) -> torch.Tensor:
        """N D."""
        q, k, v = self.qkv(hidden_states).reshape(len(hidden_states), 3, self.num_heads, -1).unbind(1)
        q, k = self._rotate(q, k, *position_embeddings)
        q, k, v = (tap(f"{self._here}.{name}", x) for name, x in (("q", q), ("k", k), ("v", v)))
        lengths = cu_seqlens.diff().tolist()
        segments = zip(*(x.transpose(0, 1)[None].split(lengths, dim=2) for x in (q, k, v)), strict=True)
        done = [
            F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=None, scale=self.scaling)
            for q, k, v in segments
        ]
        return self.proj(torch.cat(done, dim=2)[0].transpose(0, 1).flatten(1))


def _rotate_float64(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)

    def turn(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    return turn(q), turn(k)


def instrument(model: Qwen2_5_VisionTransformerPretrainedModel) -> None:
    """Put a tap at every checkpoint that a module makes; `TappedAttention` and the stages have the others."""
    _tap_output(model.patch_embed, "vision.patch_embed")
    _tap_output(model.merger.ln_q, "vision.merger.norm")
    for index, block in enumerate(model.blocks):
        here = f"vision.block.{index:02d}"
        _tap_output(block.norm1, f"{here}.normed")
        _tap_output(block.attn, f"{here}.attn")
        block.norm2.register_forward_pre_hook(_tap_first(f"{here}.mid"))
        _tap_output(block.norm2, f"{here}.normed2")
        _tap_output(block.mlp, f"{here}.ffn")
        _tap_output(block, f"{here}.out")


def _tap_output(module: torch.nn.Module, name: str) -> None:
    def hook(_module, _args, output) -> None:
        tap(name, output)

    module.register_forward_hook(hook)


def _tap_first(name: str):
    def hook(_module, args) -> None:
        tap(name, args[0])

    return hook


class ExactProcessor(Qwen2VLImageProcessorPil):
    """The image processor with float64 arithmetic behind the resized picture, whose values are whole numbers."""

    def rescale(self, image: np.ndarray, scale: float, **_: Any) -> np.ndarray:
        """In float64."""
        return image.astype(np.float64) * scale

    def normalize(self, image: np.ndarray, mean: Sequence[float], std: Sequence[float], **_: Any) -> np.ndarray:
        """In float64. image: C H W."""
        mean, std = (np.asarray(values, np.float64)[:, None, None] for values in (mean, std))
        return (image - mean) / std

    def patchify(self, image: np.ndarray, **sizes: int) -> tuple[np.ndarray, int, int]:
        """The library's own order; what it casts to float32 is handed to it in two exact parts."""
        high = image.astype(np.float32)
        first, *grid = super().patchify(high, **sizes)
        second, *_ = super().patchify((image - high).astype(np.float32), **sizes)
        return (first.astype(np.float64) + second, *grid)


def load_processor(root: Path, *, exact: bool = False) -> Qwen2VLImageProcessorPil:
    """The image processor of a pipeline, from its ``processor`` folder; its backend is Pillow.

    Args:
        root: of the pipeline.
        exact: compute in float64 behind the resized picture.
    """
    kind = ExactProcessor if exact else Qwen2VLImageProcessorPil
    return kind.from_pretrained(root / "processor", local_files_only=True)


def patches(processor: Qwen2VLImageProcessorPil, images: Sequence[np.ndarray], dtype: torch.dtype) -> Tensors:
    """The image processor, and the cast to the model's dtype that follows it.

    Args:
        images: each H W 3 uint8, RGB.
        dtype: of the tower.

    Returns:
        pixels N C·T·P·P, image_grid_thw n 3.
    """
    made = processor([Image.fromarray(image) for image in images], return_tensors="np")
    pixels = tap("vision.pixels", torch.from_numpy(made["pixel_values"]).to(dtype))
    grid = tap("vision.grid_thw", torch.from_numpy(made["image_grid_thw"]))
    return {"pixels": pixels, "image_grid_thw": grid}


def embed(model: Qwen2_5_VisionTransformerPretrainedModel, state: Tensors) -> Tensors:
    """First part of ``forward``: patch embedding, rotary tables and windows, all in the order of the windows."""
    grid = state["image_grid_thw"]
    position_ids = get_vision_position_ids(grid, model.spatial_merge_size)
    window_index, bounds = get_vision_window_index(grid, model.spatial_merge_size, model.window_size, model.patch_size)
    tap("vision.window_index", window_index)
    tap("vision.cu_window_seqlens", bounds)
    hidden = model.patch_embed(state["pixels"])
    permute = model.permute_input_for_window_attn
    cos, sin = (permute(table, window_index, len(hidden)) for table in model.rotary_pos_emb(hidden, position_ids))
    # Each half of a head has the same angles.
    half = cos.shape[-1] // 2
    table = tap("vision.rope", torch.stack([cos[:, :half], sin[:, :half]], dim=-1))
    return {
        "vis": permute(hidden, window_index, len(hidden)),
        "rope.vis": table,
        "window_index": window_index,
        "cu_window_seqlens": bounds,
        "image_grid_thw": grid,
    }


def block(model: Qwen2_5_VisionTransformerPretrainedModel, index: int, state: Tensors) -> Tensors:
    """One block; full attention where the config says so, else within windows."""
    whole = index in model.fullatt_block_indexes
    bounds = get_vision_cu_seqlens(state["image_grid_thw"]) if whole else state["cu_window_seqlens"]
    tables = tuple(torch.cat([half, half], dim=-1) for half in state["rope.vis"].unbind(-1))
    hidden = model.blocks[index](state["vis"], cu_seqlens=bounds, position_embeddings=tables)
    return state | {"vis": hidden}


def merge(model: Qwen2_5_VisionTransformerPretrainedModel, state: Tensors) -> Tensors:
    """Last part of ``forward``: the merger, and back into the order of the picture."""
    merged = model.merger(state["vis"])[torch.argsort(state["window_index"])]
    return {"image_features": tap("vision.merger", merged), "image_grid_thw": state["image_grid_thw"]}
