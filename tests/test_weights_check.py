"""The census of a checkpoint is right for every layout, and whatever is wrong with one is listed."""

import hashlib
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from layout_folders import (
    CONFIG,
    MODULATION,
    mflux_name,
    packed,
    save,
    save_sparse,
    weights,
    write_config,
    write_diffusers,
    write_every,
    write_mflux,
    write_model,
)  # fmt: skip

from parity.cli import call
from parity.transformer_shape import expected_tensors

EXPECTED = expected_tensors(CONFIG)
VARIANTS = ("diffusers", "mflux", "mflux-4bit", "mflux-8bit-32", "mflux-new", "mlx-gen-mixed", "mlx-rs", "single",
            "single-transformer", "single-bare")  # fmt: skip


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    return write_every(tmp_path_factory.mktemp("layouts"))


@pytest.fixture
def report(capsys):
    """Check a path with a wanted exit code; gives its JSON."""

    def run(path, code, *more):
        assert call(["weights", "check", str(path), "--format", "json", *more]) == code
        streams = capsys.readouterr()
        found = json.loads(streams.out)
        assert found["verdict"] == ("wrong" if code else "ok")
        return found["components"]

    return run


def wrong(report, path, *more):
    return [problem["kind"] + ": " + problem["text"] for problem in report(path, 4, *more)["transformer"]["problems"]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_census_of_every_layout(every, report, variant):
    path, layout, bits = every[variant]
    found = report(path, 0)["transformer"]
    layers = sum(bits.values())
    assert found["layout"] == layout
    assert found["tensors"] == len(EXPECTED) + 2 * layers
    assert found["parameters"] == sum(int(np.prod(shape)) for shape in EXPECTED.values())
    assert found["dtypes"] == {"BF16": len(EXPECTED) + layers} | ({"U32": layers} if layers else {})
    assert {(g["bits"], g["group_size"]): g["layers"] for g in found["packed"] if g["bits"]} == bits
    assert (found["problems"], found["values_checked"]) == ([], True)
    assert len(found["guide"]) == (5 if bits else 0)


def test_bits_are_grouped_with_the_classes_of_layers(every, report):
    found = report(every["mflux-new"][0], 0)["transformer"]["packed"]
    assert [(g["bits"], g["layers"]) for g in found] == [(4, 32), (8, 2)]
    assert found[1]["classes"] == ["img_mod"]
    mixed = report(every["mlx-gen-mixed"][0], 0)["transformer"]["packed"]
    assert [(g["bits"], g["layers"]) for g in mixed] == [(4, 24), (None, 10)]


def test_the_guide_s_table_row_by_row(every, report):
    rows = report(every["mflux-4bit"][0], 0)["transformer"]["guide"]
    assert [(row["name"], row["expected"], row["verdict"]) for row in rows] == [
        ("time_text_embed.linear_1.weight", [128, 32], "ok"),
        ("time_text_embed.linear_1.scales", [128, 4], "ok"),
        ("time_text_embed.linear_1.biases", [128, 4], "ok"),
        ("transformer_blocks.N.img_mod_linear.weight", [768, 16], "ok"),
        ("norm_out.linear.weight", [256, 16], "ok"),
    ]
    other = report(every["mflux-new"][0], 0)["transformer"]["guide"]
    assert [row["verdict"] for row in other] == ["ok", "ok", "ok", "other", "ok"]
    assert other[3]["found"] == "[768, 32] 8-bit group 64"
    assert report(every["mlx-gen-mixed"][0], 0)["transformer"]["guide"][0]["found"] == "[128, 256] BF16"


def test_the_guide_s_table_at_full_size(tmp_path, report):
    shapes, words = {}, set()
    for name, shape in expected_tensors({}).items():
        stored = mflux_name(name)
        if len(shape) == 2:
            words.add(stored)
            layer = stored.removesuffix(".weight")
            shapes[stored] = (shape[0], shape[1] // 8)
            shapes[f"{layer}.scales"] = shapes[f"{layer}.biases"] = (shape[0], shape[1] // 64)
        else:
            shapes[stored] = shape
    arrays = {name: np.broadcast_to(np.uint8(0), shape) for name, shape in shapes.items()}
    save_sparse(tmp_path / "0.safetensors", arrays, words)
    found = report(tmp_path, 0, "--no-values")["transformer"]
    assert [(row["expected"], row["verdict"]) for row in found["guide"]] == [
        ([3072, 32], "ok"), ([3072, 4], "ok"), ([3072, 4], "ok"), ([18432, 384], "ok"), ([6144, 384], "ok"),
    ]  # fmt: skip
    assert found["packed"][0]["layers"] == 60 * 14 + 6
    assert round(found["parameters"] / 1e9, 2) == 20.43


def test_a_whole_model_is_checked_by_component(tmp_path, report):
    model = write_model(tmp_path, weights())
    assert list(report(model, 0)) == ["transformer", "text_encoder", "vae"]
    assert list(report(model, 0, "--component", "vae")) == ["vae"]
    assert list(report(model / "vae", 0)) == ["vae"]
    assert list(report(model / "text_encoder", 0)) == ["text_encoder"]


def test_missing_extra_and_misshapen_tensors_are_all_listed(tmp_path, report):
    arrays = weights()
    del arrays["norm_out.linear.bias"], arrays["txt_norm.weight"]
    arrays["surplus"] = arrays["img_in.bias"]
    arrays["proj_out.weight"] = arrays["proj_out.weight"].T.copy()
    assert sorted(wrong(report, write_diffusers(tmp_path, arrays))) == [
        "extra: surplus [128] in diffusion_pytorch_model-00001-of-00003.safetensors",
        "missing: norm_out.linear.bias [256]",
        "missing: txt_norm.weight [192]",
        "shape: proj_out.weight is [128, 64], expected [64, 128]",
    ]


def without_scales(folder, arrays):
    del arrays["img_in.scales"]
    write_mflux(folder, arrays, 4)


def of_integers(folder, arrays):
    arrays["img_in.bias"] = np.zeros(128, np.int32)
    write_mflux(folder, arrays, 4)


def twice_under_two_names(folder, arrays):
    write_mflux(folder, arrays, 4)
    save(folder / "2.safetensors", {"img_in.inner.bias": arrays["img_in.bias"]})
    (folder / "model.safetensors.index.json").unlink()


def twice_in_two_files(folder, arrays):
    write_mflux(folder, arrays, 4)
    save(folder / "2.safetensors", {"img_in.bias": arrays["img_in.bias"]})
    (folder / "model.safetensors.index.json").unlink()


def not_where_the_index_says(folder, arrays):
    write_mflux(folder, arrays, 4)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["img_in.bias"] = "1.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def of_another_config(folder, arrays):
    write_mflux(folder, arrays, 4)
    write_config(folder, {"num_attention_heads": 2.5})


def cut_off(folder, arrays):
    write_mflux(folder, arrays, 4)
    write_config(folder)
    file = folder / "1.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def of_two_layouts(folder, arrays):
    write_mflux(folder, arrays, 4)
    save(folder / "2.safetensors", {"transformer_blocks.0.img_mod.1.bias": np.zeros(768, np.float32)})
    (folder / "model.safetensors.index.json").unlink()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (without_scales, "packing: img_in has biases of a quantized layer, but no scales"),
        (of_integers, "dtype: img_in.bias is I32, expected BF16, F16, F32, F64"),
        (twice_in_two_files, "duplicate: img_in.bias is in 0.safetensors and in 2.safetensors"),
        (twice_under_two_names, "duplicate: img_in.bias and img_in.inner.bias are both img_in.bias"),
        (of_two_layouts, "mixed layouts"),
        (not_where_the_index_says, "index: img_in.bias should be in 1.safetensors, it is in 0.safetensors"),
        (of_another_config, "config: num_attention_heads is 2.5"),
        (cut_off, "file: 1.safetensors: truncated: the header describes"),
    ],
)
def test_every_other_fault_is_named(tmp_path, report, fault, said):
    fault(tmp_path, packed(weights(), 4))
    assert any(said in problem for problem in wrong(report, tmp_path, "--no-values"))


def test_a_component_that_cannot_be_read_leaves_the_others_to_be_looked_at(tmp_path, report):
    model = write_model(tmp_path, weights())
    (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    found = report(model, 4)
    assert {name: one["problems"] == [] for name, one in found.items()} == {
        "transformer": True, "text_encoder": True, "vae": False,
    }  # fmt: skip
    assert "found no safetensors file" in found["vae"]["problems"][0]["text"]


def test_what_was_inferred_and_resolved_is_said(every, report):
    notes = {name: " | ".join(report(every[name][0], 0, "--no-values")["transformer"]["notes"]) for name in VARIANTS}
    assert notes["diffusers"] == ""
    assert "quantization_level: None, that is not quantized; 0 layers are packed" in notes["mflux"]
    for name, layers, bits, group, others in (
        ("mflux-4bit", 34, 4, 64, "2 bits in groups of 128 or 8 bits in groups of 32"),
        ("mlx-gen-mixed", 24, 4, 64, "2 bits in groups of 128 or 8 bits in groups of 32"),
        ("mflux-new", 2, 8, 64, "4 bits in groups of 128"),
        ("mflux-8bit-32", 34, 8, 32, "2 bits in groups of 128 or 4 bits in groups of 64"),
    ):
        said = f"{layers} layers are read as {bits} bits in groups of {group}: their shapes also fit {others}"
        assert said in notes[name]
    assert all("no config.json: from the shapes, 2 blocks" in notes[name] for name in VARIANTS[1:])


def test_values_that_are_not_finite_and_matrices_of_zeros(tmp_path, report):
    arrays = packed(weights(), 4)
    arrays["img_in.scales"][3, 0] = np.nan
    arrays["txt_in.biases"][0, 0] = np.inf
    arrays["proj_out.weight"][:] = 0
    arrays["proj_out.bias"][:] = 0
    write_mflux(tmp_path, arrays, 4)
    assert sorted(wrong(report, tmp_path)) == [
        "non-finite: img_in.scales: 1 NaN of 128 values",
        "non-finite: txt_in.biases: 1 infinite of 384 values",
        "zero: proj_out.weight: all codes are zero",
    ]
    found = report(tmp_path, 4)["transformer"]
    assert found["warnings"] == ["proj_out.bias: all values are zero"]
    assert report(tmp_path, 0, "--no-values")["transformer"]["values_checked"] is False


@pytest.mark.parametrize("more", [(), ("--no-values",)])
def test_hashes_are_those_of_the_files(every, report, more):
    folder = every["mflux-4bit"][0]
    found = report(folder, 0, "--hash", *more)["transformer"]["sha256"]
    assert found == {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.glob("*.safetensors")}


def test_fingerprints_tell_weights_apart(tmp_path, report):
    prints = {
        report(write_mflux(tmp_path / str(seed), packed(weights(seed=seed), 4), 4), 0)["transformer"]["fingerprint"]
        for seed in (0, 1)
    }
    assert len(prints) == 2


def test_the_table_fits_eighty_columns_and_escapes_names(tmp_path, capsys):
    arrays = packed(weights(), 4, other=dict.fromkeys(MODULATION, (8, 64)))
    arrays["bad\x1b[31m"] = np.ones(3, ml_dtypes.bfloat16)
    write_mflux(tmp_path, arrays, 4)
    assert call(["weights", "check", str(tmp_path)]) == 4
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b[31m" not in out
    text = " ".join(out.split())
    for part in ("layout mflux", "4-bit group 64 30 layers", "8-bit group 64 4 layers (img_mod, txt_mod)",
                 "extra: 'bad\\x1b[31m' [3]", "1 thing is wrong"):  # fmt: skip
        assert part in text


def test_a_list_that_is_long_is_cut_in_the_table_and_whole_in_json(tmp_path, capsys, report):
    folder = write_diffusers(tmp_path, weights())
    write_config(folder, {"num_layers": 1})
    assert call(["weights", "check", str(folder)]) == 4
    assert "and 20 more extra" in capsys.readouterr().out
    assert len(wrong(report, folder)) == 32


def test_what_is_not_there(tmp_path, capsys):
    assert call(["weights", "check", str(tmp_path / "no")]) == 4
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "there is no such folder" in streams.err
    write_model(tmp_path / "m", weights())
    shutil.rmtree(tmp_path / "m" / "vae")
    assert call(["weights", "check", str(tmp_path / "m"), "--component", "vae"]) == 4
    assert "holds no weights of a vae" in capsys.readouterr().err
