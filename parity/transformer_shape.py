"""The transformer's ``config.json``, and the tensors a checkpoint of it must have.

D width, H heads, d head width, J text-encoder width, C patch channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from parity.errors import WeightsError
from parity.safetensors_header import and_more, shown

CLASS_NAME = "QwenImageTransformer2DModel"
# Written by early diffusers (the published Qwen-Image has it), without effect, dropped in diffusers#12057.
RETIRED_KEYS = frozenset({"pooled_projection_dim"})
MAX_LAYERS = 4096


@dataclass(frozen=True)
class TransformerShape:
    """The keys of ``config.json``, with the defaults of diffusers' QwenImageTransformer2DModel."""

    patch_size: int = 2
    in_channels: int = 64
    out_channels: int | None = 16
    num_layers: int = 60
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 3584
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    zero_cond_t: bool = False
    use_additional_t_cond: bool = False
    use_layer3d_rope: bool = False

    @property
    def width(self) -> int:
        """D."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> TransformerShape:
        """Check and complete a configuration.

        Args:
            raw: contents of ``config.json``; keys beginning with ``_`` carry no shape.

        Raises:
            WeightsError: keys that are unknown, values of a wrong type or out of range; all of
                them in the details.
        """
        problems: list[str] = []
        if raw.get("_class_name", CLASS_NAME) != CLASS_NAME:
            problems.append(f"_class_name is {shown(raw['_class_name'])}, expected {CLASS_NAME}")
        given = {k: v for k, v in raw.items() if not k.startswith("_") and k not in RETIRED_KEYS}
        known = {field.name: field.default for field in fields(cls)}
        problems += [f"unknown key {shown(key)}" for key in given if key not in known]
        values = known | {key: value for key, value in given.items() if key in known}
        wrong = {key: why for key, value in values.items() if (why := _value_problem(key, value, known[key]))}
        problems += [f"{key} is {shown(values[key])}, expected {why}" for key, why in wrong.items()]
        if not {"axes_dims_rope", "attention_head_dim"} & wrong.keys():
            total = sum(values["axes_dims_rope"])
            if total != values["attention_head_dim"]:
                problems.append(f"axes_dims_rope sums to {total}, expected attention_head_dim = "
                                f"{values['attention_head_dim']}")  # fmt: skip
        if problems:
            raise WeightsError(f"config of the transformer: {problems[0]}{and_more(problems)}", problems)
        return cls(**values | {"axes_dims_rope": tuple(values["axes_dims_rope"])})


def _value_problem(key: str, value: object, default: object) -> str | None:
    """What was expected of a value, or None where it is right. JSON's true is no number here."""

    def positive(x: object) -> bool:
        return type(x) is int and 0 < x < 1 << 31

    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if key == "axes_dims_rope":
        right = isinstance(value, list | tuple) and len(value) == 3 and all(positive(x) and x % 2 == 0 for x in value)
        return None if right else "three even positive integers"
    if key == "num_layers":  # a list of names of every block is made before any weight is looked at
        return None if positive(value) and value <= MAX_LAYERS else f"a positive integer up to {MAX_LAYERS}"
    if positive(value) or (key == "out_channels" and value is None):
        return None
    return "a positive integer"


def expected_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a transformer, in the order of the model.

    Args:
        config: contents of ``config.json``, complete or not.

    Raises:
        WeightsError: the configuration is wrong.
    """
    shape = TransformerShape.of(config)
    d, j = shape.width, shape.joint_attention_dim
    out = shape.patch_size**2 * (shape.out_channels or shape.in_channels)
    tensors: dict[str, tuple[int, ...]] = {}

    def linear(name: str, wide: int, narrow: int) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = (wide, narrow), (wide,)

    linear("time_text_embed.timestep_embedder.linear_1", d, 256)
    linear("time_text_embed.timestep_embedder.linear_2", d, d)
    if shape.use_additional_t_cond:
        tensors["time_text_embed.addition_t_embedding.weight"] = (2, d)
    tensors["txt_norm.weight"] = (j,)
    linear("img_in", d, shape.in_channels)
    linear("txt_in", d, j)
    for block in (f"transformer_blocks.{i}" for i in range(shape.num_layers)):
        for stream in ("img", "txt"):
            linear(f"{block}.{stream}_mod.1", 6 * d, d)
            linear(f"{block}.{stream}_mlp.net.0.proj", 4 * d, d)
            linear(f"{block}.{stream}_mlp.net.2", d, 4 * d)
        for projection in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"):
            linear(f"{block}.attn.{projection}", d, d)
        for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            tensors[f"{block}.attn.{norm}.weight"] = (shape.attention_head_dim,)
    linear("norm_out.linear", 2 * d, d)
    linear("proj_out", out, d)
    return tensors
