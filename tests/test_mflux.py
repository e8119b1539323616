"""mflux's Qwen-Image transformer as a port: all names, stage by stage what it is whole, and where it diverges."""

# isort: off
import mlx_impl  # noqa: F401 - first, since it puts the BLAS in place
import mlx.core as mx
# isort: on

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mflux.models.qwen.model.qwen_transformer.qwen_feed_forward import QwenFeedForward
from mflux.models.qwen.model.qwen_transformer.qwen_timesteps import QwenTimesteps
from mini import CONFIG, write_checkpoint, write_suite

from mlx_impl.mflux_port import MfluxPort, arguments, build, check_config, load
from mlx_impl.mflux_workload import passes
from mlx_impl.session import from_numpy, to_numpy
from mlx_impl.weights import EMBED_PARTS, HEAD_PARTS, Checkpoint
from parity import doctor, stopwatch
from parity.cli import call
from parity.components.transformer import TransformerCase
from parity.names import qwen_image_transformer
from parity.ports import BUILTIN, INSTALL, open_port

ROOT = Path(__file__).resolve().parent.parent
GRAPH = qwen_image_transformer(CONFIG["num_layers"], "full")
CASE = TransformerCase(name="small", seed=0, images=((64, 48),), text_tokens=(5,), timestep=0.9)
PADDED = TransformerCase(name="padded", seed=0, images=((64, 48), (32, 32)), text_tokens=(5, 3), timestep=0.9)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"))


def in_stages(weights, case, dtype="float32", want=GRAPH.expected):
    session = MfluxPort().open(weights, dtype=dtype)
    assert session.stages == GRAPH.stages
    state, found = case.inputs({"transformer": CONFIG}, dtype), {}
    for stage in session.stages:
        session.load(stage)
        state, values = session.run(stage, state, want)
        session.free(stage)
        found |= values
    return state, found


@pytest.mark.parametrize("case", [CASE, PADDED], ids=lambda case: case.name)
def test_stage_by_stage_is_the_whole_pass_and_every_checkpoint_is_made(weights, case):
    state, found = in_stages(weights, case)
    assert set(found) == set(GRAPH.expected)
    checkpoint = Checkpoint(weights)
    whole = build(checkpoint.config, blocks=CONFIG["num_layers"])
    parts = (*EMBED_PARTS, *HEAD_PARTS, *(f"transformer_blocks.{i}" for i in range(CONFIG["num_layers"])))
    load(whole, checkpoint, dict(zip(parts, parts, strict=True)), mx.float32, mx.float32)
    inputs = {k: from_numpy(x) for k, x in case.inputs({"transformer": CONFIG}, "float32").items()}
    inputs["img_shapes"] = inputs["img_shapes"].tolist()
    assert np.array_equal(state["sample"], to_numpy(whole(**arguments(inputs))))
    assert np.array_equal(state["sample"], found["final"])


def test_what_is_not_asked_for_is_not_given(weights):
    _, found = in_stages(weights, CASE, want=("block.01.txt.q", "final"))
    assert set(found) == {"block.01.txt.q", "final"}


def parity_json(weights, folder, *options, dtypes=("float32", "bfloat16"), tokens="[5]", images="[[64, 96]]"):
    text = f"""
title = "mini"
weights = "synthetic:tiny"
detail = "full"
draws = 2
[[case]]
name = "one"
images = {images}
text_tokens = {tokens}
timestep = 0.9
seed = 0
dtypes = {json.dumps(list(dtypes))}
modes = ["isolated", "accumulated"]
"""
    suite = write_suite(folder, text)
    arguments = ["run", str(suite), "--weights", str(weights), "--candidate", "mflux", "--out", str(folder / "run")]
    code = call([*arguments, *options])
    return code, json.loads((folder / "run" / "parity.json").read_text())


