"""The cases that faults are looked for in, by a short key, and the models they run on.

Small ones: an instance is a whole run. Transformers have six blocks, so that first, middle and last differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from parity.components.base import Case
from parity.components.pipeline import PipelineCase
from parity.components.scheduler import SchedulerCase
from parity.components.text import TextCase
from parity.components.transformer import TransformerCase
from parity.components.vae import VaeCase
from parity.layouts.lora import Adapter
from parity.lora import linear_layers

# Model key -> preset of `parity synth`.
PRESETS = {"plain": "small", "edit": "small-edit"}


@dataclass(frozen=True)
class Setting:
    """What one key stands for.

    Attributes:
        case: what is run.
        model: ``plain``, ``edit``, ``quantized`` (4 bits) or ``lora`` (the plain one, wearing one).
        detail: level of its checkpoints.
    """

    case: Case
    model: str = "plain"
    detail: str = "full"

    def with_seed(self, seed: int) -> Setting:
        """The same on other numbers."""
        return replace(self, case=replace(self.case, seed=seed))


def _transformer(name: str, *images: tuple[int, int], text: tuple[int, ...], timestep: float = 0.9) -> TransformerCase:
    return TransformerCase(name=name, seed=0, images=images, text_tokens=text, timestep=timestep)


# More tokens than the template's prefix, so that something is left where the template is not.
_SIGN = (
    "A weathered wooden shop sign that reads FRESH BREAD in hand-painted golden letters, hanging over a narrow "
    "cobbled street in the early morning, warm light from the bakery window, two sparrows on the iron bracket, "
    "shallow depth of field, 35 mm film, soft grain, muted colours"
)
_NEGATIVE = (
    "blurry, low quality, oversaturated colours, watermark, signature, extra letters, misspelled words, cropped, out "
    "of frame, harsh flash, plastic texture, distorted perspective, duplicated birds, noise, banding, dull light"
)
_LONG = "A red fox in fresh snow at the edge of a pine forest. " * 110

CASES: Mapping[str, Setting] = {
    "square": Setting(_transformer("square", (128, 128), text=(14,))),
    "landscape": Setting(_transformer("landscape", (80, 176), text=(19,), timestep=0.517)),
    "batch": Setting(_transformer("batch", (96, 96), text=(7, 12), timestep=0.703)),
    "long": Setting(_transformer("long", (64, 96), text=(330,), timestep=0.3)),
    "edit": Setting(_transformer("edit", (96, 96), (64, 80), text=(11,), timestep=0.8), "edit"),
    "quantized": Setting(_transformer("quantized", (96, 112), text=(13,), timestep=0.6), "quantized"),
    "lora": Setting(_transformer("lora", (112, 80), text=(10,), timestep=0.85), "lora"),
    "text": Setting(TextCase(name="text", seed=0, prompts=(_SIGN, "A red fox. " * 13))),
    "text-cut": Setting(
        TextCase(name="text-cut", seed=0, prompts=("An old lighthouse on a rocky coast at sunset",),
                 max_sequence_length=6)
    ),
    "text-long": Setting(TextCase(name="text-long", seed=0, prompts=(_LONG,))),
    "text-edit": Setting(
        TextCase(name="text-edit", seed=0, prompts=("Change the colour of the car",), template="edit",
                 pictures=((84, 140),), positions="grid")
    ),
    "scheduler": Setting(SchedulerCase(name="scheduler", seed=0, image=(256, 384), steps=6, batch=2)),
    "strength": Setting(SchedulerCase(name="strength", seed=0, image=(320, 192), steps=10, strength=0.6)),
    "vae": Setting(VaeCase(name="vae", seed=0, image=(64, 96))),
    "pipeline": Setting(
        PipelineCase(name="pipeline", seed=0, kind="text_to_image", prompts=(_SIGN,),
                     negative=(_NEGATIVE,), image=(64, 96), steps=3), detail="block",
    ),
    "pipeline-tiles": Setting(
        PipelineCase(name="pipeline-tiles", seed=0, kind="text_to_image", prompts=("a bowl of oranges",),
                     negative=(" ",), image=(160, 128), steps=2), detail="block",
    ),
    "image-to-image": Setting(
        PipelineCase(name="image-to-image", seed=0, kind="image_to_image", prompts=("the same at night",),
                     negative=(" ",), image=(64, 96), pictures=((100, 150),), strength=0.6, steps=4), detail="block",
    ),
}  # fmt: skip


def write_lora(folder: Path, config: Mapping[str, Any]) -> Adapter:
    """A LoRA of rank 4, alpha 2, on every linear layer, worn at a scale of 0.8."""
    draw, tensors = np.random.Generator(np.random.Philox(key=7)), {}
    for layer, (outputs, inputs) in linear_layers(config).items():
        down = draw.standard_normal((4, inputs), dtype=np.float32) / np.float32(inputs**0.5)
        tensors[f"diffusion_model.{layer}.lora_A.weight"] = down
        tensors[f"diffusion_model.{layer}.lora_B.weight"] = draw.standard_normal((outputs, 4), dtype=np.float32) * 0.1
        tensors[f"diffusion_model.{layer}.alpha"] = np.array(2.0, np.float32)
    path = folder / "bench.safetensors"
    save_file({key: np.ascontiguousarray(value, np.float32) for key, value in tensors.items()}, path)
    return Adapter(path, 0.8)


@dataclass(frozen=True)
class Models:
    """The models of the cases.

    Attributes:
        folders: model key -> folder.
        lora: ``FILE@SCALE`` that the model ``lora`` wears.
    """

    folders: Mapping[str, Path]
    lora: str

    @classmethod
    def make(cls, scratch: Path, ensure: Callable[[str], Path], quantize: Callable[[Path, Path], object]) -> Models:
        """Find or make all of them.

        Args:
            scratch: an empty folder for what is made here.
            ensure: the folder of a preset.
            quantize: packs a model's folder into another.
        """
        plain = ensure(PRESETS["plain"])
        quantize(plain, scratch / "quantized")
        config = json.loads((plain / "transformer" / "config.json").read_text())
        adapter = write_lora(scratch, config)
        folders = {"plain": plain, "lora": plain, "edit": ensure(PRESETS["edit"]), "quantized": scratch / "quantized"}
        return cls(folders, f"{adapter.path}@{adapter.scale}")

    def loras(self, model: str) -> tuple[str, ...]:
        """What ``--lora`` would say."""
        return (self.lora,) if model == "lora" else ()
