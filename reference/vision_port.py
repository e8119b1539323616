"""The reference's vision tower as a session, and its image processor.

Stages: ``vision.patches``, ``vision.embed``, ``vision.block.NN``, ``vision.merger``.
State keys: ``image.00`` … H W 3 uint8 before the first stage, then ``pixels`` N C·T·P·P and ``image_grid_thw`` n 3.
Between the others ``vis`` N D · ``rope.vis`` N d/2 2 · ``window_index`` N/m² · ``cu_window_seqlens`` windows + 1 ·
``image_grid_thw``; after the last ``image_features`` N/m² J and ``image_grid_thw``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from reference import vision
from reference.session import StagedSession
from reference.weights import Shards

# As published, and as transformers saves the model where it does not go back to the published names.
PREFIXES = ("visual", "model.visual")


class VisionSession(StagedSession):
    """transformers' vision tower in one dtype, with the image processor before it.

    Args:
        folder: of the pipeline.
        device, dtype, hold: see `StagedSession`.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, hold: torch.dtype) -> None:
        super().__init__(Shards(folder, "text_encoder"), device, dtype, hold)
        self._processor = vision.load_processor(folder, exact=dtype == torch.float64)
        self._model = vision.build(self.shards.config["vision_config"], dtype, device)
        self._prefix = next(prefix for prefix in PREFIXES if any(self.shards.read(f"{prefix}.patch_embed.")))
        self._index = {f"vision.block.{i:02d}": i for i in range(len(self._model.blocks))}
        self.stages: tuple[str, ...] = ("vision.patches", "vision.embed", *self._index, "vision.merger")

    def parts(self, stage: str) -> list[tuple[str, torch.nn.Module]]:
        """See `StagedSession.parts`."""
        if stage in self._index:
            index = self._index[stage]
            return [(f"{self._prefix}.blocks.{index}", self._model.blocks[index])]
        names = {"vision.patches": (), "vision.embed": ("patch_embed",), "vision.merger": ("merger",)}[stage]
        return [(f"{self._prefix}.{name}", getattr(self._model, name)) for name in names]

    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, Any]:
        """See `StagedSession.compute`."""
        if stage == "vision.patches":
            images = [state[key].cpu().numpy() for key in sorted(state) if key.startswith("image.")]
            made = vision.patches(self._processor, images, self.dtype)
            return {key: tensor.to(self.device) for key, tensor in made.items()}
        if stage == "vision.embed":
            return vision.embed(self._model, state)
        if stage == "vision.merger":
            return vision.merge(self._model, state)
        return vision.block(self._model, self._index[stage], state)
