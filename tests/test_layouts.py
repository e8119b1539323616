"""Every layout is told by its names, and every tensor found in it; what cannot be read is said in one line."""

import json
from collections import Counter

import ml_dtypes
import numpy as np
import pytest
from layout_folders import (
    CONFIG,
    TEXT_CONFIG,
    VAE_CONFIG,
    mflux_name,
    mflux_text,
    mflux_vae,
    mlx_rs_name,
    packed,
    random_arrays,
    save,
    save_sparse,
    weights,
    write_config,
    write_every,
    write_mflux,
    write_single,
)  # fmt: skip

from parity.errors import WeightsError
from parity.layouts import locate, rules
from parity.layouts.packing import packed_shape, readings
from parity.layouts.published import PUBLISHED
from parity.text_shape import expected_text_tensors
from parity.transformer_shape import expected_tensors
from parity.vae_shape import expected_vae_tensors

EXPECTED = expected_tensors(CONFIG)
VARIANTS = (
    "diffusers", "mflux", "mflux-4bit", "mflux-8bit-32", "mflux-new", "mlx-gen-mixed", "mlx-rs", "single",
    "single-transformer", "single-bare",
)  # fmt: skip


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    return write_every(tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="module")
def four():
    return packed(weights(), 4)


def census(found):
    packings = (entry.packing for entry in found.entries.values())
    return dict(Counter((p.bits, p.group_size) for p in packings if p))


def fails(path, *parts, component="transformer"):
    """What `locate` says of a checkpoint that it must refuse."""
    with pytest.raises(WeightsError) as caught:
        locate(path, component)
    assert "\n" not in caught.value.message
    text = " | ".join([caught.value.message, *caught.value.details])
    for part in parts:
        assert part in text
    return caught.value


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layout_is_told_and_every_tensor_found(every, variant):
    path, layout, bits = every[variant]
    found = locate(path)
    assert found.layout == layout
    assert {name: entry.true_shape for name, entry in found.entries.items()} == EXPECTED
    assert census(found) == bits
    assert (found.extra, found.missing) == ((), ())
    assert {key: found.config[key] for key in CONFIG} == CONFIG
    assert (found.config["patch_size"], found.config["zero_cond_t"]) == (2, False)


def test_there_is_a_folder_for_every_variant(every):
    assert tuple(every) == VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_entry_leads_to_the_stored_values(every, variant):
    path, _, bits = every[variant]
    found = locate(path)
    shards = {shard.name: shard for shard in found.shards}
    for name, array in weights().items():
        entry = found.entries[name]
        tensor = shards[entry.file].tensors[entry.name]
        raw = (found.folder / entry.file).read_bytes()[tensor.start : tensor.stop]
        if entry.packing is None:
            assert raw == array.tobytes()
        else:
            assert entry.dtype == "U32"
            assert len(raw) * 8 == array.size * entry.packing.bits
            assert entry.packing.scales.name in shards[entry.packing.scales.file].tensors
    assert any(entry.packing for entry in found.entries.values()) == bool(bits)


@pytest.mark.parametrize(("bits", "group"), [(b, g) for b in (2, 3, 4, 5, 6, 8) for g in (32, 64, 128)])
def test_bits_and_group_follow_from_the_true_width(tmp_path, bits, group):
    config = {"joint_attention_dim": 384, "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56],
              "in_channels": 128, "out_channels": 32}  # fmt: skip
    found = locate(write_mflux(tmp_path, packed(weights(config), bits, group), bits))
    assert census(found) == {(bits, group): 34}
    assert found.config["in_channels"] == 128
    assert found.entries["img_in.weight"].true_shape == (256, 128)


@pytest.mark.parametrize(
    ("bits", "group", "other"), [(4, 64, "8 bits in groups of 32"), (8, 32, "4 bits in groups of 64")]
)
def test_how_an_ambiguity_was_resolved_is_said(tmp_path, bits, group, other):
    notes = locate(write_mflux(tmp_path, packed(weights(), bits, group), bits)).notes
    said = [note for note in notes if note.startswith(f"34 layers are read as {bits} bits in groups of {group}")]
    assert len(said) == 1
    assert other in said[0]
    assert "input width decides" in said[0]


