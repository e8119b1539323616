"""Dumps of tensors and of sketches: safetensors files and .npz, as ports write them."""

import json
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from parity.errors import ParityError, UsageError
from parity.imports import measure as measuring
from parity.imports.measure import measure
from parity.imports.opening import open_candidate
from parity.sketch import DEFAULT, Spec, sketch
from parity.stats import describe
from parity.trace import write_sketches
from parity.tracefile import ROWS

KNOWN = ("img_in", "block.00.img.attn", "block.00.txt.attn", "final")
BF16 = ml_dtypes.bfloat16


def values(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def dumped(path, arrays=None, **metadata):
    save_file(arrays or {"img_in": values(1, 4, 8)}, path, metadata or None)
    return path


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BF16, np.int32, np.bool_])
def test_every_dtype_of_a_dump_is_measured_like_the_array_it_was(tmp_path, dtype):
    array = (values(1, 60, 500) * 30).astype(dtype)
    found = open_candidate([dumped(tmp_path / "d.safetensors", {"img_in": array})], KNOWN)
    reading = found.read("img_in")
    assert (found.kind, found.names, reading.shape) == ("tensors", ("img_in",), (1, 60, 500))
    assert reading.dtype == np.dtype(dtype).name
    assert np.array_equal(reading.array, array)
    assert np.array_equal(reading.sketch, sketch(array, DEFAULT))
    assert reading.stats == describe(array).brief()


def test_a_measure_of_slices_is_the_one_of_the_whole_with_what_is_not_finite(monkeypatch):
    x = values(3, 50, 600)
    x.reshape(-1)[[0, 8191, 8192, -1]] = np.nan, np.inf, -np.inf, np.nan
    x[1] = np.nan
    stats, made = measure(x, chunks=6, spec=DEFAULT)
    assert np.array_equal(made, sketch(x))
    assert stats.brief() | {"chunks": 0} == describe(x, distribution=False).brief() | {"chunks": 0}
    assert (stats.nan, stats.pos_inf, stats.neg_inf) == (30_002, 1, 1)
    assert len(stats.chunks) == 6


def test_pages_of_a_dump_are_given_back_and_come_again(tmp_path, monkeypatch):
    array = values(1, 64, 1024)
    found = open_candidate([dumped(tmp_path / "d.safetensors", {"img_in": array})])
    monkeypatch.setattr(measuring, "_SPAN", 8192)
    first = found.read("img_in")
    assert np.array_equal(first.array, array)
    assert np.array_equal(found.read("img_in").sketch, first.sketch)
    assert found.read("img_in", sketched=False).sketch is None
    writeable = np.ones(5)
    measuring.release(writeable)
    assert writeable.sum() == 5


def test_the_case_and_several_files_are_one_candidate(tmp_path):
    one = dumped(tmp_path / "a.safetensors", {"img_in": values(1, 4, 8)}, **{"parity.case": "c" * 64})
    two = dumped(tmp_path / "b.safetensors", {"final": values(1, 4, 2)})
    for paths in ([one, two], [tmp_path]):
        found = open_candidate(paths, KNOWN)
        assert (found.names, found.case) == (("img_in", "final"), "c" * 64)
    np.savez(tmp_path / "c.npz", **{"block.00.img.attn": values(1, 4, 8)})
    assert open_candidate([tmp_path]).names == ("img_in", "final", "block.00.img.attn")


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"img_in": values(1)}, "img_in is in a.safetensors and in b.safetensors"),
        ({"final": values(1)}, "they differ"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path, second, said):
    one = dumped(tmp_path / "a.safetensors", {"img_in": values(1)}, **{"parity.case": "c" * 64})
    two = dumped(tmp_path / "b.safetensors", second, **{"parity.case": "d" * 64})
    with pytest.raises(UsageError, match=said):
        open_candidate([one, two])


