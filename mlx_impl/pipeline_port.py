"""The MLX pipelines as a session: ``pipeline.encode``, ``step.00`` and on, ``pipeline.decode``.

State keys are those of ``parity.components.pipeline``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from parity.layouts.lora import Adapter

from .pipelines import KINDS, Request
from .pipelines.components import Components
from .pipelines.decoding import decode
from .pipelines.denoising import denoise
from .pipelines.prepared import Kept, Prepared, Prompt
from .session import StagedSession
from .weights import DTYPES

# What is read as it is, not computed with.
_SETTINGS = ("kind", "size", "steps", "strength_percent", "areas", "img_shapes")
_SETTINGS_BELOW = ("prompt.", "negative.", "image.", "mask.", "sched.")


class PipelineSession(StagedSession):
    """A model's pipelines. How many steps there are is the case's, so `stages` is of no length.

    Args:
        folder: of the model.
        dtype: dtype of weights and activations.
        hold: the same; a pipeline reads its weights in one dtype.
        adapters: LoRAs of the transformer.

    Raises:
        ValueError: another dtype to hold.
    """

    stages = ()

    def __init__(self, folder: Path, dtype: mx.Dtype, hold: mx.Dtype, adapters: Sequence[Adapter] = ()) -> None:
        super().__init__(dtype, hold)
        if hold != dtype:
            raise ValueError(f"weights held in {hold} for a pipeline in {dtype}: they must be the same")
        name = next(name for name, known in DTYPES.items() if known == dtype)
        self._components = Components(folder, name, adapters=adapters)

    def load_stage(self, stage: str) -> None:
        """Components are loaded when the stage comes to them: which ones is the request's."""

    def free_stage(self, stage: str) -> None:
        """See `StagedSession.free_stage`."""
        self._components.free()

    def take(self, key: str, array: np.ndarray) -> Any:
        """See `StagedSession.take`; texts, pictures and numbers stay in numpy."""
        return array if key in _SETTINGS or key.startswith(_SETTINGS_BELOW) else super().take(key, array)

    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, Any]:
        """See `StagedSession.compute`."""
        if stage == "pipeline.encode":
            prepared = request_of(state).prepare(self._components)
            return _to_state(prepared) | {"sched.guidance": state["sched.guidance"]}
        if stage == "pipeline.decode":
            with self._components.use("vae_decoder") as vae:
                return {"image": decode(vae, state["latents"], tuple(state["img_shapes"][0].tolist()))}
        with self._components.use("transformer") as transformer:
            step = int(stage.rpartition(".")[2])
            return state | {"latents": denoise(transformer, _from_state(state), step, state["latents"])}


def request_of(state: dict[str, Any]) -> Request:
    """The request that a case's inputs say."""
    kind = _text(state["kind"])
    fields: dict[str, Any] = {
        "prompts": _texts(state, "prompt."),
        "negative": _texts(state, "negative.") or None,
        "height": int(state["size"][0]),
        "width": int(state["size"][1]),
        "steps": int(state["steps"][0]),
        "guidance": float(state["sched.guidance"][0]),
        "latents": _wide(state["latents"]),
    }
    pictures = tuple(state[key] for key in sorted(state) if key.startswith("image."))
    if "areas" in state:
        condition, vae = state["areas"].tolist()
        fields |= {"pictures": pictures, "vae_area": vae}
        if kind == "edit_plus":
            fields["condition_area"] = condition
    if "strength_percent" in state:
        fields |= {"picture": pictures[0], "posterior_noise": _wide(state["posterior_noise"])}
        fields["strength"] = int(state["strength_percent"][0]) / 100
    if "mask.00" in state:
        fields["mask"] = state["mask.00"]
    return KINDS[kind](**fields)


def _to_state(prepared: Prepared) -> dict[str, mx.array]:
    state = {
        "latents": prepared.latents,
        "prompt_embeds": prepared.prompt.embeds,
        "prompt_mask": prepared.prompt.mask,
        "image_latents": prepared.condition,
        "sched.sigmas": mx.array(prepared.sigmas),
        "sched.timesteps": mx.array(prepared.timesteps),
        "img_shapes": mx.array(np.array(prepared.grids, np.int64)),
    }
    if prepared.negative is not None:
        state |= {"negative_embeds": prepared.negative.embeds, "negative_mask": prepared.negative.mask}
    if prepared.kept is not None:
        kept = prepared.kept
        state |= {"image_latents": kept.latents, "noise": kept.noise, "repaint": kept.repaint}
    return {key: value for key, value in state.items() if value is not None}


def _from_state(state: dict[str, Any]) -> Prepared:
    negative, kept, condition = None, None, state.get("image_latents")
    if "negative_embeds" in state:
        negative = Prompt(state["negative_embeds"], state.get("negative_mask"))
    if "repaint" in state:
        kept, condition = Kept(condition, state["noise"], state["repaint"]), None
    return Prepared(
        state["latents"],
        Prompt(state["prompt_embeds"], state.get("prompt_mask")),
        negative,
        float(state["sched.guidance"][0]),
        state["sched.sigmas"],
        state["sched.timesteps"],
        tuple(map(tuple, state["img_shapes"].tolist())),
        condition,
        kept,
    )


def _text(array: np.ndarray) -> str:
    return bytes(array).decode()


def _texts(state: dict[str, Any], prefix: str) -> tuple[str, ...]:
    return tuple(_text(state[key]) for key in sorted(state) if key.startswith(prefix))


def _wide(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))
