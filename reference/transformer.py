"""diffusers' QwenImageTransformer2DModel with named checkpoints, and cut into stages.

B batch, L image tokens, S text tokens, D width, H heads, d head width, J text-encoder width.

The instruments are module hooks and an attention processor; the model's own code runs
unchanged, so a tapped and an untapped forward pass are bit-equal. `embed`, `block` and `head`
are the three parts of the model's ``forward`` (diffusers 0.42.1), called one at a time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_qwenimage import (
    QwenDoubleStreamAttnProcessor2_0,
    QwenImageTransformer2DModel,
    apply_rotary_emb_qwen,
    compute_text_seq_len_from_mask,
)

from parity.names import block_stage
from parity.tap import tap
from reference.precision import widen_islands

if TYPE_CHECKING:
    from reference.lora import Adapters

Tensors = dict[str, Any]

# The published Qwen-Image has it in its config.json; diffusers dropped it in #12057, it never had an effect.
RETIRED_KEYS = ("pooled_projection_dim",)


def build(
    config: dict[str, Any], dtype: torch.dtype, device: torch.device, adapters: Adapters | None = None
) -> QwenImageTransformer2DModel:
    """An instrumented model without weights (all parameters on the meta device).

    Args:
        config: contents of ``config.json``.
        dtype: dtype of the weights to come; float64 also widens the model's float32 islands.
        device: where the rotary tables live.
        adapters: LoRAs to put into it; taps are on what comes out of an adapted layer.
    """
    config = {key: value for key, value in config.items() if not key.startswith("_") and key not in RETIRED_KEYS}
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(**config).eval()
    rope = type(model.pos_embed)
    model.pos_embed = rope(theta=10000, axes_dim=list(model.config.axes_dims_rope), scale_rope=True)
    if dtype == torch.float64:
        widen_islands(model)
        _widen_tables(model.pos_embed)
    model.requires_grad_(False)
    if adapters is not None:
        adapters.inject(model)
    instrument(model, exact_rotation=dtype == torch.float64)
    return model


def _widen_tables(rope: torch.nn.Module) -> None:
    """Recompute a rotary module's tables, of positions 0…4095 and -4096…-1, in float64."""
    position = torch.arange(4096, dtype=torch.float64)
    frequency = [
        1.0 / torch.pow(torch.tensor(rope.theta, dtype=torch.float64), torch.arange(0, dim, 2).double() / dim)
        for dim in rope.axes_dim
    ]
    for name, positions in (("pos_freqs", position), ("neg_freqs", position - 4096)):
        angle = torch.cat([torch.outer(positions, f) for f in frequency], dim=1)
        setattr(rope, name, torch.polar(torch.ones_like(angle), angle))


def instrument(model: QwenImageTransformer2DModel, *, exact_rotation: bool = False) -> None:
    """Put a tap at every checkpoint of the full level.

    Args:
        model: a model of diffusers' class, on any device.
        exact_rotation: rotate in float64, for a model that computes in float64.
    """
    time = model.time_text_embed
    for module, name in (
        (model.img_in, "img_in"),
        (model.txt_norm, "txt_norm"),
        (model.txt_in, "txt_in"),
        (time.time_proj, "time.proj"),
        (time.timestep_embedder.linear_1, "time.linear_1"),
        (time.timestep_embedder.act, "time.silu"),
        (time, "temb"),
        (model.norm_out.linear, "norm_out.mod"),
        (model.norm_out, "norm_out"),
        (model.proj_out, "final"),
    ):
        _tap_output(module, name)
    model.pos_embed.register_forward_hook(_tap_tables)
    for index, block in enumerate(model.transformer_blocks):
        _instrument_block(block, block_stage(index), exact_rotation)


def _instrument_block(block: torch.nn.Module, here: str, exact_rotation: bool) -> None:
    for s in ("img", "txt"):
        _tap_output(getattr(block, f"{s}_mod"), f"{here}.{s}.mod")
        _tap_output(getattr(block, f"{s}_norm1"), f"{here}.{s}.normed")
        _tap_input(getattr(block, f"{s}_norm2"), f"{here}.{s}.mid")
        _tap_output(getattr(block, f"{s}_norm2"), f"{here}.{s}.normed2")
        _tap_input(getattr(block, f"{s}_mlp"), f"{here}.{s}.modulated2")
        _tap_output(getattr(block, f"{s}_mlp"), f"{here}.{s}.ffn")

    def tap_attention_input(_module, _args, kwargs) -> None:
        tap(f"{here}.img.modulated", kwargs["hidden_states"])
        tap(f"{here}.txt.modulated", kwargs["encoder_hidden_states"])

    def tap_pair(img: str, txt: str, swapped: bool):
        def hook(_module, _args, output) -> None:
            first, second = output
            tap(img, second if swapped else first)
            tap(txt, first if swapped else second)

        return hook

    block.attn.set_processor(TappedProcessor(here, exact_rotation))
    block.attn.register_forward_pre_hook(tap_attention_input, with_kwargs=True)
    block.attn.register_forward_hook(tap_pair(f"{here}.img.attn", f"{here}.txt.attn", swapped=False))
    # A block returns the text stream first.
    block.register_forward_hook(tap_pair(f"{here}.img.out", f"{here}.txt.out", swapped=True))


def _tap_output(module: torch.nn.Module, name: str) -> None:
    def hook(_module, _args, output) -> None:
        tap(name, output)

    module.register_forward_hook(hook)