@pytest.mark.slow
def test_the_verdict_is_the_one_that_docs_explain(weights, tmp_path):
    code, found = parity_json(weights, tmp_path)
    assert code == 1
    assert found["environment"]["candidate"]["mflux"] == "0.24.0"
    for case in found["cases"]:
        assert case["counts"]["compared"] == case["counts"]["expected"] == len(GRAPH.expected)
        # docs/mflux.md: the head's bfloat16 in float32, the frequencies' bfloat16 in bfloat16; and nothing else.
        assert case["sources"] == [{"float32": "norm_out.mod", "bfloat16": "time.proj"}[case["dtype"]]]
    assert call(["diagnose", str(tmp_path / "run"), "--format", "json"]) in (0, 1)
    causes = {cause["code"] for cause in json.loads((tmp_path / "run" / "diagnosis.json").read_text())["causes"]}
    assert causes == {"backend.precision_mode", "time.dtype"}


def test_without_the_rounding_that_docs_name_the_port_is_right_in_float32(weights, tmp_path, monkeypatch):
    from mflux.models.common.config import ModelConfig

    monkeypatch.setattr(ModelConfig, "precision", mx.float32)
    code, found = parity_json(weights, tmp_path, dtypes=("float32",))
    assert (code, found["verdict"]) == (0, "parity")
    assert found["counts"]["match"] == 2 * len(GRAPH.expected)


def test_without_the_rounding_that_docs_name_the_port_is_right_in_bfloat16(weights, tmp_path, monkeypatch):
    rounding = QwenTimesteps.__call__
    monkeypatch.setattr(QwenTimesteps, "__call__", lambda self, timesteps: rounding(self, timesteps.astype(mx.float32)))
    code, found = parity_json(weights, tmp_path, dtypes=("bfloat16",))
    assert (code, found["verdict"]) == (0, "parity")
    assert found["counts"]["match"] == 2 * len(GRAPH.expected)


def test_a_fault_in_mflux_is_found_at_its_place(weights, tmp_path, monkeypatch):
    right = QwenFeedForward.__call__
    monkeypatch.setattr(QwenFeedForward, "__call__", lambda self, hidden_states: right(self, hidden_states) * 1.01)
    _, found = parity_json(weights, tmp_path, dtypes=("float32",))
    isolated = next(case for case in found["cases"] if case["mode"] == "isolated")
    ffn = [f"block.{i:02}.{s}.ffn" for i in range(2) for s in ("img", "txt")]
    assert sorted(isolated["sources"]) == sorted([*ffn, "norm_out.mod"])


def test_padded_prompts_in_bfloat16_fail_inside_mflux_and_are_counted(weights, tmp_path):
    code, found = parity_json(weights, tmp_path, dtypes=("bfloat16",), tokens="[5, 3]")
    assert code == 1
    skipped = [row for row in found["cases"][0]["checkpoints"] if row["verdict"] == "skipped"]
    assert len(skipped) == found["cases"][0]["counts"]["skipped"] == 48
    assert {"Mask type must promote" in row["reason"] for row in skipped} == {True}


def test_edit_models_that_see_their_pictures_at_timestep_0(tmp_path):
    weights = write_checkpoint(tmp_path / "w", zero_cond_t=True)
    _, found = parity_json(weights, tmp_path, dtypes=("float32",), images="[[64, 96], [32, 32]]")
    for case in found["cases"]:
        assert case["counts"]["compared"] == len(GRAPH.expected)
        assert case["sources"] == ["norm_out.mod"]
        assert case["counts"]["diverged"] == 3  # with what follows from it


def test_packed_layers_are_mflux_quantized_layers(tmp_path):
    source = write_checkpoint(tmp_path / "model" / "transformer", attention_head_dim=64, axes_dims_rope=(8, 28, 28))
    assert call(["weights", "quantize", str(source.parent), str(tmp_path / "q4"), "--bits", "4"]) == 0
    session = MfluxPort().open(tmp_path / "q4", dtype="bfloat16")
    session.load("block.01")
    attn = session._models["block.01"].transformer_blocks[0].attn
    assert (type(attn.to_q).__name__, attn.to_q.bits) == ("QuantizedLinear", 4)
    # In float32, as this file has them, they would carry all that follows there.
    assert attn.to_q(mx.ones((1, 128), dtype=mx.bfloat16)).dtype == mx.bfloat16


