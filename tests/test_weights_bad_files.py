"""Folders and files that are wrong in every way: always one line that says so, and no memory."""

import json
import os
import shutil
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from layout_folders import packed, save, weights, write_config, write_mflux

from parity import checkpoint
from parity.cli import call
from parity.errors import WeightsError
from parity.layouts import locate

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


def test_names_of_files_cannot_speak_to_a_terminal(tmp_path, capsys):
    bad = "\x1b[31m\udcff"

    def refused_and_escaped(path):
        assert call(["weights", "check", str(path)]) == 4
        streams = capsys.readouterr()
        said = streams.out + streams.err
        assert all(line.isprintable() for line in said.splitlines())
        # A long path is broken over lines, and the name in it with it.
        assert "x1b[31m" in "".join(said.split())

    index = tmp_path / f"{bad}.safetensors.index.json"
    for content in ({}, {"weight_map": {"a": "0.safetensors"}}):
        index.write_text(json.dumps(content))
        refused_and_escaped(tmp_path)
    index.unlink()
    link = tmp_path / f"{bad}.safetensors"
    link.write_bytes(b"1234")
    refused_and_escaped(tmp_path)
    link.unlink()
    link.symlink_to("/etc/hostname")
    refused_and_escaped(tmp_path)
    refused_and_escaped(tmp_path / bad)


def test_names_of_layers_are_no_markup(tmp_path, capsys):
    write_config(tmp_path, {"_class_name": "AnotherVae"})
    scales = np.ones((8, 2), ml_dtypes.bfloat16)
    layer = {"weight": np.ones((8, 6), np.uint32), "scales": scales, "biases": scales}
    arrays = {f"conv_in.[/x].{part}": array for part, array in layer.items()}
    save(tmp_path / "diffusion_pytorch_model.safetensors", arrays)
    assert call(["weights", "check", str(tmp_path), "--component", "vae"]) == 0
    assert "1 layer ([/x])" in capsys.readouterr().out
