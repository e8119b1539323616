"""A transformer's configuration from the shapes of its tensors, for layouts that store none.

D width, d head width, J text-encoder width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from parity.errors import WeightsError
from parity.layouts.packing import readings
from parity.safetensors_header import Tensor

_BLOCK = re.compile(r"transformer_blocks\.(\d{1,6})\.")
_PATCH = 2
# What Qwen-Image-Layered alone has; it has three-axis positions too, of which no tensor tells.
_LAYERED = "time_text_embed.addition_t_embedding.weight"


def infer_transformer(
    found: Mapping[str, Tensor], scales: Mapping[str, Tensor], zero_cond_t: bool
) -> tuple[dict[str, Any], list[str]]:
    """The configuration that shapes speak of, and what was assumed beyond them.

    Args:
        found: canonical name -> stored tensor; packed weights are [rows, words].
        scales: name of a packed layer -> its scales.
        zero_cond_t: whether the files carry the mark of Qwen-Image-Edit-2511.

    Raises:
        WeightsError: a tensor that is needed is missing, or shapes fit no configuration.
    """
    width = _length(found, "img_in.bias", "transformer_blocks.0.attn.to_q.bias")
    head = _length(found, "transformer_blocks.0.attn.norm_q.weight")
    text = _length(found, "txt_norm.weight")
    out = _length(found, "proj_out.bias")
    layers = 1 + max((int(m[1]) for m in map(_BLOCK.match, found) if m), default=-1)
    if layers > len(found):
        raise WeightsError(f"no config.json, and none follows from the shapes: {layers} blocks in {len(found)} tensors")
    if width % head or head % 16 or out % _PATCH**2:
        raise WeightsError(
            f"no config.json, and none follows from the shapes: width {width}, heads of {head}, {out} channels of a "
            "patch; put the model's config.json beside the weights"
        )
    channels = _in_channels(found, scales, out, width)
    layered = _LAYERED in found
    axes = [head // 8, 7 * head // 16, 7 * head // 16]
    config = {
        "patch_size": _PATCH, "in_channels": channels, "out_channels": out // _PATCH**2, "num_layers": layers,
        "attention_head_dim": head, "num_attention_heads": width // head, "joint_attention_dim": text,
        "axes_dims_rope": axes, "zero_cond_t": zero_cond_t, "use_additional_t_cond": layered,
        "use_layer3d_rope": layered,
    }  # fmt: skip
    notes = [
        f"no config.json: from the shapes, {layers} blocks of {width // head} heads of {head}, text width {text}, "
        f"{channels} channels in and {out} out; axes_dims_rope {axes} from the head width, patch_size {_PATCH}"
    ]
    if zero_cond_t:
        notes.append("zero_cond_t is true: the file carries the mark of Qwen-Image-Edit-2511")
    elif not layered:
        notes.append("zero_cond_t is taken as false: no tensor tells; Qwen-Image-Edit-2511 needs its config.json")
    return config, notes


def _length(found: Mapping[str, Tensor], *names: str) -> int:
    """Length of the first vector of several that is there."""
    for name in names:
        if name in found and len(found[name].shape) == 1 and found[name].shape[0]:
            return found[name].shape[0]
    raise WeightsError(
        f"no config.json, and none follows from the shapes: {' and '.join(names)} missing; "
        "put the model's config.json beside the weights"
    )


def _in_channels(found: Mapping[str, Tensor], scales: Mapping[str, Tensor], out: int, width: int) -> int:
    """Input width of ``img_in``; packed, the one of those possible that the output has too, or that the bits of
    the attention speak for."""
    weight = found.get("img_in.weight")
    if weight is None or len(weight.shape) != 2:
        raise WeightsError("no config.json, and none follows from the shapes: img_in.weight missing")
    if "img_in" not in scales:
        return weight.shape[1]
    possible = readings(weight.shape[-1], scales["img_in"].shape[-1])
    widths = {one.width for one in possible}
    if out in widths:
        return out
    query, layer = found.get("transformer_blocks.0.attn.to_q.weight"), "transformer_blocks.0.attn.to_q"
    if len(widths) > 1 and query is not None and layer in scales:
        usual = {one.bits for one in readings(query.shape[-1], scales[layer].shape[-1]) if one.width == width}
        widths = {one.width for one in possible if one.bits in usual}
    if len(widths) == 1:
        return widths.pop()
    raise WeightsError(
        f"no config.json, and the input width of img_in does not follow from its packed shape "
        f"{list(weight.shape)}; put the model's config.json beside the weights"
    )
