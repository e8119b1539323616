"""A plain module that somebody else wrote, instrumented and run as a whole, is a port of twenty lines."""

import json
import textwrap

import numpy as np
import pytest
from mini import CONFIG, write_checkpoint, write_suite

from parity.cli import call
from parity.components.transformer import TransformerCase
from parity.names import qwen_image_transformer
from parity.ports import open_port

GRAPH = qwen_image_transformer(CONFIG["num_layers"], "full")
PORT = textwrap.dedent(
    """
    import parity
    from mlx_impl.family import ModelPort
    from mlx_impl.mflux_port import arguments, block_names, build, embed_names, head_names
    from mlx_impl.whole import at_once
    from mlx_impl.weights import Checkpoint
    from parity.layouts.rules import rules_of, to_stored

    class Port(ModelPort):
        name = "theirs"

        def build(self, folder):
            self.config = Checkpoint(folder).config
            model = build(self.config, blocks=self.config.num_layers)
            parity.instrument(model, {**embed_names(), **block_names(lambda: 5), **head_names()})
            return model

        def sanitize(self, weights):
            return {to_stored(key, rules_of("mflux", "transformer")): x for key, x in weights.items()}

        def stages(self, model):
            blocks = [f"block.{i:02}" for i in range(self.config.num_layers)]
            return at_once(lambda inputs: model(**arguments(inputs)), ["embed", *blocks, "head"])

    def factory():
        return Port()

    class Unfinished:
        def __init__(self, needed):
            pass
    """
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"))


@pytest.fixture(params=["Port", "factory"])
def candidate(request, tmp_path, monkeypatch):
    name = f"theirs_{request.param.lower()}"
    (tmp_path / f"{name}.py").write_text(PORT)
    monkeypatch.syspath_prepend(str(tmp_path))
    return f"{name}:{request.param}"


def test_a_module_that_runs_as_a_whole_is_compared_in_accumulated_mode(weights, candidate, tmp_path):
    text = (write_suite(tmp_path).read_text()).replace('"isolated", ', "").replace("[5, 3]", "[5]")
    suite = write_suite(tmp_path, text)
    options = ["--weights", str(weights), "--candidate", candidate, "--out", str(tmp_path / "run")]
    assert call(["run", str(suite), *options]) == 1
    (case,) = json.loads((tmp_path / "run" / "parity.json").read_text())["cases"]
    assert case["counts"]["compared"] == len(GRAPH.expected)
    assert case["sources"] == ["norm_out.mod"]


def test_stages_are_those_of_one_pass_and_what_is_fed_in_the_middle_is_refused(weights, candidate):
    session = open_port(candidate).open(weights, dtype="float32")
    assert session.stages == GRAPH.stages
    case = TransformerCase(name="small", seed=0, images=((64, 48),), text_tokens=(5,), timestep=0.9)
    inputs = case.inputs({"transformer": CONFIG}, "float32")
    state, found = inputs, {}
    for stage in session.stages:
        session.load(stage)
        state, values = session.run(stage, state, GRAPH.names_of(stage))
        assert set(values) == set(GRAPH.names_of(stage))
        found |= values
        session.free(stage)
    session.load("head")
    with pytest.raises(ValueError, match="only accumulated mode"):
        session.run("head", inputs, ())
    resumed = open_port(candidate).open(weights, dtype="float32")
    resumed.load("head")
    _, values = resumed.run("head", state, ("final",))
    assert np.array_equal(values["final"], found["final"])


def test_a_port_that_cannot_be_made_is_one_line(weights, tmp_path, monkeypatch, capsys):
    (tmp_path / "theirs_unfinished.py").write_text(PORT)
    monkeypatch.syspath_prepend(str(tmp_path))
    suite = write_suite(tmp_path)
    options = ["--weights", str(weights), "--out", str(tmp_path / "run")]
    assert call(["run", str(suite), "--candidate", "theirs_unfinished:Unfinished", *options]) in (2, 4)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "needed" in said
