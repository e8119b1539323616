"""Shapes of the synthetic models. Without torch, so that a cached one is found at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Raised whenever the same preset and seed would give other weights.
FORMAT = 2
SYNTHETIC = "parity-synthetic.json"


@dataclass(frozen=True)
class Preset:
    """Shape of a synthetic model; most of it is the transformer's.

    Attributes:
        name: as the command line has it.
        num_layers: blocks, at least two (the first and the last have targets of their own).
        heads, head_dim: their product D must leave a LayerNorm room for ±9, that is D > 90.
        axes: rotary channels of frame, row and column; their sum is head_dim.
        joint_dim: width of the text encoder.
        vae_base_dim: channels of the VAE's finest resolution.
        shard_bytes: largest safetensors file of the transformer.
        other_bytes: about the size of text encoder, VAE and tokenizer.
        pipeline: class that model_index.json names.
        zero_cond_t: condition tokens of the transformer see a timestep of 0, as in Qwen-Image-Edit-2511.
    """

    name: str
    num_layers: int
    heads: int
    head_dim: int
    axes: tuple[int, int, int]
    joint_dim: int
    in_channels: int = 64
    out_channels: int = 16
    vae_base_dim: int = 96
    shard_bytes: int = 500_000_000
    other_bytes: int = 0
    pipeline: str = "QwenImagePipeline"
    zero_cond_t: bool = False

    def __post_init__(self) -> None:
        if self.num_layers < 2 or self.width <= 90 or sum(self.axes) != self.head_dim:
            raise ValueError(f"preset {self.name!r} needs at least 2 blocks, D > 90 and axes that sum to head_dim")

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of diffusers' QwenImageTransformer2DModel."""
        return {
            "num_layers": self.num_layers,
            "num_attention_heads": self.heads,
            "attention_head_dim": self.head_dim,
            "axes_dims_rope": list(self.axes),
            "joint_attention_dim": self.joint_dim,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
        }

    @property
    def width(self) -> int:
        """D."""
        return self.heads * self.head_dim

    @property
    def wide(self) -> bool:
        """Whether the text encoder has the real model's width too."""
        return self.joint_dim >= 1024

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the transformer in bfloat16."""
        d = self.width
        in_block = 36 * d * d + 30 * d + 4 * self.head_dim
        embed = (self.in_channels + self.joint_dim + 256 + d + 4) * d + self.joint_dim
        return 2 * (self.num_layers * in_block + embed + 2 * d * (d + 1) + 4 * self.out_channels * (d + 1))


_TINY: dict[str, Any] = {
    "num_layers": 60, "heads": 2, "head_dim": 64, "axes": (8, 28, 28), "joint_dim": 256, "vae_base_dim": 16,
    "shard_bytes": 32_000_000, "other_bytes": 20_000_000,
}  # fmt: skip

PRESETS = {
    preset.name: preset
    for preset in (
        Preset("tiny", **_TINY),
        Preset("tiny-edit", **_TINY, pipeline="QwenImageEditPlusPipeline", zero_cond_t=True),
        Preset("small", **_TINY | {"num_layers": 6}),
        Preset("small-edit", **_TINY | {"num_layers": 6}, pipeline="QwenImageEditPlusPipeline", zero_cond_t=True),
        Preset("wide", 2, 24, 128, (16, 56, 56), 3584, other_bytes=1_600_000_000),
        Preset("full", 60, 24, 128, (16, 56, 56), 3584, other_bytes=1_600_000_000, shard_bytes=1_400_000_000),
    )
}
