"""The vision tower's names, their parents, its cases and their pictures."""

from __future__ import annotations

import numpy as np
import pytest

from parity.components import build_graph, case_class
from parity.components.vision import EXACT, VisionCase, draw_picture, vision_graph
from parity.errors import UsageError
from parity.suite import load

CONFIGS = {"text_encoder": {"vision_config": {"depth": 2, "fullatt_block_indexes": [1]}}}


def case(**change) -> VisionCase:
    return VisionCase(**{"name": "one", "seed": 5, "images": ((40, 60), (30, 20))} | change)


def test_names_of_each_level():
    full, block, kinds = (vision_graph(2, (1,), level).expected for level in ("full", "block", "kinds"))
    assert len(full) == 6 + 2 * 9 + 2
    assert [name for name in full if name not in block] == [f"vision.block.0{i}.{k}" for i in (0, 1) for k in "qkv"]
    assert kinds == (
        "vision.pixels", "vision.grid_thw", "vision.patch_embed", "vision.window_index", "vision.cu_window_seqlens",
        "vision.block.00.out", "vision.block.01.out", "vision.merger",
    )  # fmt: skip
    for level in (full, block, kinds):
        assert set(EXACT) <= set(level)


def test_stages_and_parents():
    graph = vision_graph(2, (1,))
    assert graph.stages == ("vision.patches", "vision.embed", "vision.block.00", "vision.block.01", "vision.merger")
    assert graph.exact == frozenset(EXACT)
    assert "vision.cu_window_seqlens" in graph.parents["vision.block.00.attn"]
    assert "vision.grid_thw" in graph.parents["vision.block.01.attn"]
    assert graph.parents["vision.block.01.normed"] == ("vision.block.00.out",)
    assert graph.parents["vision.merger"] == ("vision.merger.norm", "vision.window_index")


@pytest.mark.parametrize(("arguments", "message"), [((0,), "at least one block"), ((1, (), "all"), "level 'all'")])
def test_graphs_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        vision_graph(*arguments)


def test_a_case_describes_its_graph_as_json():
    described = case().graph(CONFIGS, "block")
    assert described == {"name": "vision", "depth": 2, "full_attention": [1], "level": "block"}
    assert build_graph(described) == vision_graph(2, (1,), "block")
    left_out = case().graph({"text_encoder": {"vision_config": {}}}, "full")
    assert (left_out["depth"], left_out["full_attention"]) == (32, [7, 15, 23, 31])


def test_the_suite_has_a_square_a_ragged_and_two_pictures():
    cases = [planned.case for planned in load("vision").cases]
    assert case_class("vision") is VisionCase
    assert [len(one.images) for one in cases] == [1, 1, 2]
    assert {planned.dtypes for planned in load("vision").cases} == {("float32", "bfloat16")}


def test_inputs_are_pictures_the_same_in_every_dtype():
    single, half, other = (
        case(seed=seed).inputs(CONFIGS, dtype) for seed, dtype in ((5, "float32"), (5, "bfloat16"), (6, "float32"))
    )
    assert {key: (value.shape, value.dtype) for key, value in single.items()} == {
        "image.00": ((40, 60, 3), np.uint8), "image.01": ((30, 20, 3), np.uint8),
    }  # fmt: skip
    for key in single:
        np.testing.assert_array_equal(single[key], half[key])
        assert not np.array_equal(single[key], other[key])


def test_pictures_are_smooth_with_edges():
    """GIVEN a drawn picture, THEN neighbours are alike but for edges, and it is not flat."""
    for seed in range(5):
        picture = draw_picture(np.random.default_rng(seed), 200, 300).astype(float)
        steps = np.abs(np.diff(picture, axis=1))
        assert np.median(steps) < 0.4 * picture.std()
        assert steps.max() > picture.std()
        assert picture.std() > 20


@pytest.mark.parametrize(
    ("images", "message"), [((), "at least one image"), (((0, 4),), r"\[0, 4\]"), (((4, 4, 3),), "height and width")]
)
def test_cases_that_cannot_be(images, message):
    with pytest.raises(UsageError, match=message):
        case(images=images)
