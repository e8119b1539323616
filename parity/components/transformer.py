"""The transformer as a component: its cases. Its names are those of `parity.names`.

B batch, L image tokens, S text tokens, J text-encoder width, C latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from parity.components.base import DTYPES, Case, Configs, State, Work
from parity.errors import UsageError
from parity.names import parse, qwen_image_transformer

# One latent token of Qwen-Image covers 8 (VAE) × 2 (patch) pixels each way.
PIXELS_PER_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class TransformerCase(Case):
    """Latents and prompt embeddings drawn at random.

    Attributes:
        images: (height, width) in pixels of the picture made, then of condition pictures.
        text_tokens: length of each prompt of the batch; the batch is padded to the longest.
        timestep: 0…1, the same for the whole batch.
    """

    component: ClassVar[str] = "transformer"
    plain: ClassVar[bool] = False
    folders: ClassVar[tuple[str, ...]] = ("transformer",)
    streamed: ClassVar[bool] = True

    images: tuple[tuple[int, int], ...]
    text_tokens: tuple[int, ...]
    timestep: float

    def __post_init__(self) -> None:
        for height, width in self.images:
            if height % PIXELS_PER_TOKEN or width % PIXELS_PER_TOKEN or height < 1 or width < 1:
                near = " × ".join(str(max(1, round(n / PIXELS_PER_TOKEN)) * PIXELS_PER_TOKEN) for n in (height, width))
                raise UsageError(
                    f"case {self.name!r}: image size {height} × {width} is not a multiple of {PIXELS_PER_TOKEN} "
                    f"pixels each way; the nearest that is: {near}"
                )
        if not self.images or not self.text_tokens or min(self.text_tokens) < 1:
            raise UsageError(f"case {self.name!r}: at least one image and one prompt of at least one token are needed")
        if not 0 <= self.timestep <= 1:
            raise UsageError(f"case {self.name!r}: timestep {self.timestep} is not within 0…1")

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(frames, height, width) of each picture in latent tokens."""
        return [(1, h // PIXELS_PER_TOKEN, w // PIXELS_PER_TOKEN) for h, w in self.images]

    @property
    def image_tokens(self) -> int:
        """L, all pictures together."""
        return sum(f * h * w for f, h, w in self.shapes)

    def describe(self) -> dict[str, Any]:
        """See `Case.describe`."""
        return {
            "batch": len(self.text_tokens),
            "image_tokens": self.image_tokens,
            "text_tokens": list(self.text_tokens),
            "img_shapes": [list(shape) for shape in self.shapes],
            "timestep": self.timestep,
            "seed": self.seed,
        }

    def graph(self, configs: Configs, level: str) -> dict[str, Any]:
        """See `Case.graph`; the function is `parity.names.qwen_image_transformer`."""
        return {"name": self.component, "num_layers": configs["transformer"]["num_layers"], "level": level}

    def work(self, configs: Configs, level: str) -> Work:
        """See `Case.work`. A token passes 12 D² weights a block: q, k, v, out, and twice 4 D² of the MLP."""
        config = configs["transformer"]
        heads, layers = config["num_attention_heads"], config["num_layers"]
        width = heads * config["attention_head_dim"]
        batch, longest = len(self.text_tokens), max(self.text_tokens)
        tokens = self.image_tokens + longest
        products = 12 * width**2 * tokens + 2 * tokens**2 * width + 12 * width**2
        entry = self.image_tokens * config["in_channels"] + longest * config["joint_attention_dim"]
        ends = entry * width + self.image_tokens * width * (config["out_channels"] or config["in_channels"]) * 4
        names = qwen_image_transformer(layers, level).names_of("block.00")
        of_stream = {"img": self.image_tokens, "txt": longest}
        captured = sum(6 * width if parse(name).kind == "mod" else of_stream[parse(name).stream] * width
                       for name in names)  # fmt: skip
        # The MLP's hidden layer and its activation; attention's scores and their softmax.
        inside = max(2 * 4 * tokens * width, 2 * heads * tokens**2 + 4 * tokens * width)
        return Work(2.0 * batch * (layers * products + ends), batch * tokens * width, batch * captured, batch * inside)

    def inputs(self, configs: Configs, dtype: str) -> State:
        """The arrays of parity.ports that go into the first stage.

        Args:
            configs: the transformer's has in_channels, joint_attention_dim and flags.
            dtype: dtype of the run.
        """
        config, draw = configs["transformer"], self.draw()
        batch, longest = len(self.text_tokens), max(self.text_tokens)
        state = {
            "latents": draw.standard_normal((batch, self.image_tokens, config["in_channels"]), dtype=np.float32),
            "prompt_embeds": draw.standard_normal((batch, longest, config["joint_attention_dim"]), dtype=np.float32),
            "timestep": np.full(batch, self.timestep, np.float32),
        }
        state = {key: array.astype(DTYPES[dtype]) for key, array in state.items()}
        state["img_shapes"] = np.array(self.shapes, np.int64)
        if min(self.text_tokens) < longest:
            state["prompt_mask"] = np.arange(longest)[None] < np.array(self.text_tokens)[:, None]
        if config.get("use_additional_t_cond"):
            state["additional_t_cond"] = np.arange(batch, dtype=np.int64) % 2
        return state
