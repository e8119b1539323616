"""transformers' Qwen2.5-VL language model as diffusers' pipelines use it, with named checkpoints, cut into stages.

B prompts, N tokens with template and padding, S tokens behind the template's prefix, D = J width, H heads of queries,
K of keys and values, d head width.

Nothing of the libraries is written again or patched. Prompts go through the pipelines' own ``encode_prompt``, with
stand-ins in the place of text encoder and picture processor that catch what reaches them; positions are caught at
the rotary module of the model's own ``forward``; layers run with hooks and an attention function of our own, which
calls the library's. `tokens`, `embed`, `layer` and `extract` are the parts of one call, one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline, QwenImagePipeline
from transformers import AttentionInterface, AttentionMaskInterface, Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2Tokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask, sdpa_mask
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm, Qwen2_5_VLRotaryEmbedding
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

from parity.tap import scope, tap

Tensors = dict[str, Any]
# In the order of the state's key `template`.
PIPELINES = (QwenImagePipeline, QwenImageEditPipeline, QwenImageEditPlusPipeline)
TAPPED = "tapped_sdpa"


class PictureProcessor(Qwen2VLProcessor):
    """The processor of the editing pipelines without its part for videos, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


class _Grids(Qwen2VLImageProcessorPil):
    """Stands for the picture processor where only the sizes of the pictures matter.

    Args:
        grids: n 3, (frames, rows, columns) in patches.
        merge_size: patches each way that make one token.
    """

    def __init__(self, grids: np.ndarray, merge_size: int) -> None:
        super().__init__(merge_size=merge_size)
        self._grids = grids

    def __call__(self, images: Sequence[np.ndarray], **_: Any) -> dict[str, np.ndarray]:
        return {"image_grid_thw": self._grids}


class _Caught(Exception):  # noqa: N818
    """What a stand-in was given; carries it out of the library's code."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__()
        self.given = given


class _TextEncoder:
    """Stands for the text encoder.

    Args:
        hidden: the last hidden state that it is to give, B N J; without one it catches what it is given.
    """

    def __init__(self, hidden: torch.Tensor | None) -> None:
        self._hidden = hidden
        self.dtype, self.device = (
            (torch.float32, torch.device("cpu")) if hidden is None else (hidden.dtype, hidden.device)
        )

    def __call__(self, **given: Any) -> SimpleNamespace:
        if self._hidden is None:
            raise _Caught(given)
        return SimpleNamespace(hidden_states=(self._hidden,))


class Prompts:
    """The pipelines' ``encode_prompt`` of a model's folder, up to the text encoder and behind it.

    Args:
        folder: of the whole model.
        merge_size: patches of a picture each way that make one token.
    """

    def __init__(self, folder: Path, merge_size: int) -> None:
        self._folder, self._merge_size = folder, merge_size
        self._tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")

    def before(self, template: int, prompts: Sequence[str], grids: np.ndarray) -> Mapping[str, torch.Tensor]:
        """The arguments that the pipeline gives to its text encoder."""
        try:
            self._encode(_TextEncoder(None), template, prompts, grids)
        except _Caught as caught:
            return caught.given
        raise AssertionError("the pipeline did not call its text encoder")

    def behind(
        self, hidden: torch.Tensor, template: int, prompts: Sequence[str], grids: np.ndarray, longest: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the pipeline makes of the text encoder's last hidden state, B N J: B S J, and its mask B S."""
        return self._encode(_TextEncoder(hidden), template, prompts, grids, longest)

    def _encode(
        self, encoder: _TextEncoder, template: int, prompts: Sequence[str], grids: np.ndarray, longest: int = 1024
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        pipeline_class = PIPELINES[template]
        if pipeline_class is QwenImagePipeline:
            pipeline = pipeline_class(None, None, None, self._tokenizer, None)
            pictures = {}
        else:
            processor = PictureProcessor(_Grids(grids, self._merge_size), self._processor_tokenizer())
            pipeline = pipeline_class(None, None, None, self._tokenizer, processor, None)
            pictures = {"image": [np.zeros((28, 28, 3), np.uint8)] * len(grids) or None}
        pipeline.text_encoder = encoder
        return pipeline.encode_prompt(list(prompts), device=encoder.device, max_sequence_length=longest, **pictures)

    def _processor_tokenizer(self) -> Qwen2Tokenizer:
        folder = self._folder / "processor"
        return Qwen2Tokenizer.from_pretrained(folder) if folder.is_dir() else self._tokenizer


def build(config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Qwen2_5_VLModel:
    """An instrumented model without weights (all parameters on the meta device).

    Args:
        config: contents of the text encoder's ``config.json``.
        dtype: dtype of the weights to come; float64 also widens the model's float32 islands.
        device: where the rotary frequencies live.
    """
    config = Qwen2_5_VLConfig.from_dict(config)
    with torch.device("meta"):
        model = Qwen2_5_VLModel._from_config(config, attn_implementation={"text_config": TAPPED}).eval()
    language = model.language_model
    with torch.device(device):
        language.rotary_emb = Qwen2_5_VLRotaryEmbedding(config.text_config)
    if dtype == torch.float64:
        for module in language.modules():
            if isinstance(module, Qwen2_5_VLRMSNorm):
                module.register_forward_hook(_rms_norm_float64)
        language.rotary_emb.register_forward_hook(_rotary_float64)
    model.requires_grad_(False)
    instrument(language)
    return model


def _rms_norm_float64(norm: Qwen2_5_VLRMSNorm, args: tuple, _: torch.Tensor) -> torch.Tensor:
    (x,) = args
    return norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon))


