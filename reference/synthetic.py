"""Synthetic Qwen-Image transformers: random weights with the real model's activation ranges, on disk.

D width. Folders are written as diffusers writes them, in bfloat16 as the published weights are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from reference.builder import Builder
from reference.calibration import Range, describe_case
from reference.weights import INDEX

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


def write(
    preset: Preset, seed: int, folder: Path, progress: Callable[[str], None] = lambda stage: None
) -> dict[str, Range]:
    """Make a checkpoint in the diffusers layout, in ``folder/transformer``.

    Args:
        preset: shape of the model.
        seed: of the weights. Another machine or BLAS rounds its matrix products differently and so
            moves single weights by one unit of bfloat16.
        folder: an empty folder.
        progress: told the name of each stage before it is made.

    Returns:
        lowest and highest value of each row of `TARGETS`, as the stored weights give them.
    """
    target = folder / "transformer"
    target.mkdir()
    with _threads(preset):
        builder, shards = Builder(preset, seed), _Shards(target, preset.shard_bytes)
        builder.model.save_config(target)
        for stage in builder.stages:
            progress(stage)
            for key, tensor in builder.tensors(stage):
                shards.add(key, tensor)
        shards.close()
    about = {
        "schema": 1, "preset": preset.name, "seed": seed, "format": FORMAT,
        "calibration": describe_case(), "achieved": builder.achieved,
    }  # fmt: skip
    (target / SYNTHETIC).write_text(json.dumps(about, indent=2) + "\n")
    return builder.achieved


@contextmanager
def _threads(preset: Preset) -> Iterator[None]:
    """One thread for a narrow model: on its small matrices more of them only wait for each other."""
    before = torch.get_num_threads()
    if preset.width < 1024:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Shards:
    """Writes safetensors files as diffusers names them, each up to a size."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._pending: dict[str, Tensor] = {}
        self._written: list[list[str]] = []
        self._total = self._size = 0

    def add(self, key: str, tensor: Tensor) -> None:
        """Take one tensor; a full shard goes to disk before it."""
        nbytes = tensor.numel() * tensor.element_size()
        if self._pending and self._size + nbytes > self._limit:
            self._flush()
        self._pending[key] = tensor
        self._size += nbytes
        self._total += nbytes

    def _flush(self) -> None:
        save_file(self._pending, self._folder / f"part-{len(self._written)}", metadata={"format": "pt"})
        self._written.append(list(self._pending))
        self._pending, self._size = {}, 0

    def close(self) -> None:
        """Write what is left, give the files their names and write the index."""
        self._flush()
        weight_map = {}
        for number, keys in enumerate(self._written):
            name = f"diffusion_pytorch_model-{number + 1:05d}-of-{len(self._written):05d}.safetensors"
            part = self._folder / f"part-{number}"
            # safetensors makes files that only their owner can read.
            part.chmod(0o644)
            part.rename(self._folder / name)
            weight_map |= dict.fromkeys(keys, name)
        index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weight_map.items()))}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
