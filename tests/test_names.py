"""The vocabulary: names, order, levels, and a dataflow graph that is the model's."""

import pytest

from parity.names import Graph, Parts, block_stage, parse, qwen_image_transformer


@pytest.mark.parametrize(("level", "count"), [("kinds", 602), ("block", 1092), ("full", 1452)])
def test_number_of_checkpoints_of_the_real_model(level, count):
    assert len(qwen_image_transformer(60, level).expected) == count


def test_kinds_are_the_seven_of_the_guide():
    kinds = {parse(name).kind for name in qwen_image_transformer(3, "kinds").expected}
    assert kinds == {"img_in", "normed", "mod", "modulated", "attn", "ffn", "final"}


def test_names_are_taken_apart():
    assert parse("block.07.img.attn") == Parts("attn", 7, "img")
    assert parse("block.123.txt.q") == Parts("q", 123, "txt")
    assert parse("norm_out.mod") == Parts("norm_out.mod")


@pytest.mark.parametrize("name", ["block." + "9" * 9000 + ".img.x", "step.00." * 1300 + "x"])
def test_a_name_too_long_to_be_one_is_its_own_kind(name):
    assert parse(name) == Parts(kind=name)


def test_block_names_sort_in_order_of_the_blocks():
    stages = [block_stage(i) for i in range(60)]
    assert stages == sorted(stages)


def test_every_name_comes_after_its_parents_and_stages_follow_each_other():
    graph = qwen_image_transformer(4)
    position = {name: i for i, name in enumerate(graph.expected)}
    assert all(position[p] < position[name] for name in graph.expected for p in graph.parents[name])
    assert graph.stages == ("embed", "block.00", "block.01", "block.02", "block.03", "head")
    assert [n for stage in graph.stages for n in graph.names_of(stage)] == list(graph.expected)


def test_parents_of_one_block():
    parents = qwen_image_transformer(2).parents
    assert parents["block.00.img.normed"] == ("img_in",)
    assert parents["block.01.txt.normed"] == ("block.00.txt.out",)
    assert parents["block.01.img.mod"] == ("temb",)
    assert set(parents["block.01.img.modulated"]) == {"block.01.img.normed", "block.01.img.mod"}
    assert set(parents["block.01.img.q"]) == {"block.01.img.modulated", "rope.img"}
    assert parents["block.01.img.v"] == ("block.01.img.modulated",)
    joint = {f"block.01.{s}.{x}" for s in ("img", "txt") for x in "qkv"}
    assert set(parents["block.01.img.attn"]) == set(parents["block.01.txt.attn"]) == joint
    assert set(parents["block.01.txt.mid"]) == {"block.00.txt.out", "block.01.txt.mod", "block.01.txt.attn"}
    assert set(parents["block.01.img.out"]) == {"block.01.img.mid", "block.01.img.mod", "block.01.img.ffn"}
    assert set(parents["norm_out"]) == {"block.01.img.out", "norm_out.mod"}


def test_visible_parents_look_through_names_that_do_not_count():
    graph = qwen_image_transformer(2)
    block_level = set(qwen_image_transformer(2, "block").expected)
    assert set(graph.visible_parents("block.01.txt.attn", block_level)) == {
        "block.01.img.modulated", "block.01.txt.modulated", "rope.img", "rope.txt",
    }  # fmt: skip
    assert set(graph.visible_parents("block.00.img.mid", {"img_in", "temb", "txt_in"})) == {"img_in", "temb", "txt_in"}


def test_within_a_stage_no_parent_lies_outside():
    graph = qwen_image_transformer(2)
    everything = set(graph.expected)
    assert graph.visible_parents("block.01.img.normed", everything, within_stage=True) == ()
    assert graph.visible_parents("block.01.img.mid", everything, within_stage=True) == (
        "block.01.img.mod", "block.01.img.attn",
    )  # fmt: skip


def test_a_graph_that_is_not_in_order_is_refused():
    with pytest.raises(ValueError, match="are not made before it"):
        Graph({"a": ("b",), "b": ()}, {"a": "s", "b": "s"}, ("a", "b"))
    with pytest.raises(ValueError, match="outside the graph"):
        Graph({"a": ()}, {"a": "s"}, ("a", "z"))


def test_impossible_questions_are_refused():
    with pytest.raises(ValueError, match="'everything' is none of kinds, block, full"):
        qwen_image_transformer(2, "everything")
    with pytest.raises(ValueError, match="at least one block"):
        qwen_image_transformer(0)
