"""The instrumented reference is diffusers' model: bit-equal outputs, every name, every stage."""

import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from parity.names import qwen_image_transformer
from parity.tap import Recorder, recording
from reference.port import ReferencePort
from reference.transformer import instrument

CONFIG = {
    "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 48,
    "axes_dims_rope": (4, 14, 14), "in_channels": 16, "out_channels": 4,
}  # fmt: skip


def make(folder, **flags):
    torch.manual_seed(0)
    model = QwenImageTransformer2DModel(**CONFIG | flags)
    model.save_pretrained(folder)
    return model.eval().requires_grad_(False)


def inputs(batch=2, shapes=((1, 4, 6),), masked=True):
    draw = np.random.default_rng(1)
    tokens = sum(f * h * w for f, h, w in shapes)
    state = {
        "latents": draw.standard_normal((batch, tokens, 16), dtype=np.float32),
        "prompt_embeds": draw.standard_normal((batch, 7, 48), dtype=np.float32),
        "timestep": np.linspace(0.9, 0.4, batch, dtype=np.float32),
        "img_shapes": np.array(shapes),
    }
    if masked:
        state["prompt_mask"] = np.arange(7)[None] < np.array([[7], [4]])[:batch]
    return state


def whole(model, state, **more):
    tensors = {k: torch.from_numpy(v) for k, v in state.items()}
    return model(
        hidden_states=tensors["latents"], encoder_hidden_states=tensors["prompt_embeds"],
        encoder_hidden_states_mask=tensors.get("prompt_mask"), timestep=tensors["timestep"],
        img_shapes=[[tuple(s) for s in state["img_shapes"].tolist()]] * len(state["latents"]), **more,
    ).sample  # fmt: skip


def staged(folder, state, dtype="float32", want=(), **options):
    session = ReferencePort("cpu").open(folder, dtype=dtype)
    found = {}
    for stage in session.stages:
        session.load(stage)
        state, values = session.run(stage, state, want, **options)
        session.free(stage)
        found |= values
    return state["sample"], found


CASES = {
    "plain": ({}, {}, {}),
    "no mask": ({}, {"masked": False}, {}),
    "edit": ({}, {"shapes": ((1, 4, 6), (1, 2, 4))}, {}),
    "zero_cond_t": ({"zero_cond_t": True}, {"shapes": ((1, 4, 6), (1, 2, 4))}, {}),
    "layers": ({"use_layer3d_rope": True}, {"shapes": ((1, 4, 4), (1, 4, 4), (1, 4, 4))}, {}),
    "additional_t_cond": ({"use_additional_t_cond": True}, {}, {"additional_t_cond": np.array([0, 1])}),
}


@pytest.mark.parametrize("case", CASES)
def test_stages_equal_the_whole_model_bit_for_bit(tmp_path, case):
    flags, shape, extra = CASES[case]
    model = make(tmp_path, **flags)
    state = inputs(**shape)
    expected = whole(model, state, **{k: torch.from_numpy(v) for k, v in extra.items()})
    sample, _ = staged(tmp_path, state | extra)
    np.testing.assert_array_equal(sample, expected.numpy())


def test_controlnet_residuals_are_added_where_diffusers_adds_them(tmp_path):
    model = make(tmp_path, num_layers=3)
    residuals = list(np.random.default_rng(2).standard_normal((2, 2, 24, 64), dtype=np.float32))
    expected = whole(model, inputs(), controlnet_block_samples=[torch.from_numpy(r) for r in residuals])
    sample, _ = staged(tmp_path, inputs() | {f"controlnet.{i:02d}": r for i, r in enumerate(residuals)})
    np.testing.assert_array_equal(sample, expected.numpy())
    without, _ = staged(tmp_path, inputs())
    assert np.abs(sample - without).max() > 1e-3


def test_recording_changes_nothing_and_finds_every_name(tmp_path):
    model = make(tmp_path)
    plain = whole(model, inputs())
    instrument(model)
    silent = whole(model, inputs())
    with recording(Recorder()) as recorder:
        observed = whole(model, inputs())
    assert torch.equal(plain, silent)
    assert torch.equal(plain, observed)
    assert set(recorder.values) == set(qwen_image_transformer(2).expected)


def test_only_wanted_names_are_returned(tmp_path):
    make(tmp_path)
    _, found = staged(tmp_path, inputs(), want=["temb", "block.01.txt.q"])
    assert {name: value.shape for name, value in found.items()} == {"temb": (2, 64), "block.01.txt.q": (2, 7, 2, 32)}


def test_float64_truth_has_no_float32_island(tmp_path):
    """GIVEN float64 weights, WHEN the timestep moves by 1e-9, THEN every checkpoint behind it moves smoothly.

    A float32 island anywhere would swallow the change or turn it into rounding noise of 1e-7.
    """
    make(tmp_path)
    names = qwen_image_transformer(2).expected
    state = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in inputs().items()}
    runs = []
    for step in (0.0, 1e-9, 2e-9):
        moved = state | {"timestep": state["timestep"] + step, "latents": state["latents"] * (1 + step)}
        runs.append(staged(tmp_path, moved, "float64", names)[1])
    for name in names:
        a, b, c = (run[name] for run in runs)
        assert a.dtype == np.float64, name
        curvature = np.abs(a - 2 * b + c).max() / (np.abs(a).max() or 1)
        assert curvature < 1e-11, name


def test_rotary_tables_of_the_truth_are_the_reference_tables_to_rounding(tmp_path):
    make(tmp_path)
    _, exact = staged(tmp_path, inputs(), "float64", ["rope.img", "rope.txt"])
    _, single = staged(tmp_path, inputs(), "float32", ["rope.img", "rope.txt"])
    for name in exact:
        error = np.abs(exact[name] - single[name]).max()
        assert 0 < error < 1e-6


@pytest.mark.parametrize("precision", ["default", "math"])
def test_bfloat16_through_float32_equals_the_native_kernels_to_rounding(tmp_path, precision):
    model = torch.nn.Module.to(make(tmp_path), torch.bfloat16)
    state = {k: torch.from_numpy(v) for k, v in inputs().items()}
    native = model(
        hidden_states=state["latents"].bfloat16(), encoder_hidden_states=state["prompt_embeds"].bfloat16(),
        encoder_hidden_states_mask=state["prompt_mask"], timestep=state["timestep"].bfloat16(),
        img_shapes=[[(1, 4, 6)]] * 2,
    ).sample.float().numpy()  # fmt: skip
    ours, _ = staged(tmp_path, inputs(), "bfloat16", precision=precision)
    assert ours.dtype.name == "bfloat16"
    error = np.sqrt(np.mean((ours.astype(np.float32) - native) ** 2) / np.mean(native**2))
    assert error < 0.02