@pytest.mark.parametrize(
    ("config", "said"),
    [({"use_additional_t_cond": True}, "use_additional_t_cond"), ({"use_layer3d_rope": True}, "use_layer3d_rope")],
)
def test_models_that_mflux_cannot_be_are_refused(weights, config, said):
    with pytest.raises(ValueError, match=said):
        check_config(dataclasses.replace(Checkpoint(weights).config, **config))


def test_other_components_loras_and_inputs_that_it_has_no_place_for_are_refused(weights):
    for component in ("text", "vae", "vision", "scheduler", "pipeline"):
        with pytest.raises(ValueError, match=f"no component '{component}'"):
            MfluxPort().open(weights, dtype="float32", component=component)
    with pytest.raises(ValueError, match="LoRA"):
        MfluxPort().open(weights, dtype="float32", adapters=(object(),))
    state = {"latents": mx.ones((2, 4, 4)), "prompt_embeds": mx.ones((2, 3, 4)), "img_shapes": [[1, 2, 2]]}
    with pytest.raises(ValueError, match=r"one timestep for the whole batch, not \[0.25, 0.5\]"):
        arguments(state | {"timestep": mx.array([0.5, 0.25])})
    with pytest.raises(ValueError, match="one frame"):
        arguments(state | {"timestep": mx.array([0.5]), "img_shapes": [[2, 2, 1]]})


def test_where_mflux_is_missing_one_line_names_the_command(weights, tmp_path, monkeypatch):
    (tmp_path / "mflux").mkdir()
    (tmp_path / "mflux" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module 'mflux'\", name='mflux')")
    suite = write_suite(tmp_path)
    program = "import sys; from parity.cli import main; main(sys.argv[1:])"
    options = ["--weights", str(weights), "--candidate", "mflux", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", program, "run", str(suite), *options],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert done.stderr.strip().splitlines() == [
        f"error: port 'mflux' needs the package 'mflux', which is not installed; install it by: {INSTALL['mflux']}"
    ]
    real = doctor.metadata.version

    def version(name):
        if name == "mflux":
            raise doctor.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    (line,) = doctor._optional()
    assert (line.status, line.fix) == ("warn", INSTALL["mflux"])


def test_the_set_up_and_the_messages_name_one_version():
    wanted = INSTALL["mflux"].rpartition(" ")[2]
    assert re.search(r"^MFLUX := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1] == wanted
    assert f"--no-deps {wanted}" in (ROOT / "pyproject.toml").read_text()
    (line,) = doctor._optional()
    assert (line.status, f"{line.name}{line.required}") == ("ok", wanted)
    assert open_port("mflux").name in BUILTIN


def test_the_passes_that_are_timed_compute_the_same(weights):
    inputs = CASE.inputs({"transformer": CONFIG}, "float32")
    timed = passes(weights, inputs, GRAPH.expected)
    assert set(timed) == {"plain", "inactive", "values", "recorded"}
    statistics = timed["recorded"]()
    assert set(statistics) == set(GRAPH.expected)
    _, found = in_stages(weights, CASE)
    assert statistics["final"][1] == found["final"].max()
    for one in timed.values():
        one()


def test_the_ratios_are_printed_and_written(tmp_path, monkeypatch, capsys):
    seconds = {"plain": [1.0, 2.0], "inactive": [1.0, 2.0], "values": [1.1, 2.2], "recorded": [1.25, 2.5]}
    monkeypatch.setattr(stopwatch, "measure", lambda side, *_, **__: seconds if side == "mflux" else None)
    assert call(["bench", "instrument", "--out", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["instrument"]["recorded"] == 1.25
    assert "1.250 ×" in capsys.readouterr().out


def test_mflux_is_not_loaded_for_other_ports():
    program = "from parity.ports import open_port; import sys; open_port('mlx_impl'); assert 'mflux' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
