"""What suites can say about the text encoder: cases, their inputs, and the graph of checkpoints."""

import json

import numpy as np
import pytest

from parity.components import build_graph, case_class
from parity.components.text import POSITIONS, TEMPLATES, TextCase, text_graph
from parity.errors import UsageError
from parity.suite import load

CONFIG = {"text_config": {"hidden_size": 128, "num_hidden_layers": 2}, "vision_config": {"spatial_merge_size": 2}}


def case(**changes):
    return TextCase(**{"name": "one", "seed": 3, "prompts": ("fox",)} | changes)


def test_inputs_of_a_case():
    configs = {"text_encoder": CONFIG}
    edit = case(prompts=("fox",), template="edit_plus", pictures=((56, 84), (28, 28)), positions="grid")
    state = edit.inputs(configs, "bfloat16")
    assert bytes(state["prompt.00"]) == b"fox"
    assert state["image_grid_thw"].tolist() == [[1, 4, 6], [1, 2, 2]]
    assert state["image_features"].shape == (7, 128)
    assert state["image_features"].dtype.name == "bfloat16"
    np.testing.assert_array_equal(state["image_features"], edit.inputs(configs, "bfloat16")["image_features"])
    assert TEMPLATES[state["template"]] == "edit_plus"
    assert POSITIONS[state["positions"]] == "grid"
    assert "image_features" not in case().inputs(configs, "float32")
    assert case(prompts=("",)).inputs(configs, "float32")["prompt.00"].size == 0
    json.dumps(edit.describe())
    assert edit.graph(configs, "kinds") == {"name": "text", "num_layers": 2, "level": "kinds"}


def test_a_flat_config_names_the_layers_as_well():
    assert case().graph({"text_encoder": {"num_hidden_layers": 28}}, "full")["num_layers"] == 28


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "video"}, "template 'video'"),
        ({"positions": "rows"}, "positions 'rows'"),
        ({"prompts": ()}, "0 prompts, expected 1 to 100"),
        ({"prompts": ("fox",) * 101}, "101 prompts"),
        ({"max_sequence_length": 0}, "not within 1…1024"),
        ({"max_sequence_length": 1025}, "not within 1…1024"),
        ({"pictures": ((28, 28),)}, "show 0 pictures, but there are 1"),
        ({"template": "edit"}, "show 1 pictures, but there are 0"),
        ({"template": "edit", "pictures": ((28, 30),)}, "multiple of 28"),
        ({"template": "edit", "pictures": ((0, 28),)}, "multiple of 28"),
        ({"template": "edit_plus", "prompts": ("a", "b"), "pictures": ((28, 28),)}, "show 2 pictures"),
    ],
)
def test_cases_that_no_pipeline_would_run_are_errors(changes, message):
    with pytest.raises(UsageError, match=message):
        case(**changes)


def test_levels_of_the_graph():
    full, block, kinds = (text_graph(3, level).expected for level in ("full", "block", "kinds"))
    assert len(full) == 5 + 3 * 10 + 3
    assert [name for name in full if name not in block] == [
        f"text.layer.{i:02d}.{kind}" for i in range(3) for kind in ("q", "k", "v", "gated")
    ]
    assert {name.rpartition(".")[2] for name in kinds if ".layer." in name} == {"attn", "ffn", "out"}
    assert {"text.ids", "text.embed", "text.prompt_embeds"} < set(kinds)
    assert text_graph(1).exact <= set(kinds)
    for wrong in ((3, "some"), (0, "full")):
        with pytest.raises(ValueError, match=r"some|at least one layer"):
            text_graph(*wrong)


def test_what_is_computed_from_what():
    graph = text_graph(2)
    here, before = "text.layer.01", "text.layer.00.out"
    parents = {name.removeprefix(f"{here}."): graph.parents[name] for name in graph.parents if here in name}
    assert parents == {
        "normed": (before,), "q": (f"{here}.normed", "text.rope"), "k": (f"{here}.normed", "text.rope"),
        "v": (f"{here}.normed",), "attn": (f"{here}.q", f"{here}.k", f"{here}.v", "text.mask"),
        "mid": (before, f"{here}.attn"), "normed2": (f"{here}.mid",), "gated": (f"{here}.normed2",),
        "ffn": (f"{here}.gated",), "out": (f"{here}.mid", f"{here}.ffn"),
    }  # fmt: skip
    assert graph.parents["text.layer.00.normed"] == ("text.embed",)
    assert graph.parents["text.norm"] == (f"{here}.out",)
    assert graph.stages == ("text.tokens", "text.embed", "text.layer.00", "text.layer.01", "text.norm")


def test_the_component_is_registered():
    assert case_class("text") is TextCase
    assert build_graph(case().graph({"text_encoder": CONFIG}, "block")) == text_graph(2, "block")


def test_the_suite_has_every_template_and_setting():
    cases = [planned.case for planned in load("text").cases]
    assert {one.template for one in cases} == set(TEMPLATES)
    assert {one.positions for one in cases} == set(POSITIONS)
    assert any("" in one.prompts for one in cases)
    assert any(one.max_sequence_length < 1024 for one in cases)
    assert len({len(one.prompts) for one in cases}) > 1
