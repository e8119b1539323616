"""The MLX pipelines held against the reference in lockstep, and the reference's stages against one another."""

# isort: off
import mlx_impl  # noqa: F401 - first, since it puts the BLAS in place
import mlx.core as mx
# isort: on

import json

import numpy as np
import pytest
import torch
from pipeline_folder import write_pipeline

from mlx_impl.pipeline_port import PipelineSession
from mlx_impl.port import MlxPort
from parity.components import build_graph
from parity.components.pipeline import PipelineCase
from parity.lockstep import Lockstep, Unit, iterate
from parity.rounding import round_state
from parity.verdict import count, judge, overall
from reference import pipeline_port
from reference.port import ReferencePort

USUAL = {"seed": 0, "prompts": ("A red fox in snow.",), "negative": (" ",), "image": (32, 48), "steps": 2}
CASES = {
    name: PipelineCase(name=name, **USUAL | fields)
    for name, fields in {
        "batch": {"kind": "text_to_image", "prompts": ("fox", "A cat."), "negative": ("", "ugly"), "inside": (1,)},
        "unguided": {"kind": "text_to_image", "negative": ()},
        "noised": {"kind": "image_to_image", "pictures": ((50, 60),), "steps": 3, "strength": 0.6},
        "inpaint": {"kind": "inpaint", "pictures": ((50, 60),), "strength": 1.0},
        "edit": {"kind": "edit", "pictures": ((50, 60),), "areas": (4096, 4096)},
        "several": {"kind": "edit_plus", "pictures": ((50, 60), (64, 40)), "areas": (3136, 4096)},
    }.items()
}  # fmt: skip


@pytest.fixture(scope="module")
def folder():
    return write_pipeline()


def configs(folder):
    return {"transformer": json.loads((folder / "transformer" / "config.json").read_text())}


def judged(folder, case, dtype, candidate=None, *, draws=2):
    """mode -> judged rows of one unit; the largest step between the two pictures in 0…255."""
    graph = build_graph(case.graph(configs(folder), "full"))
    unit = Unit(case, dtype, ("isolated", "accumulated"), graph, draws)
    lockstep = Lockstep(unit, ReferencePort("cpu"), candidate or MlxPort(), folder)
    rows = {mode: [] for mode in unit.modes}
    pictures = {}
    for _, _, result in iterate(lockstep, lockstep.start(case.inputs(configs(folder), dtype)), 0):
        pictures |= result.pictures
        for mode in unit.modes:
            rows[mode] += result.rows[mode]
    for mode, found in rows.items():
        rows[mode] = judge(found, graph, isolated=mode == "isolated")
    first, second = ((np.asarray(p, np.float32) * 255).round() for p in pictures["pipeline.image"])
    return rows, np.abs(first - second).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_every_checkpoint_matches_the_reference(folder, name, dtype):
    rows, picture = judged(folder, CASES[name], dtype)
    for mode, found in rows.items():
        wrong = [(r["name"], r["verdict"], r["excess"], r["reason"]) for r in found if r["verdict"] != "match"]
        assert overall(count(found)) == "parity", (mode, wrong)
        assert max(row["excess"] for row in found) < 2
    if dtype == "float32":
        assert picture <= 1


def test_conditions_free_of_noise_are_taken_as_such():
    """Edit-2511's flag changes the result, on both sides alike."""
    case, flagged = CASES["several"], write_pipeline(zero_cond_t=True)
    rows, _ = judged(flagged, case, "float32")
    assert overall(count(rows["accumulated"])) == "parity"
    images = []
    for root in (flagged, write_pipeline()):
        state, _ = run(MlxPort().open(root, dtype="float32", component="pipeline"), root, case)
        images.append(state["image"])
    assert np.abs(images[0] - images[1]).max() > 0.01


def run(session, folder, case, dtype="float32", wide=False):
    """The state and all checkpoints after all stages of a session."""
    graph = build_graph(case.graph(configs(folder), "full"))
    state, values = case.inputs(configs(folder), dtype), {}
    if wide:
        state = round_state(state, np.dtype(np.float64))
    for stage in graph.stages:
        session.load(stage)
        state, found = session.run(stage, state, graph.names_of(stage))
        session.free(stage)
        values |= found
    assert set(values) == set(graph.expected)
    return state, values


