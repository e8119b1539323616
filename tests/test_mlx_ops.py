"""The MLX arithmetic against float64, beside torch's own float32 error on the same input."""

from __future__ import annotations

# isort: off
import mlx_impl  # first, since it puts the BLAS in place
import mlx.core as mx
# isort: on

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mlx_impl import device_stats, ops

ALLOWED = 1.5


def errors(ours: mx.array, theirs: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """Relative RMSE of both against the truth."""
    exact = truth.double().numpy()
    size = np.sqrt(np.mean(exact**2))
    ours, theirs = np.array(ours).astype(np.float64), theirs.double().numpy()
    return tuple(float(np.sqrt(np.mean((x - exact) ** 2)) / size) for x in (ours, theirs))


def activations(width: int, kind: str) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((1, 288, width)).astype(np.float32)
    if kind == "outliers":
        x = x * 1e4 + 5e3
        x[..., [3, width // 2]] *= 100
    return x.astype(np.float32)


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


@pytest.mark.parametrize("kind", ["normal", "outliers"])
@pytest.mark.parametrize("width", [64, 128, 3072])
def test_norms_and_products_are_as_exact_as_torch(width, kind):
    x = activations(width, kind)
    t, a = torch.from_numpy(x), mx.array(x)
    weight = torch.from_numpy(1 + activations(width, "normal")[0, 0] / 10)
    matrix = torch.from_numpy(activations(width, "normal")[0] / width**0.5)
    bias = torch.from_numpy(activations(288, "normal")[0, 0])
    for name, ours, theirs, truth in (
        (
            "layer_norm",
            ops.layer_norm(a, 1e-6),
            F.layer_norm(t, (width,), eps=1e-6),
            F.layer_norm(t.double(), (width,), eps=1e-6),
        ),
        (
            "rms_norm",
            ops.rms_norm(a, mx.array(weight.numpy()), 1e-6),
            rms_norm(t, weight),
            rms_norm(t.double(), weight.double()),
        ),
        (
            "linear",
            ops.linear(a, mx.array(matrix.numpy()), mx.array(bias.numpy())),
            F.linear(t, matrix, bias),
            F.linear(t.double(), matrix.double(), bias.double()),
        ),
    ):
        our_error, their_error = errors(ours, theirs, truth)
        assert our_error < ALLOWED * their_error, name


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0, 100.0, 1e6])
def test_activations_are_as_exact_as_torch(size):
    x = activations(512, "normal") * np.float32(size)
    t, a = torch.from_numpy(x), mx.array(x)
    for ours, name, options in ((ops.gelu_tanh, "gelu", {"approximate": "tanh"}), (ops.silu, "silu", {})):
        function = getattr(F, name)
        our_error, their_error = errors(ours(a), function(t, **options), function(t.double(), **options))
        assert our_error < max(ALLOWED * their_error, 1e-9), name


@pytest.mark.parametrize("keys", [287, 288])
@pytest.mark.parametrize("size", [1.0, 16.0])
def test_attention_is_as_exact_as_torch(size, keys):
    rng = np.random.default_rng(1)
    q = rng.standard_normal((1, 2, 100, 128)).astype(np.float32) * np.float32(size)
    k, v = (rng.standard_normal((1, 2, keys, 128)).astype(np.float32) for _ in "kv")
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    ours = ops.attention(*map(mx.array, (q, k, v)), None, 128**-0.5)
    theirs = F.scaled_dot_product_attention(*tensors)
    our_error, their_error = errors(ours, theirs, F.scaled_dot_product_attention(*(t.double() for t in tensors)))
    assert our_error < ALLOWED * their_error


@pytest.mark.parametrize("masked", [None, "keys", "queries"])
@pytest.mark.parametrize("limit", [500, 4_000, 9_000])
def test_pieces_of_attention_equal_the_whole(masked, limit, monkeypatch):
    """GIVEN room for a few queries, for one head, or for some, THEN the result is the same to rounding."""
    rng = np.random.default_rng(3)
    q, k, v = (mx.array(rng.standard_normal((2, 3, n, 16)).astype(np.float32)) for n in (60, 50, 50))
    mask = None
    if masked:
        mask = mx.array(rng.random((2, 1, 60 if masked == "queries" else 1, 50)) < 0.7)
    whole = np.array(ops.attention(q, k, v, mask, 0.25))
    monkeypatch.setattr(ops, "SCORES_LIMIT", limit)
    pieces = np.array(ops.attention(q, k, v, mask, 0.25))
    assert pieces.shape == whole.shape
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-6)


