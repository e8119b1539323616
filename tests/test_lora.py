"""LoRA files by their names: every dialect is found, and everything that can be wrong is said."""

import json

import lora_files
import pytest
import torch
from mini import CONFIG

from parity import lora
from parity.errors import UsageError
from parity.layouts.lora import LoraError, bind_file
from parity.transformer_shape import expected_tensors

LAYER = "transformer_blocks.0.attn.to_q"
SHAPES = lora.linear_layers(CONFIG)


@pytest.fixture(scope="module")
def made():
    return lora_files.factors(CONFIG)


@pytest.fixture
def one():
    return lora_files.factors(CONFIG, layers=[LAYER])


def write(folder, tensors, metadata=None, name="lora.safetensors"):
    return lora_files.write(folder / name, tensors, metadata)


def inspect(path, *more):
    return lora.inspect([str(path), *map(str, more)], CONFIG)[0]


def refusal(path, tensors=None, metadata=None):
    if tensors is not None:
        write(path.parent, tensors, metadata, path.name)
    with pytest.raises(LoraError) as raised:
        inspect(path)
    assert "\n" not in raised.value.message
    assert raised.value.message.startswith(str(path))
    assert raised.value.exit_code == 4
    return raised.value


@pytest.mark.parametrize("alpha", [None, 2])
@pytest.mark.parametrize("dialect", lora_files.DIALECTS)
def test_every_pair_of_every_dialect_is_bound_to_its_layer(tmp_path, made, dialect, alpha):
    path = write(tmp_path, lora_files.tensors_of(made, dialect, alpha))
    binding = bind_file(path, SHAPES)
    assert set(binding.pairs) == set(SHAPES)
    name = lora_files.DIALECTS[dialect]
    for layer, pair in binding.pairs.items():
        expected = (name(layer, "down"), name(layer, "up"), None if alpha is None else name(layer, "alpha"), 4, 1.0)
        assert (pair.down, pair.up, pair.alpha, pair.rank, pair.multiplier) == expected
    assert binding.unbound == ()


def test_what_was_bound_is_one_line(tmp_path, made):
    path = write(tmp_path, lora_files.tensors_of(made, "kohya", alpha=2))
    assert inspect(path).line == "lora lora.safetensors: 34 of 34 pairs bound, rank 4, alpha 2, dialect kohya"
    assert ", scale 0.5, " in inspect(f"{path}@0.5").line


def test_the_layers_are_those_with_weight_and_bias():
    assert len(lora.linear_layers({})) == 60 * 14 + 6
    assert not [name for name in lora.linear_layers(CONFIG | {"use_additional_t_cond": True}) if "addition" in name]
    assert set(SHAPES.values()) <= set(expected_tensors(CONFIG).values())


def test_the_shape_of_lightning(tmp_path):
    """720 of 846 layers: the modulation and what is around the blocks are left alone."""
    layers = {
        name: (torch.zeros(64, 8), torch.ones(8, 64))
        for name in lora.linear_layers({})
        if name.startswith("transformer_blocks.") and "_mod." not in name
    }
    path = write(tmp_path, lora_files.tensors_of(layers, "lightning", alpha=8))
    narrow = dict.fromkeys(lora.linear_layers({}), (8, 8))
    binding = bind_file(path, narrow)
    assert (len(binding.pairs), binding.ranks) == (720, (64,))


def test_underscores_are_resolved_against_the_names_that_there_are(tmp_path):
    flat = {"lora_unet_a_b_c.lora_down.weight": torch.ones(2, 3), "lora_unet_a_b_c.lora_up.weight": torch.ones(4, 2)}
    path = write(tmp_path, flat)
    assert list(bind_file(path, {"a.b_c": (4, 3), "a_b.d": (4, 3)}).pairs) == ["a.b_c"]
    with pytest.raises(LoraError, match=r"ambiguous: lora_unet_a_b_c may be a\.b_c or a_b\.c"):
        bind_file(path, {"a.b_c": (4, 3), "a_b.c": (4, 3)})


def test_pairs_without_a_layer_are_listed_with_names_that_look_like_theirs(tmp_path, one):
    tensors = lora_files.tensors_of(one, "kohya")
    for stray in ("lora_unet_transformer_blocks_0_attn_to_qq", "lora_te1_text_model_encoder", "x1", "x2"):
        tensors |= {f"{stray}.lora_down.weight": torch.ones(4, 7), f"{stray}.lora_up.weight": torch.ones(7, 4)}
    found = inspect(write(tmp_path, tensors))
    assert found.line.startswith("lora lora.safetensors: 1 of 5 pairs bound")
    remarks = list(found.remarks)
    assert any(LAYER in line and "to_qq" in line for line in remarks)
    assert remarks[-1] == "and 1 more pairs without a layer"
    assert found.describe()["unbound"] == sorted(found.binding.unbound)[:3]


