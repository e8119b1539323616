"""Inputs are drawn once, the same everywhere; jitter moves by exactly one unit in the last place."""

import ml_dtypes
import numpy as np
import pytest

from parity.components.transformer import TransformerCase
from parity.errors import UsageError
from parity.rounding import jitter, round_state

CONFIGS = {"transformer": {"in_channels": 16, "joint_attention_dim": 8}}


def make(**changes):
    fields = {"name": "c", "images": ((64, 32),), "text_tokens": (5, 3), "timestep": 0.9, "seed": 0}
    return TransformerCase(**fields | changes)


def test_shapes_of_the_inputs():
    state = make(images=((64, 32), (16, 16))).inputs(CONFIGS, "float32")
    assert {k: v.shape for k, v in state.items()} == {
        "latents": (2, 9, 16), "prompt_embeds": (2, 5, 8), "timestep": (2,), "img_shapes": (2, 3),
        "prompt_mask": (2, 5),
    }  # fmt: skip
    assert state["img_shapes"].tolist() == [[1, 4, 2], [1, 1, 1]]
    assert state["prompt_mask"].sum(1).tolist() == [5, 3]


def test_prompts_of_one_length_need_no_mask():
    assert "prompt_mask" not in make(text_tokens=(4, 4)).inputs(CONFIGS, "float32")


def test_a_seed_draws_the_same_everywhere_and_another_does_not():
    first, again, other = (make(seed=s).inputs(CONFIGS, "float32")["latents"] for s in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_inputs_are_rounded_to_the_dtype_of_the_run():
    exact, rounded = (make().inputs(CONFIGS, d) for d in ("float32", "bfloat16"))
    assert rounded["timestep"].dtype == ml_dtypes.bfloat16
    assert float(rounded["timestep"][0]) == 0.8984375
    np.testing.assert_array_equal(exact["latents"].astype(ml_dtypes.bfloat16), rounded["latents"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ((100, 64),)}, "100 × 64 is not a multiple of 16 pixels each way; the nearest that is: 96 × 64"),
        ({"images": ((0, 64),)}, "not a multiple of 16"),
        ({"images": ()}, "at least one image"),
        ({"text_tokens": (0,)}, "at least one token"),
        ({"timestep": 900.0}, "timestep 900.0 is not within 0…1"),
    ],
)
def test_impossible_cases_say_what_is_wrong(changes, message):
    with pytest.raises(UsageError, match=message):
        make(**changes)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_jitter_moves_every_value_by_one_ulp(dtype):
    x = np.random.default_rng(0).standard_normal(1000).astype(dtype)
    moved = jitter({"img": x}, (0,))["img"]
    bits = np.dtype(f"u{x.dtype.itemsize}")
    steps = moved.view(bits).astype(np.int64) - x.view(bits).astype(np.int64)
    assert set(steps.tolist()) == {-1, 1}


def test_jitter_leaves_alone_what_must_not_move():
    big = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    state = {
        "img": np.array([0.0, np.inf, np.nan, big, -big], ml_dtypes.bfloat16),
        "timestep": np.array([0.9], ml_dtypes.bfloat16),
        "rope.img": np.ones((2, 3, 2), np.float32),
        "prompt_mask": np.array([True]),
    }
    moved = jitter(state, (0,))
    for key, before in state.items():
        np.testing.assert_array_equal(moved[key].view(np.uint8), before.view(np.uint8), err_msg=key)


def test_a_float32_timestep_moves():
    assert jitter({"timestep": np.array([0.9], np.float32)}, (0,))["timestep"][0] != np.float32(0.9)


def test_draws_differ_and_repeat():
    x = {"img": np.ones(64, np.float32)}
    a, b, c = (jitter(x, key)["img"] for key in ((0, 0, 1), (0, 1, 1), (0, 0, 1)))
    assert not np.array_equal(a, b)
    np.testing.assert_array_equal(a, c)


def test_draws_do_not_depend_on_the_order_of_the_arrays():
    a, b = np.ones(64, np.float32), np.full(32, 2, np.float32)
    first, second = jitter({"img": a, "txt": b}, (0,)), jitter({"txt": b, "img": a}, (0,))
    np.testing.assert_array_equal(first["img"], second["img"])
    np.testing.assert_array_equal(first["txt"], second["txt"])


def test_widening_a_state_changes_no_value():
    state = make().inputs(CONFIGS, "bfloat16") | {"rope.img": np.ones((2, 3, 2), np.float32)}
    wide = round_state(state, np.dtype(np.float64))
    assert wide["latents"].dtype == wide["rope.img"].dtype == np.float64
    assert wide["img_shapes"].dtype == np.int64
    np.testing.assert_array_equal(wide["latents"], state["latents"].astype(np.float64))
