"""One forward pass of diffusers' transformer, to be timed: plain, instrumented, recorded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import QwenImageTransformer2DModel

from parity.tap import Recorder, recording
from reference.device_stats import collect, lazy
from reference.session import DTYPES
from reference.transformer import instrument


def random_checkpoint(config: Mapping[str, Any], folder: Path) -> None:
    """Write a checkpoint with diffusers' own random initialisation, seed 0."""
    torch.manual_seed(0)
    QwenImageTransformer2DModel(**config).save_pretrained(folder)


def passes(
    weights: Path, inputs: Mapping[str, np.ndarray], names: Collection[str], dtype: str = "float32"
) -> dict[str, Callable[[], Any]]:
    """Functions that run one forward pass and wait for it.

    Args:
        weights: checkpoint folder.
        inputs: a case's first state, float32.
        names: checkpoints whose statistics the recorded pass takes.

    Returns:
        ``untapped`` (diffusers as it comes), ``plain`` (instrumented, no recorder) and
        ``recorded`` (statistics of `names`, taken on the device).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kept = {key: torch.from_numpy(array).to(device) for key, array in inputs.items() if key != "img_shapes"}
    kept = {key: x.to(DTYPES[dtype]) if x.is_floating_point() else x for key, x in kept.items()}
    shapes = [[tuple(shape) for shape in inputs["img_shapes"].tolist()]] * len(kept["latents"])

    def forward(model: QwenImageTransformer2DModel) -> torch.Tensor:
        with torch.no_grad():
            sample = model(
                hidden_states=kept["latents"],
                encoder_hidden_states=kept["prompt_embeds"],
                encoder_hidden_states_mask=kept.get("prompt_mask"),
                timestep=kept["timestep"],
                img_shapes=shapes,
            ).sample
        if device.type == "cuda":
            torch.cuda.synchronize()
        return sample

    def recorded() -> dict[str, tuple[float, ...]]:
        with recording(Recorder(frozenset(names), keep=lazy)) as recorder:
            forward(tapped)
        return collect(recorder.values)

    untapped, tapped = (
        QwenImageTransformer2DModel.from_pretrained(weights, torch_dtype=DTYPES[dtype]).to(device).eval()
        for _ in range(2)
    )
    instrument(tapped)
    return {"untapped": lambda: forward(untapped), "plain": lambda: forward(tapped), "recorded": recorded}
