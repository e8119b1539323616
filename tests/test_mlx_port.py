"""The MLX port: checkpoint folders, stages loaded and freed, numpy at the border."""

from __future__ import annotations

# isort: off
import mlx_impl  # first, since it puts the BLAS in place
import mlx.core as mx
# isort: on

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel as Diffusers

from mlx_impl.port import MlxPort
from mlx_impl.session import from_numpy, to_numpy
from mlx_impl.weights import Checkpoint
from parity.errors import WeightsError
from parity.names import qwen_image_transformer
from parity.ports import open_port

CONFIG = {
    "in_channels": 8,
    "out_channels": 2,
    "num_layers": 3,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "axes_dims_rope": (4, 14, 14),
}
GRAPH = qwen_image_transformer(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A pipeline folder whose transformer is cut into several shards."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pipeline")
    Diffusers(**CONFIG).save_pretrained(path / "transformer", max_shard_size="300KB")
    assert len(list((path / "transformer").glob("*.safetensors"))) > 1
    return path


def inputs(batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "latents": rng.standard_normal((batch, 20, 8)).astype(np.float32),
        "prompt_embeds": rng.standard_normal((batch, 6, 48)).astype(np.float32),
        "prompt_mask": np.arange(6)[None].repeat(batch, 0) < np.arange(6, 6 - batch, -1)[:, None],
        "timestep": np.linspace(0.7, 0.2, batch).astype(np.float32),
        "img_shapes": np.array([[1, 4, 4], [1, 2, 2]]),
        "controlnet.00": rng.standard_normal((batch, 20, 64)).astype(np.float32),
        "controlnet.01": rng.standard_normal((batch, 20, 64)).astype(np.float32),
    }


def run_all(session, state, want=()):
    checkpoints = {}
    for stage in session.stages:
        session.load(stage)
        state, made = session.run(stage, state, want)
        session.free(stage)
        checkpoints |= made
    return state, checkpoints


def test_stages_streamed_equal_the_whole_model(folder):
    session = MlxPort().open(folder, dtype="float32")
    assert session.stages == ("embed", "block.00", "block.01", "block.02", "head")
    given = inputs(2)
    state, checkpoints = run_all(session, given, GRAPH.expected)
    assert set(checkpoints) == set(GRAPH.expected)
    assert set(state) == {"sample"}
    model = mlx_impl.load_transformer(folder, dtype="float32")
    whole = model(
        mx.array(given["latents"]),
        mx.array(given["prompt_embeds"]),
        mx.array(given["prompt_mask"]),
        mx.array(given["timestep"]),
        [[(1, 4, 4), (1, 2, 2)]] * 2,
        controlnet_block_samples=[mx.array(given["controlnet.00"]), mx.array(given["controlnet.01"])],
    )
    np.testing.assert_array_equal(state["sample"], np.array(whole))
    np.testing.assert_array_equal(checkpoints["final"], state["sample"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_checkpoint_equals_the_reference(folder, dtype):
    """Isolated: both ports are handed the reference's state, tables included."""
    theirs, ours = (open_port(name).open(folder, dtype=dtype) for name in ("reference", "mlx_impl"))
    state = inputs(2)
    for name in ("latents", "prompt_embeds", "timestep", "controlnet.00", "controlnet.01"):
        state[name] = state[name].astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    tolerance = 2e-5 if dtype == "float32" else 0.02
    for stage in theirs.stages:
        theirs.load(stage)
        ours.load(stage)
        after, expected = theirs.run(stage, state, GRAPH.names_of(stage))
        our_after, got = ours.run(stage, state, GRAPH.names_of(stage))
        assert our_after.keys() == after.keys()
        assert {k: (v.shape, v.dtype) for k, v in got.items()} == {k: (v.shape, v.dtype) for k, v in expected.items()}
        for name in expected:
            a, b = got[name].astype(np.float64), expected[name].astype(np.float64)
            assert np.sqrt(np.mean((a - b) ** 2)) <= tolerance * np.sqrt(np.mean(b**2)), name
        state = after


def test_tables_come_from_the_state(folder):
    session = MlxPort().open(folder, dtype="float32")
    session.load("embed")
    session.load("block.00")
    state, _ = session.run("embed", inputs(), ())
    turned = state | {"rope.img": state["rope.img"][::-1].copy()}
    (_, one), (_, other) = (session.run("block.00", s, ("block.00.img.q",)) for s in (state, turned))
    assert np.abs(one["block.00.img.q"] - other["block.00.img.q"]).max() > 0.1


def test_only_wanted_checkpoints_come_back_and_wanting_changes_nothing(folder):
    session = MlxPort().open(folder, dtype="float32")
    quiet, nothing = run_all(session, inputs())
    loud, one = run_all(session, inputs(), {"block.01.img.ffn"})
    assert nothing == {}
    assert set(one) == {"block.01.img.ffn"}
    np.testing.assert_array_equal(quiet["sample"], loud["sample"])


def test_held_weights_are_rounded_and_widened(folder):
    model = MlxPort().open(folder, dtype="float32", hold="bfloat16")
    model.load("head")
    state = {
        "img": np.ones((1, 20, 64), np.float32),
        "txt": np.ones((1, 6, 64), np.float32),
        "temb": np.ones((1, 64), np.float32),
        "rope.img": np.ones((20, 16, 2), np.float32),
        "rope.txt": np.ones((6, 16, 2), np.float32),
        "img_shapes": np.array([[1, 4, 5]]),
    }
    held = model.run("head", state, ())[0]["sample"]
    exact = MlxPort().open(folder, dtype="float32")
    exact.load("head")
    assert held.dtype == np.float32
    assert np.abs(held - exact.run("head", state, ())[0]["sample"]).max() > 1e-5


def test_a_stage_must_be_loaded_and_a_freed_one_again(folder):
    session = MlxPort().open(folder, dtype="float32")
    with pytest.raises(ValueError, match="not loaded"):
        session.run("embed", inputs(), ())
    session.load("embed")
    state, _ = session.run("embed", inputs(), ())
    session.free("embed")
    with pytest.raises(ValueError, match="not loaded"):
        session.run("embed", inputs(), ())
    session.load("embed")
    again, _ = session.run("embed", inputs(), ())
    np.testing.assert_array_equal(state["img"], again["img"])
    with pytest.raises(ValueError, match="precision"):
        session.run("embed", inputs(), (), precision="tf32")


def test_environment_and_precisions():
    port = MlxPort()
    assert port.precisions("bfloat16") == ("default",)
    with pytest.raises(ValueError, match="float64"):
        port.precisions("float64")
    environment = port.environment()
    assert environment["mlx"] == mx.__version__
    assert environment["tf32"] is False
    assert environment["blas"] == mlx_impl.installed().kind
    json.dumps(environment)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.bool_, np.int64])
