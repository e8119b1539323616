"""Pipelines as a component: what a case may say, the inputs it draws, the graph of a run."""

import ml_dtypes
import numpy as np
import pytest

from parity import suite as suites
from parity.components import build_graph
from parity.components.pipeline import DECODE, ENCODE, KINDS, PipelineCase, draw_picture, pipeline_graph
from parity.errors import UsageError
from parity.names import qwen_image_transformer

CONFIGS = {"transformer": {"num_layers": 3, "in_channels": 8}}
# What each kind needs beside a prompt.
NEEDED = {
    "text_to_image": {},
    "image_to_image": {"pictures": ((50, 60),), "strength": 0.5},
    "inpaint": {"pictures": ((50, 60),), "strength": 0.5},
    "edit": {"pictures": ((50, 60),)},
    "edit_plus": {"pictures": ((50, 60), (30, 20))},
}


def case(kind="text_to_image", **fields):
    usual = {"name": "one", "seed": 0, "prompts": ("a",), "negative": (" ",), "image": (32, 48), "steps": 4}
    return PipelineCase(**{"kind": kind, **usual, **NEEDED.get(kind, {}), **fields})


def graph(level="full", **fields):
    return build_graph(case(**fields).graph(CONFIGS, level))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "video"}, "kind 'video' is none of text_to_image"),
        ({"image": (32, 40)}, "image 32 × 40 is not of multiples of 16 pixels"),
        ({"prompts": ()}, "0 prompts"),
        ({"kind": "edit", "prompts": ("a", "b"), "negative": ()}, "2 prompts; an edit takes one"),
        ({"negative": ("a", "b")}, "2 negative prompts for 1 prompts"),
        ({"pictures": ((32, 32),)}, "1 pictures for text_to_image"),
        ({"kind": "edit", "pictures": ((32, 32), (32, 32))}, "2 pictures for edit"),
        ({"kind": "edit_plus", "pictures": ()}, "0 pictures for edit_plus"),
        ({"kind": "edit", "pictures": ((0, 32),)}, "pictures and areas have at least one pixel"),
        ({"kind": "edit", "areas": (0, 9)}, "pictures and areas have at least one pixel"),
        ({"strength": 0.5}, "strength is 0.5; image_to_image and inpaint need one"),
        ({"kind": "inpaint", "strength": None}, "strength is None; image_to_image and inpaint need one"),
        ({"kind": "inpaint", "strength": 0.333}, "strength 0.333 is not a whole percentage"),
        ({"kind": "inpaint", "strength": 0.0}, "steps is 4 and strength 0.0: expected 2 steps, and one that is done"),
        ({"steps": 1}, "steps is 1"),
        ({"inside": (4,)}, r"inside \(4,\) is not within the 4 steps that are done"),
        ({"kind": "inpaint", "inside": (2,)}, r"inside \(2,\) is not within the 2 steps that are done"),
    ],
)
def test_a_case_that_makes_no_sense_is_refused(fields, said):
    with pytest.raises(UsageError, match=f"case 'one': {said}"):
        case(**fields)


def test_the_steps_that_are_done_are_those_of_the_strength():
    assert [case("inpaint", steps=8, strength=s).begin for s in (1.0, 0.6, 0.5, 0.01)] == [0, 3, 4, 7]
    assert case("inpaint", steps=8, strength=0.6).describe()["steps"] == 5


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_the_same_every_time_and_in_the_runs_dtype(kind):
    first, again, half = (case(kind).inputs(CONFIGS, dtype) for dtype in ("float32", "float32", "bfloat16"))
    for key, array in first.items():
        np.testing.assert_array_equal(array, again[key])
    assert half["latents"].dtype == ml_dtypes.bfloat16
    assert first["latents"].shape == (1, 6, 8)
    assert {key: array.dtype for key, array in half.items() if key.startswith(("image.", "mask.", "prompt."))} == {
        key: np.uint8 for key in half if key.startswith(("image.", "mask.", "prompt."))
    }
    assert sorted(key for key in first if key.startswith("image.")) == [
        f"image.{index:02d}" for index in range(len(NEEDED[kind].get("pictures", ())))
    ]
    assert bytes(first["kind"]).decode() == kind
    assert first["sched.guidance"].dtype == np.float64, "float32 has no 3.3"


def test_texts_are_handed_over_as_they_are():
    state = case(prompts=("Ein Bär 🐻", ""), negative=("\n", "b")).inputs(CONFIGS, "float32")
    assert bytes(state["prompt.00"]).decode() == "Ein Bär 🐻"
    assert state["prompt.01"].size == 0
    assert bytes(state["negative.00"]) == b"\n"


