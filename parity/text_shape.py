"""The tensors that a text encoder of Qwen-Image (Qwen2.5-VL) must have, from its ``config.json``.

J width, V vocabulary; the vision tower's names begin with ``visual.``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parity.errors import WeightsError
from parity.safetensors_header import shown

MODEL_TYPE = "qwen2_5_vl"
_LIMIT = 1 << 24
_LAYERS = 4096
Shapes = dict[str, tuple[int, ...]]


def is_text_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of this model."""
    return config.get("model_type") == MODEL_TYPE


def is_optional(name: str) -> bool:
    """Whether MLX ports that only read prompts leave a tensor out: the vision tower and the output layer."""
    return name.startswith(("visual.", "lm_head."))


def expected_text_tensors(config: Mapping[str, Any]) -> Shapes:
    """Names and shapes of all tensors of a text encoder with its vision tower, or of a vision tower alone.

    Args:
        config: contents of ``config.json``, flat or with a ``text_config``.

    Raises:
        WeightsError: a value is missing, of a wrong type or out of range.
    """
    text = config.get("text_config") or config
    vision = config.get("vision_config")
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        raise WeightsError("config of the text encoder: text_config and vision_config must be objects")
    if text is config and "hidden_size" not in config:
        return _vision(vision)  # a tower by itself
    shapes = _language(text) | _vision(vision)
    if not (config.get("tie_word_embeddings") or text.get("tie_word_embeddings")):
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    return shapes


def _language(config: Mapping[str, Any]) -> Shapes:
    width, inner = _whole(config, "hidden_size"), _whole(config, "intermediate_size")
    heads, shared = _whole(config, "num_attention_heads"), _whole(config, "num_key_value_heads")
    narrow = shared * (width // heads)
    shapes: Shapes = {"model.embed_tokens.weight": (_whole(config, "vocab_size"), width)}
    for layer in (f"model.layers.{i}" for i in range(_whole(config, "num_hidden_layers", _LAYERS))):
        for name, out in (("q_proj", width), ("k_proj", narrow), ("v_proj", narrow)):
            shapes[f"{layer}.self_attn.{name}.weight"] = (out, width)
            shapes[f"{layer}.self_attn.{name}.bias"] = (out,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (width, width)
        for name in ("gate_proj", "up_proj"):
            shapes[f"{layer}.mlp.{name}.weight"] = (inner, width)
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{name}.weight"] = (width,)
    shapes["model.norm.weight"] = (width,)
    return shapes


def _vision(config: Mapping[str, Any]) -> Shapes:
    width, inner = _whole(config, "hidden_size"), _whole(config, "intermediate_size")
    # Published configs have both keys; transformers reads the first.
    colours = _whole({"in_channels": config.get("in_channels", config.get("in_chans", 3))}, "in_channels")
    patch = _whole(config, "patch_size")
    shapes: Shapes = {
        "visual.patch_embed.proj.weight": (width, colours, _whole(config, "temporal_patch_size"), patch, patch)
    }
    for block in (f"visual.blocks.{i}" for i in range(_whole(config, "depth", _LAYERS))):
        for name in ("norm1", "norm2"):
            shapes[f"{block}.{name}.weight"] = (width,)
        for name, out, into in (
            ("attn.qkv", 3 * width, width), ("attn.proj", width, width), ("mlp.gate_proj", inner, width),
            ("mlp.up_proj", inner, width), ("mlp.down_proj", width, inner),
        ):  # fmt: skip
            shapes[f"{block}.{name}.weight"], shapes[f"{block}.{name}.bias"] = (out, into), (out,)
    merged = width * _whole(config, "spatial_merge_size") ** 2
    shapes["visual.merger.ln_q.weight"] = (width,)
    for name, out in (("mlp.0", merged), ("mlp.2", _whole(config, "out_hidden_size"))):
        shapes[f"visual.merger.{name}.weight"], shapes[f"visual.merger.{name}.bias"] = (out, merged), (out,)
    return shapes


def _whole(config: Mapping[str, Any], key: str, limit: int = _LIMIT) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value <= limit:
        raise WeightsError(f"config of the text encoder: {key} is {shown(value)}, expected 1 to {limit}")
    return value
