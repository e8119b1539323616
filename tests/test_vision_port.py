"""The MLX vision tower in lockstep with the reference: parity at every checkpoint, and faults found where they are."""

from __future__ import annotations

# isort: off
import mlx_impl  # noqa: F401  first, since it puts the BLAS in place
import mlx.core as mx
# isort: on

import json
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from vision_tower import CONFIG, PICTURES, draw, write_tower

from mlx_impl import vision, vision_port
from mlx_impl.port import MlxPort
from mlx_impl.vision import load_vision
from mlx_impl.vision_preprocess import load_settings, preprocess
from parity import verdict
from parity.components import build_graph
from parity.components.vision import EXACT, VisionCase
from parity.lockstep import Lockstep, Unit, iterate
from reference.port import ReferencePort

STAGES = ("vision.patches", "vision.embed", "vision.block.00", "vision.block.01", "vision.block.02", "vision.merger")
CONFIGS = {"text_encoder": {"vision_config": CONFIG}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tower(tmp_path_factory.mktemp("pipeline") / "model")


def lockstep(folder, name="ragged", dtype="float32", modes=("isolated",)):
    """mode -> name -> judged row."""
    case = VisionCase(name="one", seed=3, images=PICTURES[name])
    graph = build_graph(case.graph(CONFIGS, "full"))
    both = Lockstep(Unit(case, dtype, modes, graph, 3), ReferencePort("cpu"), MlxPort(), folder)
    rows = {mode: [] for mode in modes}
    for _, _, result in iterate(both, both.start(case.inputs(CONFIGS, dtype)), 0):
        for mode in modes:
            rows[mode] += result.rows[mode]
    return {
        mode: {r["name"]: r for r in verdict.judge(found, graph, isolated=mode == "isolated")}
        for mode, found in rows.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["square", "ragged", "two"])
def test_every_checkpoint_is_within_three_floors(folder, name, dtype):
    for rows in lockstep(folder, name, dtype, ("isolated", "accumulated")).values():
        assert verdict.overall(verdict.count(rows.values())) == "parity"
        assert {row["name"] for row in rows.values() if row["floor_by"] == "exact"} == set(EXACT)
        assert max(row["excess"] for row in rows.values()) <= 3
        # A floor that says nothing would let everything pass.
        assert max(row["floor"] for row in rows.values()) < (1e-4 if dtype == "float32" else 0.1)


@contextmanager
def planted(fault, monkeypatch):
    """A port with one fault."""
    real_segments, real_windows, real_settings = vision.segments, vision.windows, vision_port.load_settings
    place, name, instead = {
        "epsilon": (vision, "RMSNorm", partial(vision.RMSNorm, eps=1e-2)),
        "rotation": (vision, "rotate_halves", lambda x, table: x),
        "windows": (vision, "segments", lambda bounds: real_segments((0, bounds[-1]))),
        "mean": (vision_port, "load_settings", lambda root: replace(real_settings(root), image_mean=(0.48, 0.46, 0.4))),
        "window order": (vision, "windows", lambda grids, merge, side: real_windows(grids, merge, side - 1)),
    }[fault]
    with monkeypatch.context() as patch:
        patch.setattr(place, name, instead)
        yield


@pytest.mark.parametrize(
    ("fault", "sources"),
    [
        ("epsilon", {"vision.block.00.normed", "vision.block.01.normed", "vision.merger.norm"}),
        ("rotation", {"vision.block.00.q", "vision.block.00.k", "vision.block.01.q", "vision.block.02.k"}),
        ("windows", {"vision.block.00.attn", "vision.block.02.attn"}),
        ("mean", {"vision.pixels"}),
        ("window order", {"vision.window_index", "vision.cu_window_seqlens"}),
    ],
)
def test_a_fault_is_found_where_it_is(folder, fault, sources, monkeypatch):
    with planted(fault, monkeypatch):
        rows = lockstep(folder)["isolated"]
    found = {name for name, row in rows.items() if row["source"]}
    assert sources <= found
    if fault == "windows":
        assert "vision.block.01.attn" not in found  # this one attends to the whole picture


def run_all(session, state, want=()):
    found = {}
    for stage in session.stages:
        session.load(stage)
        state, values = session.run(stage, state, want)
        session.free(stage)
        found |= values
    return state, found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stages_streamed_equal_the_whole_model(folder, dtype):
    session = MlxPort().open(folder, dtype=dtype, component="vision")
    assert session.stages == STAGES
    state, _ = run_all(session, {f"image.{i:02d}": image for i, image in enumerate(draw("two"))})
    pixels, grids = preprocess(draw("two"), load_settings(folder))
    features = load_vision(folder, dtype)(mx.array(pixels), grids)
    np.testing.assert_array_equal(state["image_features"].astype(np.float32), np.array(features.astype(mx.float32)))
    assert state["image_features"].dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    np.testing.assert_array_equal(state["image_grid_thw"], grids)
    assert state["image_grid_thw"].dtype == np.int64
    assert set(state) == {"image_features", "image_grid_thw"}


def test_every_stage_holds_its_weights_in_the_runs_dtype(tmp_path):
    """GIVEN weights in float32 on disk, THEN holding them in bfloat16 moves what each stage makes."""
    root = write_tower(tmp_path / "model")
    path = root / "text_encoder" / "model.safetensors"
    save_file({key: tensor.float() * 1.001 for key, tensor in load_file(path).items()}, path)
    single, held = (MlxPort().open(root, dtype="float32", hold=hold, component="vision") for hold in (None, "bfloat16"))
    state = {"image.00": draw("square")[0]}
    for stage in STAGES:
        for session in (single, held):
            session.load(stage)
        after, other = (session.run(stage, state, ())[0] for session in (single, held))
        moved = [key for key in after if not np.array_equal(after[key], other[key])]
        assert moved == {"vision.patches": [], "vision.merger": ["image_features"]}.get(stage, ["vis"])
        state = after


def test_pixels_are_rounded_to_the_runs_dtype(folder):
    session = MlxPort().open(folder, dtype="bfloat16", component="vision")
    session.load("vision.patches")
    state, found = session.run("vision.patches", {"image.00": draw("square")[0]}, ["vision.pixels"])
    assert state["pixels"].dtype == found["vision.pixels"].dtype == ml_dtypes.bfloat16


def test_freed_stages_give_their_weights_back(folder):
    session = MlxPort().open(folder, dtype="float32", component="vision")
    for stage in STAGES[1:]:
        before = mx.get_active_memory()
        session.load(stage)
        assert mx.get_active_memory() > before + 20_000, stage
        session.free(stage)
        assert mx.get_active_memory() < before + 5_000, stage


def test_a_stage_that_is_not_loaded_is_an_error(folder):
    session = MlxPort().open(folder, dtype="float32", component="vision")
    with pytest.raises(ValueError, match=r"vision\.embed is not loaded"):
        session.run("vision.embed", {}, ())


def test_unknown_keys_of_the_config_stop_the_port(tmp_path):
    root = write_tower(tmp_path / "model")
    path = root / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"]["deepstack_visual_indexes"] = [1]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="deepstack_visual_indexes"):
        MlxPort().open(root, dtype="float32", component="vision")
