"""Folders and files that are wrong in every way: always one line that says so, no other exception, no memory."""

import json
import os
import shutil
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layout_folders import packed, save, weights, write_config, write_mflux

from parity import checkpoint
from parity.errors import WeightsError
from parity.layouts import locate
from parity.layouts.folder import components_of

MFLUX_INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_mflux(tmp_path_factory.mktemp("good"), packed(weights(), 4), 4)


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "model")


def refused(path, said):
    for read in (locate, checkpoint.inspect):
        with pytest.raises(WeightsError) as caught:
            read(path)
        text = " | ".join([caught.value.message, *caught.value.details])
        assert said in text
        assert "\n" not in text


def edit_index(folder, change, name=MFLUX_INDEX):
    index = json.loads((folder / name).read_text())
    change(index["weight_map"])
    (folder / name).write_text(json.dumps(index))


def test_the_undamaged_twin_passes(folder):
    assert checkpoint.inspect(folder).bits == {"4-bit group 64": 34}


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def bomb(file):
    file.write_bytes(struct.pack("<Q", 1 << 40) + file.read_bytes()[8:])


def overlap(file):
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    one, two = [entry for name, entry in header.items() if name != "__metadata__"][:2]
    begin, size = one["data_offsets"][0], two["data_offsets"][1] - two["data_offsets"][0]
    two["data_offsets"] = [begin, begin + size]
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "1.safetensors: truncated: the header describes"), (bomb, "against a limit of"),
        (overlap, "overlaps the tensor before it"), (lambda f: f.write_bytes(b""), "1.safetensors: empty file"),
        (lambda f: f.unlink(), "names 1.safetensors, which is not there"),
    ],
)  # fmt: skip
def test_a_damaged_shard(folder, damage, said):
    damage(folder / "1.safetensors")
    write_config(folder)
    refused(folder, said)


def test_a_shard_that_is_missing_where_there_is_no_config_either(folder):
    (folder / "1.safetensors").unlink()
    refused(folder, "names 1.safetensors, which is not there")


def test_numbered_files_without_an_index(folder):
    (folder / MFLUX_INDEX).unlink()
    assert checkpoint.inspect(folder).layout == "mflux"
    shutil.copy(folder / "1.safetensors", folder / "3.safetensors")
    refused(folder, "2.safetensors is not there, and later ones are")


def test_a_tensor_in_two_files(folder):
    (folder / MFLUX_INDEX).unlink()
    shutil.copy(folder / "1.safetensors", folder / "2.safetensors")
    refused(folder, "duplicate: ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda place: place.update({"img_in.bias": "1.safetensors"}), "index: img_in.bias should be in 1.safetensors"),
        (lambda place: place.pop("img_in.bias"), "index: does not list img_in.bias of 0.safetensors"),
        (lambda place: place.update(ghost="0.safetensors"), "index: ghost should be in 0.safetensors, it is nowhere"),
        (lambda place: place.update(ghost="../x.safetensors"), "names of safetensors files in this folder"),
        (lambda place: place.clear(), "weight_map does not map"),
    ],
)
def test_an_index_that_is_wrong(folder, change, said):
    edit_index(folder, change)
    refused(folder, said)


def test_two_indices_are_two_layouts(folder):
    shutil.copy(folder / MFLUX_INDEX, folder / "diffusion_pytorch_model.safetensors.index.json")
    refused(folder, "mixed layouts: it has the indices diffusion_pytorch_model.safetensors.index.json and model.")


def test_a_part_of_several_is_not_a_single_file(folder):
    refused(folder / "0.safetensors", "is one file of several; name the folder")


@pytest.mark.parametrize("name", ["0.safetensors", MFLUX_INDEX, "config.json"])
def test_a_link_out_of_the_folder_is_refused(folder, tmp_path, name):
    write_config(folder)
    shutil.move(folder / name, tmp_path / f"elsewhere-{name}")
    (folder / name).symlink_to(tmp_path / f"elsewhere-{name}")
    refused(folder, "outside the model's folder")


