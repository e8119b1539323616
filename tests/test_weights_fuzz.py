"""A fuzzer over headers, names, configs, indices and bytes, random ones and sound ones with something changed.

Every reader and the command itself refuse in lines that a terminal shows, or succeed; any exception but `WeightsError`
goes through and fails.
"""

import io
import json
import shutil
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layout_folders import packed, save, weights, write_mflux
from rich.console import Console

from parity import checkpoint, weights_check
from parity.cli import call
from parity.errors import WeightsError
from parity.layouts import locate
from parity.layouts.folder import components_of
from parity.reporters import weights as reporter

MFLUX_INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_mflux(tmp_path_factory.mktemp("good"), packed(weights({"num_layers": 1}), 4), 4)


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


def whole_check(path, component):
    """What ``parity weights check`` does, values and hashes included, as a table and as JSON."""
    reports = [weights_check.check(name, one, True, True) for name, one in weights_check.find(path, component)]
    assert json.loads(json.dumps(reporter.to_json(str(path), reports)))["schema"] == reporter.SCHEMA
    table = io.StringIO()
    reporter.print_table(Console(file=table, width=reporter.WIDTH), reports)
    lines = table.getvalue().splitlines()
    assert all(line.isprintable() for line in lines)
    assert ("nothing is wrong" in lines[-1]) == (not any(report.problems for report in reports))


def only_weights_errors(path, size):
    """Every reader either succeeds or refuses with lines that a terminal shows, within memory of the file's order."""
    tracemalloc.start()
    said = [outcome(checkpoint.inspect, path), outcome(locate, path), outcome(components_of, path)]
    said += [outcome(whole_check, path, (component,)) for component in weights_check.COMPONENTS]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(line.isprintable() for lines in said if lines for line in lines)
    assert peak < 3_000_000 + 60 * size
    return said


ROUNDS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
FEWER = settings(ROUNDS, max_examples=25)  # where a round looks at a whole model


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


@FEWER
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


@FEWER
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
    only_weights_errors(folder / "model", len(text))
    shutil.rmtree(folder)


@ROUNDS
@given(cut=st.none() | st.integers(0, 400_000), changes=st.lists(
    st.tuples(st.integers(0, 12_000), st.binary(min_size=1, max_size=8)), max_size=4))  # fmt: skip
def test_fuzzed_bytes_of_a_sound_file(good, tmp_path_factory, cut, changes):
    folder = tmp_path_factory.mktemp("fuzz")
    raw = bytearray((good / "0.safetensors").read_bytes())
    for place, new in changes:
        raw[place : place + len(new)] = new
    (folder / "0.safetensors").write_bytes(raw[:cut])
    only_weights_errors(folder, len(raw[:cut]))
    shutil.rmtree(folder)


@FEWER
@given(edits=st.lists(st.tuples(
    st.integers(0, 200), KEYS | JSON | st.sampled_from(["0.safetensors", "1.safetensors", "../0.safetensors"])),
    min_size=1, max_size=3), names=st.booleans())  # fmt: skip
def test_fuzzed_edits_of_a_sound_index(good, tmp_path_factory, edits, names):
    folder = tmp_path_factory.mktemp("fuzz")
    for file in good.glob("*.safetensors"):
        (folder / file.name).hardlink_to(file)
    index = json.loads((good / MFLUX_INDEX).read_text())
    place = index["weight_map"]
    for which, value in edits:
        name = list(place)[which % len(place)]
        if names:
            place[str(value)] = place.pop(name)
        else:
            place[name] = value
    raw = json.dumps(index).encode()
    (folder / MFLUX_INDEX).write_bytes(raw)
    only_weights_errors(folder, len(raw) + 100_000)
    shutil.rmtree(folder)


@FEWER
@given(made=consistent(), table=st.booleans())
def test_the_command_line_on_fuzzed_files(tmp_path_factory, capsys, made, table):
    folder = tmp_path_factory.mktemp("fuzz")
    header, size = made
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(size))
    for path in (folder, folder / "model.safetensors"):
        code = call(["weights", "check", str(path), "--hash", "--format", "table" if table else "json"])
        streams = capsys.readouterr()
        assert code == 4
        assert streams.out or streams.err.startswith("error: ")
        assert all(line.isprintable() for line in (streams.out + streams.err).splitlines())
    shutil.rmtree(folder)


def test_the_fuzzer_s_own_check_goes_red(good, monkeypatch):
    assert only_weights_errors(good, 1_000_000)[0] is None

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
