"""Tensors of a checkpoint in the diffusers layout, read a few at a time as torch tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

INDEX = "diffusion_pytorch_model.safetensors.index.json"
# An unsharded model's file, as diffusers and as transformers call it; an index is called after it.
SINGLES = ("diffusion_pytorch_model.safetensors", "model.safetensors")


class Shards:
    """The safetensors shards of one component.

    Args:
        folder: the component's folder, or the pipeline's, which is the one above.
        component: name of the component's folder.

    Raises:
        FileNotFoundError: neither an index nor a single file is there.
    """

    def __init__(self, folder: Path, component: str = "transformer") -> None:
        self.folder = folder / component if (folder / component / "config.json").exists() else folder
        self.config: dict = json.loads((self.folder / "config.json").read_text())
        self._file_of = self._index()

    def _index(self) -> dict[str, str]:
        for name in SINGLES:
            index = self.folder / f"{name}.index.json"
            if index.exists():
                return json.loads(index.read_text())["weight_map"]
            if (self.folder / name).exists():
                with safe_open(self.folder / name, framework="pt") as shard:
                    return dict.fromkeys(shard.keys(), name)
        raise FileNotFoundError(f"{self.folder} holds neither {' nor '.join(SINGLES)}, nor an index of one")

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
