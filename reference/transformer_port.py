"""The reference's transformer as a session: ``embed``, ``block.NN``, ``head``.

State keys are those of ``parity.ports``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from parity.layouts.lora import Adapter
from parity.names import block_stage
from reference import transformer
from reference.session import StagedSession
from reference.weights import Shards

if TYPE_CHECKING:
    from reference.lora import AdaptedShards

# The modules that a stage outside the blocks owns.
EMBED_PARTS = ("img_in", "txt_norm", "txt_in", "time_text_embed")
HEAD_PARTS = ("norm_out", "proj_out")


class TransformerSession(StagedSession):
    """diffusers' transformer in one dtype, on one checkpoint.

    Args:
        folder: of the checkpoint.
        device, dtype, hold: see `StagedSession`.
        adapters: LoRAs.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        hold: torch.dtype,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        self._model, shards = with_adapters(Shards(folder), dtype, device, adapters)
        super().__init__(shards, device, dtype, hold)
        self._index = {block_stage(i): i for i in range(len(self._model.transformer_blocks))}
        self.stages: tuple[str, ...] = ("embed", *self._index, "head")

    def parts(self, stage: str) -> list[tuple[str, torch.nn.Module]]:
        """See `StagedSession.parts`."""
        if stage in self._index:
            return [(f"transformer_blocks.{self._index[stage]}", self.module(stage))]
        return [(part, getattr(self._model, part)) for part in (EMBED_PARTS if stage == "embed" else HEAD_PARTS)]

    def compute(self, stage: str, state: transformer.Tensors) -> transformer.Tensors:
        """See `StagedSession.compute`."""
        if stage == "embed":
            carried = {key: state[key] for key in state if key == "img_shapes" or key.startswith("controlnet.")}
            return transformer.embed(self._model, state) | carried
        if stage == "head":
            return transformer.head(self._model, state)
        return transformer.block(self._model, self._index[stage], state)

    def module(self, stage: str) -> torch.nn.Module:
        """The block behind a block stage; the whole model for ``embed`` and ``head``."""
        return self._model.transformer_blocks[self._index[stage]] if stage in self._index else self._model

    def take(self, key: str, array: np.ndarray) -> Any:
        """See `StagedSession.take`; rotary tables are complex, shapes plain numbers."""
        if key == "img_shapes":
            return [tuple(int(n) for n in shape) for shape in array]
        tensor = super().take(key, array)
        return torch.view_as_complex(tensor.contiguous()) if key.startswith("rope.") else tensor


def with_adapters(
    shards: Shards, dtype: torch.dtype, device: torch.device, adapters: Sequence[Adapter]
) -> tuple[transformer.QwenImageTransformer2DModel, Shards | AdaptedShards]:
    """A model without weights, with LoRAs in it, and the checkpoint that it can be loaded from.

    Raises:
        LoraError: see `reference.lora.Adapters.inject`.
    """
    if not adapters:
        return transformer.build(shards.config, dtype, device), shards
    # PEFT and diffusers' loaders are needed for this alone.
    from reference.lora import Adapters

    files = Adapters(adapters)
    model = transformer.build(shards.config, dtype, device, files)
    return model, files.over(shards)
