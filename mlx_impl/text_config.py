"""The text encoder's ``config.json``, in each of the forms it is found in.

Published ones are flat, or flat with a ``text_config`` beside the same keys; transformers 5 writes ``text_config``
alone. Where there is one it counts, as it does in transformers, and the outer keys of the language model do not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from parity.layouts import locate

# Keys that change no number of the encoder: names, training, generation, vocabulary of the output layer, and
# settings of the sliding windows, which must be off.
NO_EFFECT = frozenset(
    {
        "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_dropout", "bos_token_id", "dtype",
        "eos_token_id", "initializer_range", "max_position_embeddings", "max_window_layers", "pad_token_id",
        "sliding_window", "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache",
        "vision_end_token_id", "vision_start_token_id", "vision_token_id",
    }
)  # fmt: skip
_OUTER = ("image_token_id", "video_token_id")
_MODEL_TYPES = ("qwen2_5_vl", "qwen2_5_vl_text")


@dataclass(frozen=True)
class TextEncoderConfig:
    """What the encoder computes with, and the defaults of transformers' class.

    Attributes:
        spatial_merge_size: patches each way that the vision tower makes one token of.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    vocab_size: int = 152064
    hidden_size: int = 8192
    intermediate_size: int = 29568
    num_hidden_layers: int = 80
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    mrope_section: tuple[int, ...] = (16, 24, 24)
    image_token_id: int = 151655
    video_token_id: int = 151656
    spatial_merge_size: int = 2

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size}, num_attention_heads {self.num_attention_heads}, "
                f"num_key_value_heads {self.num_key_value_heads}: each must divide the one before it"
            )
        if 2 * sum(self.mrope_section) != self.head_width:
            raise ValueError(
                f"mrope_section {list(self.mrope_section)}: expected pairs that add up to half the head width "
                f"{self.head_width}"
            )

    @property
    def head_width(self) -> int:
        """d."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> TextEncoderConfig:
        """Read a config in any of its forms.

        Raises:
            ValueError: keys that could change numbers and are not known here, or a kind of model, rotary
                positions, activation or attention that this is not.
        """
        outer = {key: value for key, value in config.items() if key not in ("text_config", "vision_config")}
        inner = config.get("text_config")
        text = dict(outer if inner is None else inner)
        # The outer keys are checked as well: a strange one may speak of something that is done nowhere here.
        for where, part in (("", outer), ("text_config.", text)):
            _check(where if inner is not None else "", part)
        given = {key: text[key] for key in _OWN_KEYS if text.get(key) is not None}
        given |= {key: outer[key] for key in _OUTER if outer.get(key) is not None}
        # transformers: as many as there are queries when it says null.
        if "num_key_value_heads" in text and text["num_key_value_heads"] is None:
            given["num_key_value_heads"] = given.get("num_attention_heads", cls.num_attention_heads)
        vision = config.get("vision_config") or {}
        if "spatial_merge_size" in vision:
            given["spatial_merge_size"] = vision["spatial_merge_size"]
        return cls(**given | _rope(text))

    @classmethod
    def from_folder(cls, folder: Path) -> TextEncoderConfig:
        """Read the config of a ``text_encoder`` folder; the published one where MLX's layouts leave it out.

        Raises:
            WeightsError: there is none, nor weights that tell.
            ValueError: see `from_dict`.
        """
        path = folder / "config.json"
        if not path.exists():
            return cls.from_dict(locate(folder, "text_encoder").config)
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


_OWN_KEYS = frozenset(field.name for field in fields(TextEncoderConfig)) - {
    "rope_theta", "mrope_section", "spatial_merge_size", *_OUTER,
}  # fmt: skip
_ROPE_KEYS = frozenset({"rope_parameters", "rope_scaling", "rope_theta"})
_CHECKED = frozenset({"model_type", "hidden_act", "use_sliding_window", "layer_types"})


def _check(where: str, part: Mapping[str, Any]) -> None:
    """Refuse what would be computed otherwise here than in transformers."""
    known = NO_EFFECT | _OWN_KEYS | _ROPE_KEYS | _CHECKED | frozenset(_OUTER)
    if strangers := sorted(where + key for key in part.keys() - known):
        raise ValueError(f"config has unknown keys {', '.join(strangers)}; they could change what is computed")
    for key, allowed in (
        ("model_type", _MODEL_TYPES), ("hidden_act", ("silu",)), ("use_sliding_window", (False, None)),
    ):  # fmt: skip
        if key in part and part[key] not in allowed:
            raise ValueError(f"config: {where}{key} is {part[key]!r}, expected {allowed[0]!r}")
    if others := sorted(set(part.get("layer_types") or ()) - {"full_attention"}):
        raise ValueError(f"config: {where}layer_types has {', '.join(others)}, expected full_attention in all layers")


def _rope(text: Mapping[str, Any]) -> dict[str, Any]:
    """Theta and sections, from ``rope_parameters`` or from the older ``rope_theta`` and ``rope_scaling``."""
    given = dict(text.get("rope_scaling") or text.get("rope_parameters") or {})
    kinds = {given.pop(key) for key in ("rope_type", "type") if key in given}
    if strangers := sorted(given.keys() - {"rope_theta", "mrope_section"}):
        raise ValueError(f"config has unknown keys {', '.join(strangers)} among the rotary parameters")
    if kinds - {"default", "mrope"}:
        raise ValueError(f"config: rotary positions of type {', '.join(sorted(kinds))}, expected 'default'")
    if "rope_theta" in text:
        given.setdefault("rope_theta", text["rope_theta"])
    if "mrope_section" in given:
        given["mrope_section"] = tuple(given["mrope_section"])
    return given