def _tap_input(module: torch.nn.Module, name: str) -> None:
    def hook(_module, args) -> None:
        tap(name, args[0])

    module.register_forward_pre_hook(hook)


def _tap_tables(_module, _args, output) -> None:
    for name, table in zip(("rope.img", "rope.txt"), output, strict=True):
        tap(name, torch.view_as_real(table))


class TappedProcessor(QwenDoubleStreamAttnProcessor2_0):
    """Joint attention as diffusers' processor computes it, with q, k and v tapped.

    Args:
        here: the block's scope, ``block.07``.
        exact_rotation: rotate in float64 (diffusers rotates in float32 whatever the dtype).
    """

    def __init__(self, here: str, exact_rotation: bool) -> None:
        super().__init__()
        self._here = here
        self._rotate = _rotate_float64 if exact_rotation else _rotate

    def __call__(
        self,
        attn: torch.nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: torch.Tensor | None = None,
        attention_mask: None = None,  # diffusers passes it, always None
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and text outputs, each B N D, after their output projections."""
        img_table, txt_table = image_rotary_emb
        img = self._project(attn, "img", hidden_states, img_table)
        txt = self._project(attn, "txt", encoder_hidden_states, txt_table)
        mask = None
        if encoder_hidden_states_mask is not None:
            of_image = encoder_hidden_states_mask.new_ones(hidden_states.shape[:2])
            mask = torch.cat([encoder_hidden_states_mask, of_image], dim=1)[:, None, None, :]
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(txt, img, strict=True))
        joint = dispatch_attention_fn(q, k, v, attn_mask=mask, dropout_p=0.0, is_causal=False)
        joint = joint.flatten(2, 3).to(q.dtype)
        text_tokens = encoder_hidden_states.shape[1]
        out = attn.to_out[1](attn.to_out[0](joint[:, text_tokens:].contiguous()))
        return out, attn.to_add_out(joint[:, :text_tokens].contiguous())

    def _project(self, attn: torch.nn.Module, stream: str, x: torch.Tensor, table: torch.Tensor) -> list[torch.Tensor]:
        """q, k, v of one stream, each B N H d, normalised and rotated."""
        if stream == "img":
            projections, norms = (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k)
        else:
            projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            norms = (attn.norm_added_q, attn.norm_added_k)
        head_dim = attn.inner_dim // attn.heads
        q, k, v = (projection(x).unflatten(-1, (-1, head_dim)) for projection in projections)
        q, k = (self._rotate(norm(y), table) for norm, y in zip(norms, (q, k), strict=True))
        return [tap(f"{self._here}.{stream}.{name}", y) for name, y in (("q", q), ("k", k), ("v", v))]


def _rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return apply_rotary_emb_qwen(x, table, use_real=False)


def _rotate_float64(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table.unsqueeze(1)).flatten(3)


def embed(model: QwenImageTransformer2DModel, inputs: Tensors) -> Tensors:
    """First part of ``forward``: projections, time embedding, rotary tables.

    Args:
        inputs: latents B L C, prompt_embeds B S J, timestep B, img_shapes [(frames, h, w), …],
            and optionally prompt_mask B S, additional_t_cond B.
    """
    img = model.img_in(inputs["latents"])
    timestep = inputs["timestep"].to(img.dtype)
    if model.zero_cond_t:
        timestep = torch.cat([timestep, timestep * 0])
    txt = model.txt_in(model.txt_norm(inputs["prompt_embeds"]))
    length, _, mask = compute_text_seq_len_from_mask(txt, inputs.get("prompt_mask"))
    temb = model.time_text_embed(timestep, img, inputs.get("additional_t_cond"))
    shapes = [inputs["img_shapes"]] * len(img)
    img_table, txt_table = model.pos_embed(shapes, max_txt_seq_len=length, device=img.device)
    state = {"img": img, "txt": txt, "temb": temb, "rope.img": img_table, "rope.txt": txt_table}
    return state if mask is None else state | {"prompt_mask": mask}


def block(model: QwenImageTransformer2DModel, index: int, state: Tensors) -> Tensors:
    """One dual-stream block, and the ControlNet residual that follows it."""
    txt, img = model.transformer_blocks[index](
        hidden_states=state["img"],
        encoder_hidden_states=state["txt"],
        encoder_hidden_states_mask=state.get("prompt_mask"),
        temb=state["temb"],
        image_rotary_emb=(state["rope.img"], state["rope.txt"]),
        modulate_index=_modulate_index(model, state),
    )
    residuals = sorted(key for key in state if key.startswith("controlnet."))
    if residuals:
        interval = math.ceil(len(model.transformer_blocks) / len(residuals))
        img = img + state[residuals[index // interval]]
    return state | {"img": img, "txt": txt}


def _modulate_index(model: QwenImageTransformer2DModel, state: Tensors) -> torch.Tensor | None:
    """B L: 0 for tokens of the picture being made, 1 for those of condition pictures."""
    if not model.zero_cond_t:
        return None
    first, *others = (math.prod(shape) for shape in state["img_shapes"])
    row = torch.tensor([0] * first + [1] * sum(others), dtype=torch.int, device=state["img"].device)
    return row.expand(len(state["img"]), -1)


def head(model: QwenImageTransformer2DModel, state: Tensors) -> Tensors:
    """Last part of ``forward``: the final AdaLayerNorm and the output projection."""
    temb = state["temb"].chunk(2)[0] if model.zero_cond_t else state["temb"]
    return {"sample": model.proj_out(model.norm_out(state["img"], temb))}
