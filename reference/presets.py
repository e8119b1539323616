"""Shapes of the synthetic transformers. Without torch, so that a cached one is found at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Raised whenever the same preset and seed would give other weights.
FORMAT = 1
SYNTHETIC = "parity-synthetic.json"


@dataclass(frozen=True)
class Preset:
    """Shape of a synthetic transformer.

    Attributes:
        name: as the command line has it.
        num_layers: blocks, at least two (the first and the last have targets of their own).
        heads, head_dim: their product D must leave a LayerNorm room for ±9, that is D > 90.
        axes: rotary channels of frame, row and column; their sum is head_dim.
        joint_dim: width of the text encoder.
        shard_bytes: largest safetensors file.
    """

    name: str
    num_layers: int
    heads: int
    head_dim: int
    axes: tuple[int, int, int]
    joint_dim: int
    in_channels: int = 64
    out_channels: int = 16
    shard_bytes: int = 500_000_000

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
    def nbytes(self) -> int:
        """Bytes of all tensors in bfloat16."""
        d = self.width
        in_block = 36 * d * d + 30 * d + 4 * self.head_dim
        embed = (self.in_channels + self.joint_dim + 256 + d + 4) * d + self.joint_dim
        return 2 * (self.num_layers * in_block + embed + 2 * d * (d + 1) + 4 * self.out_channels * (d + 1))


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("tiny", 60, 2, 64, (8, 28, 28), 256, shard_bytes=32_000_000),
        Preset("wide", 2, 24, 128, (16, 56, 56), 3584),
    )
}
