"""Every damaged checkpoint is named for what it is; its undamaged twin passes."""

import json
import math
import struct
from dataclasses import asdict

import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from parity import checkpoint as ck
from parity import transformer_shape as shape
from parity.errors import EXIT_PRECONDITION, WeightsError

SMALL = {
    "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 12,
    "axes_dims_rope": [2, 2, 4], "in_channels": 8, "out_channels": 2,
}  # fmt: skip
SINGLE = "diffusion_pytorch_model.safetensors"
INDEX = f"{SINGLE}.index.json"
KINDS = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16",
         np.dtype(np.float64): "F64", np.dtype(np.int32): "I32"}  # fmt: skip


def shard_bytes(arrays, metadata=None, edit=None):
    """A safetensors file; `edit` may change the header before it is written."""
    header, offset = {}, 0
    for name, array in arrays.items():
        header[name] = {"dtype": KINDS[array.dtype], "shape": list(array.shape),
                        "data_offsets": [offset, offset + array.nbytes]}  # fmt: skip
        offset += array.nbytes
    if metadata:
        header["__metadata__"] = metadata
    if edit:
        edit(header)
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + b"".join(a.tobytes() for a in arrays.values())


def weights(config=SMALL, dtype=ml_dtypes.bfloat16):
    draw = np.random.default_rng(0)
    return {n: draw.standard_normal(s).astype(dtype) for n, s in shape.expected_tensors(config).items()}


def shard_name(part, of):
    return f"diffusion_pytorch_model-{part + 1:05d}-of-{of:05d}.safetensors"


def write(folder, arrays=None, config=SMALL, parts=3, metadata=None):
    """A checkpoint as diffusers writes it: sharded with an index, or one file where parts is 1."""
    arrays = weights(config) if arrays is None else arrays
    folder.mkdir(parents=True, exist_ok=True)
    named = {"_class_name": shape.CLASS_NAME, "_diffusers_version": "0.42.1"}
    (folder / "config.json").write_text(json.dumps(named | config))
    if parts == 1:
        (folder / SINGLE).write_bytes(shard_bytes(arrays, metadata))
        return folder
    names, place = list(arrays), {}
    for part in range(parts):
        mine = {name: arrays[name] for name in names[part::parts]}
        place |= dict.fromkeys(mine, shard_name(part, parts))
        (folder / shard_name(part, parts)).write_bytes(shard_bytes(mine, metadata))
    total = sum(array.nbytes for array in arrays.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": place}))
    return folder


def problems(folder):
    with pytest.raises(WeightsError) as caught:
        ck.inspect(folder)
    error = caught.value
    assert error.exit_code == EXIT_PRECONDITION
    assert "\n" not in error.message
    return [error.message, *error.details]


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("below", ["", "transformer"])
def test_a_sound_checkpoint_is_described(tmp_path, parts, below):
    write(tmp_path / below, parts=parts)
    found = ck.inspect(tmp_path)
    expected = shape.expected_tensors(SMALL)
    assert found.root == tmp_path / below
    assert {name: t.shape for name, t in found.tensors.items()} == expected
    assert found.parameters == sum(map(math.prod, expected.values()))
    assert found.nbytes == 2 * found.parameters
    assert found.dtypes == {"BF16": len(expected)}
    assert (len(found.shards), found.synthetic, found.warnings) == (parts, None, ())
    assert found.config["axes_dims_rope"] == [2, 2, 4]
    assert found.config["use_layer3d_rope"] is False


def test_offsets_point_at_the_values(tmp_path):
    arrays = weights()
    found = ck.inspect(write(tmp_path, arrays))
    for name, tensor in found.tensors.items():
        raw = (tmp_path / tensor.shard).read_bytes()[tensor.start : tensor.stop]
        assert raw == arrays[name].tobytes()


@pytest.mark.parametrize("flags", [{}, {"use_additional_t_cond": True}, {"out_channels": None}, {"zero_cond_t": True}])
def test_expected_tensors_are_those_of_diffusers(flags):
    config = SMALL | flags
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(**config)
    assert shape.expected_tensors(config) == {name: tuple(t.shape) for name, t in model.state_dict().items()}


def test_the_published_configuration_has_1933_tensors_and_20_billion_parameters():
    with torch.device("meta"):
        model = QwenImageTransformer2DModel()
    expected = shape.expected_tensors({})
    assert expected == {name: tuple(t.shape) for name, t in model.state_dict().items()}
    assert len(expected) == 60 * 32 + 13
    assert round(sum(map(math.prod, expected.values())) / 1e9, 2) == 20.43


def test_defaults_are_those_of_diffusers():
    with torch.device("meta"):
        theirs = dict(QwenImageTransformer2DModel(num_layers=1).config)
    theirs = {key: value for key, value in theirs.items() if not key.startswith("_")}
    assert asdict(shape.TransformerShape.of({"num_layers": 1})) == theirs


def test_a_file_of_safetensors_itself_is_read(tmp_path):
    from safetensors.numpy import save_file

    write(tmp_path, parts=1)
    save_file(weights(dtype=np.float16), tmp_path / SINGLE, metadata={"format": "pt"})
    assert ck.inspect(tmp_path).dtypes == {"F16": len(shape.expected_tensors(SMALL))}


def test_the_retired_key_of_the_published_configuration_is_accepted(tmp_path):
    plain = ck.inspect(write(tmp_path / "a"))
    retired = ck.inspect(write(tmp_path / "b", config=SMALL | {"pooled_projection_dim": 768}))
    assert "pooled_projection_dim" not in retired.config
    assert retired.config == plain.config


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"window": 3}, "unknown key window"),
        ({"num_layers": "60"}, "num_layers is 60, expected a positive integer"),
        ({"num_layers": 0}, "num_layers is 0, expected a positive integer"),
        ({"num_layers": True}, "num_layers is True, expected a positive integer"),
        ({"in_channels": None}, "in_channels is None, expected a positive integer"),
        ({"zero_cond_t": 1}, "zero_cond_t is 1, expected true or false"),
        ({"axes_dims_rope": [1, 3, 4]}, "axes_dims_rope is [1, 3, 4], expected three even positive integers"),
        ({"axes_dims_rope": [2, 2, 2]}, "axes_dims_rope sums to 6, expected attention_head_dim = 8"),
        ({"_class_name": "FluxTransformer2DModel"}, "_class_name is FluxTransformer2DModel"),
        ({"bad\x1b[31m": 1}, "unknown key 'bad\\x1b[31m'"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path, change, expected):
    ck.inspect(write(tmp_path))
    edit_json(tmp_path / "config.json", lambda config: config.update(change))
    assert any(line.startswith(expected) for line in problems(tmp_path)[1:])


