"""Synthetic Qwen-Image transformers: random weights with the real model's activation ranges, on disk.

D width. Folders are written as diffusers writes them, in bfloat16 as the published weights are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from reference.builder import Builder
from reference.calibration import Range, describe_case
from reference.presets import FORMAT, SYNTHETIC, Preset
from reference.weights import INDEX


def write(
    preset: Preset, seed: int, folder: Path, progress: Callable[[str], None] = lambda stage: None
) -> dict[str, Range]:
    """Make a checkpoint in the diffusers layout, in ``folder/transformer``.

    Args:
        preset: shape of the model. Its zero_cond_t goes into the config alone, as it has no weights.
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
        if preset.zero_cond_t:
            config = json.loads((target / "config.json").read_text())
            (target / "config.json").write_text(json.dumps(config | {"zero_cond_t": True}, indent=2) + "\n")
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
