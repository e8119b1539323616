"""Both sides load one model from every layout, packed or not, and mean the same numbers."""

import json

import layout_folders
import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import torch
from layout_folders import (
    CONFIG,
    MODULATION,
    TEXT_CONFIG,
    VAE_CONFIG,
    mflux_text,
    mflux_vae,
    packed,
    random_arrays,
    save,
    weights,
    write_diffusers,
    write_every,
    write_mflux,
)

import mlx_impl
from mlx_impl.layers import Linear, QuantizedLinear
from mlx_impl.session import to_numpy
from mlx_impl.vae import VaeShards
from mlx_impl.weights import Checkpoint, Shards
from parity.components.transformer import TransformerCase
from parity.errors import WeightsError
from parity.ports import open_port
from parity.text_shape import expected_text_tensors
from parity.vae_shape import expected_vae_tensors
from reference import weights as theirs

CASE = TransformerCase(name="t", seed=0, images=((32, 48),), text_tokens=(5,), timestep=0.7)
LAYOUTS = (
    "mflux", "mflux-4bit", "mflux-8bit-32", "mflux-new", "mlx-gen-mixed", "mlx-rs", "single", "single-transformer",
    "single-bare",
)  # fmt: skip


def calm(config=None, seed=0):
    """Weights of the size that a model's have: with those of unit variance attention is a matter of the last bit."""
    arrays = weights(config, seed)
    return {name: x if x.ndim == 1 else (x / np.sqrt(x.shape[1])).astype(x.dtype) for name, x in arrays.items()}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_folders, "weights", calm)
        return written(tmp_path_factory.mktemp("layouts"))


def written(folder):
    return {name: path for name, (path, *_) in write_every(folder).items()}


def forward(port, folder, dtype, hold=None):
    """The checkpoints of a whole pass."""
    session = port.open(folder, dtype=dtype, hold=hold)
    state = CASE.inputs({"transformer": CONFIG}, "float32")
    for stage in session.stages:
        session.load(stage)
        state, _ = session.run(stage, state, ())
        session.free(stage)
    return state["sample"].astype(np.float64)


def distance(a, b):
    return float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))