def test_a_mask_marks_the_middle_of_its_picture():
    state = case("inpaint").inputs(CONFIGS, "float32")
    assert state["mask.00"].shape == state["image.00"].shape[:2] == (50, 60)
    assert 0.2 < (state["mask.00"] > 127).mean() < 0.3
    assert set(np.unique(state["mask.00"])) == {0, 255}


def test_drawn_pictures_are_no_noise():
    picture = draw_picture(np.random.default_rng(0), 64, 64).astype(float)
    assert picture.std() > 30
    assert np.abs(np.diff(picture, axis=0)).mean() < 12


@pytest.mark.parametrize("kind", KINDS)
def test_stages_are_encoding_steps_and_decoding(kind):
    whole = graph(kind=kind)
    steps = 2 if kind in ("image_to_image", "inpaint") else 4
    assert whole.stages == (ENCODE, *(f"step.{i:02d}" for i in range(steps)), DECODE)
    assert whole.expected[-1] == "pipeline.image"
    assert whole.pictures == ("pipeline.image",)
    assert whole.parents["step.01.cond"][0] == "step.00.latents"
    assert ("pipeline.image_latents" in whole.parents["step.01.cond"]) == ("edit" in kind)
    assert ("pipeline.mask" in whole.parents["step.01.latents"]) == (kind == "inpaint")
    assert whole.exact >= {"pipeline.sigmas", "pipeline.prompt_ids", "pipeline.negative_mask"}


def test_without_guidance_there_is_no_uncond():
    for fields in ({"guidance": 1.0}, {"negative": ()}):
        names = graph(**fields).expected
        assert not [name for name in names if "uncond" in name or "negative" in name]
        assert "step.00.noise_pred" in names


@pytest.mark.parametrize("level", ["kinds", "block", "full"])
def test_inside_a_step_are_the_transformers_checkpoints(level):
    outside, inside = graph(level), graph(level, inside=(1,))
    added = [name for name in inside.expected if name not in outside.expected]
    inner = qwen_image_transformer(3, level).expected
    assert added == [f"step.01.{side}.{name}" for side in ("cond", "uncond") for name in inner]
    assert {inside.stage[name] for name in added} == {"step.01"}


def test_what_happens_inside_leads_back_to_what_the_step_was_given():
    whole = graph("full", kind="edit_plus", inside=(1,))
    assert whole.parents["step.01.uncond.txt_norm"] == ("pipeline.negative_embeds", "pipeline.negative_mask")
    assert whole.parents["step.01.cond.img_in"] == ("step.00.latents", "pipeline.image_latents")
    assert whole.parents["step.01.cond.time.proj"] == ("step.01.timestep",)
    assert whole.parents["step.01.cond"] == ("step.01.cond.final",)
    seen = whole.visible_parents("step.01.latents", {"step.01.cond.block.01.img.out", "pipeline.sigmas"})
    assert set(seen) == {"step.01.cond.block.01.img.out", "pipeline.sigmas"}


def test_the_level_of_kinds_leaves_out_what_is_between():
    assert set(graph("block", kind="edit").expected) - set(graph("kinds", kind="edit").expected) == {
        "pipeline.features", *(f"step.{i:02d}.timestep" for i in range(4))
    }  # fmt: skip
    with pytest.raises(ValueError, match="level 'all'"):
        pipeline_graph("edit", 2, 2, True, 1, "all")


def test_edits_need_the_processor_and_others_do_not():
    assert "processor" in case("edit").folders
    assert "processor" not in case("inpaint").folders


def test_steps_are_counted_from_the_end_as_well():
    assert case("inpaint", steps=8).looked_inside((-1, 0, 3)).inside == (0, 3)
    with pytest.raises(UsageError, match=r"inside \(-5,\)"):
        case().looked_inside((-9,))


@pytest.mark.parametrize("name", ["pipeline", "edit"])
def test_the_suites_cover_every_kind_in_both_dtypes(name):
    planned = suites.load(name).cases
    kinds = {one.case.kind for one in planned}
    assert kinds == ({"edit", "edit_plus"} if name == "edit" else set(KINDS) - {"edit", "edit_plus"})
    for kind in kinds:
        dtypes = {dtype for one in planned if one.case.kind == kind for dtype in one.dtypes}
        assert dtypes == {"float32", "bfloat16"}
    if name == "pipeline":
        long = [one.case.image for one in planned if one.case.steps == 8 and one.case.guided]
        assert len(set(long)) == 3
        assert any(height != width for height, width in long)
