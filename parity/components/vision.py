"""The vision tower as a component: its checkpoints, and cases of drawn pictures.

N tokens (patches) of all pictures together, D width, H heads, d head width, C·T·P·P values of a
patch, m patches each way of a merge block, J text-encoder width.

| name | shape | what |
|---|---|---|
| `vision.pixels`, `vision.grid_thw` | N C·T·P·P, n 3 | the image processor's patches and grids |
| `vision.patch_embed` | N D | after the patch projection, in the order of the picture |
| `vision.rope` | N d/2 2 | (cos, sin) table, like all that follows in the order of the windows |
| `vision.window_index`, `vision.cu_window_seqlens` | N/m², windows + 1 | that order, and the windows' bounds |
| `vision.block.NN.normed`, `.normed2` | N D | the two RMSNorms |
| `vision.block.NN.q`, `.k`, `.v` | N H d | after projection and rotation |
| `vision.block.NN.attn`, `.ffn` | N D | what the two halves add |
| `vision.block.NN.mid`, `.out` | N D | after adding them |
| `vision.merger.norm` | N D | the last RMSNorm |
| `vision.merger` | N/m² J | the features, in the order of the picture |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from parity.components.base import Case, Configs, State
from parity.errors import UsageError
from parity.names import LEVELS, Graph

BLOCK_KINDS = ("normed", "q", "k", "v", "attn", "mid", "normed2", "ffn", "out")
EXACT = ("vision.grid_thw", "vision.window_index", "vision.cu_window_seqlens")
# Those of transformers' config class, for a file that leaves them out.
_DEFAULTS = {"depth": 32, "fullatt_block_indexes": (7, 15, 23, 31)}
_BEFORE: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "vision.patches": (("vision.pixels", ()), ("vision.grid_thw", ())),
    "vision.embed": (
        ("vision.patch_embed", ("vision.pixels",)),
        ("vision.rope", ("vision.grid_thw",)),
        ("vision.window_index", ("vision.grid_thw",)),
        ("vision.cu_window_seqlens", ("vision.grid_thw",)),
    ),
}


def vision_graph(depth: int, full_attention: tuple[int, ...] = (), level: str = "full") -> Graph:
    """Graph of the vision tower and its image processor.

    Args:
        depth: number of blocks.
        full_attention: indices of the blocks whose tokens attend to their whole picture.
        level: ``kinds`` (of the blocks, only their outputs), ``block`` (all but q, k and v) or ``full``.

    Raises:
        ValueError: an unknown level, or no blocks.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is none of {', '.join(LEVELS)}")
    if depth < 1:
        raise ValueError(f"a vision tower has at least one block, not {depth}")
    parents, stage = {}, {}
    for where, made in _BEFORE.items():
        parents |= dict(made)
        stage |= dict.fromkeys(dict(made), where)
    entering: tuple[str, ...] = ("vision.patch_embed", "vision.window_index")
    for index in range(depth):
        here = f"vision.block.{index:02d}"
        made = _block(here, entering, "vision.grid_thw" if index in full_attention else "vision.cu_window_seqlens")
        parents |= made
        stage |= dict.fromkeys(made, here)
        entering = (f"{here}.out",)
    parents |= {"vision.merger.norm": entering, "vision.merger": ("vision.merger.norm", "vision.window_index")}
    stage |= dict.fromkeys(("vision.merger.norm", "vision.merger"), "vision.merger")
    return Graph(parents, stage, tuple(name for name in parents if _in_level(name, level)), exact=frozenset(EXACT))


def _block(here: str, entering: tuple[str, ...], bounds: str) -> dict[str, tuple[str, ...]]:
    """Names and parents of one block, each name after its parents."""
    parents = {
        "normed": entering,
        "q": (f"{here}.normed", "vision.rope"),
        "k": (f"{here}.normed", "vision.rope"),
        "v": (f"{here}.normed",),
        "attn": (f"{here}.q", f"{here}.k", f"{here}.v", bounds),
        "mid": (*entering, f"{here}.attn"),
        "normed2": (f"{here}.mid",),
        "ffn": (f"{here}.normed2",),
        "out": (f"{here}.mid", f"{here}.ffn"),
    }
    return {f"{here}.{kind}": parents[kind] for kind in BLOCK_KINDS}


def _in_level(name: str, level: str) -> bool:
    in_block, kind = name.startswith("vision.block."), name.rpartition(".")[2]
    if level == "kinds":
        return kind == "out" if in_block else name not in ("vision.rope", "vision.merger.norm")
    return level == "full" or not (in_block and kind in ("q", "k", "v"))


@dataclass(frozen=True, kw_only=True)
class VisionCase(Case):
    """Pictures drawn from the seed.

    Attributes:
        images: (height, width) in pixels of each picture, before the image processor resizes it.
    """

    component: ClassVar[str] = "vision"
    plain: ClassVar[bool] = False
    folders: ClassVar[tuple[str, ...]] = ("text_encoder", "processor")
    streamed: ClassVar[bool] = True

    images: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.images:
            raise UsageError(f"case {self.name!r}: at least one image is needed")
        for size in self.images:
            if len(size) != 2 or min(size) < 1:
                raise UsageError(f"case {self.name!r}: image size {list(size)}; expected height and width in pixels")

    def describe(self) -> dict[str, Any]:
        """See `Case.describe`."""
        return {"images": [list(size) for size in self.images], "seed": self.seed}

    def graph(self, configs: Configs, level: str) -> dict[str, Any]:
        """See `Case.graph`; the function is `vision_graph`."""
        config = _DEFAULTS | configs["text_encoder"]["vision_config"]
        full = list(config["fullatt_block_indexes"])
        return {"name": self.component, "depth": config["depth"], "full_attention": full, "level": level}

    def inputs(self, configs: Configs, dtype: str) -> State:
        """``image.00`` …, each H W 3 uint8; the same in every dtype."""
        draw = self.draw()
        return {f"image.{i:02d}": draw_picture(draw, *size) for i, size in enumerate(self.images)}


def draw_picture(draw: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A picture with what photographs have: gradients, edges, texture and a little noise.

    Returns:
        height width 3 uint8.
    """
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    corners = draw.uniform(0, 255, (4, 3))
    weights = np.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x], axis=-1)
    picture = weights @ corners
    for _ in range(6):
        centre, radius, colour = draw.uniform(0, 1, 2), draw.uniform(0.05, 0.3, 2), draw.uniform(0, 255, 3)
        inside = np.maximum(*np.abs((y - centre[0], x - centre[1])) / radius[:, None, None]) < 1
        if draw.random() < 0.5:
            inside = ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 < 1
        waves = draw.uniform(2, 40, 2)
        texture = 25 * np.sin(2 * np.pi * (waves[0] * y + waves[1] * x))
        picture = np.where(inside[..., None], colour + texture[..., None], picture)
    return np.clip(picture + draw.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)
