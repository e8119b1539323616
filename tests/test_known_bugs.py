"""The table of known bugs is read whole, and an entry speaks of its versions, devices and sizes only."""

import pytest

from parity import known_bugs
from parity.diagnosis.fault import catalogue
from parity.errors import UsageError

H100 = {"mlx": "0.32.4", "device": "NVIDIA H100 80GB HBM3", "tf32": False}
M5 = {"mlx": "0.31.3", "device": "Apple M5 Max", "tf32": False}
TORCH = {"torch": "2.13.0+cpu", "diffusers": "0.42.1", "transformers": "5.24.0", "device": "cpu"}


def names(environment):
    return [bug.name for bug in known_bugs.matching({"side": environment})]


def named(name):
    (bug,) = [bug for bug in known_bugs.load() if bug.name == name]
    return bug


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (H100, ["mlx-cuda-quantized-64-inputs"]),
        (H100 | {"mlx": "0.32.3"}, []),
        (H100 | {"device": "NVIDIA A100"}, []),
        (H100 | {"device": "cpu"}, []),
        (H100 | {"tf32": True}, ["mlx-cuda-quantized-64-inputs", "mlx-tf32"]),
        (M5, ["mlx-m5-split-k", "mlx-m5-quantized-32768", "mlx-conv-zeros"]),
        (M5 | {"device": "Apple M3 Ultra"}, ["mlx-conv-zeros"]),
        (M5 | {"mlx": "0.32.2"}, []),
        (M5 | {"mlx": "0.26.2", "device": "Apple M1"}, ["mlx-layer-norm-race", "mlx-conv-zeros", "mlx-masked-rows"]),
        (M5 | {"mlx": "0.26.3", "device": "Apple M1"}, ["mlx-conv-zeros", "mlx-masked-rows"]),
        ({"mlx": "0.31.2", "device": "cpu"}, ["mlx-cpu-take"]),
        (TORCH, ["diffusers-edit-positions"]),
        (TORCH | {"transformers": "4.57.6"}, []),
        (TORCH | {"device": "mps", "transformers": "4.57.6"}, ["torch-mps-large-attention"]),
        ({"mlx": "no version", "device": "NVIDIA H100"}, []),
        ({}, []),
    ],
)
def test_an_entry_speaks_of_its_versions_and_devices_only(environment, expected):
    assert names(environment) == expected


def test_the_sides_are_looked_at_each_for_itself():
    """A bug of MLX on a GPU is none of a candidate on the CPU beside a reference on that GPU."""
    mixed = {"candidate": H100 | {"device": "cpu"}, "reference": TORCH | {"device": H100["device"]}}
    assert [bug.name for bug in known_bugs.matching(mixed)] == ["diffusers-edit-positions"]


@pytest.mark.parametrize(
    ("name", "op", "dtype", "sizes", "can"),
    [
        ("mlx-cuda-quantized-64-inputs", "quantized_linear", "float32", {"inputs": 64, "rows": 16}, True),
        ("mlx-cuda-quantized-64-inputs", "quantized_linear", "float32", {"inputs": 64, "rows": 1}, False),
        ("mlx-cuda-quantized-64-inputs", "quantized_linear", "float32", {"inputs": 128, "rows": 16}, False),
        ("mlx-cuda-quantized-64-inputs", "linear", "float32", {"inputs": 64, "rows": 16}, False),
        ("mlx-cuda-quantized-64-inputs", "quantized_linear", "float32", {}, True),
        ("mlx-m5-split-k", "linear", "bfloat16", {"inputs": 12288, "products": 1366 * 3072}, True),
        ("mlx-m5-split-k", "linear", "bfloat16", {"inputs": 12288, "products": 1365 * 3072}, False),
        ("mlx-m5-split-k", "linear", "float32", {"inputs": 12288, "products": 1366 * 3072}, False),
    ],
)
def test_an_entry_speaks_of_its_operation_and_sizes_only(name, op, dtype, sizes, can):
    assert named(name).speaks_of(op, dtype, sizes) is can


def test_every_entry_can_be_followed_up():
    for bug in known_bugs.load():
        assert all(source.startswith(("https://github.com/", "measured: ")) for source in bug.sources), bug.name
        assert bug.line.isprintable()
        assert "https" not in bug.line


def test_the_codes_are_those_of_the_catalogue():
    codes = {fault.code for fault in catalogue()} | {"attention.row_all_masked"}
    assert {bug.code for bug in known_bugs.load()} <= codes


GOOD = """
schema = 1
[[bug]]
name = "a"
package = "mlx"
versions = "<1"
condition = "always"
symptom = "wrong"
fix = "upgrade"
sources = ["https://github.com/a/b/issues/1"]
"""


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("schema = 1", "schema = 2"), "schema is 2, expected 1"),
        (("schema = 1", "schema = 1\nmore = 1"), "unknown key 'more'"),
        (('versions = "<1"', 'versions = "about 1"'), "versions 'about 1' cannot be read"),
        (('package = "mlx"', 'package = "numpy"'), "package 'numpy' is none of"),
        (('fix = "upgrade"', ""), "a: fix is missing or no text"),
        (('fix = "upgrade"', 'fix = "upgrade"\ndevice = "H100"'), "a: unknown key 'device'"),
        (('fix = "upgrade"', 'fix = "upgrade"\nbackends = ["rocm"]'), "backend 'rocm' is none of"),
        (('fix = "upgrade"', 'fix = "upgrade"\ndevices = "H100"'), "devices is no list of texts"),
        (('fix = "upgrade"', 'fix = "upgrade"\ntf32 = 1'), "tf32 is neither"),
        (('fix = "upgrade"', 'fix = "upgrade"\nneeds = { torch = "x" }'), "versions 'x' cannot be read"),
        (('fix = "upgrade"', 'fix = "upgrade"\nsizes = { rows = 3 }'), "size 'rows' is not"),
        (('fix = "upgrade"', 'fix = "upgrade"\nsizes = { width = { min = 3 } }'), "size 'width' is none of"),
        (("[[bug]]", "[bug]"), "no [[bug]] entries"),
        (('sources = ["https://github.com/a/b/issues/1"]', ""), "sources are missing"),
        (("schema = 1", "schema = "), "Invalid value"),
    ],
)
def test_a_garbled_table_is_an_error_that_says_where(tmp_path, change, problem):
    path = tmp_path / "table.toml"
    path.write_text(GOOD)
    assert known_bugs.load(path)[0].versions == "<1"
    other = tmp_path / "other.toml"
    other.write_text(GOOD.replace(*change))
    with pytest.raises(UsageError) as error:
        known_bugs.load(other)
    assert problem in str(error.value) + " ".join(error.value.details)


def test_two_entries_of_one_name_and_no_file_are_errors(tmp_path):
    path = tmp_path / "table.toml"
    path.write_text(GOOD + GOOD.replace("schema = 1", ""))
    with pytest.raises(UsageError, match="two bugs have this name"):
        known_bugs.load(path)
    with pytest.raises(UsageError, match="No such file"):
        known_bugs.load(tmp_path / "none.toml")