def test_the_yardstick_goes_red():
    """MLX's own LayerNorm adds 3072 channels one by one on the CPU; the comparison has to notice such a thing."""
    x = activations(3072, "outliers")
    t, a = torch.from_numpy(x), mx.array(x)
    with mx.stream(mx.cpu):
        centred = a - mx.cumsum(a, axis=-1)[..., -1:] / 3072
        worse = centred * mx.rsqrt(mx.cumsum(centred * centred, axis=-1)[..., -1:] / 3072 + 1e-6)
    truth = F.layer_norm(t.double(), (3072,), eps=1e-6)
    our_error, their_error = errors(worse, F.layer_norm(t, (3072,), eps=1e-6), truth)
    assert our_error > ALLOWED * their_error


def test_masked_attention_equals_torch_down_to_rows_without_a_key():
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((3, 2, 20, 32)).astype(np.float32) for _ in range(3))
    k[0, :, 5] *= 1e4  # a masked key whose score would swallow all others
    mask = rng.random((3, 1, 1, 20)) < 0.6
    mask[0, ..., 5] = False
    mask[2] = False
    ours = ops.attention(*map(mx.array, (q, k, v)), mx.array(mask), 32**-0.5)
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    theirs = F.scaled_dot_product_attention(*tensors, attn_mask=torch.from_numpy(mask))
    np.testing.assert_allclose(np.array(ours), theirs.numpy(), rtol=2e-5, atol=2e-6)
    assert np.all(np.array(ours)[2] == 0)
    unmasked = ops.attention(*map(mx.array, (q, k, v)), None, 32**-0.5)
    assert not np.allclose(np.array(unmasked), theirs.numpy(), rtol=2e-5, atol=2e-6)


def test_not_a_number_stays_so():
    x = mx.array([float("nan"), 1.0, float("inf"), -200.0])
    for function in (ops.gelu_tanh, ops.silu):
        y = np.array(function(x))
        assert np.isnan(y[0])
        assert np.isfinite(y[[1, 3]]).all()
        assert y[2] == np.inf
    payload = mx.array(np.array([0x7FC12345], dtype=np.uint32)).view(mx.float32)
    assert np.isnan(np.array(ops.gelu_tanh(payload)))[0]
    q = mx.ones((1, 1, 2, 4)) * mx.array([[float("nan")], [1.0]])
    out = np.array(ops.attention(q, mx.ones((1, 1, 3, 4)), mx.ones((1, 1, 3, 4)), None, 0.5))
    assert np.isnan(out[0, 0, 0]).all()
    assert np.isfinite(out[0, 0, 1]).all()


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_products_are_rounded_once(dtype):
    rng = np.random.default_rng(3)
    x, w, b = (mx.array(rng.standard_normal(s).astype(np.float32)).astype(dtype) for s in ((5, 96), (40, 96), (40,)))
    y = ops.linear(x, w, b)
    assert y.dtype == dtype
    exact = np.array(x.astype(mx.float32)).astype(np.float64) @ np.array(w.astype(mx.float32)).T.astype(np.float64)
    exact = mx.array((exact + np.array(b.astype(mx.float32))).astype(np.float32)).astype(dtype)
    assert mx.mean(y == exact).item() > 0.99
    assert bool(mx.all(ops.matmul(x, w.T) == ops.linear(x, w)))


