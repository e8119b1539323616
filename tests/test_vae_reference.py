"""The instrumented VAE is diffusers': bit-equal outputs, every name, every stage; and a truth without islands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage

from parity.components import build_graph
from parity.components.vae import VaeCase
from parity.tap import Recorder, recording
from reference import precision, synthetic_vae, vae
from reference.port import ReferencePort

CASES = {
    "picture": VaeCase(name="picture", image=(32, 48), batch=2, seed=1),
    "latents": VaeCase(name="latents", image=(48, 32), seed=2, start="latents"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    synthetic_vae.write(path, base_dim=8, seed=0)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return AutoencoderKLQwenImage.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()


def graph_of(case, model):
    return build_graph(case.graph({"vae": model.config}, "full"))


def staged(folder, case, model, dtype, state=None, **options):
    """The last state and all checkpoints of a session's run."""
    session, graph = ReferencePort("cpu").open(folder, dtype=dtype, component="vae"), graph_of(case, model)
    state = case.inputs({"vae": model.config}, "float32") if state is None else state
    found = {}
    for stage in graph.stages:
        session.load(stage)
        state, values = session.run(stage, state, graph.names_of(stage), **options)
        session.free(stage)
        found |= values
    return state, found


def pipeline(model, state):
    """What a pipeline makes of the case's inputs: img2img's normalisation, and every pipeline's denormalisation."""
    mean = torch.tensor(model.config.latents_mean).view(1, -1, 1, 1, 1)
    std = 1.0 / torch.tensor(model.config.latents_std).view(1, -1, 1, 1, 1)
    with torch.no_grad():
        if "image" in state:
            latents = (model.encode(torch.from_numpy(state["image"])).latent_dist.mode() - mean) * std
        else:
            latents = torch.from_numpy(state["latents"])
        return latents, model.decode(latents / std + mean).sample


@pytest.mark.parametrize("name", CASES)
def test_stages_equal_the_whole_model_bit_for_bit(folder, model, name):
    case = CASES[name]
    latents, sample = pipeline(model, case.inputs({"vae": model.config}, "float32"))
    state, found = staged(folder, case, model, "float32")
    np.testing.assert_array_equal(state["sample"], sample.numpy())
    assert set(found) == set(graph_of(case, model).expected)
    if name == "picture":
        np.testing.assert_array_equal(found["vae.encode.latents"], latents.numpy())


def test_sessions_have_the_stages_of_the_graph(folder, model):
    session = ReferencePort("cpu").open(folder, dtype="float32", component="vae")
    assert session.stages == graph_of(CASES["picture"], model).stages


def test_recording_changes_nothing(folder, model):
    observed = AutoencoderKLQwenImage.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    vae.instrument(observed)
    state = CASES["picture"].inputs({"vae": model.config}, "float32")
    plain = pipeline(model, state)
    with recording(Recorder()) as recorder:
        tapped = pipeline(observed, state)
    assert all(torch.equal(a, b) for a, b in zip(plain, tapped, strict=True))
    # The two that no module of the model gives are tapped by the stages.
    missing = {"vae.encode.latents", "vae.decode.latents"}
    assert set(recorder.values) == set(graph_of(CASES["picture"], model).expected) - missing


def test_float64_truth_has_no_float32_island(folder, model):
    """GIVEN float64 weights, WHEN the picture moves by 1e-9, THEN every checkpoint moves smoothly.

    A float32 island would swallow the change or turn it into rounding noise of 1e-7.
    """
    case = CASES["picture"]
    image = case.inputs({"vae": model.config}, "float32")["image"].astype(np.float64)
    runs = [staged(folder, case, model, "float64", {"image": image * (1 + s)})[1] for s in (0.0, 1e-9, 2e-9)]
    for name in runs[0]:
        a, b, c = (run[name] for run in runs)
        assert a.dtype == np.float64, name
        assert np.abs(a - 2 * b + c).max() / np.abs(a).max() < 1e-11, name
        assert np.abs(a - b).max() > 0, name


def test_float32_is_within_its_own_rounding_of_the_truth(folder, model):
    case = CASES["picture"]
    _, exact = staged(folder, case, model, "float64")
    _, single = staged(folder, case, model, "float32")
    for name, truth in exact.items():
        error = np.sqrt(np.mean((single[name] - truth) ** 2) / np.mean(truth**2))
        assert 0 < error < 5e-6, name


def test_half_precision_convolutions_are_rounded_once():
    draw = torch.Generator().manual_seed(0)
    shapes = {F.conv2d: ((1, 6, 9, 8), (4, 6, 3, 3)), F.conv3d: ((1, 6, 3, 9, 8), (4, 6, 3, 3, 3))}
    for dtype in precision.HALF:
        for function, (size, kernel) in shapes.items():
            x, weight = (torch.randn(n, generator=draw).to(dtype) for n in (size, kernel))
            bias = torch.randn(4, generator=draw).to(dtype)
            with precision.mode("default", dtype, torch.device("cpu")):
                y = function(x, weight, bias, padding=1)
                # Weights that are widened once, not at each call.
                assert torch.equal(function(x, weight.float(), bias, padding=1), y)
            wide = function(x.double(), weight.double(), bias.double(), padding=1)
            assert y.dtype == dtype
            assert (y == wide.to(dtype)).float().mean() > 0.99


@pytest.mark.parametrize("options", [{}, {"precision": "math"}])
def test_bfloat16_equals_the_native_kernels_to_rounding(folder, model, options):
    case = CASES["picture"]
    native = AutoencoderKLQwenImage.from_pretrained(folder / "vae", torch_dtype=torch.bfloat16).eval()
    image = torch.from_numpy(case.inputs({"vae": model.config}, "bfloat16")["image"].astype(np.float32)).bfloat16()
    with torch.no_grad():
        expected = native.encode(image).latent_dist.mean.float().numpy()
    _, found = staged(folder, case, model, "bfloat16", **options)
    ours = found["vae.encode.mean"]
    assert ours.dtype.name == "bfloat16"
    error = np.sqrt(np.mean((ours.astype(np.float32) - expected) ** 2) / np.mean(expected**2))
    assert error < 0.02
