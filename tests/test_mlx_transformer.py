"""The MLX transformer against the diffusers class: keys, forward passes, taps, errors."""

from __future__ import annotations

# isort: off
import mlx_impl  # first, since it puts the BLAS in place
import mlx.core as mx
# isort: on

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel as Diffusers
from mlx.utils import tree_flatten

from mlx_impl import ops
from mlx_impl.transformer import shapes_of_a_sample
from parity.names import qwen_image_transformer
from parity.tap import Recorder, recording

BASE = {
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 3,
    "num_layers": 3,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "axes_dims_rope": (4, 14, 14),
}
FLAGS = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")
TOLERANCE = 3e-6


@dataclass(frozen=True)
class Case:
    """Inputs of one forward pass; `change` goes to the config."""

    shapes: tuple[tuple[int, int, int], ...] = ((1, 6, 6),)
    batch: int = 1
    lengths: tuple[int, ...] | None = None
    text: int = 7
    change: dict[str, Any] = field(default_factory=dict)
    controlnet: int = 0
    additional: bool = False


CASES = {
    "plain": Case(),
    "unequal_prompts": Case(batch=2, lengths=(7, 3)),
    "mask_with_holes": Case(batch=2, lengths=(7, 0)),
    "not_square": Case(shapes=((1, 5, 9),)),
    "one_token": Case(shapes=((1, 1, 1),), text=1),
    "frames": Case(shapes=((3, 4, 2),)),
    "several_pictures": Case(shapes=((1, 4, 6), (1, 5, 3), (1, 2, 2)), batch=2),
    "zero_cond_t": Case(shapes=((1, 4, 6), (1, 3, 3)), batch=2, change={"zero_cond_t": True}),
    "additional_t_cond": Case(batch=2, change={"use_additional_t_cond": True}, additional=True),
    "layered": Case(
        shapes=((1, 4, 4), (1, 4, 4), (1, 2, 6)),
        change={"use_layer3d_rope": True, "use_additional_t_cond": True},
        additional=True,
    ),
    "controlnet": Case(controlnet=2),
    "other_axes": Case(change={"axes_dims_rope": (8, 12, 12), "num_attention_heads": 3}),
    "out_channels_none": Case(change={"out_channels": None}),
}


def pair(change: dict[str, Any], seed: int = 0) -> tuple[Diffusers, mlx_impl.QwenImageTransformer2DModel]:
    """The same random weights in both."""
    config = BASE | change
    torch.manual_seed(seed)
    theirs = Diffusers(**config).eval().requires_grad_(False)
    for name, parameter in theirs.named_parameters():
        parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5))
        if "norm" in name and parameter.ndim == 1:
            parameter.add_(1)
    ours = mlx_impl.QwenImageTransformer2DModel(mlx_impl.TransformerConfig.from_dict(config))
    ours.load_weights([(key, mx.array(value.numpy())) for key, value in theirs.state_dict().items()], strict=True)
    return theirs, ours


def draw(case: Case) -> dict[str, Any]:
    """Keyword arguments that both classes take, as numpy arrays."""
    rng = np.random.default_rng(1)
    tokens = sum(f * h * w for f, h, w in case.shapes)
    config = BASE | case.change
    width = config["attention_head_dim"] * config["num_attention_heads"]
    inputs: dict[str, Any] = {
        "hidden_states": rng.standard_normal((case.batch, tokens, 12)).astype(np.float32),
        "encoder_hidden_states": (rng.standard_normal((case.batch, case.text, 48)) * 5).astype(np.float32),
        "timestep": np.linspace(0.9, 0.3, case.batch).astype(np.float32),
        "img_shapes": [list(case.shapes)] * case.batch,
    }
    if case.lengths:
        mask = np.arange(case.text)[None] < np.array(case.lengths)[:, None]
        inputs["encoder_hidden_states_mask"] = mask | (np.arange(case.text) % 3 == 1) if 0 in case.lengths else mask
    if case.additional:
        inputs["additional_t_cond"] = np.arange(case.batch) % 2
    if case.controlnet:
        inputs["controlnet_block_samples"] = [
            rng.standard_normal((case.batch, tokens, width)).astype(np.float32) for _ in range(case.controlnet)
        ]
    return inputs


def convert(inputs: dict[str, Any], to: Any) -> dict[str, Any]:
    def one(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return to(value)
        return [one(v) for v in value] if isinstance(value, list) else value

    return {key: one(value) for key, value in inputs.items()}


def run_theirs(model: Diffusers, inputs: dict[str, Any]) -> np.ndarray:
    return model(**convert(inputs, torch.from_numpy), return_dict=False)[0].float().numpy()


def run_ours(model: mlx_impl.QwenImageTransformer2DModel, inputs: dict[str, Any]) -> np.ndarray:
    return np.array(model(**convert(inputs, mx.array)).astype(mx.float32))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative RMSE of `a` against `b`; infinite where shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2) / np.mean(b.astype(np.float64) ** 2)))


