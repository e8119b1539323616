"""Large weights, widened a slice at a time inside the products: the same figures as when they are widened whole."""

# isort: off
import mlx_impl  # noqa: F401 - first, since it puts the BLAS in place
import mlx.core as mx
# isort: on

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mini import CONFIG, write_checkpoint

from mlx_impl import ops
from parity.components.transformer import TransformerCase
from parity.rounding import round_state
from reference import precision, session
from reference.port import ReferencePort

CASE = TransformerCase(name="one", seed=0, images=((64, 96),), text_tokens=(5, 3), timestep=0.9)
OUTPUTS, INPUTS = 50, 64


def distance(found, expected):
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("held", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6)], ids=str)
def test_the_reference_s_slices_equal_the_whole(monkeypatch, dtype, bound, held, bias):
    """Seven rows at a time, which do not divide fifty."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, INPUTS, dtype=dtype, generator=draw)
    weight = torch.randn(OUTPUTS, INPUTS, generator=draw).to(held)
    b = torch.randn(OUTPUTS, generator=draw).to(held) if bias else None
    whole = F.linear(x, weight.to(dtype), None if b is None else b.to(dtype))
    monkeypatch.setattr(precision, "_SLICE", 7 * INPUTS * x.element_size())
    sliced = precision.linear(x, weight, b)
    assert (sliced.shape, sliced.dtype) == (whole.shape, dtype)
    assert distance(sliced, whole) < bound


def final(folder, dtype, hold):
    """The output of the whole transformer, and the dtypes in which weights of linear layers are held."""
    opened = ReferencePort("cpu").open(folder, dtype=dtype, hold=hold)
    state = CASE.inputs({"transformer": CONFIG}, hold)
    if dtype == "float64":
        state = round_state(state, np.dtype(dtype))
    held = set()
    for stage in opened.stages:
        opened.load(stage)
        held |= {p.weight.dtype for _, m in opened.parts(stage) for p in m.modules() if isinstance(p, torch.nn.Linear)}
        state, _ = opened.run(stage, state, ())
        opened.free(stage)
    return state["sample"].astype(np.float64), held


@pytest.mark.parametrize(
    ("dtype", "hold", "narrow", "bound"),
    [
        ("float64", "bfloat16", torch.bfloat16, 1e-13),
        ("float64", "float32", torch.float32, 1e-13),
        ("float32", "float32", torch.float32, 1e-5),
        ("bfloat16", "bfloat16", torch.bfloat16, 1e-2),
    ],
)
def test_a_session_on_narrow_weights_equals_one_on_wide_ones(tmp_path, monkeypatch, dtype, hold, narrow, bound):
    folder = write_checkpoint(tmp_path)
    wide, held_wide = final(folder, dtype, hold)
    monkeypatch.setattr(session, "_SMALL", 0)
    monkeypatch.setattr(precision, "_SLICE", 512)
    sliced, held = final(folder, dtype, hold)
    assert held == {narrow}
    assert held_wide == {torch.float32 if dtype == "bfloat16" else getattr(torch, dtype)}
    assert distance(sliced, wide) < bound


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), [(mx.float32, 1e-6), (mx.bfloat16, 1e-3)], ids=str)
def test_the_port_s_slices_equal_the_whole(monkeypatch, dtype, bound, packed, bias):
    x, full, b = (mx.random.normal(shape, key=mx.random.key(i)) for i, shape in enumerate(
        ((2, 3, INPUTS), (OUTPUTS, INPUTS), (OUTPUTS,))
    ))  # fmt: skip
    x, b = x.astype(dtype), b.astype(dtype) if bias else None
    weight = full.astype(mx.bfloat16)

    def product():
        if not packed:
            return ops.linear(x, weight, b)
        words, scales, biases = mx.quantize(weight, group_size=32, bits=4)
        return ops.quantized_linear(x, words, scales, biases, b, group_size=32, bits=4)

    whole = product()
    monkeypatch.setattr(ops, "_SLICE", 4)
    monkeypatch.setattr(ops, "_FEWEST_ROWS", 7)
    sliced = product()
    assert (sliced.shape, sliced.dtype) == (whole.shape, dtype)
    assert distance(sliced.astype(mx.float32), whole.astype(mx.float32)) < bound
