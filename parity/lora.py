"""LoRA files as the command line names them: ``FILE[@SCALE]``, inspected before a run and described after it."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity import layer_classes
from parity.checkpoint import Values, count_non_finite
from parity.errors import MissingPackageError, UsageError
from parity.layouts.lora import Adapter, Binding, LoraError, bind_file, nearest_line
from parity.safetensors_header import Tensor, and_more, shown
from parity.tensors import NUMPY
from parity.transformer_shape import expected_tensors

_SHOWN = 3


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that fits the model.

    Attributes:
        adapter: which file, and the user's scale.
        binding: its pairs and their layers.
        sha256: of the file.
        alphas: all values of alpha, in ascending order.
        untrained: layers whose B is all zero, which a LoRA is before it has learnt anything.
    """

    adapter: Adapter
    binding: Binding
    sha256: str
    alphas: tuple[float, ...]
    untrained: tuple[str, ...]

    @property
    def line(self) -> str:
        """What was bound, in one line."""
        bound, unbound = len(self.binding.pairs), len(self.binding.unbound)
        alphas = f"alpha {_join(self.alphas)}" if self.alphas else "no alpha"
        scale = f", scale {self.adapter.scale:g}" if self.adapter.scale != 1 else ""
        return (
            f"lora {shown(self.adapter.path.name)}: {bound} of {bound + unbound} pairs bound, "
            f"rank {_join(self.binding.ranks)}, {alphas}{scale}, dialect {self.binding.dialect}"
        )

    @property
    def remarks(self) -> Iterator[str]:
        """What the user should know besides."""
        yield from (nearest_line(stem, names) for stem, names in self.binding.near.items())
        if (more := len(self.binding.unbound) - len(self.binding.near)) > 0:
            yield f"and {more} more pairs without a layer"
        if self.untrained:
            yield f"{len(self.untrained)} layers have a lora_B of zeros, which changes nothing: {self.untrained[0]}"

    def describe(self) -> dict[str, Any]:
        """One entry of ``weights.lora`` in ``parity.json``."""
        bound = self.binding.pairs
        return {
            "name": self.adapter.path.name,
            "sha256": self.sha256,
            "scale": self.adapter.scale,
            "dialect": self.binding.dialect,
            "pairs": len(bound) + len(self.binding.unbound),
            "bound": len(bound),
            "unbound": list(self.binding.unbound[:_SHOWN]),
            "ranks": list(self.binding.ranks),
            "alphas": list(self.alphas),
        }


def parse(text: str) -> Adapter:
    """``FILE[@SCALE]``, as ``--lora`` takes it. A file whose name has an @ in it is found as well.

    Raises:
        UsageError: the scale is no number.
    """
    file, at, scale = text.rpartition("@")
    if not at or Path(text).exists():
        return Adapter(Path(text))
    try:
        value = float(scale)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not file:
        raise UsageError(f"--lora {shown(text)}: {shown(scale)} is no scale; expected FILE or FILE@SCALE (x@0.8)")
    return Adapter(Path(file), value)


def inspect(texts: Sequence[str], config: Mapping[str, Any] | None) -> tuple[LoraFile, ...]:
    """Look at every file that was asked for, and every value in it.

    Args:
        texts: as for `parse`.
        config: contents of the transformer's ``config.json``; None where no transformer takes part.

    Raises:
        UsageError: no scale, the same file twice, or nothing that a LoRA could be applied to.
        LoraError: a file is damaged, not finite, or of another model.
    """
    adapters = [parse(text) for text in texts]
    if not adapters:
        return ()
    if config is None:
        raise UsageError("--lora changes the transformer, and none takes part in this suite")
    resolved = [adapter.path.resolve() for adapter in adapters]
    if twice := [path for path in resolved if resolved.count(path) > 1]:
        raise UsageError(f"--lora {twice[0]}: given twice; add the scales up")
    layers = linear_layers(config)
    return tuple(_inspect(adapter, layers) for adapter in adapters)


def check_reference_can() -> None:
    """diffusers loads LoRAs through PEFT.

    Raises:
        MissingPackageError: it is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingPackageError("--lora needs the package peft, with which diffusers applies LoRAs: pip install peft")


def linear_layers(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Linear layer of a transformer -> (outputs, inputs)."""
    shapes = expected_tensors(config)
    return {layer: shapes[f"{layer}.weight"] for layer in layer_classes.linear_layers(shapes)}


def _inspect(adapter: Adapter, layers: Mapping[str, tuple[int, int]]) -> LoraFile:
    binding = bind_file(adapter.path, layers)
    header = binding.header
    alphas, problems = set(), []
    with adapter.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        for pair in binding.pairs.values():
            if pair.alpha is not None:
                alpha = _number(file, header.tensors[pair.alpha])
                alphas.add(alpha)
                if not math.isfinite(alpha) or alpha <= 0:
                    problems.append(f"alpha: {shown(pair.alpha)} is {alpha:g}, expected a positive number")
    if problems:
        raise LoraError(f"{adapter.path}: {problems[0]}{and_more(problems)}", problems)
    untrained = _check_finite(adapter.path, binding)
    return LoraFile(adapter, binding, digest, tuple(sorted(alphas)), untrained)


def _check_finite(path: Path, binding: Binding) -> tuple[str, ...]:
    """Layers whose B is all zero.

    Raises:
        LoraError: NaN or infinity; the details name every factor.
    """
    data = np.memmap(path, np.uint8, mode="r")
    problems, zero = [], []
    for layer, pair in binding.pairs.items():
        for key in (pair.down, pair.up):
            tensor = binding.header.tensors[key]
            nan, inf, peak = count_non_finite(data[tensor.start : tensor.stop], tensor.dtype)
            values = Values(key, math.prod(tensor.shape), nan, inf, zero=not peak)
            if values.non_finite:
                problems.append(f"non-finite: {values.non_finite}")
            elif values.zero and key == pair.up:
                zero.append(layer)
    if problems:
        raise LoraError(f"{path}: {problems[0]}{and_more(problems)}", problems)
    return tuple(zero)


def _number(file: Any, tensor: Tensor) -> float:
    file.seek(tensor.start)
    return float(np.frombuffer(file.read(tensor.stop - tensor.start), NUMPY[tensor.dtype]).reshape(-1)[0])


def _join(numbers: Sequence[float]) -> str:
    """``64``, or ``16 to 64``."""
    return " to ".join(f"{number:g}" for number in dict.fromkeys((numbers[0], numbers[-1])))