def test_sketches_are_read_with_the_shapes_that_the_file_tells(tmp_path):
    spec, array = Spec(64, 5), values(1, 30, 40)
    path = tmp_path / "s.safetensors"
    shapes = json.dumps({"img_in": [1, 30, 40]})
    write_sketches(path, {"img_in": sketch(array, spec), "final": sketch(array, spec)}, spec, **{
        "parity.shapes": shapes, "parity.case": "e" * 64,
    })  # fmt: skip
    found = open_candidate([path], KNOWN)
    assert (found.kind, found.spec, found.case) == ("sketches", spec, "e" * 64)
    reading = found.read("img_in")
    assert reading.shape == (1, 30, 40)
    assert np.array_equal(reading.sketch, sketch(array, spec))
    assert (reading.array, reading.stats, found.read("final").shape) == (None, None, None)
    with pytest.raises(UsageError, match=r"holds tensors and s\.safetensors sketches"):
        open_candidate([path, dumped(tmp_path / "t.safetensors", {"temb": values(2)})])


@pytest.mark.parametrize(
    ("shapes", "said"),
    [("[]", "no object"), ('{"img_in": [-1]}', "expected whole numbers"), ('{"a": 1, "a": 2}', "twice"), ("{", "JSON")],
)
def test_shapes_that_are_none_are_refused(tmp_path, shapes, said):
    write_sketches(tmp_path / "s.safetensors", {"img_in": np.zeros(64)}, Spec(64), **{"parity.shapes": shapes})
    with pytest.raises(UsageError, match=said):
        open_candidate([tmp_path / "s.safetensors"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_with_or_without_a_suffix_in_the_key(tmp_path, save):
    arrays = {
        "img_in": values(1, 40, 512), "final": values(1, 8, 2, dtype=np.float16), "temb": values(1, 2, dtype=BF16),
        "block.00.img.attn": np.asfortranarray(values(2, 3, 5)), "time.proj": values(4).astype(">f4"),
    }  # fmt: skip
    save(tmp_path / "d.npz", **arrays, **{"parity.case": np.array("f" * 64)})
    found = open_candidate([tmp_path / "d.npz"], KNOWN)
    assert found.names == tuple(arrays)
    assert found.case == "f" * 64
    assert "1 arrays of untyped 2-byte values" in found.notes[0]
    for name, array in arrays.items():
        reading = found.read(name)
        assert np.array_equal(reading.array, array), name
        assert np.array_equal(reading.sketch, sketch(array)), name
        assert (reading.dtype, reading.shape) == (array.dtype.name, array.shape)


def test_a_directory_that_would_fill_the_memory_is_not_read(tmp_path, monkeypatch):
    np.savez(tmp_path / "d.npz", **{f"unused.{i:04d}": np.zeros(1) for i in range(50)}, img_in=np.ones((1, 2, 3)))
    assert "img_in" in open_candidate([tmp_path / "d.npz"]).names
    monkeypatch.setattr("parity.imports.npz.DIRECTORY_BYTES", 1000)
    with pytest.raises(UsageError, match=r"a directory of \d{4} bytes, against a limit of 1000"):
        open_candidate([tmp_path / "d.npz"])


def test_nothing_in_an_npz_is_unpickled(tmp_path):
    np.savez(tmp_path / "d.npz", img_in=np.array([print, {}], object))
    with pytest.raises(UsageError, match=r"img_in: holds Python objects, which are never unpickled"):
        open_candidate([tmp_path / "d.npz"])


def npy(shape="(2,)", descr="'<f4'", body=b"\0" * 8, fortran="False"):
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + body


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (npy("(4611686018427387904,)"), "takes 18446744073709551"),
        (npy("(99999999999999999999999,)"), r"no \.npy array"),
        (npy("(3,)"), "takes"),
        (npy("(0,)", body=b""), "empty"),
        (npy("(-2,)"), r"no \.npy array"),
        (npy("(2,)", "'<c16'", b"\0" * 32), "holds complex128"),
        (npy("(2,)", "'<U1'"), "holds"),
        (npy("(2,)", "[('a', '<f4')]"), "plain dtype"),
        (npy("(2,)", "'|O'"), "never unpickled"),
        (npy("(2,)", "'<y4'"), "dtype <y4"),
        (npy("__import__('os').getcwd()"), r"no \.npy array"),
        (npy("(" * 9000), r"no \.npy array"),
        (npy("(" + "1 " * 4900 + ")"), r"no \.npy array"),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff" + b"\0" * 40, "against a limit of 10000"),
        (b"\x93NUMPY\7\0" + b"\0" * 40, "it begins with"),
        (b"not an array", r"no \.npy array"),
        (b"", r"no \.npy array"),
    ],
)
def test_members_that_are_no_plain_arrays_are_refused_in_one_line(tmp_path, member, said):
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as file:
        file.writestr("img_in.npy", member)
    with pytest.raises(UsageError, match=said) as caught:
        open_candidate([tmp_path / "d.npz"]).read("img_in")
    assert "\n" not in caught.value.message