def _rotary_float64(
    rotary: Qwen2_5_VLRotaryEmbedding, args: tuple, _: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    _hidden, position_ids = args
    width = 2 * rotary.inv_freq.numel()
    exponent = torch.arange(0, width, 2, dtype=torch.float64, device=position_ids.device) / width
    frequency = 1.0 / rotary.config.rope_parameters["rope_theta"] ** exponent
    angle = position_ids[..., None].double() * frequency
    return rotary.recomposition_frequencies(angle.cos()), rotary.recomposition_frequencies(angle.sin())


def _tapped_sdpa(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """The library's attention, with q, k and v tapped as B N H d."""
    with scope(f"text.layer.{module.layer_idx:02d}"):
        for name, x in (("q", query), ("k", key), ("v", value)):
            tap(name, x.transpose(1, 2))
    return sdpa_attention_forward(module, query, key, value, mask, **options)


AttentionInterface.register(TAPPED, _tapped_sdpa)
AttentionMaskInterface.register(TAPPED, sdpa_mask)


def instrument(language: torch.nn.Module) -> None:
    """Put a tap at every checkpoint of the layers and the final norm; q, k and v are tapped by the attention."""
    for index, layer in enumerate(language.layers):
        here = f"text.layer.{index:02d}"
        _tap_output(layer.input_layernorm, f"{here}.normed")
        _tap_output(layer.self_attn, f"{here}.attn")
        _tap_input(layer.post_attention_layernorm, f"{here}.mid")
        _tap_output(layer.post_attention_layernorm, f"{here}.normed2")
        _tap_input(layer.mlp.down_proj, f"{here}.gated")
        _tap_output(layer.mlp, f"{here}.ffn")
        _tap_output(layer, f"{here}.out")
    _tap_output(language.norm, "text.norm")


def _tap_output(module: torch.nn.Module, name: str) -> None:
    def hook(_module, _args, output) -> None:
        tap(name, output[0] if isinstance(output, tuple) else output)

    module.register_forward_hook(hook)


def _tap_input(module: torch.nn.Module, name: str) -> None:
    def hook(_module, args) -> None:
        tap(name, args[0])

    module.register_forward_pre_hook(hook)


def tokens(
    model: Qwen2_5_VLModel, prompts: Prompts, template: int, texts: Sequence[str], grids: np.ndarray, *, typed: bool
) -> Tensors:
    """What the pipeline gives to the text encoder, and the positions that the text encoder gives to its tokens.

    Args:
        typed: also tell the text encoder which tokens are pictures (``mm_token_type_ids``), which the pipelines of
            diffusers 0.42.1 leave out (diffusers#14194): their rows and columns then count.

    Returns:
        ids B N, mask B N bool, position_ids B 3 N.
    """
    given = dict(prompts.before(template, texts, grids))
    ids, mask = given["input_ids"], given["attention_mask"]
    if typed:
        given["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    made = {"ids": ids, "mask": mask.bool(), "position_ids": _positions(model, given).swapaxes(0, 1)}
    with scope("text"):
        return {name: tap(name, tensor.contiguous()) for name, tensor in made.items()}


def _positions(model: Qwen2_5_VLModel, given: Mapping[str, Any]) -> torch.Tensor:
    """3 B N, as the model's own forward hands them to its rotary module."""

    def catch(_module, args) -> None:
        raise _Caught({"position_ids": args[1]})

    hook = model.language_model.rotary_emb.register_forward_pre_hook(catch)
    embeds = torch.zeros(*given["input_ids"].shape, model.config.text_config.hidden_size)
    try:
        model(**given, inputs_embeds=embeds)
    except _Caught as caught:
        return caught.given["position_ids"].expand(3, -1, -1)
    finally:
        hook.remove()
    raise AssertionError("the model did not ask for rotary positions")


def embed(model: Qwen2_5_VLModel, state: Tensors, dtype: torch.dtype) -> Tensors:
    """Embeddings with picture features in the places of picture tokens, and the rotary table.

    Args:
        state: ids B N, position_ids B 3 N, and optionally image_features n J.
        dtype: of the activations.

    Returns:
        hidden B N D, rope.text B N d/2 2 (cos, sin).
    """
    language, features = model.language_model, state.get("image_features")
    hidden = language.embed_tokens(state["ids"]).to(dtype)
    if features is not None:
        places, _ = model.get_placeholder_mask(state["ids"], hidden, features)
        hidden = hidden.masked_scatter(places, features)
    # Both halves of the library's table are the same.
    cos, sin = (part.chunk(2, dim=-1)[0] for part in language.rotary_emb(hidden, state["position_ids"].swapaxes(0, 1)))
    table = torch.stack([cos, sin], dim=-1)
    with scope("text"):
        return {"hidden": tap("embed", hidden), "rope.text": tap("rope", table)}


def layer(model: Qwen2_5_VLModel, index: int, state: Tensors) -> Tensors:
    """One layer: hidden B N D from hidden B N D, mask B N and rope.text B N d/2 2."""
    language, hidden = model.language_model, state["hidden"]
    cos, sin = (torch.cat([half, half], dim=-1).to(hidden.dtype) for half in state["rope.text"].unbind(-1))
    # By position: the fourth argument, a cache, has been called otherwise. Without one there is nothing in it.
    mask = create_causal_mask(language.config, hidden, state["mask"].long(), None)
    return {"hidden": language.layers[index](hidden, attention_mask=mask, position_embeddings=(cos, sin))}


def extract(
    model: Qwen2_5_VLModel, prompts: Prompts, template: int, texts: Sequence[str], grids: np.ndarray, longest: int,
    hidden: torch.Tensor,
) -> Tensors:  # fmt: skip
    """The final norm and what the pipeline makes of it: prompt_embeds B S J and, unless all tokens count, prompt_mask.

    Args:
        hidden: B N D.
        longest: max_sequence_length.
    """
    normed = model.language_model.norm(hidden)
    embeds, mask = prompts.behind(normed, template, texts, grids, longest)
    kept = torch.ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    with scope("text"):
        embeds, kept = tap("prompt_embeds", embeds), tap("prompt_mask", kept)
    return {"prompt_embeds": embeds} | ({} if mask is None else {"prompt_mask": kept})
