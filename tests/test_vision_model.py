"""The MLX vision tower against transformers': same keys, same numbers, and it goes red."""

from __future__ import annotations

# isort: off
import mlx_impl  # noqa: F401  first, since it puts the BLAS in place
import mlx.core as mx
# isort: on

import inspect
import json

import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel as Theirs
from vision_tower import CONFIG, PICTURES, distance, draw, library_tower, true_features, write_tower

from mlx_impl import ops, vision
from mlx_impl.vision import Qwen2_5_VisionTransformerPretrainedModel as Ours
from mlx_impl.vision import VisionConfig, load_vision
from mlx_impl.vision_preprocess import load_settings, preprocess
from parity.components.vision import vision_graph
from parity.errors import WeightsError
from parity.tap import Recorder, recording

# Our error over that of transformers' own float32 run.
EXCESS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tower(tmp_path_factory.mktemp("pipeline") / "model")


def patches(folder, name):
    return preprocess(draw(name), load_settings(folder))


def run(model, pixels, grids) -> np.ndarray:
    return np.array(model(mx.array(pixels), grids).astype(mx.float32))


def excess(folder, out, pixels, grids) -> float:
    """How much further from the truth than transformers in float32."""
    truth = true_features(folder, pixels, grids)
    theirs = library_tower(folder, torch.float32)(torch.from_numpy(pixels), torch.tensor(grids)).pooler_output.numpy()
    assert 0 < distance(theirs, truth) < 2e-5
    return distance(out, truth) / distance(theirs, truth)


@pytest.mark.parametrize("change", [{}, {"depth": 1, "in_channels": 1, "temporal_patch_size": 1, "patch_size": 8}])
def test_parameter_names_and_shapes_are_those_of_transformers(change):
    with torch.device("meta"):
        model = Theirs(Qwen2_5_VLVisionConfig(**CONFIG | change))
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    ours = Ours(VisionConfig.from_dict(CONFIG | change))
    assert {key: value.shape for key, value in tree_flatten(ours.parameters())} == wanted


@pytest.mark.parametrize("name", PICTURES)
def test_features_equal_those_of_transformers(folder, name):
    pixels, grids = patches(folder, name)
    assert excess(folder, run(load_vision(folder, "float32"), pixels, grids), pixels, grids) < EXCESS


def test_frames_of_a_video_attend_to_themselves(folder):
    pixels, _ = patches(folder, "two")
    pixels, grids = pixels[:96], ((2, 4, 6), (1, 8, 6))
    assert excess(folder, run(load_vision(folder, "float32"), pixels, grids), pixels, grids) < EXCESS


@pytest.mark.parametrize("fault", ["windows everywhere", "grid turned", "q for k", "interleaved pairs", "order kept"])
def test_the_comparison_goes_red(folder, fault, monkeypatch):
    pixels, grids = patches(folder, "ragged")
    expected = true_features(folder, pixels, grids)
    model = load_vision(folder, "float32")
    if fault == "windows everywhere":
        weights = model.parameters()
        model = Ours(VisionConfig.from_dict(CONFIG | {"fullatt_block_indexes": []}))
        model.update(weights)
    elif fault == "grid turned":
        grids = tuple((t, w, h) for t, h, w in grids)
    elif fault == "q for k":
        weight = model.blocks[2].attn.qkv.weight
        model.blocks[2].attn.qkv.weight = mx.concatenate([weight[32:64], weight[:32], weight[64:]])
    elif fault == "interleaved pairs":
        monkeypatch.setattr(vision, "rotate_halves", rotate_neighbours)
    else:
        monkeypatch.setattr(np, "argsort", lambda index: np.arange(len(index)))
    assert distance(run(model, pixels, grids), expected) > 1e-3


def rotate_neighbours(x: mx.array, table: mx.array) -> mx.array:
    first, second, cos, sin = x[..., ::2], x[..., 1::2], table[:, None, None, :, 0], table[:, None, None, :, 1]
    return mx.stack([first * cos - second * sin, second * cos + first * sin], axis=-1).reshape(x.shape)


@pytest.mark.parametrize("name", ["ragged", "two"])
def test_pieces_of_attention_equal_the_whole(folder, name, monkeypatch):
    """GIVEN room for a few queries, for one head, or for all, THEN the features are the same to rounding."""
    pixels, grids = patches(folder, name)
    model = load_vision(folder, "float32")
    whole = run(model, pixels, grids)
    for limit in (1000, 10_000, 200_000):
        monkeypatch.setattr(ops, "SCORES_LIMIT", limit)
        assert distance(run(model, pixels, grids), whole) < 1e-6


def test_the_kernels_for_gpus_equal_transformers_as_well(folder, monkeypatch):
    """MLX's own kernels run on the CPU too; compiling them there would need a C++ compiler."""
    pixels, grids = patches(folder, "two")
    monkeypatch.setattr(ops, "on_cpu", lambda: False)
    mx.disable_compile()
    try:
        out = run(load_vision(folder, "float32"), pixels, grids)
    finally:
        mx.enable_compile()
    assert excess(folder, out, pixels, grids) < EXCESS


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.05), ("float16", 0.006)])
def test_half_precision_stays_near_float32(folder, dtype, bound):
    pixels, grids = patches(folder, "ragged")
    model = load_vision(folder, dtype)
    assert model(mx.array(pixels), grids).dtype == getattr(mx, dtype)
    assert 1e-4 < distance(run(model, pixels, grids), true_features(folder, pixels, grids)) < bound