def test_shapes_alone_leave_a_choice():
    assert {(r.bits, r.group_size) for r in readings(384, 48)} == {(4, 64), (8, 32), (2, 128)}
    assert [r[:2] for r in readings(640, 64)] == [(5, 64)]
    assert readings(384, 50) == ()
    assert readings(384, 0) == ()


def test_the_guide_s_table_of_packed_shapes():
    assert packed_shape((3072, 256), 4, 64) == ((3072, 32), (3072, 4))
    assert packed_shape((18432, 3072), 4, 64)[0] == (18432, 384)
    assert packed_shape((6144, 3072), 4, 64)[0] == (6144, 384)


def test_bits_differ_from_layer_to_layer(every):
    found = locate(every["mflux-new"][0])
    for name, entry in found.entries.items():
        if entry.packing:
            assert entry.packing.bits == (8 if "img_mod" in name else 4)


def test_the_config_decides_where_there_is_one(tmp_path, four):
    write_mflux(tmp_path, four, 4)
    inferred = locate(tmp_path)
    assert any("no config.json: from the shapes, 2 blocks of 2 heads of 64" in note for note in inferred.notes)
    write_config(tmp_path, {"zero_cond_t": True})
    found = locate(tmp_path)
    assert found.config["zero_cond_t"] is True
    assert not any("no config.json" in note for note in found.notes)


def test_a_config_that_is_not_of_these_weights(tmp_path, four):
    write_mflux(tmp_path, four, 4)
    write_config(tmp_path, {"num_attention_heads": 4})
    fails(tmp_path, "shape: img_in.bias is [128], expected [256]")


def test_a_config_of_fewer_blocks_leaves_extra_names(tmp_path, four):
    write_mflux(tmp_path, four, 4)
    write_config(tmp_path, {"num_layers": 1})
    extra = locate(tmp_path).extra
    assert len(extra) == 32 + 2 * 14
    assert all(".1." in name for name in extra)


@pytest.mark.parametrize(
    ("drop", "said"),
    [("txt_norm.weight", "txt_norm.weight missing"), ("proj_out.bias", "proj_out.bias missing"),
     ("transformer_blocks.0.attn.norm_q.weight", "norm_q.weight missing")],
)  # fmt: skip
def test_a_config_cannot_be_inferred_without_the_tensors_that_tell(tmp_path, four, drop, said):
    fails(write_mflux(tmp_path, {n: a for n, a in four.items() if n != drop}, 4), said, "config.json beside")


def test_missing_tensors_are_named_and_left_to_the_loader(tmp_path, four):
    gone = "transformer_blocks.1.attn.to_q.bias"
    found = locate(write_mflux(tmp_path, {n: a for n, a in four.items() if n != gone}, 4))
    assert found.missing == (gone,)
    assert gone not in found.entries


def test_layered_models_are_told_by_their_embedding(tmp_path):
    found = locate(write_mflux(tmp_path, weights({"use_additional_t_cond": True}), None))
    assert (found.config["use_additional_t_cond"], found.config["use_layer3d_rope"]) == (True, True)


@pytest.mark.parametrize("mark", [True, False])
def test_the_mark_of_an_editing_model(tmp_path, mark):
    found = locate(write_single(tmp_path / "edit.safetensors", weights(), mark=mark))
    assert found.config["zero_cond_t"] is mark
    assert found.extra == ()


def test_a_level_that_says_none_is_reported_as_such(every):
    assert any(
        "quantization_level: None, that is not quantized; 0 layers" in n for n in locate(every["mflux"][0]).notes
    )
    assert any("quantization_level: 4 bits; 34 layers" in n for n in locate(every["mflux-new"][0]).notes)


