"""The reference's text encoder as a session, from strings to prompt embeddings.

Stages and state keys are those of ``parity.components.text``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reference import text
from reference.session import StagedSession
from reference.weights import Shards

# As published, and as transformers saves the model where it does not go back to the published names.
PREFIXES = ("model", "model.language_model")
# Checkpoints without rows of padding tokens.
_WHOLE = ("text.mask", "text.prompt_embeds", "text.prompt_mask")


class TextSession(StagedSession):
    """transformers' language model in one dtype, with diffusers' handling of prompts around it.

    Args:
        folder: of the whole model.
        device, dtype, hold: see `StagedSession`.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, hold: torch.dtype) -> None:
        super().__init__(Shards(folder, "text_encoder"), device, dtype, hold)
        self._model = text.build(self.shards.config, dtype, device)
        self._prompts = text.Prompts(folder, self._model.config.vision_config.spatial_merge_size)
        self._prefix = next(prefix for prefix in PREFIXES if any(self.shards.read(f"{prefix}.embed_tokens.")))
        self._index = {f"text.layer.{i:02d}": i for i in range(len(self._model.language_model.layers))}
        self.stages: tuple[str, ...] = ("text.tokens", "text.embed", *self._index, "text.norm")

    def parts(self, stage: str) -> list[tuple[str, torch.nn.Module]]:
        """See `StagedSession.parts`."""
        language = self._model.language_model
        if stage in self._index:
            index = self._index[stage]
            return [(f"{self._prefix}.layers.{index}", language.layers[index])]
        names = {"text.tokens": (), "text.embed": ("embed_tokens",), "text.norm": ("norm",)}[stage]
        return [(f"{self._prefix}.{name}", getattr(language, name)) for name in names]

    def run(
        self, stage: str, state: Mapping[str, np.ndarray], want: Collection[str], *, precision: str = "default"
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """See `parity.ports.Session.run`; rows of padding tokens, which nothing reads, come back as zeros."""
        after, values = super().run(stage, state, want, precision=precision)
        mask = after.get("mask", state.get("mask"))
        return after, {
            name: value if name in _WHOLE else _counting(name, value, mask) for name, value in values.items()
        }

    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, Any]:
        """See `StagedSession.compute`."""
        if stage == "text.tokens":
            typed = bool(state["positions"].item()) if "positions" in state else False
            made = text.tokens(self._model, self._prompts, *_said(state), typed=typed)
            return state | {key: tensor.to(self.device) for key, tensor in made.items()}
        if stage == "text.embed":
            made = text.embed(self._model, state, self.dtype)
            return {key: value for key, value in state.items() if key != "image_features"} | made
        if stage == "text.norm":
            longest = state["max_sequence_length"].item() if "max_sequence_length" in state else 1024
            return text.extract(self._model, self._prompts, *_said(state), longest, state["hidden"])
        return state | text.layer(self._model, self._index[stage], state)


def _said(state: Mapping[str, Any]) -> tuple[int, list[str], np.ndarray]:
    """Template, prompts, and grids of the pictures."""
    keys = sorted(key for key in state if key.startswith("prompt."))
    prompts = [bytes(state[key].cpu().numpy()).decode() for key in keys]
    grids = state["image_grid_thw"].cpu().numpy() if "image_grid_thw" in state else np.zeros((0, 3), np.int64)
    return state["template"].item(), prompts, grids


def _counting(name: str, value: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Zeros in the rows of padding tokens: B N …, but positions, which are B 3 N."""
    kept = mask[:, None] if name == "text.position_ids" else mask.reshape(mask.shape + (1,) * (value.ndim - 2))
    return np.where(kept, value, value.dtype.type(0))
