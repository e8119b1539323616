"""One forward pass of the MLX transformer, to be timed: plain and recorded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from parity.tap import Recorder, recording

from . import layers, transformer
from .device_stats import collect, lazy
from .session import from_numpy
from .weights import load_transformer, mlx_dtype


def passes(
    weights: Path, inputs: Mapping[str, np.ndarray], names: Collection[str], dtype: str = "float32"
) -> dict[str, Callable[[], Any]]:
    """Functions that run one forward pass and wait for it.

    Args:
        weights: checkpoint folder.
        inputs: a case's first state, float32.
        names: checkpoints whose statistics the recorded pass takes.

    Returns:
        ``untapped`` (with taps taken out of the code), ``plain`` (no recorder) and ``recorded``
        (statistics of `names`, taken on the device).
    """
    model = load_transformer(weights, dtype=dtype)
    mx.eval(model.parameters())
    arrays = {key: from_numpy(array) for key, array in inputs.items() if key != "img_shapes"}
    arrays = {k: x.astype(mlx_dtype(dtype)) if mx.issubdtype(x.dtype, mx.floating) else x for k, x in arrays.items()}
    shapes = [[tuple(shape) for shape in inputs["img_shapes"].tolist()]] * len(arrays["latents"])

    def forward() -> mx.array:
        return model(arrays["latents"], arrays["prompt_embeds"], arrays.get("prompt_mask"), arrays["timestep"], shapes)

    def recorded() -> dict[str, tuple[float, ...]]:
        with recording(Recorder(frozenset(names), keep=lazy)) as recorder:
            sample = forward()
        mx.async_eval(sample, *recorder.values.values())
        return collect(recorder.values)

    def untapped() -> None:
        kept = layers.tap, transformer.tap
        layers.tap = transformer.tap = lambda name, value: value
        try:
            mx.eval(forward())
        finally:
            layers.tap, transformer.tap = kept

    return {"untapped": untapped, "plain": lambda: mx.eval(forward()), "recorded": recorded}
