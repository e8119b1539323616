"""The components of a model's folder, in memory when they are needed: all that were used, or one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from parity.layouts.lora import Adapter

from ..lora import Adapters
from ..prompts import Prompter
from ..scheduler import FlowMatchEulerDiscreteScheduler, SchedulerConfig
from ..text_encoder import StreamedTextEncoder, load_text_encoder
from ..vae import load_vae
from ..vision import load_vision
from ..vision_preprocess import Settings, load_settings
from ..weights import load_transformer, mlx_dtype

# What has weights, and how it is loaded from the model's folder in a dtype.
LOADERS: dict[str, Callable[[Path, str], Any]] = {
    "text_encoder": load_text_encoder,
    "vision": load_vision,
    "vae_encoder": partial(load_vae, directions=("encode",)),
    "vae_decoder": partial(load_vae, directions=("decode",)),
    "text_encoder_streamed": StreamedTextEncoder,
    "transformer": load_transformer,
}
# With little memory. A prompt goes through the text encoder once or twice: its layers may as well come one at a time.
_INSTEAD = {"text_encoder": "text_encoder_streamed"}


class Components:
    """Loads components when they are used.

    Args:
        root: a folder with ``transformer``, ``vae``, ``text_encoder``, ``tokenizer`` and ``scheduler``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        low_memory: give a component's weights back as soon as it has been used.
        adapters: LoRAs of the transformer.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: an unknown dtype.
    """

    def __init__(
        self, root: str | Path, dtype: str, *, low_memory: bool = False, adapters: Sequence[Adapter] = ()
    ) -> None:
        self.root, self.dtype, self.low_memory = Path(root), mlx_dtype(dtype), low_memory
        self._dtype_name, self._adapters = dtype, tuple(adapters)
        self._loaded: dict[str, Any] = {}

    def check(self, folders: tuple[str, ...]) -> None:
        """Raise a FileNotFoundError that names every folder that is not there."""
        if missing := [name for name in folders if not (self.root / name).is_dir()]:
            raise FileNotFoundError(f"{self.root} has no folder {', '.join(missing)}, which this pipeline needs")

    @contextmanager
    def use(self, name: str) -> Iterator[Any]:
        """One of `LOADERS`, ready to be called."""
        name = _INSTEAD.get(name, name) if self.low_memory else name
        if name not in self._loaded:
            # Only now has the component before this one let go of its arrays.
            mx.clear_cache()
            self._loaded[name] = LOADERS[name](self.root, self._dtype_name)
            if name == "transformer":
                Adapters(self._adapters, self._loaded[name]).attach(self._loaded[name], self.dtype, self.dtype)
        try:
            yield self._loaded[name]
        finally:
            if self.low_memory:
                self.free()

    def free(self) -> None:
        """Give all weights back."""
        self._loaded.clear()
        mx.clear_cache()

    @cached_property
    def prompter(self) -> Prompter:
        """The tokenizer with the pipelines' templates."""
        return Prompter(self.root)

    @cached_property
    def vision_settings(self) -> Settings:
        """How pictures become patches of the vision tower."""
        return load_settings(self.root)

    @cached_property
    def latent_channels(self) -> int:
        """C of a latent token of the picture."""
        return json.loads((self.root / "transformer" / "config.json").read_text())["in_channels"]

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """A scheduler that has no noise levels yet."""
        return FlowMatchEulerDiscreteScheduler(SchedulerConfig.from_folder(self.root / "scheduler"))
