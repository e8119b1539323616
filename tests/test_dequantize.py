"""Codes are unpacked and scaled as MLX does it."""

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest

from parity.dequantize import dequantize, dequantized_rows, unpack

BITS = (2, 3, 4, 5, 6, 8)


def packed(bits, group, rows=7, columns=384):
    w = mx.array(np.random.default_rng(bits * group).standard_normal((rows, columns)).astype(np.float32))
    return mx.quantize(w, group_size=group, bits=bits)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", BITS)
def test_the_same_numbers_as_mlx(bits, group):
    words, scales, biases = packed(bits, group)
    theirs = np.array(mx.dequantize(words, scales, biases, group_size=group, bits=bits))
    ours = dequantize(*map(np.array, (words, scales, biases)), bits, group)
    # MLX may fuse the multiplication and the addition; that is one rounding in float32.
    assert np.abs(ours - theirs).max() <= np.spacing(np.float32(np.abs(theirs).max()))
    other = 2 if bits != 2 else 4
    with pytest.raises(ValueError, match=r".*"):
        dequantize(*map(np.array, (words, scales, biases)), other, group)


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_a_stream_of_bits(bits):
    codes = np.random.default_rng(0).integers(0, 1 << bits, (3, 64), np.uint8)
    words = np.zeros((3, 2 * bits), np.uint32)
    for row, column in np.ndindex(codes.shape):
        for bit in range(bits):
            word, place = divmod(column * bits + bit, 32)
            words[row, word] |= np.uint32(((int(codes[row, column]) >> bit) & 1) << place)
    np.testing.assert_array_equal(unpack(words, bits), codes)
    assert not np.array_equal(unpack(words[:, ::-1], bits), codes)


def test_rows_in_pieces_are_the_whole_rounded_once(monkeypatch):
    words, scales, biases = map(np.array, packed(4, 64))
    whole = dequantize(words, scales, biases, 4, 64).astype(ml_dtypes.bfloat16)
    monkeypatch.setattr("parity.dequantize._ROWS_AT_ONCE", 800)
    pieces = list(dequantized_rows(words, scales, biases, 4, 64, np.dtype(ml_dtypes.bfloat16)))
    assert [len(piece) for piece in pieces] == [2, 2, 2, 1]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()
