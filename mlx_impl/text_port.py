"""The text encoder as a component of the port, from strings to prompt embeddings.

Stages and state keys are those of ``parity.components.text``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from parity.tap import scope, tap

from .prompts import MAX_TOKENS, POSITIONS, TEMPLATES, Prompter, check_max_sequence_length, extract
from .session import StagedSession, State
from .text_encoder import Qwen2_5_VLTextModel, TextCheckpoint, attention_mask, free, module_of

# What is read on the host: strings, whole numbers, masks.
_ON_HOST = ("prompt.", "template", "positions", "max_sequence_length", "image_grid_thw", "ids", "mask", "position_ids")
# Checkpoints without rows of padding tokens.
_WHOLE = ("text.mask", "text.prompt_embeds", "text.prompt_mask")


class TextSession(StagedSession):
    """The text encoder of a model's folder.

    Args:
        folder: the whole model's.
    """

    def __init__(self, folder: Path, dtype: mx.Dtype, hold: mx.Dtype) -> None:
        super().__init__(dtype, hold)
        self._checkpoint = TextCheckpoint(folder)
        self._prompter = Prompter(folder)
        # Lazy zeros: nothing is allocated before a stage is loaded.
        self._model = Qwen2_5_VLTextModel(self._checkpoint.config)
        layers = range(len(self._model.layers))
        self._part = {"text.embed": "embed_tokens", **{f"text.layer.{i:02d}": f"layers.{i}" for i in layers}}
        self._part["text.norm"] = "norm"
        self.stages: tuple[str, ...] = ("text.tokens", *self._part)

    def load_stage(self, stage: str) -> None:
        """See `StagedSession.load_stage`."""
        if stage in self._part:
            part = self._part[stage]
            self._checkpoint.load(module_of(self._model, part), part, self.dtype, self.hold)

    def free_stage(self, stage: str) -> None:
        """See `StagedSession.free_stage`."""
        if stage in self._part:
            free(self._model, self._part[stage])

    def take(self, key: str, array: np.ndarray) -> Any:
        """See `StagedSession.take`."""
        return array if key.startswith(_ON_HOST) else super().take(key, array)

    def run(
        self, stage: str, state: Mapping[str, np.ndarray], want: Collection[str], *, precision: str = "default"
    ) -> tuple[State, State]:
        """See `parity.ports.Session.run`; rows of padding tokens, which nothing reads, come back as zeros."""
        after, values = super().run(stage, state, want, precision=precision)
        mask = np.asarray(after.get("mask", state.get("mask")))
        return after, {
            name: value if name in _WHOLE else _counting(name, value, mask) for name, value in values.items()
        }

    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, mx.array]:
        """See `StagedSession.compute`."""
        if stage == "text.tokens":
            return state | self._tokens(state)
        if stage == "text.embed":
            features = state.pop("image_features", None)
            hidden, table = self._model.embed(state["ids"], state["position_ids"], features)
            return state | {"hidden": hidden, "rope.text": table}
        if stage == "text.norm":
            return self._extracted(self._model.final(state["hidden"]), state)
        mask = attention_mask(state["mask"])
        index = int(stage.rpartition(".")[2])
        return state | {"hidden": self._model.layer(index, state["hidden"], state["rope.text"], mask)}

    def _tokens(self, state: dict[str, Any]) -> dict[str, mx.array]:
        keys = sorted(key for key in state if key.startswith("prompt."))
        grids = [tuple(int(n) for n in grid) for grid in state.get("image_grid_thw", ())]
        tokens = self._prompter(
            [bytes(state[key]).decode() for key in keys],
            tuple(TEMPLATES)[int(state["template"].item())],
            grids,
            positions=POSITIONS[int(state["positions"].item()) if "positions" in state else 0],
        )
        with scope("text"):
            return {name: tap(name, mx.array(getattr(tokens, name))) for name in ("ids", "mask", "position_ids")}

    def _extracted(self, hidden: mx.array, state: dict[str, Any]) -> dict[str, mx.array]:
        template = tuple(TEMPLATES.values())[int(state["template"].item())]
        length = int(state["max_sequence_length"].item()) if "max_sequence_length" in state else MAX_TOKENS
        check_max_sequence_length(length)
        embeds, kept = extract(hidden, state["mask"], template.drop, None if template.editing else length)
        return {"prompt_embeds": embeds} | ({} if kept is None else {"prompt_mask": kept})


def _counting(name: str, value: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Zeros in the rows of padding tokens: B N …, but positions, which are B 3 N."""
    kept = mask[:, None] if name == "text.position_ids" else mask.reshape(mask.shape + (1,) * (value.ndim - 2))
    return np.where(kept, value, value.dtype.type(0))