def test_a_lora_of_another_model_is_an_error(tmp_path):
    strangers = {
        f"transformer.single_transformer_blocks.{i}.attn.to_q.{part}.weight": torch.ones(shape)
        for i in range(4)
        for part, shape in (("lora_A", (4, 7)), ("lora_B", (7, 4)))
    }
    error = refusal(tmp_path / "flux.safetensors", strangers)
    assert "none of its 4 pairs is of a layer of this model" in error.message
    assert len(error.details) == 3
    assert all("near: transformer_blocks." in line for line in error.details)


def changed(tensors, part, change):
    key = f"transformer.{LAYER}.{part}"
    return tensors | {key: change(tensors[key])}


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("lora_A.weight", lambda x: x[:, :-1], "expected [4, 64]"),
        ("lora_B.weight", lambda x: x[:-1], "expected [64, 4]"),
        ("lora_B.weight", lambda x: x[:, :-1], "has rank 4,"),
        ("lora_A.weight", lambda x: x[None], "expected a matrix"),
        ("lora_A.weight", lambda x: x.int(), "is I32, expected BF16, F16, F32"),
        ("lora_B.weight", lambda x: x.double(), "is F64, expected BF16, F16, F32"),
        ("lora_A.weight", lambda x: x * float("nan"), "256 NaN of 256 values"),
        ("lora_B.weight", lambda x: x / 0, "infinite of 256 values"),
        ("alpha", lambda x: x.expand(3), "expected one number"),
        ("alpha", lambda x: -x, "is -2, expected a positive number"),
        ("alpha", lambda x: x * float("nan"), "is nan, expected a positive number"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_said_with_its_name(tmp_path, one, part, change, said):
    right = lora_files.tensors_of(one, "transformer", alpha=2)
    assert inspect(write(tmp_path, right)).alphas == (2.0,)
    error = refusal(tmp_path / "lora.safetensors", changed(right, part, change))
    assert said in error.message
    assert f"{LAYER}.{part}" in error.message


def test_everything_that_is_wrong_is_listed(tmp_path, made):
    tensors = {
        key: x[:, :-1] if "lora_A" in key else x for key, x in lora_files.tensors_of(made, "transformer").items()
    }
    error = refusal(tmp_path / "lora.safetensors", tensors)
    assert len(error.details) == 34
    assert error.message.endswith("(and 33 more)")


@pytest.mark.parametrize("gone", ["lora_A.weight", "lora_B.weight"])
def test_half_a_pair_is_an_error(tmp_path, made, gone):
    tensors = lora_files.tensors_of(made, "transformer", alpha=2)
    del tensors[f"transformer.{LAYER}.{gone}"]
    assert f"has no {gone[:6]}" in refusal(tmp_path / "lora.safetensors", tensors).message


def test_the_same_layer_twice_is_an_error(tmp_path, one):
    tensors = lora_files.tensors_of(one, "transformer") | lora_files.tensors_of(one, "kohya")
    assert f"are both of {LAYER}" in refusal(tmp_path / "lora.safetensors", tensors).message
    twice = lora_files.tensors_of(one, "peft-default") | lora_files.tensors_of(one, "bare")
    assert "are both" in refusal(tmp_path / "lora.safetensors", twice).message


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("dora_scale", "dora_scale"), ("lora_magnitude_vector", "lora_magnitude_vector"), ("lokr_w1", "lokr"),
        ("hada_w1_a", "hada"), ("diff_b", "diff_b"), ("lora_B.bias", "lora_B.bias"),
    ],
)  # fmt: skip
def test_other_kinds_of_adapters_are_not_taken_for_lora(tmp_path, one, key, what):
    tensors = lora_files.tensors_of(one, "transformer") | {f"transformer.{LAYER}.{key}": torch.ones(4)}
    assert f"plain LoRA is supported, not {what}" in refusal(tmp_path / "lora.safetensors", tensors).message


def test_no_lora_at_all(tmp_path):
    whole = {f"{LAYER}.weight": torch.ones(64, 64)}
    assert "no name of a LoRA's tensor" in refusal(tmp_path / "model.safetensors", whole).message


