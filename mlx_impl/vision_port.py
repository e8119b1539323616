"""The MLX vision tower as a session, and the preprocessing of its pictures.

Stages: ``vision.patches``, ``vision.embed``, ``vision.block.NN``, ``vision.merger``.
State keys: ``image.00`` … H W 3 uint8 before the first stage, then ``pixels`` N C·T·P·P and ``image_grid_thw`` n 3.
Between the others ``vis`` N D · ``rope.vis`` N d/2 2 · ``window_index`` N/m² · ``cu_window_seqlens`` windows + 1 ·
``image_grid_thw``; after the last ``image_features`` N/m² J and ``image_grid_thw``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from parity.tap import scope, tap

from .session import StagedSession
from .vision import Qwen2_5_VisionTransformerPretrainedModel, VisionStream, open_vision
from .vision_layout import Grid
from .vision_preprocess import load_settings, preprocess
from .weights import load_part


class VisionSession(StagedSession):
    """One vision tower in one dtype.

    Args:
        folder: of the pipeline.
        dtype: dtype of weights and activations.
        hold: dtype the weights are rounded to first.
    """

    def __init__(self, folder: Path, dtype: mx.Dtype, hold: mx.Dtype) -> None:
        super().__init__(dtype, hold)
        self._settings = load_settings(folder)
        self._checkpoint = open_vision(folder)
        # Lazy zeros: nothing is allocated before a stage is loaded.
        self._model = Qwen2_5_VisionTransformerPretrainedModel(self._checkpoint.config)
        self._index = {f"vision.block.{i:02d}": i for i in range(self._checkpoint.config.depth)}
        self.stages: tuple[str, ...] = ("vision.patches", "vision.embed", *self._index, "vision.merger")

    def load_stage(self, stage: str) -> None:
        """See `StagedSession.load_stage`."""
        checkpoint = self._checkpoint
        if stage in self._index:
            index = self._index[stage]
            prefix = f"{checkpoint.prefix}.blocks.{index}"
            load_part(self._model.blocks[index], checkpoint.shards, prefix, self.dtype, self.hold)
        for name in self._parts(stage):
            load_part(self._model[name], checkpoint.shards, f"{checkpoint.prefix}.{name}", self.dtype, self.hold)

    def free_stage(self, stage: str) -> None:
        """See `StagedSession.free_stage`."""
        fresh = Qwen2_5_VisionTransformerPretrainedModel(replace(self._checkpoint.config, depth=1))
        if stage in self._index:
            self._model.blocks[self._index[stage]] = fresh.blocks[0]
        for name in self._parts(stage):
            self._model[name] = fresh[name]

    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, Any]:
        """See `StagedSession.compute`."""
        if stage == "vision.patches":
            return self._patches([state[key] for key in sorted(state) if key.startswith("image.")])
        if stage == "vision.embed":
            return self._embed(state)
        stream = VisionStream(
            state["vis"],
            state["rope.vis"],
            np.array(state["window_index"]),
            np.array(state["cu_window_seqlens"]),
            _grids(state),
        )
        if stage == "vision.merger":
            return {"image_features": self._model.merge(stream), "image_grid_thw": state["image_grid_thw"]}
        return state | {"vis": self._model.block(self._index[stage], stream).hidden}

    def _patches(self, images: list[mx.array]) -> dict[str, mx.array]:
        pixels, grids = preprocess([np.array(image) for image in images], self._settings)
        with scope("vision"):
            return {
                "pixels": tap("pixels", mx.array(pixels).astype(self.dtype)),
                "image_grid_thw": tap("grid_thw", mx.array(np.array(grids, np.int64))),
            }

    def _embed(self, state: dict[str, Any]) -> dict[str, Any]:
        stream = self._model.embed(state["pixels"], _grids(state))
        return {
            "vis": stream.hidden,
            "rope.vis": stream.table,
            "window_index": mx.array(stream.window_index),
            "cu_window_seqlens": mx.array(stream.window_bounds),
            "image_grid_thw": state["image_grid_thw"],
        }

    @staticmethod
    def _parts(stage: str) -> tuple[str, ...]:
        return {"vision.embed": ("patch_embed",), "vision.merger": ("merger",)}.get(stage, ())


def _grids(state: dict[str, Any]) -> tuple[Grid, ...]:
    return tuple(map(tuple, state["image_grid_thw"].tolist()))
