"""Weights packed by MLX, unpacked by torch: the two must mean the same numbers."""

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_impl.session import to_numpy
from reference.packed import codes, dequantize
from reference.session import from_numpy

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)


def packed(bits, group_size, dtype=mx.float32, rows=5, columns=256, seed=0):
    weight = mx.random.normal((rows, columns), key=mx.random.key(seed)).astype(dtype)
    return mx.quantize(weight, group_size=group_size, bits=bits)


def in_torch(arrays):
    return [from_numpy(to_numpy(array)) for array in arrays]


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_what_is_unpacked_is_what_mlx_unpacks(bits, group_size, dtype):
    """MLX multiplies and adds in float32, with two roundings or with one: within the sum of both of the exact value."""
    words, scales, biases = packed(bits, group_size, dtype)
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    theirs = np.array(mx.dequantize(words, scales, biases, group_size=group_size, bits=bits)).astype(np.float64)
    ours = dequantize(*in_torch((words, scales, biases)), bits, group_size).double().numpy()
    product = np.abs(ours - np.repeat(np.array(biases), group_size, axis=1).astype(np.float64))
    assert np.all(np.abs(ours - theirs) <= np.spacing(np.maximum(np.abs(ours), product).astype(np.float32)))
    if dtype == mx.bfloat16:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_a_little_endian_stream_of_bits(bits):
    """GIVEN rows made bit by bit, THEN the codes come back; a stream read from the other end does not give them."""
    draw = np.random.default_rng(0)
    expected = draw.integers(0, 1 << bits, (3, 64))
    stream = (expected[..., None] >> np.arange(bits) & 1).reshape(3, -1).astype(np.uint8)
    words = np.packbits(stream, axis=1, bitorder="little").view(np.uint32)
    np.testing.assert_array_equal(codes(torch.from_numpy(words), bits).numpy(), expected)
    other = np.packbits(stream, axis=1, bitorder="big").view(np.uint32)
    assert not np.array_equal(codes(torch.from_numpy(other), bits).numpy(), expected)


def test_float32_holds_the_result_where_it_can_and_float64_where_not():
    narrow, wide = (dequantize(*in_torch(packed(4, 64, dtype)), 4, 64) for dtype in (mx.bfloat16, mx.float32))
    assert (narrow.dtype, wide.dtype) == (torch.float32, torch.float64)
    assert not torch.equal(wide, wide.float().double())
    words, scales, biases = in_torch(packed(4, 64, mx.bfloat16))
    narrow = dequantize(words, scales, biases, 4, 64)
    torch.testing.assert_close(
        narrow.double(), dequantize(words, scales.double(), biases.double(), 4, 64), rtol=0, atol=0
    )


def test_a_group_whose_bias_is_far_above_its_scale_is_held_in_float64():
    words, scales, biases = in_torch(packed(4, 64, mx.bfloat16))
    scales[0, 0], biases[0, 0] = 2.0**-20, 1.0 + 2.0**-7
    found = dequantize(words, scales, biases, 4, 64)
    assert found.dtype == torch.float64
    first = codes(words, 4)[0, 0].item()
    assert found[0, 0].item() == first * 2.0**-20 + 1.0 + 2.0**-7


def test_rows_taken_a_few_at_a_time_are_the_same_rows(monkeypatch):
    arrays = in_torch(packed(4, 32))
    whole = dequantize(*arrays, 4, 32)
    monkeypatch.setattr("reference.packed.CODES_AT_ONCE", 300)
    torch.testing.assert_close(dequantize(*arrays, 4, 32), whole, rtol=0, atol=0)
