"""Synthetic text encoders: Qwen2.5-VL with random weights, its tokenizer and its picture processor, on disk.

B prompts, N tokens, D width, H heads, d head width.

Layers are fitted one after the other on a few prompts, in bfloat16 as they are stored: scores of attention spread
as widely as in a trained model, each half of a layer adds a fixed share to the residual, and the final norm gives
prompt embeddings of rms 1, for which the synthetic transformers are made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.utils import logging

from reference import synthetic_tokenizer, synthetic_vision
from reference.presets import FORMAT, SYNTHETIC

_VISION = {
    "in_channels": 3, "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 112,
    "tokens_per_second": 2, "depth": 8, "fullatt_block_indexes": [3, 7],
}  # fmt: skip
# Arguments of `write`: beside the transformers of the presets, whose joint_attention_dim their width is.
TINY: dict[str, Any] = {
    "width": 256, "layers": 4, "heads": 4, "kv_heads": 2, "intermediate": 512, "mrope_section": (8, 12, 12),
    "vision": _VISION | {"hidden_size": 64, "num_heads": 4, "intermediate_size": 128},
    "shard_bytes": 2_000_000,
}  # fmt: skip
WIDE: dict[str, Any] = {
    "width": 3584, "layers": 2, "heads": 28, "kv_heads": 4, "intermediate": 18944, "mrope_section": (16, 24, 24),
    "vision": _VISION | {"hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420},
    "shard_bytes": 500_000_000,
}  # fmt: skip

# Spread of attention's scores over the keys, before softmax.
SCORES = 2.0
# What either half of a layer adds to the residual, which enters with rms 1.
SHARE = 0.5
# Biases of q, k and v, against projections of rms 1.
BIAS = 0.3
PROMPTS = (
    "A red fox sits in fresh snow at the edge of a pine forest. Soft morning light, long shadows.",
    'A shop sign that reads "FRESH BREAD" in golden letters, brick wall, rain on the street.',
    "一只橘色的猫坐在窗台上，窗外下着大雨。",
    " ",
)


def write(
    folder: Path,
    *,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    mrope_section: tuple[int, int, int],
    vision: Mapping[str, Any],
    shard_bytes: int,
    seed: int,
) -> None:
    """Make ``text_encoder``, ``tokenizer`` and ``processor`` in a model's folder.

    Args:
        folder: the model's folder; the three must not be there yet.
        width: D, the joint_attention_dim of the transformer.
        layers: of the language model.
        heads, kv_heads: of its queries; of its keys and values.
        intermediate: width inside its MLP.
        mrope_section: pairs of a head that turn with frame, row and column; their sum is d/2.
        vision: arguments of the vision tower's config but its output width, which is D.
        shard_bytes: largest safetensors file.
        seed: of the weights. Another machine or BLAS moves single weights by one unit of bfloat16.
    """
    tokenizer = synthetic_tokenizer.train()
    config = _config(tokenizer, width, layers, heads, kv_heads, intermediate, mrope_section, vision)
    model = _fitted(config, tokenizer, seed)
    target = folder / "text_encoder"
    with _no_progress_bar():
        model.save_pretrained(target, max_shard_size=shard_bytes)
    for shard in target.glob("*.safetensors"):
        shard.chmod(0o644)  # safetensors makes files that only their owner can read
    about = {"schema": 1, "component": "text_encoder", "width": width, "seed": seed, "format": FORMAT}
    (target / SYNTHETIC).write_text(json.dumps(about, indent=2) + "\n")
    synthetic_tokenizer.write_tokenizer(folder / "tokenizer", tokenizer)
    synthetic_tokenizer.write_processor(folder / "processor", tokenizer, config.vision_config.to_dict())


def _config(
    tokenizer: Qwen2Tokenizer, width: int, layers: int, heads: int, kv_heads: int, intermediate: int,
    mrope_section: tuple[int, int, int], vision: Mapping[str, Any],
) -> Qwen2_5_VLConfig:  # fmt: skip
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in synthetic_tokenizer.SPECIAL}
    text = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": intermediate, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128000, "max_window_layers": layers,
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(mrope_section)},
        "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"],
    }  # fmt: skip
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**vision, "out_hidden_size": width},
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        **{f"{name}_token_id": ids[f"<|{token}|>"] for name, token in _TOKEN_OF.items()},
    )


_TOKEN_OF = {
    "image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end",
}  # fmt: skip


def _fitted(config: Qwen2_5_VLConfig, tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """The model in bfloat16: its language model fitted, its vision tower as `synthetic_vision` makes it."""
    # In float32, with every weight rounded as it is set: products of bfloat16 are 80 times slower on most CPUs.
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    _fit(model.model.language_model, tokenizer(list(PROMPTS), padding=True, return_tensors="pt"), draw)
    _set(model.lm_head.weight, _normal(model.lm_head.weight, draw) * config.text_config.hidden_size**-0.5)
    tensors = synthetic_vision.tensors(config.vision_config.to_dict(), seed)
    model.model.visual.load_state_dict({key.removeprefix("visual."): tensor for key, tensor in tensors}, strict=True)
    for part in (config, config.text_config, config.vision_config):
        part.dtype = torch.bfloat16
    return model.bfloat16()


def _fit(language: nn.Module, tokens: Mapping[str, Tensor], draw: torch.Generator) -> None:
    """Fit all layers, each on what the rounded ones before it give."""
    _set(language.embed_tokens.weight, _normal(language.embed_tokens.weight, draw))
    for layer in language.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                # q·k/√d of two vectors of rms s spreads by s² over the keys.
                gain = SCORES**0.5 if module in (attention.q_proj, attention.k_proj) else 1.0
                _set(module.weight, _normal(module.weight, draw) * gain * module.in_features**-0.5)
                if module.bias is not None:
                    _set(module.bias, _normal(module.bias, draw) * BIAS)
            elif getattr(module, "weight", None) is not None:
                _set(module.weight, _near_one(module.weight, draw))
        for module, output in ((attention, attention.o_proj), (mlp, mlp.down_proj)):
            _set(output.weight, output.weight * (SHARE / _rms_of_output(language, tokens, module)))
    _set(language.norm.weight, _near_one(language.norm.weight, draw))
    _set(language.norm.weight, language.norm.weight / _rms_of_output(language, tokens, language.norm))


def _set(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value.bfloat16())


def _normal(like: Tensor, draw: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=draw)


def _near_one(like: Tensor, draw: torch.Generator) -> Tensor:
    return 1 + 0.1 * _normal(like, draw).clamp(-2, 2)


class _Reached(Exception):  # noqa: N818
    """The module has been run; the layers behind it, which are not fitted yet, need not be."""


def _rms_of_output(language: nn.Module, tokens: Mapping[str, Tensor], module: nn.Module) -> float:
    """Rms of what a module gives for the tokens of the prompts that count."""
    found = []

    def take(_module, _args, output) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    hook = module.register_forward_hook(take)
    with suppress(_Reached):
        language(**tokens)
    hook.remove()
    return found[0][tokens["attention_mask"].bool()].double().square().mean().sqrt().item()


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
