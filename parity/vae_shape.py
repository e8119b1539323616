"""The tensors that a VAE of Qwen-Image must have, from its ``config.json``.

C channels of a block, Z latent channels; convolutions are [out, in, frames, rows, columns].
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from parity.errors import WeightsError
from parity.safetensors_header import shown

CLASS_NAME = "AutoencoderKLQwenImage"
_DEFAULTS = {"base_dim": 96, "z_dim": 16, "num_res_blocks": 2, "input_channels": 3}
_LIMITS = {"base_dim": 1 << 16, "z_dim": 1 << 16, "num_res_blocks": 16, "input_channels": 1 << 10}
Shapes = dict[str, tuple[int, ...]]


def is_vae(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of this model."""
    return config.get("_class_name") == CLASS_NAME


def expected_vae_tensors(config: Mapping[str, Any]) -> Shapes:
    """Names and shapes of all tensors of a VAE.

    Args:
        config: contents of ``config.json``, complete or not.

    Raises:
        WeightsError: a value is of a wrong type or out of range.
    """
    size = {key: _whole(key, config.get(key, default)) for key, default in _DEFAULTS.items()}
    multiples = _list(config, "dim_mult", [1, 2, 4, 4], int)
    temporal = _list(config, "temperal_downsample", [False, True, True], bool)
    if config.get("attn_scales") or len(temporal) != len(multiples) - 1:
        raise WeightsError("config of the vae: attention between the blocks, or not one temperal_downsample for each "
                           f"of {len(multiples)} stages but the last, is not known here")  # fmt: skip
    z, base, blocks, picture = size["z_dim"], size["base_dim"], size["num_res_blocks"], size["input_channels"]
    widths = [base * m for m in (1, *multiples)]
    shapes: Shapes = {}
    _encoder(shapes, widths, blocks, temporal, picture, 2 * z)
    _conv(shapes, "quant_conv", 2 * z, 2 * z, 1)
    _conv(shapes, "post_quant_conv", z, z, 1)
    widths = [base * m for m in (multiples[-1], *reversed(multiples))]
    _decoder(shapes, widths, blocks + 1, temporal[::-1], picture, z)
    return shapes


def _encoder(shapes: Shapes, widths: list[int], blocks: int, temporal: list[bool], picture: int, out: int) -> None:
    _conv(shapes, "encoder.conv_in", widths[0], picture, 3)
    names = (f"encoder.down_blocks.{i}" for i in range(len(widths) * (blocks + 1)))
    for stage, (before, after) in enumerate(pairwise(widths)):
        for i in range(blocks):
            _residual(shapes, next(names), after, after if i else before)
        if stage < len(temporal):
            down = next(names)
            shapes[f"{down}.resample.1.weight"], shapes[f"{down}.resample.1.bias"] = (after, after, 3, 3), (after,)
            if temporal[stage]:
                _conv(shapes, f"{down}.time_conv", after, after, 3, 1)
    _middle(shapes, "encoder.mid_block", widths[-1])
    shapes["encoder.norm_out.gamma"] = (widths[-1], 1, 1, 1)
    _conv(shapes, "encoder.conv_out", out, widths[-1], 3)


def _decoder(shapes: Shapes, widths: list[int], blocks: int, temporal: list[bool], picture: int, z: int) -> None:
    _conv(shapes, "decoder.conv_in", widths[0], z, 3)
    _middle(shapes, "decoder.mid_block", widths[0])
    for stage, (before, after) in enumerate(pairwise(widths)):
        name = f"decoder.up_blocks.{stage}"
        for i in range(blocks):
            # An upsampler before it has halved the channels.
            entering = before // 2 if stage else before
            _residual(shapes, f"{name}.resnets.{i}", after, after if i else entering)
        if stage < len(temporal):
            up = f"{name}.upsamplers.0"
            shapes[f"{up}.resample.1.weight"] = (after // 2, after, 3, 3)
            shapes[f"{up}.resample.1.bias"] = (after // 2,)
            if temporal[stage]:
                _conv(shapes, f"{up}.time_conv", 2 * after, after, 3, 1)
    shapes["decoder.norm_out.gamma"] = (widths[-1], 1, 1, 1)
    _conv(shapes, "decoder.conv_out", picture, widths[-1], 3)


def _middle(shapes: Shapes, name: str, width: int) -> None:
    for i in range(2):
        _residual(shapes, f"{name}.resnets.{i}", width, width)
    attention = f"{name}.attentions.0"
    shapes[f"{attention}.norm.gamma"] = (width, 1, 1)
    for layer, out in (("to_qkv", 3 * width), ("proj", width)):
        shapes[f"{attention}.{layer}.weight"], shapes[f"{attention}.{layer}.bias"] = (out, width, 1, 1), (out,)


def _residual(shapes: Shapes, name: str, out: int, into: int) -> None:
    for i, width in ((1, into), (2, out)):
        shapes[f"{name}.norm{i}.gamma"] = (width, 1, 1, 1)
        _conv(shapes, f"{name}.conv{i}", out, width, 3)
    if out != into:
        _conv(shapes, f"{name}.conv_shortcut", out, into, 1)


def _conv(shapes: Shapes, name: str, out: int, into: int, frames: int, side: int | None = None) -> None:
    side = frames if side is None else side
    shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into, frames, side, side), (out,)


def _whole(key: str, value: object) -> int:
    if type(value) is not int or not 0 < value <= _LIMITS[key]:
        raise WeightsError(f"config of the vae: {key} is {shown(value)}, expected 1 to {_LIMITS[key]}")
    return value


def _list(config: Mapping[str, Any], key: str, default: list[Any], kind: type) -> list[Any]:
    value = config.get(key, default)
    right = isinstance(value, list | tuple) and 1 <= len(value) <= 8 and all(type(one) is kind for one in value)
    if not right or (kind is int and not all(0 < one <= 64 for one in value)):
        raise WeightsError(f"config of the vae: {key} is {shown(value)}, expected a short list as {default}")
    return list(value)
