"""Whole synthetic models in diffusers' folder layout: what QwenImagePipeline and its editing kin load and run.

The four models with weights are calibrated to one another: prompt embeddings have the rms that the transformer
was fitted to, latents of rms 1 decode to a picture within the visible range.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from reference import synthetic_text, synthetic_transformer, synthetic_vae
from reference.calibration import Range
from reference.presets import FORMAT, SYNTHETIC, Preset

# The scheduler of the published Qwen-Image.
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9,
    "base_image_seq_len": 256, "max_image_seq_len": 8192, "shift_terminal": 0.02, "time_shift_type": "exponential",
}  # fmt: skip
# Folder -> library and class, as model_index.json has them. Pipelines that don't edit leave the processor out.
COMPONENTS: dict[str, tuple[str, str]] = {
    "processor": ("transformers", "Qwen2VLProcessor"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "Qwen2_5_VLForConditionalGeneration"),
    "tokenizer": ("transformers", "Qwen2Tokenizer"),
    "transformer": ("diffusers", "QwenImageTransformer2DModel"),
    "vae": ("diffusers", "AutoencoderKLQwenImage"),
}


def write(
    preset: Preset, seed: int, folder: Path, progress: Callable[[str], None] = lambda stage: None
) -> dict[str, Range]:
    """Make a model.

    Args:
        preset: shape of its parts.
        seed: of all weights.
        folder: an empty folder.
        progress: told the name of each stage before it is made: text encoder, VAE, the transformer's.

    Returns:
        lowest and highest value of each row of `TARGETS`, as the stored weights of the transformer give them.
    """
    progress("text encoder")
    text = synthetic_text.WIDE if preset.wide else synthetic_text.TINY
    synthetic_text.write(folder, **text | {"width": preset.joint_dim, "seed": seed})
    progress("vae")
    synthetic_vae.write(folder, base_dim=preset.vae_base_dim, seed=seed)
    FlowMatchEulerDiscreteScheduler(**SCHEDULER).save_config(folder / "scheduler")
    index = {"_class_name": preset.pipeline, "_diffusers_version": version("diffusers"), **COMPONENTS}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / SYNTHETIC).write_text(
        json.dumps({"schema": 1, "preset": preset.name, "seed": seed, "format": FORMAT}) + "\n"
    )
    return synthetic_transformer.write(preset, seed, folder, progress)
