"""Weights packed by MLX's affine quantization, unpacked by torch.

w = scales · code + biases. The codes of a row follow each other as a little-endian stream of bits, `bits` for each;
every `group_size` of them share a scale and a bias. O outputs, I inputs, G = I / group_size.
"""

from __future__ import annotations

import math

import torch

# Codes that are unpacked at once: few enough to hold beside the result, and work enough for all threads.
CODES_AT_ONCE = 1 << 21
# Significant bits of a scale, in the dtypes that leave room for a product in float32.
_SIGNIFICANT = {torch.bfloat16: 8, torch.float16: 11}


def codes(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The integers 0 … 2**bits - 1 of packed rows.

    Args:
        words: O W uint32, contiguous; W · 32 is divisible by `bits`.
        bits: of a code.

    Returns:
        O (W · 32 / bits), of an integer dtype.
    """
    rows = words.shape[0]
    # A unit is the smallest run of whole bytes that holds whole codes: 3 bytes have 8 codes of 3 bits.
    unit = math.lcm(bits, 8)
    raw = words.contiguous().view(torch.uint8).reshape(rows, -1, unit // 8)
    if unit == 8:
        value = raw[..., 0]
    else:
        wide = raw.to(torch.int64)
        value = wide[..., 0]
        for byte in range(1, unit // 8):
            value = value | wide[..., byte] << 8 * byte
    mask = (1 << bits) - 1
    return torch.stack([value >> shift & mask for shift in range(0, unit, bits)], dim=-1).reshape(rows, -1)


def dequantize(
    words: torch.Tensor, scales: torch.Tensor, biases: torch.Tensor, bits: int, group_size: int
) -> torch.Tensor:
    """The weights that packed ones stand for, without any rounding beyond float64's.

    A few rows at a time, so that only the result is ever held whole.

    Args:
        words: … O W uint32.
        scales, biases: … O G.
        bits, group_size: of the layer.

    Returns:
        … O I, in float32 where that holds every value exactly, as it mostly does with scales in bfloat16; else in
        float64.
    """
    shape = (*words.shape[:-1], scales.shape[-1] * group_size)
    wide = torch.float32 if _fits_float32(scales, biases, bits) else torch.float64
    words, scales, biases = (x.reshape(-1, x.shape[-1]) for x in (words, scales, biases))
    full = torch.empty((len(words), scales.shape[-1], group_size), dtype=wide)
    step = max(1, CODES_AT_ONCE // shape[-1])
    for start in range(0, len(full), step):
        some = slice(start, start + step)
        grouped = codes(words[some], bits).to(wide).view_as(full[some])
        scale, bias = (x[some, :, None].to(wide) for x in (scales, biases))
        torch.addcmul(bias, grouped, scale, out=full[some])
    return full.reshape(shape)


def _fits_float32(scales: torch.Tensor, biases: torch.Tensor, bits: int) -> bool:
    """Whether float32 holds scale · code + bias exactly, whatever the codes of a group are.

    It does where from the last bit of scale and bias to the first one of the largest sum there are no more than 24.
    """
    if scales.dtype not in _SIGNIFICANT or biases.dtype != scales.dtype:
        return False
    scale, bias = scales.float().abs(), biases.float().abs()
    largest = (bias + scale * ((1 << bits) - 1)).frexp().exponent
    none = torch.iinfo(torch.int32).max  # a zero has no last bit
    last = [torch.where(x == 0, none, x.frexp().exponent) for x in (scale, bias)]
    last_bit = torch.minimum(*last) - _SIGNIFICANT[scales.dtype]
    return bool((largest - last_bit <= 24).all())
