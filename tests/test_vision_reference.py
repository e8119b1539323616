"""The instrumented reference is transformers' vision tower: bit-equal stages, every name, a truth without islands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from vision_tower import PICTURES, distance, draw, library_tower, true_features, write_tower

from parity.components.vision import vision_graph
from parity.tap import Recorder, recording
from reference import vision
from reference.vision_port import VisionSession

CPU = torch.device("cpu")
NAMES = vision_graph(3, (1,)).expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tower(tmp_path_factory.mktemp("pipeline") / "model")


def staged(folder, images, dtype="float32", want=(), precision="default"):
    """Final state and checkpoints of a session run stage by stage."""
    session = VisionSession(folder, CPU, getattr(torch, dtype), getattr(torch, dtype))
    return run_on(session, {f"image.{i:02d}": image for i, image in enumerate(images)}, want, precision)


def run_on(session, state, want=(), precision="default"):
    found = {}
    for stage in session.stages[session.stages.index("vision.embed") if "pixels" in state else 0 :]:
        session.load(stage)
        state, values = session.run(stage, state, want, precision=precision)
        session.free(stage)
        found |= values
    return state, found


def pixels_of(folder, images) -> tuple[torch.Tensor, torch.Tensor]:
    made = vision.patches(vision.load_processor(folder), images, torch.float32)
    return made["pixels"], made["image_grid_thw"]


@pytest.mark.parametrize("name", PICTURES)
def test_stages_equal_the_whole_model_bit_for_bit(folder, name):
    state, _ = staged(folder, draw(name))
    pixels, grid = pixels_of(folder, draw(name))
    np.testing.assert_array_equal(
        state["image_features"], library_tower(folder, torch.float32)(pixels, grid).pooler_output.numpy()
    )
    np.testing.assert_array_equal(state["image_grid_thw"], grid.numpy())
    assert set(state) == {"image_features", "image_grid_thw"}


def test_stages_take_the_names_of_newer_saves(folder, tmp_path):
    newer = write_tower(tmp_path / "newer", prefix="model.visual")
    np.testing.assert_array_equal(
        staged(newer, draw("square"))[0]["image_features"], staged(folder, draw("square"))[0]["image_features"]
    )


def test_recording_changes_nothing_and_finds_every_name(folder):
    pixels, grid = pixels_of(folder, draw("two"))
    model = library_tower(folder, torch.float32)
    plain = model(pixels, grid).pooler_output
    tapped = vision.build(model.config.to_dict(), torch.float32, CPU)
    tapped.load_state_dict(model.state_dict(), assign=True)
    silent = tapped(pixels, grid).pooler_output
    with recording(Recorder()) as recorder:
        observed = tapped(pixels, grid).pooler_output
    assert torch.equal(plain, silent)
    assert torch.equal(plain, observed)
    of_modules = [name for name in NAMES if name.startswith("vision.block.")]
    assert set(recorder.values) == {*of_modules, "vision.patch_embed", "vision.merger.norm"}
    _, found = staged(folder, draw("two"), want=NAMES)
    assert set(found) == set(NAMES)


def test_patches_are_those_of_the_processor_that_diffusers_loads(folder):
    """GIVEN no torchvision, as here, THEN transformers' own choice is the class that the reference names."""
    from transformers import AutoImageProcessor

    found = AutoImageProcessor.from_pretrained(folder / "processor", local_files_only=True)
    assert type(found) is Qwen2VLImageProcessorPil
    assert type(vision.load_processor(folder)) is Qwen2VLImageProcessorPil


@pytest.mark.parametrize("name", PICTURES)
def test_the_float64_truth_equals_the_library_with_every_cast_widened(folder, name):
    """Two ways to widen the islands, by hooks and by reading casts otherwise, agree far below float32's rounding."""
    session = VisionSession(folder, CPU, torch.float64, torch.float32)
    state = {f"image.{i:02d}": image for i, image in enumerate(draw(name))}
    session.load(session.stages[0])
    state, _ = session.run("vision.patches", state, ())
    pixels, grids = state["pixels"], state["image_grid_thw"].tolist()
    assert pixels.dtype == np.float64
    features = run_on(session, state)[0]["image_features"]
    assert features.dtype == np.float64
    assert distance(features, true_features(folder, pixels, grids)) < 1e-12


def test_pixels_of_the_truth_are_the_processors_to_rounding(folder):
    """The order of the patches is the library's; the values come from the whole numbers in float64."""
    images = draw("ragged")
    exact = vision.patches(vision.load_processor(folder, exact=True), images, torch.float64)["pixels"].numpy()
    single = pixels_of(folder, images)[0].numpy()
    assert 0 < np.abs(exact - single).max() < 1e-6
    # Take the normalisation back: 0…255 again, to the last digit that float64 has.
    processor = vision.load_processor(folder)
    of_channel = exact.reshape(len(exact), 3, -1)
    mean, std = (np.array(values)[:, None] for values in (processor.image_mean, processor.image_std))
    whole = (of_channel * std + mean) / processor.rescale_factor
    assert np.abs(whole - whole.round()).max() < 1e-11


def test_float64_truth_has_no_float32_island(folder):
    """GIVEN float64 weights, WHEN pixels move by 1e-9, THEN every checkpoint behind them moves smoothly.

    A float32 island anywhere would swallow the change or turn it into rounding noise of 1e-7.
    """
    session = VisionSession(folder, CPU, torch.float64, torch.float64)
    state = {f"image.{i:02d}": image for i, image in enumerate(draw("two"))}
    session.load("vision.patches")
    state, _ = session.run("vision.patches", state, ())
    moved = [state | {"pixels": state["pixels"] * (1 + step)} for step in (0.0, 1e-9, 2e-9)]
    runs = [run_on(session, one, NAMES)[1] for one in moved]
    behind = [name for name in NAMES if name.startswith(("vision.block", "vision.merger", "vision.patch_embed"))]
    for name in behind:
        a, b, c = (run[name] for run in runs)
        assert a.dtype == np.float64, name
        assert not np.array_equal(a, c), name
        assert np.abs(a - 2 * b + c).max() / np.abs(a).max() < 1e-11, name


def test_the_rotary_table_of_the_truth_is_the_reference_table_to_rounding(folder):
    exact, single = (staged(folder, draw("ragged"), dtype, ["vision.rope"])[1] for dtype in ("float64", "float32"))
    assert exact["vision.rope"].dtype == np.float64
    assert 0 < np.abs(exact["vision.rope"] - single["vision.rope"]).max() < 1e-5


@pytest.mark.parametrize("precision", ["default", "math"])
def test_bfloat16_through_float32_equals_the_native_kernels_to_rounding(folder, precision):
    images = draw("ragged")
    pixels, grid = pixels_of(folder, images)
    native = library_tower(folder, torch.float32).to(torch.bfloat16)(pixels.bfloat16(), grid).pooler_output
    ours = staged(folder, images, "bfloat16", precision=precision)[0]["image_features"]
    assert ours.dtype.name == "bfloat16"
    assert 0 < distance(ours, native.float().numpy()) < 0.05


def test_only_wanted_names_are_returned(folder):
    _, found = staged(folder, draw("square"), want=["vision.merger", "vision.block.02.k"])
    assert {name: value.shape for name, value in found.items()} == {
        "vision.merger": (64, 40), "vision.block.02.k": (256, 2, 16),
    }  # fmt: skip
