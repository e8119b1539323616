"""Which layers are packed, how, and that what is written is what MLX packs."""

import json
from pathlib import Path

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
from layout_folders import CONFIG, MIXED, mflux_name, packed, weights, write_diffusers, write_model
from safetensors import safe_open

from mlx_impl.quantize import pack
from mlx_impl.session import from_numpy, to_numpy
from parity.cli import call
from parity.errors import UsageError, WeightsError
from parity.layer_classes import CLASSES, class_of, in_general, linear_layers
from parity.layouts import locate
from parity.transformer_shape import expected_tensors
from parity.weights_quantize import PRESETS, Rule, choose, plan, rules_for

BITS = (2, 3, 4, 5, 6, 8)
SHAPES = expected_tensors(CONFIG)
LAYERS = linear_layers(SHAPES)


def stored(folder: Path):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as shard:
            found |= {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_diffusers(tmp_path_factory.mktemp("source") / "transformer", weights())


def quantized(source, target, *options):
    assert call(["weights", "quantize", str(source), str(target), *options]) == 0
    return stored(target)


def same(found, expected):
    assert found.keys() == {mflux_name(name) for name in expected}
    for name, array in expected.items():
        ours = found[mflux_name(name)]
        assert ours.dtype == array.dtype, name
        np.testing.assert_array_equal(ours.view(np.uint8), np.ascontiguousarray(array).view(np.uint8), err_msg=name)


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("bits", BITS)
def test_what_is_written_is_what_mlx_packs_bit_for_bit(source, tmp_path, bits, group_size):
    found = quantized(source, tmp_path / "q", "--bits", str(bits), "--group-size", str(group_size))
    same(found, packed(weights(), bits, group_size))


def test_layers_that_a_group_does_not_divide_stay_and_are_listed(source, tmp_path, capsys):
    """GIVEN groups of 128, THEN the layers of 64 and 192 columns stay."""
    found = quantized(source, tmp_path / "q", "--group-size", "128")
    same(found, packed(weights(), 4, 128, keep=("img_in", "txt_in")))
    said = capsys.readouterr().out
    assert "not packed: img_in, whose width 64" in said
    assert "not packed: txt_in, whose width 192" in said
    assert "2 layers as they were, for their width" in " ".join(said.split())


def test_the_presets_write_what_the_tools_write(source, tmp_path):
    found = quantized(source, tmp_path / "a", "--preset", "mflux")
    same(found, packed(weights(), 4, other={"img_mod": (8, 64)}))
    found = quantized(source, tmp_path / "b", "--preset", "mlx-gen")
    same(found, packed(weights(), 4, keep=MIXED))
    found = quantized(source, tmp_path / "c", "--preset", "mflux", "--bits", "6")
    same(found, packed(weights(), 6))


def test_the_last_rule_that_matches_counts(source, tmp_path, capsys):
    options = ("--rule", "*.attn.*=8", "--rule", "*.attn.to_out.0=keep", "--rule", "*.0.attn.to_q.weight=3:32")
    found = quantized(source, tmp_path / "q", *options)
    layouts = {layer: one.packing for layer, one in locate(tmp_path / "q").entries.items()}
    how = {layer: (p.bits, p.group_size) for layer, p in layouts.items() if p}
    assert how["transformer_blocks.0.attn.to_q.weight"] == (3, 32)
    assert how["transformer_blocks.1.attn.to_q.weight"] == (8, 64)
    assert how["transformer_blocks.1.img_mod.1.weight"] == (4, 64)
    assert layouts["transformer_blocks.1.attn.to_out.0.weight"] is None
    assert found["transformer_blocks.1.attn.attn_to_out.0.weight"].dtype == ml_dtypes.bfloat16
    assert "2 layers as they were, by a rule" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scales_have_the_dtype_that_is_asked_for(source, tmp_path, dtype):
    found = quantized(source, tmp_path / "q", "--scales-dtype", dtype)
    original = from_numpy(weights()["txt_in.weight"]).astype(getattr(mx, dtype))
    expected = [to_numpy(array) for array in mx.quantize(original, group_size=64, bits=4)]
    for leaf, array in zip(("weight", "scales", "biases"), expected, strict=True):
        np.testing.assert_array_equal(found[f"txt_in.{leaf}"], array)
    assert found["txt_in.scales"].dtype == np.dtype(dtype)
    assert found["txt_in.bias"].dtype == ml_dtypes.bfloat16


def test_a_whole_model_goes_along_and_says_what_it_is(tmp_path, capsys):
    root = write_model(tmp_path / "model", weights())
    assert call(["weights", "quantize", str(root), str(tmp_path / "q")]) == 0
    assert (tmp_path / "q" / "model_index.json").is_file()
    assert locate(tmp_path / "q", "vae").layout == "mflux"
    assert not any(entry.packing for entry in locate(tmp_path / "q", "text_encoder").entries.values())
    index = json.loads((tmp_path / "q" / "transformer" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["quantization_level"] == "4"
    with safe_open(tmp_path / "q" / "transformer" / "0.safetensors", framework="np") as shard:
        assert shard.metadata() == index["metadata"]
    said = capsys.readouterr()
    assert f"{len(LAYERS)} layers 4 bits in groups of 64" in " ".join(said.out.split())
    assert call(["weights", "check", str(tmp_path / "q")]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--bits", "7"), "7 bits is nothing MLX packs"),
        (("--group-size", "48"), "a group size of 48"),
        (("--rule", "img_mod"), "expected PATTERN=BITS"),
        (("--rule", "*.img_mod.1=9"), "9 bits is nothing MLX packs"),
        (("--rule", "*.img_mod.1=8:16"), "a group size of 16"),
        (("--rule", "*.img_mod_linear=8"), r"matches no layer; the nearest names: transformer_blocks.*.img_mod.1"),
        (("--rule", "proj_ut=8"), "the nearest names: proj_out"),
    ],
)
def test_a_mistake_is_one_line(source, tmp_path, capsys, options, said):
    assert call(["weights", "quantize", str(source), str(tmp_path / "q"), *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "q").exists()


def test_what_is_packed_is_not_packed_again(source, tmp_path, capsys):
    quantized(source, tmp_path / "q")
    with pytest.raises(WeightsError, match="layers are packed already"):
        plan(tmp_path / "q", tmp_path / "again", pack, 4, 64, [])
    assert call(["weights", "quantize", str(source), str(tmp_path / "q")]) == 2
    assert "--force" in capsys.readouterr().err


def test_a_failure_on_the_way_leaves_nothing(source, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("mlx_impl.quantize.pack", fail)
    assert call(["weights", "quantize", str(source), str(tmp_path / "q")]) == 3
    assert list(tmp_path.iterdir()) == []


def test_every_linear_layer_is_of_one_class_and_every_class_has_layers():
    assert {class_of(layer) for layer in LAYERS} == set(CLASSES)
    assert class_of("transformer_blocks.0.attn.norm_q") is None
    assert len(in_general(LAYERS)) == 5 + 1 + 14
    embedding = SHAPES | {"time_text_embed.addition_t_embedding.weight": (2, 128)}
    assert linear_layers(embedding) == LAYERS


def test_rules_and_presets():
    assert Rule.parse("*.attn.*=8:32") == Rule("*.attn.*", 8, 32)
    assert Rule.parse("img_in.weight=keep") == Rule("img_in", None)
    assert rules_for(4, "mflux", ["img_in=8"]) == [*PRESETS["mflux"], Rule("img_in", 8)]
    assert rules_for(8, "mlx-gen", []) == []
    assert choose(SHAPES, 4, 64, [Rule("*", None)]).packed == {}
    with pytest.raises(UsageError, match="matches no layer"):
        choose(SHAPES, 4, 64, [Rule("transformer_blocks.7.*", 8)])