@pytest.mark.parametrize("flags", list(itertools.product((False, True), repeat=len(FLAGS))))
def test_parameter_names_and_shapes_are_those_of_diffusers(flags):
    config = BASE | dict(zip(FLAGS, flags, strict=True))
    with torch.device("meta"):
        theirs = {key: tuple(value.shape) for key, value in Diffusers(**config).state_dict().items()}
    ours = mlx_impl.QwenImageTransformer2DModel(mlx_impl.TransformerConfig.from_dict(config))
    assert {key: value.shape for key, value in tree_flatten(ours.parameters())} == theirs


@pytest.mark.parametrize("name", CASES)
def test_forward_equals_diffusers(name):
    case = CASES[name]
    theirs, ours = pair(case.change)
    inputs = draw(case)
    assert distance(run_ours(ours, inputs), run_theirs(theirs, inputs)) < TOLERANCE


@pytest.mark.parametrize("change", ["timestep", "mask", "shapes", "weight", "flag"])
def test_comparison_goes_red(change):
    case = CASES["zero_cond_t"]
    theirs, ours = pair(case.change)
    inputs = draw(case)
    expected = run_theirs(theirs, inputs)
    if change == "timestep":
        inputs["timestep"] = inputs["timestep"] + np.float32(1e-4)
    elif change == "mask":
        inputs["encoder_hidden_states_mask"] = np.arange(case.text)[None].repeat(2, 0) != 4
    elif change == "shapes":
        inputs["img_shapes"] = [[(1, 6, 4), (1, 3, 3)]] * 2
    elif change == "weight":
        attention = ours.transformer_blocks[1].attn
        attention.to_q, attention.to_k = attention.to_k, attention.to_q
    else:
        config = mlx_impl.TransformerConfig.from_dict(BASE)
        other = mlx_impl.QwenImageTransformer2DModel(config)
        ours = other.load_weights(tree_flatten(ours.parameters()), strict=True)
    assert distance(run_ours(ours, inputs), expected) > 10 * TOLERANCE


def test_full_mask_equals_no_mask():
    _, ours = pair({})
    inputs = draw(CASES["plain"])
    without = run_ours(ours, inputs)
    inputs["encoder_hidden_states_mask"] = np.ones((1, 7), dtype=np.int64)
    np.testing.assert_array_equal(run_ours(ours, inputs), without)