FAULTS = {
    # A fault in the port -> where it must be found, in both modes.
    "no norm rescale": ("batch", {"step.00.noise_pred", "step.01.noise_pred"}),
    "timestep not divided": ("unguided", {"step.00.timestep", "step.01.timestep"}),
    "scheduler off by one": ("unguided", {"step.00.latents", "step.01.latents"}),
    "mask upside down": ("inpaint", {"pipeline.mask"}),
    "posterior's mean": ("noised", {"pipeline.image_latents"}),
    "conditions shown swapped": ("several", {"pipeline.condition.00", "pipeline.condition.01"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_where_it_is(folder, fault, monkeypatch):
    from mlx_impl.pipelines import denoising, edit, image_to_image, inpaint

    if fault == "no norm rescale":
        monkeypatch.setattr(denoising, "guide", lambda cond, uncond, scale: uncond + scale * (cond - uncond))
    elif fault == "timestep not divided":
        monkeypatch.setattr(denoising, "TRAINED_STEPS", 1.0)
    elif fault == "scheduler off by one":
        advance = denoising.advance
        monkeypatch.setattr(denoising, "advance", lambda prepared, index, *rest: advance(prepared, 1 - index, *rest))
    elif fault == "mask upside down":
        latent_mask = inpaint.latent_mask
        monkeypatch.setattr(inpaint, "latent_mask", lambda mask, *size: latent_mask(1 - mask, *size))
    elif fault == "posterior's mean":
        encode = image_to_image.encode_picture
        monkeypatch.setattr(image_to_image, "encode_picture", lambda parts, picture, _: encode(parts, picture))
    else:
        resize = edit.resize
        monkeypatch.setattr(edit, "resize", lambda image, *size: resize(image.rotate(180), *size))
    name, expected = FAULTS[fault]
    rows, _ = judged(folder, CASES[name], "float32", draws=1)
    sources = {row["name"] for row in rows["isolated"] if row["source"]}
    assert sources == expected, fault
    first = next(row["name"] for row in rows["accumulated"] if row["source"])
    assert first in expected


def test_the_truth_is_good_to_more_digits_than_anything_else(folder):
    """Float64 of the float32 model, computed with steps and guidance written out again."""
    case = CASES["batch"]
    device = torch.device("cpu")
    truth = pipeline_port.PipelineSession(folder, device, torch.float64, torch.float32)
    _, exact = run(truth, folder, case, wide=True)
    sigma = exact["pipeline.sigmas"].astype(np.float64)
    latents = exact["pipeline.latents"]
    for step in ("step.00", "step.01"):
        cond, uncond = exact[f"{step}.cond"], exact[f"{step}.uncond"]
        combined = uncond + 4.0 * (cond - uncond)
        expected = combined * np.linalg.norm(cond, axis=-1, keepdims=True)
        expected /= np.linalg.norm(combined, axis=-1, keepdims=True)
        np.testing.assert_allclose(exact[f"{step}.noise_pred"], expected, rtol=1e-12, atol=1e-13)
        index = int(step[-1])
        latents = latents + (sigma[index + 1] - sigma[index]) * expected
        np.testing.assert_allclose(exact[f"{step}.latents"], latents, rtol=1e-12, atol=1e-13)
        latents = exact[f"{step}.latents"]
    assert all(exact[name].dtype == np.float64 for name in exact if name.startswith("step.") and "rope" not in name)
    _, single = run(pipeline_port.PipelineSession(folder, device, torch.float32, torch.float32), folder, case)
    for name in ("pipeline.prompt_embeds", "step.01.latents", "pipeline.image"):
        far = np.sqrt(np.mean((single[name] - exact[name]) ** 2) / np.mean(exact[name] ** 2))
        assert 1e-8 < far < 5e-6, name


def test_a_sessions_weights_are_not_held_in_another_dtype(folder):
    with pytest.raises(ValueError, match="must be the same"):
        PipelineSession(folder, mx.float32, mx.bfloat16)


def test_a_stage_must_be_loaded(folder):
    session = MlxPort().open(folder, dtype="float32", component="pipeline")
    with pytest.raises(ValueError, match=r"stage pipeline\.encode is not loaded"):
        session.run("pipeline.encode", {}, ())
