"""The arithmetic of a denoising step against the reference's: guidance, timesteps, the scheduler's step, inpainting."""

# isort: off
import mlx_impl  # noqa: F401 - first, since it puts the BLAS in place
import mlx.core as mx
# isort: on

import numpy as np
import pytest
import torch

from mlx_impl.pipelines.denoising import advance, denoise, guide, model_timestep
from mlx_impl.pipelines.prepared import Kept, Prepared, Prompt
from mlx_impl.session import from_numpy, to_numpy
from reference import pipeline as reference
from reference import scheduler
from reference.session import to_numpy as torch_to_numpy

DTYPES = {"float32": (mx.float32, torch.float32), "bfloat16": (mx.bfloat16, torch.bfloat16)}
SIGMAS = np.array([1.0, 0.7312, 0.3771, 0.0], np.float32)
TIMESTEPS = SIGMAS[:-1] * 1000


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def both(array, dtype):
    """An array on both sides, rounded to a dtype."""
    return mx.array(array).astype(DTYPES[dtype][0]), torch.from_numpy(array).to(DTYPES[dtype][1])


@pytest.mark.parametrize("scale", [4.0, 3.3, 1.01])
def test_guidance_in_half_precision_rounds_where_the_reference_does(scale):
    (cond, expected_cond), (uncond, expected_uncond) = (both(drawn(2, 50, 64, seed=s), "bfloat16") for s in (0, 1))
    found = to_numpy(guide(cond, uncond, scale))
    expected = torch_to_numpy(reference._guide(expected_cond, expected_uncond, scale))
    np.testing.assert_array_equal(found, expected)


def test_guidance_keeps_the_norm_of_the_conditioned_prediction():
    (cond, expected_cond), (uncond, expected_uncond) = (both(drawn(2, 50, 64, seed=s), "float32") for s in (0, 1))
    found = np.array(guide(cond, uncond, 4.0))
    norms = [np.linalg.norm(x, axis=-1) for x in (found, np.array(cond))]
    np.testing.assert_allclose(*norms, rtol=1e-6)
    truth = reference._guide(expected_cond.double(), expected_uncond.double(), 4.0).numpy()
    np.testing.assert_allclose(found, truth, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("timestep", [1000.0, 731.2, 20.0, 19.99])
def test_the_models_timestep_is_the_references_to_the_bit(dtype, timestep):
    latents, expected_latents = both(drawn(2, 3, 4), dtype)
    found = to_numpy(model_timestep(float(np.float32(timestep)), latents))
    expected = torch.tensor(timestep).expand(2).to(expected_latents.dtype) / 1000
    np.testing.assert_array_equal(found, torch_to_numpy(expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("repaint", [False, True])
def test_advancing_is_the_references_to_the_bit(dtype, index, repaint):
    names = ("latents", "noise_pred", "image_latents", "noise")
    ours, theirs = zip(*(both(drawn(3, 6, 8, seed=s), dtype) for s in range(4)), strict=True)
    mine, expected = dict(zip(names, ours, strict=True)), dict(zip(names, theirs, strict=True))
    mask = drawn(3, 6, 8, seed=9) > 0
    kept = Kept(mine["image_latents"], mine["noise"], mx.array(mask)) if repaint else None
    prompt = Prompt(mine["latents"], None)
    prepared = Prepared(mine["latents"], prompt, None, 1.0, SIGMAS, TIMESTEPS, ((1, 2, 3),), None, kept)
    found = to_numpy(advance(prepared, index, mine["latents"], mine["noise_pred"]))

    stepped = scheduler.build({}, DTYPES[dtype][1])
    stepped.sigmas, stepped.timesteps = torch.from_numpy(SIGMAS), torch.from_numpy(TIMESTEPS)
    stepped.set_begin_index(index)
    after = stepped.step(expected["noise_pred"], stepped.timesteps[index], expected["latents"], return_dict=False)[0]
    if repaint:
        following = stepped.timesteps[index + 1 : index + 2]
        after = reference._put_back(stepped, following, expected | {"repaint": torch.from_numpy(mask)}, after)
    np.testing.assert_array_equal(found, torch_to_numpy(after))


class Echo:
    """In the place of a transformer: gives back its tokens, and notes how it was called."""

    def __init__(self):
        self.calls = []

    def __call__(self, hidden_states, encoder_hidden_states, mask, timestep, img_shapes):
        self.calls.append((hidden_states.shape, encoder_hidden_states.shape, mask, timestep.tolist(), img_shapes))
        return hidden_states + encoder_hidden_states.mean()


def test_condition_tokens_follow_the_pictures_and_are_cut_off():
    latents, condition = (from_numpy(drawn(1, n, 4, seed=n)) for n in (6, 10))
    prompt, negative = (Prompt(from_numpy(drawn(1, s, 5)), None) for s in (3, 2))
    grids = ((1, 2, 3), (1, 2, 5))
    prepared = Prepared(latents, prompt, negative, 2.0, SIGMAS, TIMESTEPS, grids, condition)
    transformer = Echo()
    after = denoise(transformer, prepared, 1, latents)
    assert after.shape == latents.shape
    timestep = [float(np.float32(0.7312) * 1000) / 1000]
    for call, text in zip(transformer.calls, (3, 2), strict=True):
        assert call[:3] == ((1, 16, 4), (1, text, 5), None)
        assert call[3] == pytest.approx(timestep)
        assert call[4] == [list(grids)]


def test_without_a_negative_prompt_there_is_one_prediction():
    latents = from_numpy(drawn(2, 6, 4))
    prepared = Prepared(latents, Prompt(from_numpy(drawn(2, 3, 5)), None), None, 4.0, SIGMAS, TIMESTEPS, ((1, 2, 3),))
    transformer = Echo()
    denoise(transformer, prepared, 0, latents)
    assert len(transformer.calls) == 1
