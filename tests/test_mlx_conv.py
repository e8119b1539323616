"""Convolutions in MLX against torch's in float64, and work in stripes of rows."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mlx_impl import conv

# Frames, height, width; kernel; stride; padding of each.
GEOMETRY = {
    "causal 3×3×3": ((4, 7, 9), (3, 3, 3), (1, 1, 1), ((2, 0), (1, 1), (1, 1))),
    "one pixel": ((2, 5, 4), (1, 1, 1), (1, 1, 1), ((0, 0), (0, 0), (0, 0))),
    "frames only": ((5, 3, 4), (3, 1, 1), (1, 1, 1), ((2, 0), (0, 0), (0, 0))),
    "every second frame": ((5, 3, 4), (3, 1, 1), (2, 1, 1), ((0, 0), (0, 0), (0, 0))),
    "half size": ((1, 8, 6), (1, 3, 3), (1, 2, 2), ((0, 0), (0, 1), (0, 1))),
    "uneven": ((1, 9, 7), (1, 2, 3), (1, 2, 1), ((0, 0), (1, 0), (0, 2))),
    "one row": ((1, 1, 6), (1, 3, 3), (1, 1, 1), ((0, 0), (1, 1), (1, 1))),
}


def drawn(size, kernel, batch=2, inputs=5, outputs=6):
    draw = np.random.default_rng(0)
    x = draw.standard_normal((batch, *size, inputs)).astype(np.float32)
    weight = draw.standard_normal((outputs, *kernel, inputs)).astype(np.float32)
    return x, weight, draw.standard_normal(outputs).astype(np.float32)


def truth(x, weight, bias, stride, padding):
    """torch's convolution in float64, of channels-last arrays."""
    x, weight = (torch.from_numpy(np.moveaxis(a.astype(np.float64), -1, 1).copy()) for a in (x, weight))
    flat = [n for pair in reversed(padding) for n in pair]
    y = F.conv3d(F.pad(x, flat), weight, torch.from_numpy(bias.astype(np.float64)), stride=stride)
    return np.moveaxis(y.numpy(), 1, -1)


@pytest.mark.parametrize("patches", [1, 200, 1 << 19], ids=["a row at a time", "a few rows", "at once"])
@pytest.mark.parametrize("name", GEOMETRY)
def test_conv3d_is_torch_s(name, patches, monkeypatch):
    monkeypatch.setattr(conv, "_PATCHES", patches)
    size, kernel, stride, padding = GEOMETRY[name]
    x, weight, bias = drawn(size, kernel)
    y = conv.conv3d(*map(mx.array, (x, weight, bias)), stride=stride, padding=padding)
    expected = truth(x, weight, bias, stride, padding)
    assert y.shape == expected.shape
    np.testing.assert_allclose(np.array(y), expected, atol=2e-5)


@pytest.mark.parametrize("name", GEOMETRY)
def test_native_kernels_are_given_the_same_geometry(name, monkeypatch):
    """What a GPU runs, on MLX's own CPU kernels."""
    monkeypatch.setattr(conv.ops, "on_cpu", lambda: False)
    size, kernel, stride, padding = GEOMETRY[name]
    x, weight, bias = drawn(size, kernel)
    y = conv.conv3d(*map(mx.array, (x, weight, bias)), stride=stride, padding=padding)
    expected = truth(x, weight, bias, stride, padding)
    np.testing.assert_allclose(np.array(y), expected, atol=2e-5)
    if size[0] == 1:
        y = conv.conv2d(
            mx.array(x[:, 0]), mx.array(weight[:, 0]), mx.array(bias), stride=stride[1:], padding=padding[1:]
        )
        np.testing.assert_allclose(np.array(y), expected[:, 0], atol=2e-5)


@pytest.mark.parametrize("name", [name for name, (size, *_) in GEOMETRY.items() if size[0] == 1])
def test_conv2d_is_conv3d_of_one_frame(name):
    size, kernel, stride, padding = GEOMETRY[name]
    x, weight, bias = drawn(size, kernel)
    y = conv.conv2d(mx.array(x[:, 0]), mx.array(weight[:, 0]), mx.array(bias), stride=stride[1:], padding=padding[1:])
    np.testing.assert_allclose(np.array(y), truth(x, weight, bias, stride, padding)[:, 0], atol=2e-5)


def test_conv2d_of_one_pixel_kernels():
    x, weight, bias = drawn((1, 5, 4), (1, 1, 1))
    y = conv.conv2d(mx.array(x[:, 0]), mx.array(weight[:, 0]), mx.array(bias))
    np.testing.assert_allclose(np.array(y), truth(x, weight, bias, (1, 1, 1), ((0, 0),) * 3)[:, 0], atol=2e-5)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_is_rounded_once(dtype):
    """GIVEN values that the half dtype holds, THEN the result is the exact one rounded: half an ulp, bias included."""
    size, kernel, stride, padding = GEOMETRY["causal 3×3×3"]
    x, weight, bias = (mx.array(a).astype(dtype) for a in drawn(size, kernel))
    y = conv.conv3d(x, weight, bias, stride=stride, padding=padding)
    assert y.dtype == dtype
    exact = truth(*(np.array(a.astype(mx.float32)) for a in (x, weight, bias)), stride, padding)
    rounded = mx.array(exact.astype(np.float32)).astype(dtype)
    assert float(mx.mean(y == rounded)) > 0.995


def test_stripes_change_nothing(monkeypatch):
    monkeypatch.setattr(conv, "_STRIPE", 60)
    x = mx.random.normal((2, 1, 7, 5, 3))
    seen = []

    def function(part):
        seen.append(part.shape[-3])
        return part * 2

    assert mx.array_equal(conv.in_stripes(function, x), x * 2)
    assert seen == [2, 2, 2, 1]


def test_memory_of_a_large_convolution_is_bounded():
    """The patches of this one are 226 MB, of which some twenty stripes of 2 MB are alive at a time."""
    x, weight, bias = mx.zeros((1, 1, 1024, 256, 24)), mx.zeros((8, 1, 3, 3, 24)), mx.zeros((8,))
    mx.eval(x, weight, bias)
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(conv.conv3d(x, weight, bias, padding=((0, 0), (1, 1), (1, 1))))
    mx.synchronize()
    assert mx.get_peak_memory() - before < 226e6 / 3