def test_a_zip_that_announces_more_than_it_can_hold_is_refused_before_anything_is_allocated(tmp_path, monkeypatch):
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("img_in.npy", npy("(250,)", body=b"\0" * 1000))
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\1\2")
    raw[at + 24 : at + 28] = struct.pack("<I", 0x7FFFFFFF)
    path.write_bytes(raw)
    with pytest.raises(UsageError, match="2147483647 bytes are announced"):
        open_candidate([path])
    np.savez_compressed(path, img_in=np.zeros(4096))
    monkeypatch.setattr("parity.imports.npz.UNPACKED_BYTES", 1000)
    with pytest.raises(UsageError, match="against a limit of 1000; write it uncompressed"):
        open_candidate([path])


def test_names_that_come_twice_and_too_many_names_are_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as file:
        file.writestr("img_in.npy", npy())
        file.writestr("img_in", npy())
    with pytest.raises(UsageError, match="img_in comes twice"):
        open_candidate([tmp_path / "d.npz"])
    assert ROWS > 1000
    monkeypatch.setattr("parity.imports.npz.ROWS", 1)
    with pytest.raises(UsageError, match="2 members, against a limit of 1"):
        open_candidate([tmp_path / "d.npz"])


@settings(max_examples=150, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8), cut=st.integers(0, 60)
)
def test_a_garbled_npz_is_an_error_of_one_line_or_arrays(tmp_path_factory, flips, cut):
    path = tmp_path_factory.mktemp("fuzz") / "d.npz"
    np.savez(path, img_in=np.arange(6.0), final=np.arange(4, dtype=np.float16))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("temb.npy", npy())
    raw = bytearray(path.read_bytes())
    for at, byte in flips:
        raw[at % len(raw)] = byte
    path.write_bytes(raw[: len(raw) - cut])
    said = ""
    try:
        found = open_candidate([path])
        sizes = [found.read(name).array.size for name in found.names]
    except ParityError as error:
        said, sizes = error.message, [1]
    assert said.isprintable() or not said
    assert min(sizes) > 0


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\5\6" + b"\0" * 18, b"PK\3\4" * 20])
def test_files_that_are_no_zip_are_refused(tmp_path, content):
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"no \.npz that can be read|holds no arrays"):
        open_candidate([tmp_path / "d.npz"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("block.00.img.atn", r"block\.00\.img\.atn \(nearest: block\.00\.img\.attn"),
        ("Transformer.blocks.0.IMG.attn", r"is block\.00\.img\.attn spelled otherwise; write block\.00\.img\.attn"),
        ("zzz", "zzz; expected names such as"),
    ],
)
def test_a_dump_without_a_known_name_suggests_one(tmp_path, name, said):
    path = dumped(tmp_path / "d.safetensors", {name: values(2)})
    with pytest.raises(UsageError, match=said):
        open_candidate([path], KNOWN)
    assert open_candidate([path]).names == (name,)


@pytest.mark.parametrize("name", ["d.pt", "d", "d.gguf", "folder"])
def test_other_files_are_refused_and_what_is_read_is_named(tmp_path, name):
    if name == "folder":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=r"\.npz, a trace folder, or a log"):
        open_candidate([tmp_path / name])
    with pytest.raises(UsageError, match="there is no such file or folder"):
        open_candidate([tmp_path / "nothing"])
    with pytest.raises(UsageError, match="nothing to read"):
        open_candidate([])