@pytest.mark.parametrize("side", ["reference", "mlx_impl"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_is_the_same_in_every_layout(layouts, layout, side):
    """GIVEN one model in two layouts, THEN what is not packed gives the same bits, and 8 bits are nearer than 4."""
    port = open_port(side)
    plain, found = (forward(port, layouts[name], "float32") for name in ("diffusers", layout))
    if "bit" in layout or layout in ("mlx-rs", "mflux-new", "mlx-gen-mixed"):
        low, high = (1e-3, 0.05) if layout == "mflux-8bit-32" else (0.02, 1)
        assert low < distance(found, plain) < high
    else:
        np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize("layout", ["mflux-4bit", "mflux-8bit-32", "mflux-new", "mlx-gen-mixed", "mlx-rs"])
def test_both_sides_mean_the_same_packed_weights(layouts, layout):
    """GIVEN float32 on one side and float64 on the other, THEN they are as near as without any packing."""

    def apart(name):
        truth = forward(open_port("reference"), layouts[name], "float64", "float32")
        return distance(forward(open_port("mlx_impl"), layouts[name], "float32"), truth)

    assert apart(layout) < 2 * apart("diffusers")


def test_bits_are_each_layers_own(layouts):
    model = mlx_impl.load_transformer(layouts["mflux-new"], "float32")
    block = model.transformer_blocks[1]
    assert (block.img_mod[1].bits, block.img_mod[1].group_size) == (8, 64)
    assert (block.attn.to_q.bits, block.attn.to_q.group_size) == (4, 64)
    assert block.attn.to_q.scales.dtype == mx.bfloat16  # as they are stored, whatever dtype the run has
    assert block.attn.to_q.bias.dtype == mx.float32
    mixed = mlx_impl.load_transformer(layouts["mlx-gen-mixed"], "float32")
    assert type(mixed.img_in) is Linear
    assert type(mixed.transformer_blocks[0].attn.to_out[0]) is QuantizedLinear


def test_a_packed_stage_gives_its_weights_back(layouts):
    session = open_port("mlx_impl").open(layouts["mflux-4bit"], dtype="float32")
    for _ in range(2):
        for stage, part in (("embed", "img_in"), ("block.00", None), ("head", "proj_out")):
            session.load(stage)
            layer = session._model[part] if part else session._model.transformer_blocks[0].attn.to_q
            assert type(layer) is QuantizedLinear
            session.free(stage)
            layer = session._model[part] if part else session._model.transformer_blocks[0].attn.to_q
            assert type(layer) is Linear


def test_the_truth_of_packed_weights_is_not_rounded_to_the_runs_dtype(layouts):
    """GIVEN a run in bfloat16, THEN the truth has what the packed weights stand for, the reference has it rounded."""
    key = "transformer_blocks.0.attn.to_q."
    exact = dict(theirs.Shards(layouts["mflux-4bit"]).read(key))["weight"]
    assert not torch.equal(exact, exact.bfloat16().to(exact.dtype))
    for dtype, hold, expected in (("float64", "bfloat16", exact.double()), ("bfloat16", None, exact.bfloat16())):
        session = open_port("reference").open(layouts["mflux-4bit"], dtype=dtype, hold=hold)
        session.load("block.00")
        found = session.module("block.00").attn.to_q.weight
        assert torch.equal(found.double(), expected.double())
    unpacked = dict(theirs.Shards(layouts["diffusers"]).read("img_in."))["bias"]
    assert unpacked.dtype == torch.bfloat16


def test_a_vae_in_mlx_axes_is_the_same_vae(tmp_path):
    arrays = random_arrays(expected_vae_tensors(VAE_CONFIG))
    for name, stored in (("theirs", arrays), ("ours", mflux_vae(arrays))):
        file = "diffusion_pytorch_model.safetensors" if name == "theirs" else "0.safetensors"
        save(tmp_path / name / "vae" / file, stored, {"format": "pt"})
        (tmp_path / name / "vae" / "config.json").write_text(json.dumps(VAE_CONFIG))
    first, second = (VaeShards(tmp_path / name).read("") for name in ("theirs", "ours"))
    assert first.keys() == second.keys()
    assert len(first) == len(arrays)
    for key, array in first.items():
        np.testing.assert_array_equal(to_numpy(array), to_numpy(second[key]), err_msg=key)
    first, second = (dict(theirs.Shards(tmp_path / name, "vae").read("")) for name in ("theirs", "ours"))
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    conv = "decoder.conv_in.weight"
    assert first[conv].shape == arrays[conv].shape


def test_a_text_encoder_with_mlx_names_is_the_same_text_encoder(tmp_path):
    arrays = random_arrays(expected_text_tensors(TEXT_CONFIG))
    save(tmp_path / "text_encoder" / "0.safetensors", mflux_text(arrays))
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps(TEXT_CONFIG))
    found = Shards(tmp_path, "text_encoder").read("")
    kept = {name: array for name, array in arrays.items() if name != "lm_head.weight"}
    assert found.keys() == kept.keys()
    for name, array in kept.items():
        np.testing.assert_array_equal(to_numpy(found[name]), array, err_msg=name)


def test_files_that_mlx_wrote_without_metadata_are_read(tmp_path):
    write_diffusers(tmp_path / "model", weights())
    for file in (tmp_path / "model").glob("*.safetensors"):
        loaded = {name: to_numpy(array).view(np.uint16) for name, array in mx.load(str(file)).items()}
        mx.save_safetensors(str(file), {name: mx.array(array).view(mx.bfloat16) for name, array in loaded.items()})
    assert b'"__metadata__":null' in next((tmp_path / "model").glob("*.safetensors")).read_bytes()[:400]
    assert len(Checkpoint(tmp_path / "model").keys) == len(weights())


def test_a_layer_that_no_packing_fits_is_named(tmp_path):
    arrays = packed(weights(), 4, other=dict.fromkeys(MODULATION, (8, 64)))
    name = "transformer_blocks.1.img_mod.1.scales"
    arrays[name] = arrays[name][:, :1].astype(ml_dtypes.bfloat16)
    write_mflux(tmp_path / "m", arrays, 4)
    for side in ("reference", "mlx_impl"):
        with pytest.raises(WeightsError, match=r"transformer_blocks\.1\.img_mod_linear"):
            open_port(side).open(tmp_path / "m", dtype="float32")