def test_gelu_is_the_one_with_the_error_function():
    x = np.linspace(-9, 9, 2001, dtype=np.float32)
    wanted = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(np.array(vision.GELU()(mx.array(x))), wanted, atol=1e-6)
    tanh = torch.nn.functional.gelu(torch.from_numpy(x).double(), approximate="tanh").numpy()
    assert np.abs(tanh - wanted).max() > 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recording_changes_nothing(folder, dtype):
    pixels, grids = patches(folder, "two")
    model = load_vision(folder, dtype)
    plain = model(mx.array(pixels), grids)
    with recording(Recorder()) as recorder:
        recorded = model(mx.array(pixels), grids)
    assert bool(mx.array_equal(plain, recorded))
    of_model = [name for name in vision_graph(3).expected if name not in ("vision.pixels", "vision.grid_thw")]
    assert sorted(recorder.values) == sorted(of_model)


def test_tapped_shapes(folder):
    pixels, grids = patches(folder, "two")
    with recording(Recorder()) as recorder:
        load_vision(folder, "float32")(mx.array(pixels), grids)
    shapes = {name: value.shape for name, value in recorder.values.items()}
    tokens = len(pixels)
    assert tokens == 10 * 18 + 6 * 8
    assert shapes["vision.patch_embed"] == shapes["vision.block.02.mid"] == shapes["vision.merger.norm"] == (tokens, 32)
    assert shapes["vision.block.01.q"] == (tokens, 2, 16)
    assert shapes["vision.rope"] == (tokens, 8, 2)
    assert shapes["vision.window_index"] == (tokens // 4,)
    assert shapes["vision.merger"] == (tokens // 4, 40)


@pytest.mark.parametrize(
    ("shape", "grids", "message"),
    [
        ((16, 1176), ((1, 4, 6),), r"shape \(16, 1176\), expected \(24, 1176\) for grids \[\(1, 4, 6\)\]"),
        ((24, 588), ((1, 4, 6),), r"expected \(24, 1176\)"),
        ((15, 1176), ((1, 3, 5),), r"grid \(1, 3, 5\).*multiples of 2"),
        ((0, 1176), (), "no grids"),
    ],
)
def test_misfit_inputs_are_errors(folder, shape, grids, message):
    with pytest.raises(ValueError, match=message):
        load_vision(folder, "float32")(mx.zeros(shape), grids)


def test_both_names_of_the_tower_are_read(folder, tmp_path):
    """transformers writes ``visual.``, or ``model.visual.`` where it does not go back to the published names."""
    newer = write_tower(tmp_path / "newer", prefix="model.visual")
    pixels, grids = patches(folder, "square")
    first, second = (run(load_vision(root, "float32"), pixels, grids) for root in (folder, newer / "text_encoder"))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("fault", ["missing", "extra", "misshaped"])
def test_strict_loading(tmp_path, fault):
    root = write_tower(tmp_path / "model")
    path = root / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    if fault == "missing":
        del weights["visual.blocks.1.attn.qkv.bias"]
    elif fault == "extra":
        weights["visual.blocks.1.attn.qkv.bias2"] = torch.zeros(3)
    else:
        weights["visual.blocks.1.attn.qkv.bias"] = torch.zeros(95)
    save_file(weights, path)
    error = WeightsError if fault == "misshaped" else ValueError
    with pytest.raises(error, match=r"blocks\.1\.attn\.qkv\.bias"):
        load_vision(root, "float32")


def test_tensors_of_the_language_model_are_none_of_its_business(tmp_path):
    root = write_tower(tmp_path / "model")
    path = root / "text_encoder" / "model.safetensors"
    save_file(load_file(path) | {"model.embed_tokens.weight": torch.zeros(4, 4)}, path)
    load_vision(root, "float32")


def test_a_text_encoder_without_a_tower_is_told_so(tmp_path):
    root = write_tower(tmp_path / "model")
    config = root / "text_encoder" / "config.json"
    save_file({"model.norm.weight": torch.zeros(4)}, root / "text_encoder" / "model.safetensors")
    with pytest.raises(ValueError, match=r"no tensor below visual\."):
        load_vision(root)
    config.write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ValueError, match="no vision_config"):
        load_vision(root)
    config.unlink()
    with pytest.raises(WeightsError, match=r"config\.json: there is no such file"):
        load_vision(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qk_norm": True, "depths": 3}, "unknown keys: depths, qk_norm"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn'"),
        ({"rope_parameters": {"rope_type": "axial", "factor": 2}}, "rope_parameters.factor"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"num_heads": 3}, "32 in 3 heads"),
        ({"hidden_size": 12}, "multiple of 4"),
        ({"window_size": 14}, "window_size 14 is smaller"),
    ],
)
def test_configs_that_would_change_numbers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        VisionConfig.from_dict(CONFIG | change)


def test_published_and_saved_configs_are_read():
    published = {
        "in_chans": 3, "spatial_patch_size": 14, "tokens_per_second": 2, "torch_dtype": "float32",
        "model_type": "qwen2_5_vl", "initializer_range": 0.02,
    }  # fmt: skip
    saved = Qwen2_5_VLVisionConfig(**CONFIG, rope_theta=500.0).to_diff_dict()
    assert VisionConfig.from_dict(CONFIG | published) == VisionConfig.from_dict(CONFIG)
    assert VisionConfig.from_dict(saved) == VisionConfig.from_dict(CONFIG | {"rope_theta": 500.0})


def test_defaults_are_those_of_transformers():
    theirs = inspect.signature(Qwen2_5_VLVisionConfig.__init__).parameters
    for name, value in vars(VisionConfig()).items():
        if name != "rope_theta":
            assert theirs[name].default == value, name
    assert Qwen2_5_VLVisionConfig().rope_parameters == {"rope_type": "axial", "rope_theta": VisionConfig().rope_theta}
