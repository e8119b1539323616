"""A class of layers that quantization hurts is found, and what a scan leaves behind is what it found."""

import json
import shlex

import numpy as np
import pytest
from layout_folders import CONFIG, packed, weights, write_diffusers, write_mflux
from mini import write_checkpoint, write_suite

from mlx_impl.quantize import restored
from parity import budget
from parity.cli import call
from parity.components.transformer import TransformerCase
from parity.layer_classes import CLASSES
from parity.layouts import locate
from parity.ports import open_port
from parity.rounding import round_state
from parity.runfolder import read_run
from parity.weights_scan import Cost, classes_of, costs, rules, scan, stage_of

CASE = TransformerCase(name="t", seed=0, images=((32, 48),), text_tokens=(5,), timestep=0.7)


def calm():
    """Weights of the size that a model's have."""
    return {n: x if x.ndim == 1 else (x / np.sqrt(x.shape[1])).astype(x.dtype) for n, x in weights().items()}


def planted(layer_part):
    """One huge value in every group of some layers, met by inputs that are made zero: it changes nothing until the
    weights are packed, when the rest of its group has but a code or two left."""
    arrays = calm()
    width = CONFIG["attention_head_dim"] * CONFIG["num_attention_heads"]
    if layer_part == "proj_out":
        dead = np.arange(7, width, 64)
        arrays["norm_out.linear.weight"][[*dead, *(dead + width)]] = 0
        arrays["norm_out.linear.bias"][dead] = -1  # 1 + scale
        arrays["norm_out.linear.bias"][dead + width] = 0
    for name, array in arrays.items():
        if layer_part in name and name.endswith(".weight"):
            array[:, 7::64] = 40 * np.abs(array).max()
        elif layer_part == "img_mlp.net.2" and "img_mlp.net.0" in name:
            array[7::64] = 0
    return arrays


def errors_of(folder, bits=4):
    entries = locate(folder).entries
    classes = classes_of(entries, 64)
    session = open_port("reference").open(folder, dtype="float64", hold="float32")
    inputs = round_state(CASE.inputs({"transformer": CONFIG}, "float32"), np.dtype("float64"))
    found = scan(session, inputs, classes, lambda _, w: restored(w, bits, 64, "bfloat16"), lambda *_: None)
    return costs(entries, classes, [found], bits, 64)


@pytest.mark.parametrize(("part", "name"), [("proj_out", "proj_out"), ("img_mlp.net.2", "img_mlp_out")])
def test_a_planted_sensitive_class_comes_first(tmp_path, part, name):
    plain = errors_of(write_diffusers(tmp_path / "plain", calm()))
    found = errors_of(write_diffusers(tmp_path / "planted", planted(part)))
    assert {cost.name for cost in found} == set(CLASSES)
    assert found[0].name == name
    before = {cost.name: cost.error for cost in plain}
    assert found[0].error > 2 * before[name]


def test_one_class_alone_is_a_model_with_that_class_quantized(tmp_path):
    """GIVEN a checkpoint in which the layers of one class are packed, THEN its truth is off by what the scan says."""
    arrays = calm()
    original = write_diffusers(tmp_path / "plain", arrays)
    keep = tuple(name for name in arrays if "img_mod" not in name)
    quantized = write_mflux(tmp_path / "q", packed(arrays, 4, keep=keep), 4)

    def final(folder):
        session = open_port("reference").open(folder, dtype="float64", hold="float32")
        state = round_state(CASE.inputs({"transformer": CONFIG}, "float32"), np.dtype("float64"))
        for stage in session.stages:
            session.load(stage)
            state, _ = session.run(stage, state, ())
            session.free(stage)
        return state["sample"]

    exact = final(original)
    expected = np.sqrt(np.mean((final(quantized) - exact) ** 2) / np.mean(exact**2))
    found = {cost.name: cost.error for cost in errors_of(original)}
    assert found["img_mod"] == pytest.approx(expected, rel=1e-5)
    assert found["txt_mod"] != pytest.approx(expected, rel=1e-2)


