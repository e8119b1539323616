"""The reference's VAE as a session: a picture encoded and decoded again, or latents decoded.

Stages: ``vae.encode.conv_in``, ``vae.encode.down.NN``, ``vae.encode.mid``, ``vae.encode.head``, ``vae.decode.in``,
``vae.decode.mid``, ``vae.decode.up.NN``, ``vae.decode.head``. State keys are those of `parity.components.vae`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from reference import vae
from reference.session import StagedSession
from reference.weights import Shards


class VaeSession(StagedSession):
    """diffusers' VAE in one dtype.

    Args:
        folder: of the pipeline.
        device, dtype, hold: see `StagedSession`.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, hold: torch.dtype) -> None:
        super().__init__(Shards(folder, "vae"), device, dtype, hold)
        self._model = vae.build(self.shards.config, dtype)
        self._parts = _parts(self._model)
        self.stages: tuple[str, ...] = tuple(self._parts)

    def parts(self, stage: str) -> list[tuple[str, nn.Module]]:
        """See `StagedSession.parts`."""
        return [(prefix, self._model.get_submodule(prefix)) for prefix in self._parts[stage]]

    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, Any]:
        """See `StagedSession.compute`."""
        model = self._model
        if stage == "vae.encode.conv_in":
            return {"hidden": model.encoder.conv_in(state["image"])}
        if stage == "vae.encode.head":
            return {"latents": vae.encode_head(model, state["hidden"])}
        if stage == "vae.decode.in":
            return {"hidden": vae.decode_in(model, state["latents"])}
        if stage == "vae.decode.head":
            return {"sample": vae.decode_head(model, state["hidden"])}
        (prefix,) = self._parts[stage]
        return {"hidden": model.get_submodule(prefix)(state["hidden"])}


def _parts(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Stage -> the submodules that it runs, which are prefixes of the checkpoint's keys too."""
    down = {f"vae.encode.down.{i:02d}": (f"encoder.down_blocks.{i}",) for i in range(len(model.encoder.down_blocks))}
    up = {f"vae.decode.up.{i:02d}": (f"decoder.up_blocks.{i}",) for i in range(len(model.decoder.up_blocks))}
    return {
        "vae.encode.conv_in": ("encoder.conv_in",),
        **down,
        "vae.encode.mid": ("encoder.mid_block",),
        "vae.encode.head": ("encoder.norm_out", "encoder.conv_out", "quant_conv"),
        "vae.decode.in": ("post_quant_conv", "decoder.conv_in"),
        "vae.decode.mid": ("decoder.mid_block",),
        **up,
        "vae.decode.head": ("decoder.norm_out", "decoder.conv_out"),
    }
