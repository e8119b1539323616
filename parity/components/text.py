"""The text encoder as a component: prompts in, prompt embeddings out.

B prompts, N tokens with the template and padding, S tokens behind the template's prefix, D = J width, d head width.

Stages: ``text.tokens``, ``text.embed``, ``text.layer.NN``, ``text.norm``.
State keys: before the first stage ``prompt.00`` … the UTF-8 bytes of each prompt · ``template`` int64, an index into
`TEMPLATES` · optionally ``positions`` int64, an index into `POSITIONS` · ``max_sequence_length`` int64 ·
``image_grid_thw`` n 3 int64 and ``image_features`` m J, what the vision tower makes of the pictures. After the first
also ``ids`` B N int64 · ``mask`` B N bool · ``position_ids`` B 3 N int64. Between the others ``hidden`` B N D ·
``rope.text`` B N d/2 2. After the last ``prompt_embeds`` B S J · ``prompt_mask`` B S bool, absent where all tokens
count.

Rows of padding tokens are computed but never read: a query there changes no other row, and the masks keep all
others from looking at them. Both ports hand over every checkpoint with zeros in these rows, so that they are neither
judged nor weigh in the norms; ``text.mask``, ``text.prompt_embeds`` and ``text.prompt_mask`` are whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from parity.components.base import DTYPES, Case, Configs, State
from parity.errors import UsageError
from parity.names import LEVELS, Graph

TEMPLATES = ("image", "edit", "edit_plus")
POSITIONS = ("sequence", "grid")
MAX_TOKENS = 1024
# One token of a picture covers 14 (patch) × 2 (merge) pixels each way.
PATCH, PIXELS_PER_TOKEN = 14, 28

# Per layer, in the order in which a layer makes them.
LAYER_KINDS = ("normed", "q", "k", "v", "attn", "mid", "normed2", "gated", "ffn", "out")
EXACT = frozenset({"text.ids", "text.mask", "text.position_ids", "text.prompt_mask"})
_ONLY_FULL = ("q", "k", "v", "gated")
_ONLY_KINDS = ("attn", "ffn", "out")


@dataclass(frozen=True, kw_only=True)
class TextCase(Case):
    """Prompts as a user writes them; what the vision tower would make of pictures is drawn at random.

    Attributes:
        prompts: of one batch.
        template: which pipeline they are for: ``image``, ``edit`` or ``edit_plus``.
        pictures: (height, width) in pixels as the vision tower is shown them.
        max_sequence_length: longest prompt; the editing templates do not heed it.
        positions: ``sequence``, as diffusers has it, or ``grid``: rows and columns for picture tokens.
    """

    component: ClassVar[str] = "text"
    plain: ClassVar[bool] = False
    folders: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    streamed: ClassVar[bool] = True

    prompts: tuple[str, ...]
    template: str = "image"
    pictures: tuple[tuple[int, int], ...] = ()
    max_sequence_length: int = MAX_TOKENS
    positions: str = "sequence"

    def __post_init__(self) -> None:
        for what, name, known in (("template", self.template, TEMPLATES), ("positions", self.positions, POSITIONS)):
            if name not in known:
                raise UsageError(f"case {self.name!r}: {what} {name!r} is none of {', '.join(known)}")
        if not 1 <= len(self.prompts) <= 100:  # keys of the state have two digits
            raise UsageError(f"case {self.name!r}: {len(self.prompts)} prompts, expected 1 to 100; one may be empty")
        if not 1 <= self.max_sequence_length <= MAX_TOKENS:
            raise UsageError(
                f"case {self.name!r}: max_sequence_length {self.max_sequence_length} is not within 1…{MAX_TOKENS}"
            )
        for height, width in self.pictures:
            if height % PIXELS_PER_TOKEN or width % PIXELS_PER_TOKEN or min(height, width) < 1:
                raise UsageError(
                    f"case {self.name!r}: picture of {height} × {width} is not a multiple of {PIXELS_PER_TOKEN} "
                    "pixels each way"
                )
        if self._shown != len(self.pictures):
            raise UsageError(
                f"case {self.name!r}: {len(self.prompts)} prompts of template {self.template!r} show {self._shown} "
                f"pictures, but there are {len(self.pictures)}; edit takes one for each prompt, edit_plus any for one"
            )

    @property
    def _shown(self) -> int:
        """How many pictures the wrapped prompts have in them."""
        in_each = {"image": 0, "edit": 1, "edit_plus": len(self.pictures)}[self.template]
        return in_each * len(self.prompts)

    @property
    def grids(self) -> list[tuple[int, int, int]]:
        """(frames, rows, columns) of each picture in patches."""
        return [(1, height // PATCH, width // PATCH) for height, width in self.pictures]

    def describe(self) -> dict[str, Any]:
        """See `Case.describe`."""
        return {
            "batch": len(self.prompts),
            "prompts": list(self.prompts),
            "template": self.template,
            "pictures": [list(picture) for picture in self.pictures],
            "max_sequence_length": self.max_sequence_length,
            "positions": self.positions,
            "seed": self.seed,
        }

    def graph(self, configs: Configs, level: str) -> dict[str, Any]:
        """See `Case.graph`; the function is `text_graph`."""
        config = configs["text_encoder"]
        layers = (config.get("text_config") or config)["num_hidden_layers"]
        return {"name": self.component, "num_layers": layers, "level": level}

    def inputs(self, configs: Configs, dtype: str) -> State:
        """The arrays that go into the first stage.

        Args:
            configs: the text encoder's has hidden_size and vision_config.
            dtype: of the picture features.
        """
        config = configs["text_encoder"]
        state = {
            f"prompt.{index:02d}": np.frombuffer(prompt.encode(), np.uint8) for index, prompt in enumerate(self.prompts)
        }
        state["template"] = np.array(TEMPLATES.index(self.template), np.int64)
        state["positions"] = np.array(POSITIONS.index(self.positions), np.int64)
        state["max_sequence_length"] = np.array(self.max_sequence_length, np.int64)
        if self.pictures:
            state["image_grid_thw"] = np.array(self.grids, np.int64)
            merge = (config.get("vision_config") or {}).get("spatial_merge_size", 2)
            tokens = sum(frames * rows * columns for frames, rows, columns in self.grids) // merge**2
            width = (config.get("text_config") or config)["hidden_size"]
            features = self.draw().standard_normal((tokens, width), dtype=np.float32)
            state["image_features"] = features.astype(DTYPES[dtype])
        return state


def text_graph(num_layers: int, level: str = "full") -> Graph:
    """Graph of the text encoder.

    Args:
        num_layers: of the language model.
        level: ``kinds`` (tokens, embeddings, and of each layer attention, MLP and result), ``block`` (all but
            q, k, v and the MLP's inside) or ``full``.

    Raises:
        ValueError: an unknown level, or no layers.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is none of {', '.join(LEVELS)}")
    if num_layers < 1:
        raise ValueError(f"a text encoder has at least one layer, not {num_layers}")
    parents: dict[str, tuple[str, ...]] = {
        "text.ids": (), "text.mask": (), "text.position_ids": ("text.ids", "text.mask"),
        "text.embed": ("text.ids",), "text.rope": ("text.position_ids",),
    }  # fmt: skip
    stage = dict.fromkeys(parents, "text.tokens") | dict.fromkeys(("text.embed", "text.rope"), "text.embed")
    entering = "text.embed"
    for index in range(num_layers):
        here = f"text.layer.{index:02d}"
        for kind, its_parents in _layer(here, entering):
            parents[f"{here}.{kind}"], stage[f"{here}.{kind}"] = its_parents, here
        entering = f"{here}.out"
    for name, its_parents in (
        ("text.norm", (entering,)),
        ("text.prompt_embeds", ("text.norm", "text.mask")),
        ("text.prompt_mask", ("text.mask",)),
    ):
        parents[name], stage[name] = its_parents, "text.norm"
    return Graph(parents, stage, tuple(name for name in parents if _in_level(name, level)), exact=EXACT)


def _in_level(name: str, level: str) -> bool:
    before, _, kind = name.rpartition(".")
    if level == "full" or not before.startswith("text.layer."):
        return level != "kinds" or name not in ("text.rope", "text.norm")
    return kind in _ONLY_KINDS if level == "kinds" else kind not in _ONLY_FULL


def _layer(here: str, entering: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Kinds and parents of one layer, each after its parents."""
    parents: Mapping[str, tuple[str, ...]] = {
        "normed": (entering,),
        "q": (f"{here}.normed", "text.rope"),
        "k": (f"{here}.normed", "text.rope"),
        "v": (f"{here}.normed",),
        "attn": (f"{here}.q", f"{here}.k", f"{here}.v", "text.mask"),
        "mid": (entering, f"{here}.attn"),
        "normed2": (f"{here}.mid",),
        "gated": (f"{here}.normed2",),
        "ffn": (f"{here}.gated",),
        "out": (f"{here}.mid", f"{here}.ffn"),
    }
    for kind in LAYER_KINDS:
        yield kind, parents[kind]
