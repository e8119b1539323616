"""docs/porting.md: its sketch is the sketch, its commands exist, and three of them lead to a verdict."""

import json
import re
import shlex
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mini import write_checkpoint, write_suite

from mlx_impl.transformer import QwenImageTransformer2DModel, TransformerConfig
from parity.cli import app, call
from parity.errors import EXIT_DIVERGENCE, EXIT_INCOMPLETE, EXIT_PARITY
from parity.names import qwen_image_transformer
from parity.sketch import sketch
from parity.tap import Recorder, changing, recording

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "porting.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.DOTALL)


def test_the_snippet_of_a_sketch_is_the_sketch():
    snippets = [body for language, body in BLOCKS if language == "python" and "def sketch" in body]
    assert len(snippets) == 1
    scope = {"mx": mx, "np": np}
    exec(snippets[0], scope)
    x = np.random.default_rng(0).standard_normal((3, 50, 97)).astype(np.float32)
    x[1, 2, 3:5] = np.nan, np.inf
    np.testing.assert_allclose(scope["sketch"](mx.array(x)), sketch(x), rtol=1e-12, atol=1e-12)
    short = mx.array(x).astype(mx.bfloat16)
    assert np.isfinite(scope["sketch"](short)).all()


def commands():
    """Every `parity …` line of the page, continued lines joined, without what a shell does with it."""
    for language, body in BLOCKS:
        if language in ("sh", "console"):
            for line in body.replace("\\\n", " ").splitlines():
                line = line.removeprefix("$ ").partition("  #")[0].partition("|")[0].strip()
                if line.startswith("parity "):
                    yield line


def test_every_command_of_the_page_is_one():
    found = list(commands())
    assert len(found) >= 8
    for line in found:
        app.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)
    with pytest.raises(Exception, match="nonsense"):
        app.parse_args(["compare", "a", "b", "--nonsense"], exit_on_error=False, print_error=False)


def test_every_name_of_the_table_is_a_checkpoint_and_none_is_left_out():
    known = qwen_image_transformer(1).parents
    table = "\n".join(line for line in TEXT.partition("### Names")[2].splitlines() if line.startswith("| `"))
    told, before = set(), ""
    for name in re.findall(r"`([^`]+)`", "\n".join(line.split("|")[1] for line in table.splitlines())):
        name = before.rpartition(".")[0] + name if name.startswith(".") else name
        before = name
        told |= {name.replace("NN", "00").replace("<s>", stream) for stream in ("img", "txt")}
    assert told == set(known)


def dumped(weights, inputs, out, changes):
    """What the page's Python lines do, with the names that `mlx_impl` has already."""
    model = QwenImageTransformer2DModel(TransformerConfig.from_dict(json.loads((weights / "config.json").read_text())))
    files = sorted(weights.glob("*.safetensors"))
    model.load_weights([(key, value) for file in files for key, value in mx.load(str(file)).items()])
    case, about = mx.load(str(inputs), return_metadata=True)
    shapes = [tuple(shape) for shape in case["img_shapes"].tolist()]
    with recording(Recorder()) as recorder, changing(changes):
        batch = case["latents"].shape[0]
        model(case["latents"], case["prompt_embeds"], case.get("prompt_mask"), case["timestep"], [shapes] * batch)
    mx.save_safetensors(str(out), recorder.values, {"parity.case": about["parity.case"]})


@pytest.mark.slow
def test_three_commands_lead_to_a_verdict(tmp_path, capsys):
    weights, suite = write_checkpoint(tmp_path / "w"), write_suite(tmp_path)
    golden, inputs, out = (str(tmp_path / name) for name in ("golden", "one.safetensors", "dump.safetensors"))
    record = ["trace", "record", str(suite), "--weights", str(weights), "--detail", "full", "--out", golden]
    assert call(record) == 0
    assert call(["case", "export", str(suite), "--weights", str(weights), "--out", inputs]) == 0
    dumped(weights, inputs, out, {})
    assert call(["compare", golden, out]) == EXIT_PARITY
    dumped(weights, inputs, out, {"block.01.txt.k": lambda x: x[..., ::-1]})
    assert call(["compare", golden, out]) == EXIT_DIVERGENCE
    assert "starts at block.01.txt.k" in " ".join(capsys.readouterr().out.split())
    kept = mx.load(out)
    mx.save_safetensors(out, {name: x for name, x in kept.items() if name.startswith("block.00")})
    assert call(["compare", golden, out]) == EXIT_INCOMPLETE
