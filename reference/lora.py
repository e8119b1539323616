"""LoRA on the reference: diffusers' own conversion of names and scales, and PEFT's layers, a stage's factors at a time.

diffusers loads a whole LoRA into a whole model. Here its two functions for that first see factors without values
(on the meta device): one converts the names, the other puts PEFT's layers into the model that has no weights yet.
When a stage is loaded, the first is run again with the values of that stage's factors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import _load_sft_state_dict_metadata
from diffusers.loaders.lora_pipeline import QwenImageLoraLoaderMixin
from safetensors import safe_open

from parity.layouts.lora import Adapter, Binding, LoraError, bind_file, shown
from reference.weights import Shards

Converted = Mapping[str, torch.Tensor]
PREFIX = "transformer."


class Adapters:
    """The LoRAs of one transformer, in the order in which they are added.

    Args:
        adapters: files with the user's scales.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self._adapters = tuple(adapters)
        self._files: dict[str, _File] = {}

    def inject(self, model: torch.nn.Module) -> None:
        """Put PEFT's layers into a model on the meta device; base weights stay below them as ``base_layer``.

        Args:
            model: diffusers' transformer, before anything is hooked to its layers.

        Raises:
            LoraError: a file is damaged, of another model, or one that diffusers does not read, or reads
                otherwise than `parity.layouts.lora` does.
        """
        if not self._adapters:
            return
        shapes = {
            name: (layer.out_features, layer.in_features)
            for name, layer in model.named_modules()
            if isinstance(layer, torch.nn.Linear)
        }
        for index, adapter in enumerate(self._adapters):
            file = _File(adapter.path, bind_file(adapter.path, shapes))
            name = f"lora_{index}"
            with warnings.catch_warnings():
                # Several at once are what the user asked for.
                warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
                model.load_lora_adapter(
                    {PREFIX + key: tensor for key, tensor in file.without_values.items()},
                    prefix=PREFIX.rstrip("."),
                    adapter_name=name,
                    metadata=file.metadata,
                    low_cpu_mem_usage=True,
                )
            self._files[name] = file
        model.set_adapters(list(self._files), [adapter.scale for adapter in self._adapters])
        model.requires_grad_(False)

    def over(self, shards: Shards) -> Shards | AdaptedShards:
        """A checkpoint's tensors under the names of the model with PEFT's layers, factors among them."""
        return AdaptedShards(shards, self._files) if self._files else shards


class AdaptedShards:
    """Base weights and factors as one checkpoint; see `reference.weights.Shards`."""

    def __init__(self, shards: Shards, files: Mapping[str, _File]) -> None:
        self.config = shards.config
        self._shards, self._files = shards, files
        self._layers = frozenset(layer for file in files.values() for layer in file.layers)

    @property
    def packed(self) -> frozenset[str]:
        """See `reference.weights.Shards.packed`."""
        return frozenset(map(self._renamed, self._shards.packed))

    def _renamed(self, key: str) -> str:
        layer, _, leaf = key.rpartition(".")
        return f"{layer}.base_layer.{leaf}" if layer in self._layers else key

    def read(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (key without prefix, tensor); see `reference.weights.Shards.read`."""
        for key, tensor in self._shards.read(prefix):
            yield self._renamed(prefix + key).removeprefix(prefix), tensor
        for name, file in self._files.items():
            for key, tensor in file.read(prefix):
                stem, _, leaf = key.rpartition(".")
                yield f"{stem}.{name}.{leaf}".removeprefix(prefix), tensor


class _File:
    """A LoRA file as diffusers reads it.

    Attributes:
        layers: layer -> keys of A and B as diffusers calls them, without its prefix.
        without_values: those keys -> tensors on the meta device.
        metadata: the adapter's config, where diffusers wrote one.
    """

    def __init__(self, path: Path, binding: Binding) -> None:
        self._path = path
        self.metadata: dict[str, Any] | None = _load_sft_state_dict_metadata(str(path))
        with safe_open(path, framework="pt") as file:
            self._meta = {
                key: torch.empty(tensor.shape, dtype=_DTYPES.get(tensor.dtype), device="meta")
                for key, tensor in binding.header.tensors.items()
            }
            # What is one number is needed as one: diffusers computes scales of it.
            self._meta |= {key: file.get_tensor(key) for key, tensor in self._meta.items() if tensor.numel() == 1}
        converted = self._converted(self._meta)
        self._origin = self._origins(converted)
        self.layers = _layers(converted)
        self._compare(binding)
        bound = set(binding.pairs)
        self.without_values = {key: tensor for key, tensor in converted.items() if _layer(key) in bound}

    def read(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (key, factor as diffusers holds it, in the file's dtype) of every factor below `prefix`."""
        wanted = [key for key in self.without_values if key.startswith(prefix)]
        if not wanted:
            return
        with safe_open(self._path, framework="pt") as file:
            values = {raw: file.get_tensor(raw) for raw in (self._origin[key] for key in wanted)}
        converted = self._converted(self._meta | values)
        yield from ((key, converted[key]) for key in wanted)

    def _converted(self, tensors: Converted) -> Converted:
        try:
            state = QwenImageLoraLoaderMixin.lora_state_dict(dict(tensors))
        except (ValueError, KeyError, RuntimeError, AttributeError) as error:
            raise LoraError(f"{self._path}: diffusers cannot read this LoRA: {shown(str(error))}") from None
        return {key.removeprefix(PREFIX): tensor for key, tensor in state.items() if key.startswith(PREFIX)}

    def _origins(self, converted: Converted) -> dict[str, str]:
        """diffusers' key -> the file's: a run of the conversion on numbers that say which key they were under."""
        keys = list(self._meta)
        found = self._converted(
            {key: torch.full((1, 1), 1.0 if key.endswith(".alpha") else index) for index, key in enumerate(keys)}
        )
        return {key: keys[int(found[key].item())] for key in converted}

    def _compare(self, binding: Binding) -> None:
        """The port is given the pairs of `binding`; the reference must have the same."""
        ours = {layer: (pair.down, pair.up) for layer, pair in binding.pairs.items()}
        theirs = {layer: tuple(map(self._origin.get, keys)) for layer, keys in self.layers.items()}
        lacking = [layer for layer, keys in ours.items() if theirs.get(layer) != keys]
        if lacking:
            raise LoraError(
                f"{self._path}: diffusers, which is the reference, reads {len(ours) - len(lacking)} of its {len(ours)} "
                f"pairs (dialect {binding.dialect}), not {shown(ours[lacking[0]][0])}; it would read "
                f"diffusion_model.{lacking[0]}.lora_A.weight, with .alpha or without"
            )


_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def _layer(key: str) -> str:
    return key.rpartition(".lora_")[0]


def _layers(keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Layer -> keys of A and of B, in diffusers' spelling."""
    found = {_layer(key) for key in keys}
    return {layer: (f"{layer}.lora_A.weight", f"{layer}.lora_B.weight") for layer in found}
