"""The MLX transformer as a session: ``embed``, ``block.NN``, ``head``.

State keys are those of ``parity.ports``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from parity.layouts.lora import Adapter

from .layers import module_at
from .lora import Adapters
from .session import StagedSession
from .transformer import QwenImageTransformer2DModel, Streams
from .weights import EMBED_PARTS, HEAD_PARTS, Checkpoint, load_part, pack_layers

# Names in a state of what Streams holds under another.
_STATE_KEY = {"img_table": "rope.img", "txt_table": "rope.txt", "mask": "prompt_mask"}


class TransformerSession(StagedSession):
    """One transformer in one dtype, on one checkpoint.

    Args:
        folder: the model's folder, or the transformer's own.
        dtype: dtype of weights and activations.
        hold: dtype the weights are rounded to first.
        adapters: LoRAs.
    """

    def __init__(self, folder: Path, dtype: mx.Dtype, hold: mx.Dtype, adapters: Sequence[Adapter] = ()) -> None:
        super().__init__(dtype, hold)
        self._checkpoint = Checkpoint(folder)
        # Lazy zeros: nothing is allocated before a stage is loaded.
        self._model = QwenImageTransformer2DModel(self._checkpoint.config)
        self._adapters = Adapters(adapters, self._model)
        self._index = {f"block.{i:02d}": i for i in range(self._checkpoint.config.num_layers)}
        self.stages: tuple[str, ...] = ("embed", *self._index, "head")

    def load_stage(self, stage: str) -> None:
        """See `StagedSession.load_stage`."""
        if self._adapters:
            self.free_stage(stage)  # base weights are loaded into plain layers
        for prefix in self._prefixes(stage):
            pack_layers(self._model, self._checkpoint, f"{prefix}.")
            load_part(module_at(self._model, prefix), self._checkpoint, prefix, self.dtype, self.hold)
        self._adapters.attach(self._model, self.dtype, self.hold, self._prefixes(stage))

    def free_stage(self, stage: str) -> None:
        """See `StagedSession.free_stage`."""
        fresh = QwenImageTransformer2DModel(replace(self._checkpoint.config, num_layers=1))
        if stage in self._index:
            self._model.transformer_blocks[self._index[stage]] = fresh.transformer_blocks[0]
        else:
            for prefix in self._prefixes(stage):
                self._model[prefix] = fresh[prefix]

    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, Any]:
        """See `StagedSession.compute`."""
        if stage == "embed":
            return self._embed(state)
        streams = Streams(
            state["img"],
            state["txt"],
            state["temb"],
            state["rope.img"],
            state["rope.txt"],
            state.get("prompt_mask"),
            state["img_shapes"],
            tuple(state[key] for key in sorted(state) if key.startswith("controlnet.")),
        )
        if stage == "head":
            return {"sample": self._model.head(streams)}
        after = self._model.block(self._index[stage], streams)
        return state | {"img": after.img, "txt": after.txt}

    def _embed(self, state: dict[str, Any]) -> dict[str, Any]:
        streams = self._model.embed(
            state["latents"],
            state["prompt_embeds"],
            state["timestep"],
            state["img_shapes"],
            mask=state.get("prompt_mask"),
            additional_t_cond=state.get("additional_t_cond"),
        )
        named = {_STATE_KEY.get(f.name, f.name): getattr(streams, f.name) for f in fields(streams)}
        made = {key: value for key, value in named.items() if isinstance(value, mx.array)}
        return made | {key: state[key] for key in state if key == "img_shapes" or key.startswith("controlnet.")}

    def take(self, key: str, array: np.ndarray) -> Any:
        """See `StagedSession.take`; shapes are plain numbers."""
        return (
            tuple(tuple(int(n) for n in shape) for shape in array) if key == "img_shapes" else super().take(key, array)
        )

    def _prefixes(self, stage: str) -> tuple[str, ...]:
        if stage in self._index:
            return (f"transformer_blocks.{self._index[stage]}",)
        return {"embed": EMBED_PARTS, "head": HEAD_PARTS}[stage]
