"""``parity case export``: files that any port reads, and that feed each stage what the reference had."""

import json

import numpy as np
import pytest
from mini import SUITE, write_checkpoint, write_suite
from safetensors import safe_open

from parity.casefile import case_hash
from parity.cli import call
from parity.ports import open_port
from parity.suite import load


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def export(tmp_path, weights, capsys):
    suite = write_suite(tmp_path)

    def go(*more, suite=suite):
        code = call(["case", "export", str(suite), "--weights", str(weights), *map(str, more)])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return go


def read(path):
    with safe_open(path, framework="np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118  (not a mapping)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_file_holds_what_a_run_feeds_both_sides(export, tmp_path, dtype):
    code, out, _ = export("--dtype", dtype, "--out", tmp_path / "case.safetensors")
    assert code == 0
    found, metadata = read(tmp_path / "case.safetensors")
    planned = load(str(tmp_path / "mini.toml")).cases[0]
    config = {"in_channels": 16, "joint_attention_dim": 48}
    expected = planned.case.inputs({"transformer": config}, dtype)
    assert set(found) == set(expected)
    for key, array in expected.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)
    assert metadata["parity.case"] == case_hash(expected)
    assert json.loads(metadata["parity.request"])["case"]["text_tokens"] == [5, 3]
    assert "latents" in out
    assert out.splitlines()[-1] == str(tmp_path / "case.safetensors")


def test_the_hash_tells_inputs_apart():
    x = {"a": np.arange(6, dtype=np.float32), "b": np.zeros(2, np.int64)}
    same = case_hash(dict(reversed(x.items())))
    assert case_hash(x) == same
    for other in ({"a": x["a"].reshape(2, 3)}, {"a": x["a"].astype(np.float16)}, {"a": x["a"] + 1}, {"c": x["a"]}):
        assert case_hash(x | other) != same


def test_the_states_before_each_stage_are_the_references(export, tmp_path, weights):
    code, out, _ = export("--out", tmp_path / "c.safetensors", "--stages", tmp_path / "stages")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "stages").iterdir()) == [
        "block.00.safetensors", "block.01.safetensors", "embed.safetensors", "head.safetensors",
    ]  # fmt: skip
    assert "4 states" in out
    session = open_port("reference").open(weights, dtype="float32")
    for stage, following in (("embed", "block.00"), ("block.00", "block.01"), ("block.01", "head")):
        state, metadata = read(tmp_path / "stages" / f"{stage}.safetensors")
        assert metadata["parity.stage"] == stage
        session.load(stage)
        after, _ = session.run(stage, state, ())
        session.free(stage)
        expected, _ = read(tmp_path / "stages" / f"{following}.safetensors")
        assert set(after) == set(expected)
        for key in after:
            np.testing.assert_array_equal(after[key], expected[key])


def test_mistakes_are_one_line(export, tmp_path):
    two = tmp_path / "two.toml"
    two.write_text(SUITE + SUITE[SUITE.index("[[case]]") :].replace('"one"', '"other"'))
    code, _, err = export(suite=two)
    assert (code, "name one with --case: one, other" in err) == (2, True)
    (tmp_path / "c.safetensors").write_text("mine")
    code, _, err = export("--out", tmp_path / "c.safetensors")
    assert (code, "--force overwrites it" in err) == (2, True)
    assert (tmp_path / "c.safetensors").read_text() == "mine"
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "notes.md").write_text("mine")
    code, _, err = export("--out", tmp_path / "d.safetensors", "--stages", tmp_path / "s", "--force")
    assert (code, "holds other files" in err) == (2, True)
    assert not (tmp_path / "d.safetensors").exists()