@pytest.mark.parametrize(("group_size", "bits"), [(64, 4), (32, 8), (64, 3)])
def test_quantized_product_is_the_product_of_dequantized_weights(group_size, bits):
    rng = np.random.default_rng(4)
    x = mx.array(rng.standard_normal((7, 128)).astype(np.float32))
    w, b = mx.array(rng.standard_normal((32, 128)).astype(np.float32)), mx.array(np.arange(32.0, dtype=np.float32))
    packed = mx.quantize(w, group_size=group_size, bits=bits)
    y = ops.quantized_linear(x, *packed, b, group_size=group_size, bits=bits)
    full = np.array(mx.dequantize(*packed, group_size=group_size, bits=bits)).astype(np.float64)
    exact = np.array(x).astype(np.float64) @ full.T + np.arange(32)
    np.testing.assert_allclose(np.array(y), exact, rtol=1e-4, atol=1e-5)
    native = mx.quantized_matmul(x, *packed, transpose=True, group_size=group_size, bits=bits) + b
    np.testing.assert_allclose(np.array(native), exact, rtol=1e-4, atol=1e-4)
    assert not np.allclose(np.array(x @ w.T + b), exact, rtol=1e-4, atol=1e-5)


def test_quantized_layers_take_the_place_of_linear_ones():
    import mlx.nn as nn

    config = mlx_impl.TransformerConfig(
        num_layers=1, num_attention_heads=2, attention_head_dim=64, axes_dims_rope=(16, 24, 24), joint_attention_dim=64
    )
    model = mlx_impl.QwenImageTransformer2DModel(config)
    model.update({"proj_out": {"weight": mx.ones((64, 128))}})
    nn.quantize(model, group_size=64, bits=4)
    assert model.transformer_blocks[0].attn.to_out[0].weight.shape == (128, 16)
    out = model(mx.ones((1, 4, 64)), mx.ones((1, 3, 64)), None, mx.array([0.5]), [(1, 2, 2)])
    assert out.shape == (1, 4, 64)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_statistics_on_the_device_are_those_of_numpy(on_cpu, monkeypatch):
    monkeypatch.setattr(ops, "on_cpu", lambda: on_cpu)
    x = activations(512, "normal") + np.float32(0.3)
    spoiled = x.copy()
    spoiled[0, 7, 5] = np.nan
    arrays = {"x": mx.array(x), "half": mx.array(x).astype(mx.bfloat16), "spoiled": mx.array(spoiled)}
    found = device_stats.collect({name: device_stats.lazy(array) for name, array in arrays.items()})
    for name in ("x", "half"):
        wide = np.array(arrays[name].astype(mx.float32)).astype(np.float64)
        exact = [wide.min(), wide.max(), wide.mean(), np.sqrt(np.mean(wide**2))]
        # The CPU adds one after the other, where this machine has no GPU.
        np.testing.assert_allclose(found[name], exact, rtol=1e-4, atol=0)
    assert np.isnan(found["spoiled"][2:]).all()


def test_narrow_quantized_products_leave_the_kernels_of_gpus_alone(monkeypatch):
    """img_in has 64 inputs, of which CUDA's kernel makes zeros."""
    asked = []
    real = mx.quantized_matmul
    monkeypatch.setattr(mx, "quantized_matmul", lambda x, *a, **k: (asked.append(x.shape[-1]), real(x, *a, **k))[1])
    monkeypatch.setattr(ops, "on_cpu", lambda: False)
    for inputs in (64, 128):
        x, full = (mx.random.normal(shape, key=mx.random.key(i)) for i, shape in enumerate(((20, inputs), (8, inputs))))
        weight, scales, biases = mx.quantize(full, group_size=64, bits=4)
        y = ops.quantized_linear(x, weight, scales, biases, mx.ones((8,)), group_size=64, bits=4)
        expected = x @ mx.dequantize(weight, scales, biases, group_size=64, bits=4).T + 1
        np.testing.assert_allclose(np.array(y), np.array(expected), rtol=1e-4, atol=1e-4)
    assert asked == [128]
