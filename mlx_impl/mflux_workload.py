"""One forward pass of mflux's transformer, to be timed: as it is, and instrumented."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from parity.instrumentation import instrument
from parity.tap import Recorder, recording

from .device_stats import collect, lazy
from .mflux_port import arguments, block_names, build, embed_names, head_names, load
from .session import from_numpy
from .weights import EMBED_PARTS, HEAD_PARTS, Checkpoint, mlx_dtype


def passes(
    weights: Path, inputs: Mapping[str, np.ndarray], names: Collection[str], dtype: str = "float32"
) -> dict[str, Callable[[], Any]]:
    """Functions that run one forward pass and wait for it.

    Args:
        weights: checkpoint folder.
        inputs: a case's first state, float32.
        names: checkpoints that the recorded passes take.

    Returns:
        ``plain`` (mflux as it is), ``inactive`` (instrumented, nobody records), ``values`` (the values of `names`
        recorded) and ``recorded`` (their statistics, taken on the device).
    """
    checkpoint, wanted = Checkpoint(weights), mlx_dtype(dtype)
    blocks = checkpoint.config.num_layers
    plain, tapped = (build(checkpoint.config, blocks=blocks) for _ in range(2))
    parts = (*EMBED_PARTS, *HEAD_PARTS, *(f"transformer_blocks.{i}" for i in range(blocks)))
    load(plain, checkpoint, dict(zip(parts, parts, strict=True)), wanted, wanted)
    tapped.update(plain.parameters())  # the same arrays
    text_tokens = inputs["prompt_embeds"].shape[1]
    instrument(tapped, {**embed_names(), **block_names(lambda: text_tokens), **head_names()})
    arrays: dict[str, Any] = {key: from_numpy(array) for key, array in inputs.items() if key != "img_shapes"}
    arrays = {k: x.astype(wanted) if mx.issubdtype(x.dtype, mx.floating) else x for k, x in arrays.items()}
    arrays["img_shapes"] = inputs["img_shapes"].tolist()

    def record(keep: Callable[[mx.array], mx.array] | None) -> dict[str, mx.array]:
        with recording(Recorder(frozenset(names), keep=keep)) as recorder:
            sample = tapped(**arguments(arrays))
        mx.async_eval(sample, *recorder.values.values())
        return recorder.values

    return {
        "plain": lambda: mx.eval(plain(**arguments(arrays))),
        "inactive": lambda: mx.eval(tapped(**arguments(arrays))),
        "values": lambda: mx.eval(list(record(None).values())),
        "recorded": lambda: collect(record(lazy)),
    }