def test_wrong_configuration_and_damaged_shard_are_reported_together(tmp_path):
    write(tmp_path)
    edit_json(tmp_path / "config.json", lambda config: config.update(window=3, depth=4))
    (tmp_path / shard_name(0, 3)).write_bytes(b"")
    text = "\n".join(problems(tmp_path))
    assert "unknown key window" in text
    assert "unknown key depth" in text
    assert f"{shard_name(0, 3)}: empty file" in text


@pytest.mark.parametrize("content", ["", "{", "[]", '{"num_layers": 1, "num_layers": 2}', "\x00" * 9, "[" * 100_000])
def test_a_configuration_that_is_no_json_object(tmp_path, content):
    write(tmp_path)
    (tmp_path / "config.json").write_text(content)
    assert "config.json" in problems(tmp_path)[0]


def test_a_folder_that_is_not_there(tmp_path):
    assert "there is no such folder" in problems(tmp_path / "nothing")[0]


def test_a_folder_that_is_no_checkpoint_says_what_it_found(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    message = problems(tmp_path)[0]
    assert "found holiday.jpg" in message
    assert "config.json" in message


def test_a_single_file_of_a_shape_that_follows_from_nothing_needs_its_config(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(shard_bytes(weights()))
    assert "put the model's config.json beside the weights" in problems(tmp_path / "model.safetensors")[0]
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": shape.CLASS_NAME} | SMALL))
    assert ck.inspect(tmp_path / "model.safetensors").layout == "single"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("qwen-image-Q4_0.gguf", "GGUF files are not read"), ("diffusion_pytorch_model.bin", "pickled weights are not")],
)
@pytest.mark.parametrize("config", [True, False])
def test_a_format_that_is_not_read_is_recognised(tmp_path, name, hint, config):
    write(tmp_path, parts=1)
    (tmp_path / SINGLE).unlink()
    if not config:
        (tmp_path / "config.json").unlink()
    (tmp_path / name).write_bytes(b"")
    assert hint in problems(tmp_path)[0]


def test_shards_without_their_index(tmp_path):
    write(tmp_path)
    (tmp_path / INDEX).unlink()
    assert "3 shards without their index" in problems(tmp_path)[0]