def test_a_linked_component_is_refused_and_one_inside_passes(folder, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "transformer").symlink_to(folder)
    refused(tmp_path / "root", "outside the model's folder")
    assert checkpoint.inspect(tmp_path / "root" / "transformer").layout == "mflux"
    (folder / "1.safetensors").rename(folder / "real.bin")
    (folder / "1.safetensors").symlink_to(folder / "real.bin")
    assert checkpoint.inspect(folder).layout == "mflux"


def test_a_link_that_leads_nowhere_or_in_circles(folder):
    (folder / "1.safetensors").unlink()
    for target in ("nowhere", "1.safetensors"):
        (folder / "1.safetensors").symlink_to(target)
        refused(folder, "names 1.safetensors, which is not there")
        (folder / "1.safetensors").unlink()


def hub_cache(folder, root, below=""):
    """A snapshot as huggingface_hub lays it out: files link to blobs of the same repository."""
    repository = root / "models--org--name"
    snapshot = repository / "snapshots" / "0123abcd" / below
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, repository / "blobs" / f"blob{i}")
        (snapshot / file.name).symlink_to(os.path.relpath(repository / "blobs" / f"blob{i}", snapshot))
    return repository


@pytest.mark.parametrize("below", ["", "transformer"])
def test_a_snapshot_of_the_hub_is_let_through(folder, tmp_path, below):
    repository = hub_cache(folder, tmp_path, below)
    snapshot = repository / "snapshots" / "0123abcd"
    for path in {snapshot, snapshot / below}:
        assert checkpoint.inspect(path).layout == "mflux"
    shutil.copy(folder / "0.safetensors", tmp_path / "other")
    (snapshot / below / "0.safetensors").unlink()
    (snapshot / below / "0.safetensors").symlink_to(tmp_path / "other")
    refused(snapshot, "outside the model's folder")


def test_a_config_of_too_many_blocks_takes_no_memory(folder):
    write_config(folder, {"num_layers": 1 << 30})
    tracemalloc.start()
    refused(folder, "num_layers is 1073741824, expected a positive integer up to 4096")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_a_block_number_of_a_billion_takes_no_memory(tmp_path):
    arrays = {name.replace("transformer_blocks.1.", "transformer_blocks.999999."): a for name, a in weights().items()}
    refused(save(tmp_path / "one.safetensors", arrays), "1000000 blocks in")


# Anything that JSON has, and things that look nearly right.
KEYS = st.sampled_from(
    ["a\x1b[31m", "img_in.weight",
     "img_in.scales", "img_in.biases", "img_in.inner.weight", "model.diffusion_model.img_in.bias",
     "transformer_blocks.0.img_mod.1.weight", "transformer_blocks.0.img_mod_linear.weight", "__metadata__",
     "time_text_embed.linear_1.weight", "encoder.down_blocks.0.resnets.99.conv1.conv3d.weight", "", "\ud800",
     "transformer_blocks.99999999999999999999.attn.to_q.weight", "decoder.conv_in.weight", "txt_norm.weight",
     "proj_out.bias", "img_in.bias", "transformer_blocks.0.attn.norm_q.weight", "__index_timestep_zero__"]
) | st.text(max_size=12)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8,
)  # fmt: skip
DTYPES = st.sampled_from(["BF16", "F32", "U32", "U8", "F8_E4M3", "F12", None])
ENTRIES = st.fixed_dictionaries(
    {"dtype": DTYPES, "shape": st.lists(st.integers(0, 40) | st.integers(), max_size=4),
     "data_offsets": st.lists(st.integers(0, 500) | st.integers(), min_size=1, max_size=3)}
)  # fmt: skip
HEADERS = st.dictionaries(KEYS, ENTRIES | JSON, max_size=6)


@st.composite
def consistent(draw):
    """A header whose offsets are right, so that what is behind the header's checks is reached."""
    header, offset = {}, 0
    for key in draw(st.lists(KEYS.filter(lambda key: key != "__metadata__"), unique=True, min_size=1, max_size=8)):
        dtype, shape = (
            draw(st.sampled_from(["BF16", "F32", "U32", "U8"])),
            draw(st.lists(st.integers(0, 16), max_size=5)),
        )
        size = int(np.prod(shape)) * {"BF16": 2, "F32": 4, "U32": 4, "U8": 1}[dtype]
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset := offset + size]}
    return header, offset


