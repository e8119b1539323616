"""The MLX VAE as a session: a picture encoded and decoded again, or latents decoded.

Stages: ``vae.encode.conv_in``, ``vae.encode.down.NN``, ``vae.encode.mid``, ``vae.encode.head``, ``vae.decode.in``,
``vae.decode.mid``, ``vae.decode.up.NN``, ``vae.decode.head``. States and checkpoints have the reference's shapes,
channels in front. State keys: ``image`` B 3 1 H W in -1…1 (or ``latents`` alone) before the first stage; ``hidden``
B C 1 … inside encoder and decoder; ``latents`` B z 1 h w, normalised, between the two; ``sample`` B 3 1 H W at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from parity.tap import tap

from .layers import module_at
from .session import StagedSession
from .vae import AutoencoderKLQwenImage, Moments, VaeShards
from .weights import load_part


class Stage(NamedTuple):
    """One stage.

    Attributes:
        parts: paths of its modules, which are prefixes of the checkpoint's keys too.
        key: of what it makes, in the state.
        run: channels last on both sides.
    """

    parts: tuple[str, ...]
    key: str
    run: Callable[[mx.array], mx.array]


class VaeSession(StagedSession):
    """One VAE in one dtype.

    Args:
        folder: of the pipeline.
        dtype: dtype of weights and activations.
        hold: dtype the weights are rounded to first.
    """

    def __init__(self, folder: Path, dtype: mx.Dtype, hold: mx.Dtype) -> None:
        super().__init__(dtype, hold)
        self._shards = VaeShards(folder)
        # Lazy zeros: nothing is allocated before a stage is loaded.
        self._model = AutoencoderKLQwenImage(self._shards.config)
        self._stages = _stages(self._model)
        self.stages: tuple[str, ...] = tuple(self._stages)

    def load_stage(self, stage: str) -> None:
        """See `StagedSession.load_stage`."""
        for path in self._stages[stage].parts:
            load_part(module_at(self._model, path), self._shards, path, self.dtype, self.hold)

    def free_stage(self, stage: str) -> None:
        """See `StagedSession.free_stage`."""
        fresh = AutoencoderKLQwenImage(self._shards.config)
        for path in self._stages[stage].parts:
            module_at(self._model, path).update(module_at(fresh, path).parameters())

    def show(self, name: str, value: mx.array) -> mx.array:
        """See `StagedSession.show`."""
        return _channels_first(value)

    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, mx.array]:
        """See `StagedSession.compute`."""
        (x,) = state.values()
        _, key, run = self._stages[stage]
        return {key: _channels_first(run(mx.moveaxis(x, 1, -1)))}


def _stages(model: AutoencoderKLQwenImage) -> dict[str, Stage]:
    """All stages in order. What a pipeline does with the latents between the two halves is in them too."""

    def encode_head(x: mx.array) -> mx.array:
        return tap("vae.encode.latents", model.normalize(Moments.of(model.encode_head(x)).mean))

    def decode_in(x: mx.array) -> mx.array:
        return model.decode_in(tap("vae.decode.latents", model.denormalize(x)))

    def decode_head(x: mx.array) -> mx.array:
        return mx.clip(model.decode_head(x), -1, 1)

    down = {
        f"vae.encode.down.{i:02d}": Stage((f"encoder.down_blocks.{i}",), "hidden", partial(model.encode_down, i))
        for i in range(len(model.encoder.down_blocks))
    }
    up = {
        f"vae.decode.up.{i:02d}": Stage((f"decoder.up_blocks.{i}",), "hidden", partial(model.decode_up, i))
        for i in range(len(model.decoder.up_blocks))
    }
    return {
        "vae.encode.conv_in": Stage(("encoder.conv_in",), "hidden", model.encode_in),
        **down,
        "vae.encode.mid": Stage(("encoder.mid_block",), "hidden", model.encode_mid),
        "vae.encode.head": Stage(("encoder.norm_out", "encoder.conv_out", "quant_conv"), "latents", encode_head),
        "vae.decode.in": Stage(("post_quant_conv", "decoder.conv_in"), "hidden", decode_in),
        "vae.decode.mid": Stage(("decoder.mid_block",), "hidden", model.decode_mid),
        **up,
        "vae.decode.head": Stage(("decoder.norm_out", "decoder.conv_out"), "sample", decode_head),
    }


def _channels_first(x: mx.array) -> mx.array:
    return mx.contiguous(mx.moveaxis(x, -1, 1))