DAMAGE = {
    "empty": (lambda raw: b"", "empty file"),
    "four bytes": (lambda raw: raw[:4], "expected at least 8"),
    "header cut": (lambda raw: raw[:100], "truncated or no safetensors file"),
    "data cut": (lambda raw: raw[:-1], "truncated: the header describes"),
    "data added": (lambda raw: raw + b"\0\0", "2 bytes follow the last tensor"),
    "huge header": (lambda raw: struct.pack("<Q", 1 << 60) + raw[8:], "against a limit"),
    "noise": (lambda raw: raw[:8] + b"\xff" * (len(raw) - 8), "no UTF-8"),
    "no json": (lambda raw: raw[:8] + b"?" + raw[9:], "no JSON"),
    "list": (lambda raw: struct.pack("<Q", 2) + b"[]", "no object"),
    "no tensors": (lambda raw: struct.pack("<Q", 2) + b"{}", "holds no tensors"),
    "lfs pointer": (lambda raw: b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_its_tensors_are_not_called_missing(tmp_path, damage, parts):
    change, expected = DAMAGE[damage]
    write(tmp_path, parts=parts)
    shard = tmp_path / (SINGLE if parts == 1 else shard_name(1, 3))
    shard.write_bytes(change(shard.read_bytes()))
    _, *details = problems(tmp_path)
    assert len(details) == 1
    assert details[0].startswith(shard.name)
    assert expected in details[0]


def entry(**change):
    return lambda header: header["img_in.bias"].update(change)


HEADERS = {
    "overlap": (lambda h: h["img_in.bias"].update(data_offsets=h["txt_in.bias"]["data_offsets"]), "overlaps"),
    "gap": (lambda h: h.pop("img_in.bias"), "leaves a gap"),
    "span": (entry(shape=[15]), "takes 30 bytes, its offsets span 32"),
    "negative": (entry(shape=[-16]), "shape is [-16]"),
    "fraction": (entry(shape=[16.0]), "shape is [16.0]"),
    "truth": (entry(shape=[True]), "shape is [True]"),
    "giant": (entry(shape=[1 << 80]), "shape is"),
    "many": (entry(shape=[1] * 9), "shape is"),
    "three offsets": (entry(data_offsets=[0, 1, 2]), "data_offsets is"),
    "backwards": (entry(data_offsets=[32, 0]), "its offsets span -32"),
    "dtype": (entry(dtype="F12"), "unknown dtype F12"),
    "no text": (entry(dtype=["F32"]), "unknown dtype"),
    "no entry": (lambda h: h.update({"img_in.bias": 3}), "its entry is not"),
    "metadata": (lambda h: h.update({"__metadata__": {"a": 1}}), "no mapping of strings"),
}


@pytest.mark.parametrize("damage", HEADERS)
def test_a_header_that_contradicts_itself(tmp_path, damage):
    change, expected = HEADERS[damage]
    write(tmp_path, parts=1)
    (tmp_path / SINGLE).write_bytes(shard_bytes(weights(), edit=change))
    assert any(expected in line for line in problems(tmp_path)[1:])


def test_a_tensor_twice_in_one_header(tmp_path):
    write(tmp_path, parts=1)
    raw = shard_bytes(weights()).replace(b'"img_in.bias"', b'"txt_in.bias"')
    (tmp_path / SINGLE).write_bytes(raw)
    assert "key txt_in.bias comes twice" in problems(tmp_path)[0]


def test_the_index_names_an_absent_shard(tmp_path):
    write(tmp_path)
    (tmp_path / shard_name(2, 3)).unlink()
    _, *details = problems(tmp_path)
    assert len(details) == 1
    assert f"names {shard_name(2, 3)}, which is not there" in details[0]


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a\n.safetensors", ".safetensors", 3])
def test_the_index_may_not_point_outside_its_folder(tmp_path, name):
    write(tmp_path)
    edit_json(tmp_path / INDEX, lambda index: index["weight_map"].update({"img_in.bias": name}))
    assert "names of safetensors files in this folder" in problems(tmp_path)[0]


def test_index_and_shards_disagree(tmp_path):
    write(tmp_path)
    place = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    other = next(file for file in place.values() if file != place["img_in.bias"])

    def change(index):
        index["weight_map"]["img_in.bias"] = other
        index["weight_map"]["phantom"] = other
        del index["weight_map"]["txt_in.bias"]

    edit_json(tmp_path / INDEX, change)
    _, *details = problems(tmp_path)
    assert sorted(details) == sorted([
        f"index: img_in.bias should be in {other}, it is in {place['img_in.bias']}",
        f"index: phantom should be in {other}, it is nowhere",
        f"index: does not list txt_in.bias of {place['txt_in.bias']}",
    ])  # fmt: skip


def test_missing_extra_and_wrongly_shaped_tensors_are_all_listed(tmp_path):
    arrays = weights()
    del arrays["norm_out.linear.bias"], arrays["transformer_blocks.1.attn.norm_q.weight"]
    arrays["surplus"] = arrays["img_in.bias"]
    arrays["proj_out.weight"] = arrays["proj_out.weight"].T.copy()
    _, *details = problems(write(tmp_path, arrays, parts=1))
    assert sorted(details) == [
        f"extra: surplus [16] in {SINGLE}",
        "missing: norm_out.linear.bias [32]",
        "missing: transformer_blocks.1.attn.norm_q.weight [8]",
        "shape: proj_out.weight is [16, 8], expected [8, 16]",
    ]


def test_a_tensor_in_two_shards(tmp_path):
    arrays = weights()
    write(tmp_path, arrays)
    place = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    other = next(file for file in place.values() if file != place["img_in.bias"])
    mine = {name: arrays[name] for name, file in place.items() if file == other}
    (tmp_path / other).write_bytes(shard_bytes(mine | {"img_in.bias": arrays["img_in.bias"]}))
    assert any("duplicate: img_in.bias is in" in line for line in problems(tmp_path)[1:])


def test_an_unsupported_dtype(tmp_path):
    arrays = weights()
    arrays["img_in.bias"] = arrays["img_in.bias"].astype(np.int32)
    assert "dtype: img_in.bias is I32, expected BF16, F16, F32, F64" in problems(write(tmp_path, arrays))[1:]


def test_stray_files_are_warned_of(tmp_path):
    write(tmp_path)
    (tmp_path / "copy.safetensors").touch()
    assert ck.inspect(tmp_path).warnings == (f"copy.safetensors is not named by {INDEX}",)


@pytest.mark.parametrize(
    ("metadata", "content", "expected"),
    [
        ({ck.SYNTHETIC_KEY: "tiny"}, None, "tiny"),
        ({"format": "pt"}, '{"preset": "wide", "seed": 0}', "wide"),
        ({"format": "pt"}, "garbled", "unknown"),
        ({"format": "pt"}, None, None),
    ],
)
def test_generated_checkpoints_are_known_as_such(tmp_path, metadata, content, expected):
    write(tmp_path, metadata=metadata)
    if content is not None:
        (tmp_path / ck.SYNTHETIC_FILE).write_text(content)
    assert ck.inspect(tmp_path).synthetic == expected


DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_finite_weights_pass_and_zeros_are_named(tmp_path, dtype):
    arrays = weights(dtype=dtype)
    arrays["img_in.bias"] = np.full_like(arrays["img_in.bias"], -0.0)
    arrays["txt_in.bias"][:] = np.array(ml_dtypes.finfo(dtype).max, dtype)
    steps = []
    found = ck.inspect(write(tmp_path, arrays))
    assert ck.check_finite(found, lambda done, total: steps.append((done, total))) == ("img_in.bias",)
    assert steps[-1] == (found.nbytes, found.nbytes)
    assert len(steps) == len(found.tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_non_finite_tensor_is_named_with_its_counts(tmp_path, dtype):
    arrays = weights(dtype=dtype)
    arrays["img_in.bias"][:2] = -np.nan
    arrays["img_in.bias"][5] = -np.inf
    arrays["txt_in.weight"][3, 4] = np.inf
    with pytest.raises(WeightsError) as caught:
        ck.check_finite(ck.inspect(write(tmp_path, arrays)))
    assert sorted(caught.value.details) == [
        "img_in.bias: 2 NaN and 1 infinite of 16 values",
        "txt_in.weight: 1 infinite of 192 values",
    ]


def test_the_last_value_of_the_last_chunk_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(ck, "_CHUNK", 7)
    arrays = weights()
    arrays["txt_in.weight"][-1, -1] = np.nan
    with pytest.raises(WeightsError, match="1 NaN of 192"):
        ck.check_finite(ck.inspect(write(tmp_path, arrays)))


def test_a_shard_that_changed_size_is_not_read(tmp_path):
    found = ck.inspect(write(tmp_path))
    (tmp_path / shard_name(0, 3)).write_bytes(b"")
    for read in (ck.check_finite, ck.fingerprint):
        with pytest.raises(WeightsError, match="has changed since it was inspected"):
            read(found)


def test_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    arrays = weights()
    here = ck.fingerprint(ck.inspect(write(tmp_path / "a", arrays)))
    assert ck.fingerprint(ck.inspect(write(tmp_path / "b", arrays))) == here
    arrays["proj_out.bias"][-1] += 1
    assert ck.fingerprint(ck.inspect(write(tmp_path / "c", arrays))) != here


@pytest.mark.parametrize("flag", ["zero_cond_t", "guidance_embeds"])
def test_fingerprint_follows_the_configuration(tmp_path, flag):
    here = ck.fingerprint(ck.inspect(write(tmp_path / "a")))
    assert ck.fingerprint(ck.inspect(write(tmp_path / "b", config=SMALL | {flag: True}))) != here