def test_arrays_cross_the_border_unchanged(dtype):
    array = (np.arange(12).reshape(3, 4) % 5).astype(dtype)
    for view in (array, array.T, array[:, ::2]):
        back = to_numpy(from_numpy(view))
        assert back.dtype == dtype
        np.testing.assert_array_equal(back, view)


@pytest.mark.parametrize("fault", ["missing", "extra", "misshaped", "shard", "index", "config", "nothing"])
def test_damaged_checkpoints_are_errors_that_name_the_fault(folder, tmp_path, fault):
    path = tmp_path / "transformer"
    shutil.copytree(folder / "transformer", path)
    index_path = path / "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    name = "transformer_blocks.1.attn.to_q.bias"
    shard = path / index["weight_map"][name]
    # Copied, since the file is written over while its arrays are still lazy.
    arrays = {key: mx.array(np.array(value)) for key, value in mx.load(str(shard)).items()}
    error, message = ValueError, r"to_q.bias"
    if fault == "missing":
        del index["weight_map"][name], arrays[name]
    elif fault == "extra":
        index["weight_map"][name + "2"] = shard.name
        arrays[name + "2"] = mx.zeros(3)
    elif fault == "misshaped":
        error = WeightsError
        arrays[name] = mx.zeros(63)
    elif fault == "shard":
        error, message = WeightsError, shard.name
    elif fault == "index":
        error, message = WeightsError, "should be in"
        index["weight_map"]["transformer_blocks.1.nothing"] = shard.name
    elif fault == "config":
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"num_experts": 4}))
        error, message = WeightsError, "num_experts"
    else:
        shutil.rmtree(path)
        error, message = WeightsError, "config.json"
    if fault != "nothing":
        index_path.write_text(json.dumps(index))
        mx.save_safetensors(str(shard), arrays)
    if fault == "shard":
        shard.unlink()
    with pytest.raises(error, match=message):
        MlxPort().open(tmp_path, dtype="float32").load("block.01")
    with pytest.raises(error):
        mlx_impl.load_transformer(tmp_path, dtype="float32")


def test_a_single_file_loads_as_well(tmp_path):
    torch.manual_seed(0)
    theirs = Diffusers(**CONFIG)
    theirs.save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint.keys) == set(theirs.state_dict())
    assert checkpoint.config.num_layers == 3
    assert mlx_impl.load_transformer(tmp_path).proj_out.weight.dtype == mx.bfloat16
    with pytest.raises(ValueError, match="float64"):
        mlx_impl.load_transformer(tmp_path, dtype="float64")


def test_a_copy_under_another_name_is_a_port(folder, tmp_path, monkeypatch):
    shutil.copytree(Path(mlx_impl.__file__).parent, tmp_path / "mine_mlx", ignore=shutil.ignore_patterns("__pycache__"))
    rope = tmp_path / "mine_mlx" / "rope.py"
    rope.write_text(rope.read_text().replace("[np.cos(angle), np.sin(angle)]", "[np.sin(angle), np.cos(angle)]"))
    monkeypatch.syspath_prepend(tmp_path)
    faulty, _ = run_all(open_port("mine_mlx").open(folder, dtype="float32"), inputs())
    right, _ = run_all(open_port("mlx_impl").open(folder, dtype="float32"), inputs())
    assert np.abs(faulty["sample"] - right["sample"]).max() > 1e-4