def test_mixed_layouts_are_refused_with_two_names(tmp_path):
    arrays = weights()
    old = "transformer_blocks.1.img_mod.1.weight"
    mixed = {name if name == old else mflux_name(name): array for name, array in arrays.items()}
    save(tmp_path / "model.safetensors", mixed)
    fails(tmp_path, f"{old} is a name of diffusers, transformer_blocks.0.", "is a name of diffusers", "one of mflux")
    prefixed = {name if name == "txt_in.bias" else f"model.diffusion_model.{name}": a for name, a in arrays.items()}
    path = save(tmp_path / "single" / "one.safetensors", prefixed)
    fails(path, "mixed layouts: model.diffusion_model.", "txt_in.bias has none")


def test_a_layer_under_two_names(tmp_path, four):
    arrays = {mlx_rs_name(name): array for name, array in four.items()}
    save(tmp_path / "model.safetensors", arrays | {"img_in.inner.weight": four["img_in.weight"]})
    write_config(tmp_path)
    fails(tmp_path, "duplicate: img_in.weight and img_in.inner.weight are both img_in.weight")


def test_other_quantizations_are_refused(tmp_path, four):
    mxfp4 = {n: a for n, a in four.items() if n != "img_in.biases"}
    mxfp4["img_in.scales"] = np.zeros(four["img_in.scales"].shape, np.uint8)
    fails(write_mflux(tmp_path / "a", mxfp4, 4), "img_in is quantized with scales of 8 bits", "affine")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop("img_in.biases"), "img_in has scales, but no biases"),
        (lambda a: a.pop("img_in.scales"), "img_in has biases of a quantized layer, but no scales"),
        (lambda a: a.pop("img_in.weight"), "img_in has scales, but no weight"),
        (lambda a: a.update({"img_in.scales": a["img_in.scales"][:-1]}), "expected the same rows in all three"),
        (lambda a: a.update({"img_in.biases": a["img_in.biases"][:, :0]}), "expected the same rows in all three"),
        (lambda a: a.update({"img_in.weight": a["img_in.weight"].astype(np.int32)}), "I32 with scales BF16"),
        (lambda a: a.update({"img_in.biases": a["img_in.biases"].astype(np.float32)}), "biases F32, expected U32"),
        (lambda a: a.update({"img_in.weight": a["img_in.weight"][:, :7].copy()}), "which no packing of 2 to 8 bits"),
    ],
)
def test_a_layer_that_is_packed_wrongly(tmp_path, four, change, said):
    arrays = dict(four)
    change(arrays)
    write_config(tmp_path)
    fails(write_mflux(tmp_path, arrays, 4), said)


@pytest.mark.parametrize("layout", ["mflux", "mlx-rs"])
def test_rules_lead_to_the_names_of_the_layout_and_back(layout):
    groups = rules.rules_of(layout, "transformer")
    named = {"mflux": mflux_name, "mlx-rs": mlx_rs_name}[layout]
    full = expected_tensors({"use_additional_t_cond": True})
    stored = {name: rules.to_stored(name, groups) for name in full}
    assert stored == {name: named(name) for name in full}
    assert len(set(stored.values())) == len(full)
    assert all(rules.to_canonical(stored[name], groups) == name for name in full)
    inner = {name: rules.to_stored(name, groups, packed=True) for name in full if name.endswith(".weight")}
    assert inner["time_text_embed.timestep_embedder.linear_1.weight"].endswith("linear_1.inner.weight")
    assert all(rules.to_canonical(inner[name], groups) == name for name in inner)


def canonical_array(found, name):
    """A stored tensor brought to diffusers' axes as an entry says."""
    entry = found.entries[name]
    tensor = next(shard.tensors[entry.name] for shard in found.shards if shard.name == entry.file)
    raw = (found.folder / entry.file).read_bytes()[tensor.start : tensor.stop]
    array = np.frombuffer(raw, ml_dtypes.bfloat16).reshape(entry.shape)
    return (array if entry.axes is None else array.transpose(entry.axes)).reshape(entry.true_shape)


OTHERS = {
    "vae": (VAE_CONFIG, expected_vae_tensors, mflux_vae),
    "text_encoder": (TEXT_CONFIG, expected_text_tensors, mflux_text),
}


