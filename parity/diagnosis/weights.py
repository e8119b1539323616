"""A model's tensors for recipes: canonical names, float64, rounded as the run's dtype holds them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from parity.checkpoint import Checkpoint
from parity.components.base import DTYPES
from parity.dequantize import dequantize
from parity.layouts import Entry
from parity.layouts.entries import Place as Stored
from parity.lora import LoraFile
from parity.tensors import mapped

# float64 copies that are kept: recipes and their variants ask for the same few tensors again and again.
_CACHE_BYTES = 1 << 29


@dataclass(frozen=True)
class LowRank:
    """A LoRA on one layer: scale·(x·downᵀ)·upᵀ. down: R I. up: O R. alpha: of the file; None without one."""

    down: np.ndarray
    up: np.ndarray
    scale: float
    alpha: float | None
    user: float


class ModelWeights:
    """Callable: canonical key -> tensor in float64.

    Args:
        checkpoint: an inspected component, in any layout.
        dtype: of the run; what is not packed is rounded to it. None leaves values as they are stored.
        loras: that the model wears.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: str | None = None, loras: Sequence[LoraFile] = ()) -> None:
        self._located, self._tensors = checkpoint.located, checkpoint.tensors
        self._hold = None if dtype in (None, "float64") else DTYPES[dtype]
        self._loras = loras
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()
        self._held = 0

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Canonical key -> where it lies."""
        return self._located.entries

    def __call__(self, key: str) -> np.ndarray:
        """A tensor.

        Raises:
            KeyError: the model has none of this name.
        """
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        array = self._read(self._located.entries[key])
        self._cache[key] = array
        self._held += array.nbytes
        while self._held > _CACHE_BYTES and len(self._cache) > 1:
            self._held -= self._cache.popitem(last=False)[1].nbytes
        return array

    def _read(self, entry: Entry) -> np.ndarray:
        stored = self.stored(Stored(entry.file, entry.name))
        if entry.packing is not None:
            packing = entry.packing
            scales, biases = self.stored(packing.scales), self.stored(packing.biases)
            whole = dequantize(stored, scales, biases, packing.bits, packing.group_size)
            return whole.reshape(entry.true_shape).astype(np.float64)
        if entry.axes is not None:
            stored = stored.transpose(entry.axes).reshape(entry.true_shape)
        if self._hold is not None:
            stored = stored.astype(self._hold)
        return stored.astype(np.float64)

    def stored(self, place: Stored) -> np.ndarray:
        """An array as it lies in its file."""
        return mapped(self._located.folder / place.file, self._tensors[place.name])

    def lora(self, layer: str) -> list[LowRank]:
        """The LoRAs on a layer, float64, factors rounded as the run's dtype holds them."""
        return [self._low_rank(file, layer) for file in self._loras if layer in file.binding.pairs]

    def _low_rank(self, file: LoraFile, layer: str) -> LowRank:
        pair, header = file.binding.pairs[layer], file.binding.header

        def read(key: str, hold: bool = True) -> np.ndarray:
            array = mapped(file.adapter.path, header.tensors[key])
            array = array.astype(self._hold) if hold and self._hold is not None else array
            return array.astype(np.float64)

        alpha = None if pair.alpha is None else float(read(pair.alpha, hold=False).reshape(-1)[0])
        ratio = 1.0 if alpha is None else alpha / pair.rank
        user = file.adapter.scale
        return LowRank(read(pair.down), read(pair.up), ratio * pair.multiplier * user, alpha, user)