def test_files_that_are_not_read(tmp_path, one):
    path = write(tmp_path, lora_files.tensors_of(one, "bare"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-8])
    assert "truncated" in refusal(cut).message
    assert "no such file" in refusal(tmp_path / "none.safetensors").message
    assert "a folder" in refusal(tmp_path).message
    (tmp_path / "x.bin").write_bytes(b"\x80\x02")
    assert "pickled" in refusal(tmp_path / "x.bin").message


def test_names_are_escaped_where_they_are_shown(tmp_path, one):
    tensors = lora_files.tensors_of(one, "transformer") | {"\x1b[31mred.alpha": torch.ones(())}
    message = refusal(tmp_path / "lora.safetensors", tensors).message
    assert "\x1b" not in message
    assert r"\x1b[31mred" in message


def test_a_lora_that_has_not_learnt_anything_is_remarked(tmp_path, one):
    zero = {layer: (down, torch.zeros_like(up)) for layer, (down, up) in one.items()}
    found = inspect(write(tmp_path, lora_files.tensors_of(zero, "transformer")))
    assert list(found.remarks) == [f"1 layers have a lora_B of zeros, which changes nothing: {LAYER}"]


@pytest.mark.parametrize(
    ("config", "multiplier"),
    [
        ({"lora_alpha": 8, "r": 4}, 2.0),
        ({"lora_alpha": 8, "r": 4, "use_rslora": True}, 4.0),
        ({"lora_alpha": 8, "r": 4, "alpha_pattern": {"attn.to_q": 2}}, 0.5),
        ({"lora_alpha": 8, "r": 4, "alpha_pattern": {"to_k": 2}}, 2.0),
    ],
)
def test_the_config_of_an_adapter_scales(tmp_path, one, config, multiplier):
    """In diffusers' metadata, and in PEFT's file beside for files that PEFT wrote."""
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}
    theirs = write(tmp_path, lora_files.tensors_of(one, "transformer"), metadata)
    assert bind_file(theirs, SHAPES).pairs[LAYER].multiplier == multiplier
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    beside = write(tmp_path, lora_files.tensors_of(one, "base_model"), name="adapter_model.safetensors")
    assert bind_file(beside, SHAPES).pairs[LAYER].multiplier == multiplier
    others = write(tmp_path, lora_files.tensors_of(one, "transformer"), name="other.safetensors")
    assert bind_file(others, SHAPES).pairs[LAYER].multiplier == 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"lora_alpha": "8"}, "lora_alpha of its config is 8, expected a number"),
        ({"lora_alpha": 8, "use_dora": True}, "not DoRA"),
        ({"lora_alpha": 8, "alpha_pattern": [1]}, "expected a mapping"),
    ],
)
def test_a_config_that_makes_no_sense_is_an_error(tmp_path, one, config, said):
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    assert said in refusal(tmp_path / "x.safetensors", lora_files.tensors_of(one, "transformer"), metadata).message
    assert "metadata" in refusal(
        tmp_path / "x.safetensors", lora_files.tensors_of(one, "transformer"), {"lora_adapter_metadata": "{"}
    ).message  # fmt: skip


def test_the_option(tmp_path, monkeypatch):
    assert lora.parse("x.safetensors").scale == 1
    assert (str(lora.parse("a/x.safetensors@-0.5").path), lora.parse("x@-0.5").scale) == ("a/x.safetensors", -0.5)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x@2").touch()
    assert lora.parse("x@2").scale == 1
    for wrong in ("x.safetensors@strong", "x@nan", "x@inf", "x@", "@1"):
        with pytest.raises(UsageError, match="is no scale"):
            lora.parse(wrong)


def test_a_config_beside_the_file_that_cannot_be_read_is_an_error(tmp_path, one):
    path = write(tmp_path, lora_files.tensors_of(one, "base_model"))
    for content, said in ((b"{", "adapter_config.json: "), (b"[1]", "adapter_config.json: ")):
        (tmp_path / "adapter_config.json").write_bytes(content)
        with pytest.raises(LoraError) as raised:
            inspect(path)
        assert raised.value.message.startswith(f"{tmp_path}/{said}")


def test_where_no_transformer_takes_part_a_lora_is_an_error(tmp_path, one):
    path = write(tmp_path, lora_files.tensors_of(one, "transformer"))
    with pytest.raises(UsageError, match="none takes part"):
        lora.inspect([str(path)], None)
    with pytest.raises(UsageError, match="given twice"):
        inspect(path, f"{path}@0.5")
