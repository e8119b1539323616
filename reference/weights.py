"""Tensors of a checkpoint in the diffusers layout, read a few at a time as torch tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

INDEX = "diffusion_pytorch_model.safetensors.index.json"
SINGLE = "diffusion_pytorch_model.safetensors"


class Shards:
    """The safetensors shards of one folder.

    Args:
        folder: the ``transformer`` folder of a pipeline, or the folder above it.

    Raises:
        FileNotFoundError: neither an index nor a single file is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "transformer" if (folder / "transformer" / "config.json").exists() else folder
        self.config: dict = json.loads((self.folder / "config.json").read_text())
        if (self.folder / INDEX).exists():
            self._file_of = json.loads((self.folder / INDEX).read_text())["weight_map"]
        elif (self.folder / SINGLE).exists():
            with safe_open(self.folder / SINGLE, framework="pt") as shard:
                self._file_of = dict.fromkeys(shard.keys(), SINGLE)
        else:
            raise FileNotFoundError(f"{self.folder} holds neither {INDEX} nor {SINGLE}")

    def read(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (key without prefix, tensor in its stored dtype) of every key below `prefix`."""
        by_file: dict[str, list[str]] = {}
        for key, file in self._file_of.items():
            if key.startswith(prefix):
                by_file.setdefault(file, []).append(key)
        for file, keys in by_file.items():
            with safe_open(self.folder / file, framework="pt") as shard:
                for key in keys:
                    yield key[len(prefix) :], shard.get_tensor(key)