def test_padding_has_no_effect_on_the_image():
    _, ours = pair({})
    inputs = draw(CASES["unequal_prompts"])
    before = run_ours(ours, inputs)
    inputs["encoder_hidden_states"][1, 3:] = 1e3
    np.testing.assert_array_equal(run_ours(ours, inputs), before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(dtype):
    theirs, ours = pair({"num_layers": 2})
    inputs = draw(CASES["plain"])
    inputs["timestep"] = np.array([0.5], dtype=np.float32)
    exact = run_theirs(theirs, inputs)
    ours.set_dtype(getattr(mx, dtype))
    halves = {key: value for key, value in inputs.items() if key != "img_shapes"}
    out = ours(
        **{key: mx.array(value).astype(getattr(mx, dtype)) for key, value in halves.items()},
        img_shapes=inputs["img_shapes"],
    )
    assert out.dtype == getattr(mx, dtype)
    error = distance(np.array(out.astype(mx.float32)), exact)
    assert 1e-5 < error < 0.03


def test_float16_is_clipped_at_the_end_of_a_block():
    _, ours = pair({"num_layers": 1})
    block = ours.transformer_blocks[0]
    block.img_mlp.net[2].bias = block.img_mlp.net[2].bias + 60000
    block.img_mod[1].bias = block.img_mod[1].bias + 20
    ours.set_dtype(mx.float16)
    inputs = convert(draw(CASES["plain"]), lambda a: mx.array(a).astype(mx.float16))
    with recording(Recorder({"block.00.img.out", "block.00.txt.out"})) as recorder:
        ours(**inputs)
    out = recorder.values["block.00.img.out"]
    assert mx.max(mx.abs(out)).item() == 65504
    assert bool(mx.all(mx.isfinite(out)))


def test_taps_are_the_expected_names_in_every_case():
    for name in ("plain", "zero_cond_t", "layered", "controlnet"):
        case = CASES[name]
        _, ours = pair(case.change)
        with recording(Recorder()) as recorder:
            run_ours(ours, draw(case))
        assert set(recorder.values) == set(qwen_image_transformer(3).expected), name


def test_tapped_shapes():
    _, ours = pair({})
    with recording(Recorder()) as recorder:
        run_ours(ours, draw(CASES["plain"]))
    shapes = {name: value.shape for name, value in recorder.values.items()}
    assert shapes["time.proj"] == (1, 256)
    assert recorder.values["time.proj"].dtype == mx.float32
    assert shapes["rope.img"] == (36, 16, 2)
    assert shapes["rope.txt"] == (7, 16, 2)
    assert shapes["block.02.txt.q"] == (1, 7, 2, 32)
    assert shapes["block.02.img.v"] == (1, 36, 2, 32)
    assert shapes["block.02.img.mod"] == (1, 6 * 64)
    assert shapes["norm_out.mod"] == (1, 128)
    assert shapes["final"] == (1, 36, 12)


def test_block_output_is_tapped_before_the_controlnet_residual():
    _, ours = pair({})
    inputs = draw(CASES["controlnet"])
    with recording(Recorder({"block.00.img.out"})) as with_residual:
        run_ours(ours, inputs)
    del inputs["controlnet_block_samples"]
    with recording(Recorder({"block.00.img.out"})) as without:
        run_ours(ours, inputs)
    a, b = (r.values["block.00.img.out"] for r in (with_residual, without))
    assert bool(mx.array_equal(a, b))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recording_changes_nothing(dtype):
    _, ours = pair({})
    ours.set_dtype(getattr(mx, dtype))
    inputs = convert(draw(CASES["unequal_prompts"]), mx.array)
    plain = ours(**inputs)
    with recording(Recorder()):
        recorded = ours(**inputs)
    assert bool(mx.array_equal(plain, recorded))


def test_stages_one_at_a_time_equal_the_whole():
    _, ours = pair({})
    inputs = convert(draw(CASES["controlnet"]), mx.array)
    streams = ours.embed(
        inputs["hidden_states"],
        inputs["encoder_hidden_states"],
        inputs["timestep"],
        shapes_of_a_sample(inputs["img_shapes"]),
        controlnet=inputs["controlnet_block_samples"],
    )
    for index in range(3):
        streams = ours.block(index, streams)
    assert bool(mx.array_equal(ours.head(streams), ours(**inputs)))


def test_unknown_config_keys_are_named():
    with pytest.raises(ValueError, match="guidance_scale, rope_theta"):
        mlx_impl.TransformerConfig.from_dict({"rope_theta": 1, "guidance_scale": 2, "_class_name": "x"})


def test_defaults_are_those_of_diffusers():
    import inspect

    theirs = inspect.signature(Diffusers.__init__).parameters
    ours = mlx_impl.TransformerConfig()
    assert {n: p.default for n, p in theirs.items() if n != "self"} == vars(ours)


def test_axes_must_add_up_to_the_head_width():
    with pytest.raises(ValueError, match="add up to"):
        mlx_impl.TransformerConfig.from_dict(BASE | {"axes_dims_rope": (4, 14, 12)})


def test_a_config_with_additional_t_cond_needs_one():
    _, ours = pair({"use_additional_t_cond": True})
    with pytest.raises(ValueError, match="additional_t_cond"):
        run_ours(ours, draw(Case()))


@pytest.mark.parametrize("name", ["unequal_prompts", "zero_cond_t"])
def test_the_kernels_for_gpus_equal_diffusers_as_well(name, monkeypatch):
    """MLX's own kernels run on the CPU too; compiling them there would need a C++ compiler."""
    case = CASES[name]
    theirs, ours = pair(case.change)
    inputs = draw(case)
    monkeypatch.setattr(ops, "on_cpu", lambda: False)
    mx.disable_compile()
    try:
        out = run_ours(ours, inputs)
    finally:
        mx.enable_compile()
    assert distance(out, run_theirs(theirs, inputs)) < 3 * TOLERANCE


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("img_shapes", [[(1, 6, 5)]], "36 latent tokens"),
        ("img_shapes", [[(1, 6, 6)], [(1, 4, 9)]], "differ within the batch"),
        ("encoder_hidden_states_mask", np.ones((1, 6), dtype=bool), "prompt mask"),
        ("timestep", None, "timestep"),
    ],
)
def test_misfit_inputs_are_errors(key, value, message):
    _, ours = pair({})
    with pytest.raises(ValueError, match=message):
        run_ours(ours, draw(CASES["plain"]) | {key: value})


@pytest.mark.parametrize("fault", ["missing", "extra", "misshaped"])
def test_strict_loading(fault):
    _, ours = pair({})
    arrays = dict(tree_flatten(ours.parameters()))
    if fault == "missing":
        del arrays["txt_norm.weight"]
    elif fault == "extra":
        arrays["txt_norm.bias"] = mx.zeros(48)
    else:
        arrays["txt_norm.weight"] = mx.zeros(47)
    with pytest.raises(ValueError, match=r"txt_norm"):
        ours.load_weights(list(arrays.items()), strict=True)
