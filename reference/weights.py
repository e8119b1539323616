"""Tensors of a checkpoint, in whatever layout it is stored, read one at a time as torch tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from parity.layouts import Entry, locate
from reference.packed import dequantize

INDEX = "diffusion_pytorch_model.safetensors.index.json"


class Shards:
    """One component's tensors under the names of diffusers or transformers.

    Args:
        path: the model's folder, the component's, or a single safetensors file.
        component: name of the component's folder.

    Attributes:
        packed: keys of quantized layers' weights.

    Raises:
        WeightsError: it is not there, or damaged.
    """

    def __init__(self, path: Path, component: str = "transformer") -> None:
        located = locate(path, component)
        self.folder, self._entries = located.folder, located.entries
        self.config: dict = dict(located.config)
        self.packed = frozenset(name for name, entry in self._entries.items() if entry.packing is not None)

    def read(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (key without prefix, tensor in its stored dtype) of every key below `prefix`.

        Those of `packed` are what the packed weights stand for, exactly (see `dequantize`).

        Each tensor has its file opened for itself: a mapped file's pages stay in memory until the last tensor of it
        is gone, and with a stage at a time they would be a second copy of the stage.
        """
        for key, entry in self._entries.items():
            if key.startswith(prefix):
                yield key[len(prefix) :], self._canonical(entry)

    def _canonical(self, entry: Entry) -> torch.Tensor:
        tensor = self._stored(entry.file, entry.name)
        if entry.packing is not None:
            packing = entry.packing
            scales, biases = self._stored(*packing.scales), self._stored(*packing.biases)
            return dequantize(tensor, scales, biases, packing.bits, packing.group_size).reshape(entry.true_shape)
        if entry.axes is None:
            return tensor
        return tensor.permute(entry.axes).reshape(entry.true_shape).contiguous()

    def _stored(self, file: str, name: str) -> torch.Tensor:
        with safe_open(self.folder / file, framework="pt") as shard:
            return shard.get_tensor(name)