@pytest.mark.parametrize("component", OTHERS)
def test_vae_and_text_encoder_of_mflux_are_restored_bit_for_bit(tmp_path, component):
    config, expected, convert = OTHERS[component]
    arrays = random_arrays(expected(config))
    write_mflux(tmp_path, convert(arrays), 4, rename=str)
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = locate(tmp_path, component)
    assert found.layout == "mflux"
    assert found.extra == ()
    assert set(arrays) - set(found.entries) == {"lm_head.weight"} & set(arrays)
    for name in found.entries:
        assert canonical_array(found, name).tobytes() == arrays[name].tobytes()
        assert found.entries[name].true_shape == arrays[name].shape


def test_a_vae_with_another_number_of_residual_blocks(tmp_path):
    config = VAE_CONFIG | {"num_res_blocks": 3}
    arrays = random_arrays(expected_vae_tensors(config))
    rename = rules.rules_of("mflux", "vae", 3)
    stored = {rules.to_stored(n, rename): np.ascontiguousarray(np.moveaxis(a, 1, -1)) if a.ndim > 3 and "gamma" not in n
              else a.reshape(-1) if "gamma" in n else a for n, a in arrays.items()}  # fmt: skip
    assert "encoder.down_blocks.0.downsamplers.0.resample_conv.weight" in stored
    write_mflux(tmp_path, stored, None, rename=str)
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = locate(tmp_path, "vae")
    assert found.entries.keys() == arrays.keys()


def test_prompts_need_neither_vision_nor_output_layer(tmp_path):
    arrays = random_arrays(expected_text_tensors(TEXT_CONFIG))
    write_mflux(tmp_path, mflux_text(arrays, vision=False), 4, rename=str)
    (tmp_path / "config.json").write_text(json.dumps(TEXT_CONFIG))
    found = locate(tmp_path, "text_encoder")
    assert any("that prompts do not need are left out" in note for note in found.notes)
    assert any("1 derived tables are not read" in note for note in found.notes)


def unreal(shapes):
    """Arrays of the given shapes that take no memory."""
    return {name: np.broadcast_to(np.uint8(0), shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("component", OTHERS)
def test_the_published_configuration_is_used_where_every_shape_agrees(tmp_path, component):
    _, expected, convert = OTHERS[component]
    shapes = expected(PUBLISHED[component])
    save_sparse(tmp_path / "0.safetensors", convert(unreal(shapes)))
    found = locate(tmp_path, component)
    assert found.config == PUBLISHED[component]
    assert found.config is not PUBLISHED[component]
    assert any("every shape is that of the published Qwen-Image" in note for note in found.notes)
    name = next(name for name, shape in shapes.items() if len(shape) == 2 or len(shape) == 5)
    shapes[name] = (*shapes[name][:-1], 1 + shapes[name][-1])
    save_sparse(tmp_path / "0.safetensors", convert(unreal(shapes)))
    fails(tmp_path, "config.json: there is no such file, and the shapes are not those of", component=component)


def test_names_that_transformers_has_in_memory_are_understood(tmp_path):
    arrays = random_arrays(expected_text_tensors(TEXT_CONFIG))
    renamed = {
        f"model.{n}" if n.startswith("visual.") else n.replace("model.", "model.language_model.", 1): a
        for n, a in arrays.items()
    }
    save(tmp_path / "model.safetensors", renamed)
    (tmp_path / "config.json").write_text(json.dumps(TEXT_CONFIG))
    found = locate(tmp_path, "text_encoder")
    assert found.entries.keys() == arrays.keys()
    assert found.entries["visual.merger.mlp.0.bias"].name == "model.visual.merger.mlp.0.bias"


def test_components_of_an_all_in_one_file_are_left_aside(tmp_path):
    arrays = {f"model.diffusion_model.{n}": a for n, a in weights().items()}
    arrays |= {"vae.decoder.conv1.weight": np.zeros(2, np.float32)}
    found = locate(save(tmp_path / "all.safetensors", arrays))
    assert found.extra == ()
    assert any("1 tensors of other components, the first is vae.decoder.conv1.weight" in n for n in found.notes)
