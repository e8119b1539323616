"""Rotary tables, rotation and timestep sinusoid against diffusers."""

from __future__ import annotations

# isort: off
import mlx_impl  # noqa: F401  # first, since it puts the BLAS in place
import mlx.core as mx
# isort: on

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import Timesteps
from diffusers.models.transformers.transformer_qwenimage import (
    QwenEmbedLayer3DRope,
    QwenEmbedRope,
    apply_rotary_emb_qwen,
)

from mlx_impl import ops, rope

AXES = (16, 56, 56)
SHAPES = {
    "square": [(1, 8, 8)],
    "odd": [(1, 7, 13)],
    "frames": [(4, 6, 2)],
    "edit": [(1, 8, 8), (1, 5, 30), (1, 1, 1)],
    "layers": [(1, 6, 6)] * 5,
}


# A layered model's last picture, the condition, has one frame.
KINDS = [(name, layered) for name in SHAPES for layered in (False, True) if (name, layered) != ("frames", True)]


@pytest.mark.parametrize(("name", "layered"), KINDS)
def test_tables_equal_diffusers(name, layered):
    reference = (QwenEmbedLayer3DRope if layered else QwenEmbedRope)(10000, list(AXES), scale_rope=True)
    theirs = reference([SHAPES[name]], max_txt_seq_len=50)
    ours = rope.rotary_tables(SHAPES[name], 50, AXES, layered=layered)
    for a, b in zip(ours, theirs, strict=True):
        b = torch.view_as_real(b).numpy()
        assert a.shape == b.shape
        assert a.dtype == mx.float32
        np.testing.assert_allclose(np.array(a), b, atol=1e-6, rtol=0)


def test_tables_are_made_once():
    one, other = (rope.rotary_tables(shapes, 50, AXES)[0] for shapes in ([(1, 8, 8)], ((1, 8, 8),)))
    assert one is other
    assert rope.rotary_tables([(1, 8, 8)], 50, (56, 16, 56))[0] is not one


def test_tables_of_the_two_kinds_differ():
    one, other = (rope.rotary_tables(SHAPES["edit"], 50, AXES, layered=flag)[0] for flag in (False, True))
    assert mx.max(mx.abs(one - other)).item() > 0.1


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotation_equals_diffusers(dtype, on_cpu, monkeypatch):
    monkeypatch.setattr(ops, "on_cpu", lambda: on_cpu)
    x = torch.randn(2, 9, 3, 128, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    table = QwenEmbedRope(10000, list(AXES), scale_rope=True)([[(1, 3, 3)]], max_txt_seq_len=1)[0]
    theirs = apply_rotary_emb_qwen(x, table, use_real=False).float().numpy()
    turn = mx.array(torch.view_as_real(table).numpy())
    ours = rope.rotate(mx.array(x.float().numpy()).astype(getattr(mx, dtype)), turn)
    assert ours.dtype == getattr(mx, dtype)
    atol = 1e-6 if dtype == "float32" else 0.02
    np.testing.assert_allclose(np.array(ours.astype(mx.float32)), theirs, atol=atol, rtol=0)
    halves = mx.fast.rope(mx.array(x.float().numpy()), 128, traditional=False, base=1e4, scale=1.0, offset=0)
    assert not np.allclose(np.array(halves), theirs, atol=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sinusoid_equals_diffusers(dtype):
    t = torch.linspace(0, 1, 30).to(getattr(torch, dtype))
    theirs = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0, scale=1000)(t).numpy()
    ours = rope.timestep_sinusoid(mx.array(t.float().numpy()).astype(getattr(mx, dtype)))
    assert ours.dtype == mx.float32
    # An ulp of the angle, which reaches 1000, is 6e-5.
    np.testing.assert_allclose(np.array(ours), theirs, atol=7e-5, rtol=0)
    assert not np.allclose(np.array(ours)[:, ::-1], theirs, atol=1e-2)


@pytest.mark.parametrize(
    ("shapes", "text", "message"),
    [
        ([(1, 8, 8)], 4093, "text positions 4…4096"),
        ([(1, 8194, 1)], 1, "image positions"),
        ([(5000, 1, 1)], 1, "image positions 0…4999|image positions -1…4999"),
        ([], 1, "at least one"),
        ([(1, 0, 8)], 1, "at least 1"),
    ],
)
def test_impossible_positions_are_errors(shapes, text, message):
    with pytest.raises(ValueError, match=message):
        rope.rotary_tables(shapes, text, AXES)


def test_the_last_position_is_allowed():
    image, text = rope.rotary_tables([(1, 8, 8)], 4092, AXES)
    assert (image.shape, text.shape) == ((64, 64, 2), (4092, 64, 2))


def test_misfit_tables_are_errors():
    with pytest.raises(ValueError, match="rotary table"):
        rope.rotate(mx.zeros((1, 8, 2, 32)), mx.zeros((7, 16, 2)))
    with pytest.raises(ValueError, match="frames, expected 1"):
        rope.rotary_tables([(1, 2, 2), (2, 2, 2)], 3, AXES, layered=True)
    with pytest.raises(ValueError, match="even"):
        rope.rotary_tables([(1, 2, 2)], 3, (3, 14, 15))