def test_what_was_replaced_is_put_back(tmp_path):
    session = open_port("reference").open(write_diffusers(tmp_path / "m", calm()), dtype="float64", hold="float32")
    session.load("block.00")
    key = "transformer_blocks.0.attn.to_out.0.weight"
    first = session.weight("block.00", key)
    before = session.exchange("block.00", key, np.zeros_like(first, np.float32))
    assert not session.weight("block.00", key).any()
    session.exchange("block.00", key, before)
    np.testing.assert_array_equal(session.weight("block.00", key), first)
    with pytest.raises(KeyError, match="proj_out"):
        session.weight("block.00", "proj_out.weight")


def test_rules_keep_as_few_classes_as_have_most_of_the_error():
    found = [Cost("a", "a.*", 1, 0.3, 100), Cost("b", "b", 1, 0.2, 100), Cost("c", "c", 1, 0.01, 0)]
    assert rules(found, 4) == ["--rule 'a.*=8'", "--rule 'b=8'"]
    assert rules(found, 8) == []
    assert found[0].per_gib == pytest.approx(0.3 * 2**30 / 100)
    assert found[2].per_gib == float("inf")


def test_stages_of_layers():
    names = ("transformer_blocks.12.attn.to_q", "norm_out.linear", "proj_out", "time_text_embed.x", "img_in")
    assert [stage_of(name) for name in names] == ["block.12", "head", "head", "embed", "embed"]


def test_the_command_prints_rules_that_quantize_takes(tmp_path, capsys):
    folder = write_diffusers(tmp_path / "m", planted("proj_out"))
    suite = tmp_path / "s.toml"
    suite.write_text(
        'title = "t"\nweights = "synthetic:tiny"\ndetail = "block"\ndraws = 1\n[[case]]\nname = "one"\n'
        'images = [[32, 32]]\ntext_tokens = [3]\ntimestep = 0.9\nseed = 0\ndtypes = ["float32"]\nmodes = ["isolated"]\n'
    )
    options = ("--suite", str(suite), "--truth", "float32")
    assert call(["weights", "scan", str(folder), *options, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["classes"][0]["name"] == "proj_out"
    assert found["rules"][0] == "--rule 'proj_out=8'"
    assert call(["weights", "scan", str(folder), *options]) == 0
    assert "--rule 'proj_out=8'" in capsys.readouterr().out
    rule = found["rules"][0].split("'")[1]
    assert call(["weights", "quantize", str(folder), str(tmp_path / "q"), "--rule", rule]) == 0
    assert call(["weights", "scan", str(tmp_path / "q"), *options]) == 4
    assert "packed already" in capsys.readouterr().err


def test_the_suggested_rules_lower_the_error_for_little_more_room(tmp_path, capsys):
    """GIVEN 4 bits with and without the rules of a scan, THEN with them quantization costs less than two thirds at
    the output, in both modes, and the file is less than a twentieth larger."""
    original = str(write_checkpoint(tmp_path / "model" / "transformer"))
    suite = str(write_suite(tmp_path))
    four = ("--group-size", "32")
    assert call(["weights", "scan", original, *four, "--suite", suite, "--format", "json"]) == 0
    suggested = [word for line in json.loads(capsys.readouterr().out)["rules"] for word in shlex.split(line)]
    cost, size = {}, {}
    for name, more in (("plain", []), ("ruled", suggested)):
        folder, out = tmp_path / name, tmp_path / f"run-{name}"
        assert call(["weights", "quantize", original, str(folder), *four, *more]) == 0
        command = ["run", suite, "--weights", str(folder), "--original", original, "--out", str(out), "--jobs", "1"]
        assert call(command) == 0
        cost[name] = [budget.at(entry, "final").quantization for entry in read_run(out)["cases"]]
        size[name] = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert all(ruled < plain * 2 / 3 for plain, ruled in zip(cost["plain"], cost["ruled"], strict=True))
    assert size["plain"] < size["ruled"] < size["plain"] * 1.05
