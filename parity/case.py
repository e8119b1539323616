"""A case: the inputs of one comparison, drawn once and shared by all ports.

Generators differ between frameworks, so inputs are drawn here with numpy's counter-based
Philox and handed over as arrays; no port draws its own.

B batch, L image tokens, S text tokens, J text-encoder width, C latent channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from parity.errors import UsageError

# One latent token of Qwen-Image covers 8 (VAE) × 2 (patch) pixels each way.
PIXELS_PER_TOKEN = 16
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


@dataclass(frozen=True)
class Case:
    """What a suite says about one set of inputs.

    Attributes:
        name: unique within its suite; becomes part of file names.
        images: (height, width) in pixels of the picture made, then of condition pictures.
        text_tokens: length of each prompt of the batch; the batch is padded to the longest.
        timestep: 0…1, the same for the whole batch.
        seed: of the random inputs.
    """

    name: str
    images: tuple[tuple[int, int], ...]
    text_tokens: tuple[int, ...]
    timestep: float
    seed: int

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
        """For ``parity.json``."""
        return {
            "batch": len(self.text_tokens),
            "image_tokens": self.image_tokens,
            "text_tokens": list(self.text_tokens),
            "img_shapes": [list(shape) for shape in self.shapes],
            "timestep": self.timestep,
            "seed": self.seed,
        }

    def inputs(self, config: Mapping[str, Any], dtype: str) -> dict[str, np.ndarray]:
        """The arrays of parity.ports that go into the first stage, floating ones rounded to `dtype`.

        Args:
            config: the transformer's config (in_channels, joint_attention_dim and flags).
            dtype: dtype of the run.
        """
        draw = np.random.Generator(np.random.Philox(key=self.seed))
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


def jitter(state: Mapping[str, np.ndarray], key: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Move every floating value of a state by one unit in the last place, up or down at random.

    The timestep is moved in float32 only: one unit of a bfloat16 timestep is four radians of
    the fastest sinusoid, which is another timestep and not noise. Rotary tables are constants
    of the model and stay.

    Args:
        state: arrays by name, in the dtype of the run.
        key: seeds the generator (case, draw, stage), so that a resumed run draws the same.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    draw = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    moved = {}
    for name, array in sorted(state.items()):  # a state read back from a file comes in another order
        constant = array.dtype not in DTYPES.values() or name.startswith("rope.")
        if constant or (name == "timestep" and array.dtype != np.float32):
            moved[name] = array
        else:
            moved[name] = _one_ulp(array, draw)
    return moved


def _one_ulp(array: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Step the magnitude, as an integer, by ±1. Zeros and non-finite values stay."""
    integer = np.dtype(f"u{array.dtype.itemsize}")
    bits = np.ascontiguousarray(array).view(integer)
    magnitude = bits & integer.type(np.iinfo(integer).max >> 1)
    infinity = np.array(np.inf, np.float32).astype(array.dtype).view(integer)
    movable = (magnitude > 1) & (magnitude < infinity - 1)
    up = draw.integers(0, 2, array.shape, dtype=np.uint8).astype(bool)
    one = integer.type(1)
    return np.where(movable, np.where(up, bits + one, bits - one), bits).view(array.dtype)


def round_state(state: Mapping[str, np.ndarray], dtype: np.dtype) -> dict[str, np.ndarray]:
    """Widen or round the floating arrays of a state, rotary tables only up to float64."""
    wide = dtype == np.float64
    return {
        name: array.astype(dtype)
        if array.dtype in (*DTYPES.values(), np.float64) and (wide or not name.startswith("rope."))
        else array
        for name, array in state.items()
    }