def outcome(read, *args):
    """None where a reader succeeds, the lines of its error where it refuses; any other exception goes through."""
    try:
        read(*args)
    except WeightsError as error:
        return [error.message, *error.details]
    return None


def only_weights_errors(path, size):
    """Every reader either succeeds or refuses with lines that a terminal shows, within memory of the file's order."""
    tracemalloc.start()
    said = [outcome(components_of, path)]
    for component in ("transformer", "vae", "text_encoder"):
        said += [outcome(read, path, component) for read in (locate, checkpoint.inspect)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(line.isprintable() for lines in said if lines for line in lines)
    assert peak < 3_000_000 + 60 * size
    return said


ROUNDS = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@ROUNDS
@given(header=HEADERS, data=st.integers(0, 600), length=st.none() | st.integers(0, 1 << 63))
def test_fuzzed_headers(tmp_path_factory, header, data, length):
    folder = tmp_path_factory.mktemp("fuzz")
    raw = json.dumps(header).encode()
    raw = struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data)
    (folder / "0.safetensors").write_bytes(raw)
    only_weights_errors(folder, len(raw))
    only_weights_errors(folder / "0.safetensors", len(raw))
    shutil.rmtree(folder)


@ROUNDS
@given(made=consistent(), config=st.none() | JSON | st.dictionaries(
    st.sampled_from(["num_layers", "_class_name", "base_dim", "dim_mult", "model_type", "vision_config"]),
    JSON | st.sampled_from(["AutoencoderKLQwenImage", "qwen2_5_vl", 2])))  # fmt: skip
def test_fuzzed_names_and_configs(tmp_path_factory, made, config):
    folder = tmp_path_factory.mktemp("fuzz")
    header, size = made
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(size))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    # A configuration that is right asks for some thousand tensors, whatever the files hold.
    only_weights_errors(folder, len(raw) + size + 200_000)
    only_weights_errors(folder / "model.safetensors", len(raw) + size + 200_000)
    shutil.rmtree(folder)


@ROUNDS
@given(content=st.binary(max_size=60) | st.builds(lambda x: json.dumps(x).encode(), JSON | st.fixed_dictionaries(
    {"weight_map": st.dictionaries(KEYS, JSON | st.sampled_from(["0.safetensors", "9.safetensors"]))})))  # fmt: skip
def test_fuzzed_indices(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("fuzz")
    save(folder / "0.safetensors", {"img_in.bias": np.zeros(3, np.float32)})
    (folder / MFLUX_INDEX).write_bytes(content)
    only_weights_errors(folder, len(content))
    shutil.rmtree(folder)


@ROUNDS
@given(edits=st.lists(st.tuples(
    st.integers(0, 200), st.sampled_from(["name", "dtype", "shape", "data_offsets"]), KEYS | DTYPES | JSON
    | st.lists(st.integers(0, 1000), min_size=2, max_size=2)), min_size=1, max_size=3))  # fmt: skip
def test_fuzzed_edits_of_a_sound_header(good, tmp_path_factory, edits):
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(good, folder / "model")
    file = folder / "model" / "0.safetensors"
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    for place, what, value in edits:
        name = list(header)[place % len(header)]
        if what == "name":
            header[str(value)] = header.pop(name)
        elif isinstance(header[name], dict):
            header[name][what] = value
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    said = only_weights_errors(folder / "model", len(text))
    assert said[1] is None or said[1] != []
    shutil.rmtree(folder)


def test_the_fuzzer_s_own_check_goes_red(good, monkeypatch):
    assert only_weights_errors(good, 1_000_000)[1] is None

    def stumble(*args):
        raise ValueError("other")

    def swallow(*args):
        assert len(bytearray(100_000_000)) == 100_000_000
        raise WeightsError("refused")

    def speak(*args):
        raise WeightsError("two\nlines")

    for fault, error in ((stumble, ValueError), (swallow, AssertionError), (speak, AssertionError)):
        monkeypatch.setattr("parity.layouts.survey.read_files", fault)
        with pytest.raises(error):
            only_weights_errors(good, 0)
        tracemalloc.stop()
