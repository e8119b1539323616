"""A user's mistake is one line on stderr with the right exit code, nothing on stdout, and never a traceback."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from mini import SUITE, write_checkpoint, write_suite
from safetensors.numpy import load_file, save_file

from parity.cli import call

INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def weights(good, tmp_path):
    return shutil.copytree(good, tmp_path / "weights")


@pytest.fixture
def fails(tmp_path, capsys):
    """Call a command line that must fail; gives its stderr."""
    suite = write_suite(tmp_path)

    def check(code, *argv, suite=suite):
        argv = [str(arg) for arg in argv]
        if argv[0] == "run":
            argv = ["run", str(suite), "--out", str(tmp_path / "run"), *argv[1:]]
        assert call(argv) == code
        streams = capsys.readouterr()
        assert streams.out == ""
        assert streams.err.count("error: ") == 1
        assert "Traceback" not in streams.err
        assert not (tmp_path / "run" / "parity.json").exists()
        return streams.err

    return check


def shard_of(weights, tensor):
    return weights / json.loads((weights / INDEX).read_text())["weight_map"][tensor]


def edit_tensors(weights, tensor, change):
    path = shard_of(weights, tensor)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def edit_json(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_weights_that_are_not_there(fails, tmp_path):
    assert "nowhere" in fails(4, "run", "--weights", tmp_path / "nowhere")


def test_a_folder_that_is_no_checkpoint(fails, tmp_path):
    (tmp_path / "holiday.jpg").touch()
    err = fails(4, "run", "--weights", tmp_path)
    assert "config.json" in err
    assert "holiday.jpg" in err


def test_a_truncated_shard(fails, weights):
    shard = shard_of(weights, "img_in.weight")
    shard.write_bytes(shard.read_bytes()[:-100])
    assert shard.name in fails(4, "run", "--weights", weights)


def test_a_garbled_shard(fails, weights):
    shard = shard_of(weights, "img_in.weight")
    shard.write_bytes(b"\xff" * 1000)
    assert shard.name in fails(4, "run", "--weights", weights)


def test_an_index_that_names_absent_shards(fails, weights):
    shard = shard_of(weights, "img_in.weight")
    shard.unlink()
    assert f"names {shard.name}, which is not there" in fails(4, "run", "--weights", weights)


def test_all_missing_extra_and_misshapen_tensors_are_listed(fails, weights):
    def change(tensors):
        tensors["surplus"] = np.zeros(3, np.float32)
        tensors["img_in.weight"] = tensors["img_in.weight"].T.copy()

    edit_tensors(weights, "img_in.weight", change)
    edit_tensors(weights, "proj_out.bias", lambda tensors: tensors.pop("proj_out.bias"))
    edit_json(weights / INDEX, lambda index: index["weight_map"].pop("proj_out.bias"))
    beside = shard_of(weights, "img_in.weight").name
    edit_json(weights / INDEX, lambda index: index["weight_map"].update(surplus=beside))
    err = fails(4, "run", "--weights", weights)
    assert "missing: proj_out.bias" in err
    assert "extra: surplus" in err
    assert "img_in.weight" in err


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(fails, weights, value):
    edit_tensors(weights, "img_in.bias", lambda tensors: tensors["img_in.bias"].__setitem__(3, value))
    assert "img_in.bias" in fails(4, "run", "--weights", weights)


def test_unknown_config_keys(fails, weights):
    edit_json(weights / "config.json", lambda config: config.update(num_experts=8))
    assert "unknown key num_experts" in fails(4, "run", "--weights", weights)


def test_an_image_size_that_does_not_divide(fails, weights, tmp_path):
    suite = write_suite(tmp_path, SUITE.replace("[64, 96]", "[64, 100]"))
    assert "64 × 100 is not a multiple of 16" in fails(2, "run", "--weights", weights, suite=suite)


def test_an_output_folder_that_holds_something_else(fails, weights, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    assert "thesis.tex, which no run wrote" in fails(2, "run", "--weights", weights, "--force")


def test_no_room_on_the_disk(fails, weights, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1000))
    assert "are free; free some or choose another --out" in fails(4, "run", "--weights", weights)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["run", "--candidate", "no_such_port"], 2, "no port 'no_such_port'"),
        (["run", "--candidate", "json:nothing"], 2, "module 'json' has no 'nothing'"),
        (["run", "--case", "sqare"], 2, "no case sqare; known: one"),
        (["run", "--dtype", "fp8"], 2, "fp8"),
        (["report", "/nowhere"], 2, "no parity.json here"),
        (["plot", "/nowhere"], 2, "no parity.json here"),
        (["ranges", "check", "/nowhere"], 2, "/nowhere"),
        (["synth", "huge"], 2, "huge"),
        (["synth"], 2, "PRESET"),
        (["frobnicate"], 2, "frobnicate"),
        (["run", "--frobnicate"], 2, "--frobnicate"),
    ],
)
def test_what_is_mistyped(fails, good, argv, code, message):
    more = ["--weights", good] if argv[0] == "run" else []
    assert message in fails(code, *argv, *more)


def test_an_unknown_suite(fails, good):
    assert "no suite 'nightly'; known: all, default" in fails(2, "run", "--weights", good, suite="nightly")


# What Python does with a module that is None there is what it does with one that is not installed.
BLOCK = "import sys; sys.modules[{package!r}] = None; from parity.cli import call; sys.exit(call(sys.argv[1:]))"


@pytest.mark.parametrize("package", ["mlx", "torch"])
def test_a_framework_that_is_not_installed(good, tmp_path, package):
    command = ["run", str(write_suite(tmp_path)), "--weights", str(good), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(package=package), *command], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert f"needs the package '{package}" in done.stderr
    assert "parity doctor" in done.stderr
    assert "Traceback" not in done.stderr
