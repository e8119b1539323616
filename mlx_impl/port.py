"""The MLX transformer as a port: stages with weights loaded and freed, numpy at the border.

State keys and stages are those of ``parity.ports``; the shapes are given there.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np

from parity.tap import Recorder, recording

from .blas import installed
from .transformer import QwenImageTransformer2DModel, Streams
from .weights import EMBED_PARTS, HEAD_PARTS, Checkpoint, load_part, mlx_dtype

State = dict[str, np.ndarray]

# Names in a state of what Streams holds under another.
_STATE_KEY = {"img_table": "rope.img", "txt_table": "rope.txt", "mask": "prompt_mask"}


class MlxPort:
    """This package's transformer on MLX's default device."""

    name = "mlx_impl"

    def open(self, weights: Path, *, dtype: str, hold: str | None = None) -> MlxSession:
        """See `parity.ports.Port.open`."""
        return MlxSession(Checkpoint(weights), mlx_dtype(dtype), mlx_dtype(hold or dtype))

    def precisions(self, dtype: str) -> tuple[str, ...]:
        """See `parity.ports.Port.precisions`."""
        mlx_dtype(dtype)
        return ("default",)

    def environment(self) -> dict[str, Any]:
        """Versions, device, BLAS, TF32 and threads of this process."""
        blas = installed()
        return {
            "mlx": mx.__version__,
            "python": platform.python_version(),
            "device": _device(),
            "blas": blas.kind,
            "blas_path": blas.path,
            "blas_note": blas.note,
            "tf32": os.environ.get("MLX_ENABLE_TF32") != "0",
            "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
        }


class MlxSession:
    """One transformer in one dtype, on one checkpoint.

    Args:
        checkpoint: where the weights are.
        dtype: dtype of weights and activations.
        hold: dtype the weights are rounded to first.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: mx.Dtype, hold: mx.Dtype) -> None:
        self._checkpoint, self._dtype, self._hold = checkpoint, dtype, hold
        # Lazy zeros: nothing is allocated before a stage is loaded.
        self._model = QwenImageTransformer2DModel(checkpoint.config)
        self._index = {f"block.{i:02d}": i for i in range(checkpoint.config.num_layers)}
        self._loaded: set[str] = set()
        self.stages: tuple[str, ...] = ("embed", *self._index, "head")

    def load(self, stage: str) -> None:
        """See `parity.ports.Session.load`."""
        for prefix in self._prefixes(stage):
            load_part(self._part(prefix), self._checkpoint, prefix, self._dtype, self._hold)
        self._loaded.add(stage)

    def free(self, stage: str) -> None:
        """See `parity.ports.Session.free`."""
        fresh = QwenImageTransformer2DModel(replace(self._checkpoint.config, num_layers=1))
        if stage in self._index:
            self._model.transformer_blocks[self._index[stage]] = fresh.transformer_blocks[0]
        else:
            for prefix in self._prefixes(stage):
                self._model[prefix] = fresh[prefix]
        self._loaded.discard(stage)
        mx.clear_cache()

    def run(
        self, stage: str, state: Mapping[str, np.ndarray], want: Collection[str], *, precision: str = "default"
    ) -> tuple[State, State]:
        """See `parity.ports.Session.run`.

        Raises:
            ValueError: the stage is not loaded, or there is no such precision mode.
        """
        if stage not in self._loaded:
            raise ValueError(f"stage {stage} is not loaded")
        if precision != "default":
            raise ValueError(f"precision mode {precision!r}: this port has only 'default'")
        with recording(Recorder(frozenset(want))) as recorder:
            made = self._run(stage, {key: self._take(key, array) for key, array in state.items()})
        mx.eval(list(made.values()), list(recorder.values.values()))
        checkpoints = {name: to_numpy(value) for name, value in recorder.values.items()}
        made = {key: to_numpy(value) for key, value in made.items()}
        return made if stage == "head" else made | _passed_on(state, made), checkpoints

    def _run(self, stage: str, state: dict[str, Any]) -> dict[str, mx.array]:
        """What the stage makes, by state key."""
        controlnet = [state[key] for key in sorted(state) if key.startswith("controlnet.")]
        if stage == "embed":
            streams = self._model.embed(
                state["latents"],
                state["prompt_embeds"],
                state["timestep"],
                state["img_shapes"],
                mask=state.get("prompt_mask"),
                additional_t_cond=state.get("additional_t_cond"),
            )
            named = {_STATE_KEY.get(f.name, f.name): getattr(streams, f.name) for f in fields(streams)}
            return {key: value for key, value in named.items() if isinstance(value, mx.array)}
        streams = Streams(
            state["img"],
            state["txt"],
            state["temb"],
            state["rope.img"],
            state["rope.txt"],
            state.get("prompt_mask"),
            state["img_shapes"],
            tuple(controlnet),
        )
        if stage == "head":
            return {"sample": self._model.head(streams)}
        after = self._model.block(self._index[stage], streams)
        return {"img": after.img, "txt": after.txt}

    def _take(self, key: str, array: np.ndarray) -> Any:
        """One array of a state, in the dtype the model takes it in."""
        if key == "img_shapes":
            return tuple(tuple(int(n) for n in shape) for shape in array)
        if key.startswith("rope."):
            return mx.array(np.asarray(array, dtype=np.float32))
        taken = from_numpy(array)
        return taken.astype(self._dtype) if mx.issubdtype(taken.dtype, mx.floating) else taken

    def _prefixes(self, stage: str) -> tuple[str, ...]:
        if stage in self._index:
            return (f"transformer_blocks.{self._index[stage]}",)
        return {"embed": EMBED_PARTS, "head": HEAD_PARTS}[stage]

    def _part(self, prefix: str) -> Any:
        head, _, index = prefix.partition(".")
        return self._model[head][int(index)] if index else self._model[head]


def _passed_on(state: Mapping[str, np.ndarray], made: State) -> State:
    """What a stage hands on as it got it."""
    kept = ("temb", "rope.img", "rope.txt", "prompt_mask", "img_shapes")
    return {
        key: array for key, array in state.items() if key not in made and (key in kept or key.startswith("controlnet."))
    }


def from_numpy(array: np.ndarray) -> mx.array:
    """A numpy array in MLX; bfloat16 by its bits, float64 as float32."""
    array = np.ascontiguousarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        return mx.array(array.view(np.uint16)).view(mx.bfloat16)
    return mx.array(array.astype(np.float32) if array.dtype == np.float64 else array)


def to_numpy(array: mx.array) -> np.ndarray:
    """An MLX array in numpy; bfloat16 as ``ml_dtypes.bfloat16``."""
    if array.dtype == mx.bfloat16:
        return np.array(array.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.array(array)


def _device() -> str:
    device = mx.default_device()
    if device.type == mx.DeviceType.cpu:
        return "cpu"
    return str(mx.device_info(device).get("device_name", device))
