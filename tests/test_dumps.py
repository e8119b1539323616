"""Dumps of tensors: read without a copy, names and shapes mended, statistics compared, hostile files refused."""

import json
import math
import mmap

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from trace_unit import GRAPH, arrays, attempt

from parity.diagnosis.from_trace import from_trace
from parity.errors import UsageError
from parity.tracefile import fit_shapes, read_dump, unknown_names


def dump(path, **tensors):
    save_file(tensors, path)
    return path


def test_a_dump_gives_its_arrays_without_a_copy(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    path = dump(tmp_path / "d.safetensors", **{"img_in": x, "block.00.img.attn": x.astype(ml_dtypes.bfloat16)})
    found = read_dump(path, GRAPH.parents)
    np.testing.assert_array_equal(found["img_in"], x)
    assert found["block.00.img.attn"].dtype == ml_dtypes.bfloat16
    owner = found["img_in"]
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, mmap.mmap)
    with pytest.raises(ValueError, match="read-only"):
        found["img_in"][0] = 1


def test_names_that_are_near_are_suggested(tmp_path):
    assert unknown_names(["img_in", "block.00.img.attention", "\x1b"], GRAPH.parents) == {
        "block.00.img.attention": ["block.00.img.attn", "block.01.img.attn", "block.00.img.out"],
        "\x1b": [],
    }
    path = dump(tmp_path / "d.safetensors", image_in=np.ones(3, np.float32))
    with pytest.raises(UsageError, match=r"none of its 1 names is a checkpoint: image_in \(nearest: img_in"):
        read_dump(path, GRAPH.parents)
    assert list(read_dump(path)) == ["image_in"]


def test_a_batch_dimension_too_many_or_too_few_is_noticed():
    x = np.ones((3, 4), np.float32)
    arrays, notes = fit_shapes(
        {"img_in": x, "final": x[None], "temb": x, "new": x}, {"img_in": (1, 3, 4), "final": (3, 4), "temb": (5,)}
    )
    assert {name: one.shape for name, one in arrays.items()} == {
        "img_in": (1, 3, 4), "final": (3, 4), "temb": (3, 4), "new": (3, 4),
    }  # fmt: skip
    assert notes == [
        "1 arrays lack a batch dimension, img_in first; compared with one",
        "1 arrays have a batch dimension, final first; compared without",
    ]


def test_a_dump_is_compared_with_a_dump_and_held_against_ranges(tmp_path):
    made = arrays()
    right = dump(tmp_path / "right.safetensors", **made)
    wrong = dump(tmp_path / "wrong.safetensors", **(made | {"temb": made["temb"] * np.float32(2)}))
    assert from_trace(wrong, right)["sources"] == ["temb"]
    assert from_trace(right, right)["sources"] == []
    assert "documented ranges only" in from_trace(right)["notes"][-1]


def header(entries):
    raw = json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty file"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "a header of"),
        (header({"img_in": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}), "truncated"),
        (header({"img_in": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}), "takes 4 bytes"),
        (header({"img_in": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}) + b"x", "write it as F32"),
        (header({"img_in": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}), "is empty"),
    ],
)
def test_a_hostile_dump_allocates_nothing(tmp_path, content, said):
    path = tmp_path / "d.safetensors"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        read_dump(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_dump_is_an_error_and_never_a_crash(tmp_path_factory, data):
    path = dump(tmp_path_factory.mktemp("d") / "d.safetensors", img_in=np.ones((2, 3), np.float32))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    found, said = attempt(read_dump, path)
    assert "\n" not in said
    if found is not None:
        assert all(math.prod(one.shape) == one.size for one in found.values())
