"""A model's folder as a pipeline: requests in, pictures out.

B batch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from parity.layouts.lora import Adapter

from .components import Components
from .decoding import decode, to_pixels
from .denoising import denoise
from .prepared import Prepared
from .request import Request


@dataclass(frozen=True, eq=False)
class Result:
    """What a request gave.

    Attributes:
        images: B H W 3 uint8, of the request's size (where a part was cropped out, the whole picture's).
        latents: B L C float32, what they were decoded from.
        notes: what the user should be told; those of the request.
        peak_bytes: most memory that arrays, weights among them, took at once.
    """

    images: np.ndarray
    latents: np.ndarray
    notes: tuple[str, ...]
    peak_bytes: int


class Pipeline:
    """Runs requests on one model.

    Args:
        components: of the model.
    """

    def __init__(self, components: Components) -> None:
        self.components = components

    def run(
        self,
        request: Request,
        *,
        on_stage: Callable[[str], None] = lambda stage: None,
        on_step: Callable[[int, int], None] = lambda done, steps: None,
    ) -> Result:
        """Make the pictures of one request.

        Args:
            on_stage: told ``prepare``, ``denoise``, ``decode`` before each.
            on_step: told the steps done and all steps after each step.

        Raises:
            FileNotFoundError: a component is not in the folder.
            ValueError: the components do not fit one another or the request.
            FloatingPointError: the picture is not a number.
        """
        self.components.check(request.folders)
        mx.reset_peak_memory()
        on_stage("prepare")
        prepared = request.prepare(self.components)
        on_stage("denoise")
        latents = self._denoise(prepared, on_step)
        on_stage("decode")
        with self.components.use("vae_decoder") as vae:
            pixels = decode(vae, latents, prepared.grids[0])
            mx.eval(pixels)
        images, wide = request.finish(to_pixels(pixels)), np.array(latents.astype(mx.float32))
        return Result(images, wide, request.notes, mx.get_peak_memory())

    def _denoise(self, prepared: Prepared, on_step: Callable[[int, int], None]) -> mx.array:
        steps, latents = len(prepared.timesteps), prepared.latents
        with self.components.use("transformer") as transformer:
            for index in range(steps):
                latents = denoise(transformer, prepared, index, latents)
                mx.eval(latents)
                on_step(index + 1, steps)
        return latents


def open_pipeline(
    root: str | Path, dtype: str = "bfloat16", *, low_memory: bool = False, adapters: Sequence[Adapter] = ()
) -> Pipeline:
    """A pipeline on a model's folder in the diffusers layout.

    Args:
        root: the folder with ``model_index.json``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        low_memory: one component's weights in memory at a time.
        adapters: LoRAs of the transformer.

    Raises:
        ValueError: an unknown dtype.
    """
    return Pipeline(Components(root, dtype, low_memory=low_memory, adapters=adapters))
