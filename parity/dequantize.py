"""Weights of MLX's affine quantization written out: w = scales · codes + biases.

The codes of a row follow each other as a little-endian stream of bits in uint32 words; group_size columns share a
scale and a bias.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_ROWS_AT_ONCE = 1 << 21  # codes


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """The codes of rows of words.

    Args:
        words: [..., columns · bits / 32], uint32.
        bits: of a code, 1 to 8.

    Returns:
        [..., columns], uint8.
    """
    raw = np.ascontiguousarray(words, "<u4").view(np.uint8)
    if bits == 8:
        return raw
    if bits in (1, 2, 4):
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = (raw[..., None] >> shifts) & np.uint8((1 << bits) - 1)
        return codes.reshape(*raw.shape[:-1], -1)
    stream = np.unpackbits(raw, axis=-1, bitorder="little").reshape(*raw.shape[:-1], -1, bits)
    return stream @ (1 << np.arange(bits, dtype=np.uint8))


def dequantize(words: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int, group_size: int) -> np.ndarray:
    """Weights in float32.

    Args:
        words: [..., columns · bits / 32], uint32.
        scales, biases: [..., columns / group_size].
        bits, group_size: as the layer was packed.

    Returns:
        [..., columns], float32, computed in float32.
    """
    codes = unpack(words, bits)
    grouped = codes.reshape(*codes.shape[:-1], -1, group_size).astype(np.float32)
    grouped *= scales.astype(np.float32)[..., None]
    grouped += biases.astype(np.float32)[..., None]
    return grouped.reshape(codes.shape)


def dequantized_rows(
    words: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int, group_size: int, dtype: np.dtype
) -> Iterator[np.ndarray]:
    """`dequantize`, rounded to `dtype`, some rows at a time so that little is held.

    Args:
        words, scales, biases: two-dimensional, as for `dequantize`; may be memory-mapped.
        bits, group_size: as the layer was packed.
        dtype: of the result.
    """
    rows = max(1, _ROWS_AT_ONCE // max(1, words.shape[-1] * 32 // bits))
    for first in range(0, words.shape[0], rows):
        part = slice(first, first + rows)
        whole = dequantize(words[part], scales[part], biases[part], bits, group_size)
        with np.errstate(over="ignore"):  # beyond float16's range: the caller looks at what came out
            yield whole.astype(dtype)
