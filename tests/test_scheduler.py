"""The scheduler against diffusers', bit for bit: noise levels, timesteps, steps, added noise, truncation."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

# isort: off
import mlx_impl  # noqa: F401 - first, since it puts the BLAS in place
import mlx.core as mx
# isort: on

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler as Diffusers
from diffusers.pipelines.qwenimage import pipeline_qwenimage, pipeline_qwenimage_img2img

from mlx_impl import scheduler_port
from mlx_impl.scheduler import LIGHTNING, FlowMatchEulerDiscreteScheduler, SchedulerConfig, calculate_shift
from mlx_impl.session import from_numpy, to_numpy
from parity import suite as suites
from parity.components import build_graph
from parity.components.scheduler import SchedulerCase
from parity.errors import UsageError
from reference import scheduler as reference
from reference import scheduler_port as reference_port
from reference.session import to_numpy as torch_to_numpy

QWEN = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.34.0.dev0",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "invert_sigmas": False,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}
SETTINGS = {
    "qwen": QWEN,
    "lightning": reference.LIGHTNING,
    "linear": QWEN | {"time_shift_type": "linear"},
    "static": {"shift": 3.0},
    "static terminal": {"shift": 1.7, "shift_terminal": 0.1, "num_train_timesteps": 700},
    "defaults": {},
}
# Latent tokens of 256 × 256, 1328 × 1328, 928 × 1664, 1024 × 1536, 512 × 2048, one token.
TOKENS = (256, 83 * 83, 58 * 104, 64 * 96, 32 * 128, 1)
DTYPES = {"float32": (mx.float32, torch.float32), "bfloat16": (mx.bfloat16, torch.bfloat16),
          "float16": (mx.float16, torch.float16)}  # fmt: skip


def both(settings: str) -> tuple[FlowMatchEulerDiscreteScheduler, Diffusers]:
    config = SETTINGS[settings]
    return FlowMatchEulerDiscreteScheduler(SchedulerConfig.from_dict(config)), Diffusers.from_config(config)


def prepared(settings: str, steps: int, tokens: int):
    """Both schedulers as the text-to-image pipeline sets them."""
    ours, theirs = both(settings)
    config = theirs.config
    mu = pipeline_qwenimage.calculate_shift(
        tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
    )
    pipeline_qwenimage.retrieve_timesteps(theirs, steps, "cpu", sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    assert ours.prepare(steps, tokens) == mu
    return ours, theirs


def assert_same_levels(ours, theirs):
    for name in ("sigmas", "timesteps"):
        mine, expected = getattr(ours, name), getattr(theirs, name).numpy()
        assert mine.dtype == expected.dtype == np.float32
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_levels_of_every_step_count(settings, tokens):
    first = 2 if SETTINGS[settings].get("shift_terminal") else 1
    for steps in range(first, 101):
        assert_same_levels(*prepared(settings, steps, tokens))


@pytest.mark.parametrize("settings", SETTINGS)
def test_levels_and_timesteps_of_the_callers_own(settings):
    sigmas = [1.0, 0.93, 0.7712, 1 / 3, 0.05]
    given = [
        {"sigmas": sigmas},
        {"sigmas": [*sigmas, 0.0]},
        {"num_inference_steps": 7},
        {"num_inference_steps": 100},
        {"sigmas": sigmas, "timesteps": [999.0, 800.5, 600.0, 123.456, 1.0]},
        {"timesteps": [999.0, 800.5, 600.0, 123.456, 1.0]},
    ]
    for kwargs in given:
        ours, theirs = both(settings)
        with np.errstate(divide="ignore"):
            theirs.set_timesteps(mu=0.63, **kwargs)
        ours.set_timesteps(mu=0.63, **kwargs)
        assert_same_levels(ours, theirs)


def test_new_levels_begin_anew():
    ours, _ = prepared("lightning", 4, 256)
    ours.truncate(0.5)
    ours.step(mx.ones((1,)), 0.0, mx.ones((1,)))
    ours.prepare(4, 256)
    assert (ours.begin_index, ours.step_index) == (None, None)


def test_a_single_step_goes_from_noise_to_picture():
    """With a terminal level diffusers divides 0 by 0 here; the step is left as it is."""
    ours, theirs = both("qwen")
    ours.prepare(1, 256)
    np.testing.assert_array_equal(ours.sigmas, np.array([1, 0], np.float32))
    with warnings.catch_warnings(action="ignore"):
        theirs.set_timesteps(sigmas=[1.0], mu=0.5)
    assert torch.isnan(theirs.sigmas[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", ["qwen", "lightning"])
def test_steps(settings, dtype):
    ours_dtype, theirs_dtype = DTYPES[dtype]
    rng = np.random.default_rng(0)
    for steps in (1 if settings == "lightning" else 2, 8, 50):
        ours, theirs = prepared(settings, steps, 83 * 83)
        sample = torch.from_numpy(rng.standard_normal((2, 6, 64), np.float32)).to(theirs_dtype)
        mine = from_numpy(torch_to_numpy(sample))
        theirs.set_begin_index(0)
        ours.set_begin_index(0)
        for t in theirs.timesteps:
            velocity = torch.from_numpy(3 * rng.standard_normal((2, 6, 64), np.float32)).to(theirs_dtype)
            sample = theirs.step(velocity, t, sample, return_dict=False)[0]
            mine = ours.step(from_numpy(torch_to_numpy(velocity)), float(t), mine)
            assert mine.dtype == ours_dtype
            np.testing.assert_array_equal(to_numpy(mine), torch_to_numpy(sample))


def test_a_step_finds_its_timestep_without_a_begin_index():
    ours, theirs = prepared("qwen", 10, 256)
    sample, velocity = (np.random.default_rng(i).standard_normal((1, 4, 8), np.float32) for i in range(2))
    expected = theirs.step(torch.from_numpy(velocity), theirs.timesteps[4], torch.from_numpy(sample))[0]
    mine = ours.step(mx.array(velocity), float(theirs.timesteps[4]), mx.array(sample))
    np.testing.assert_array_equal(to_numpy(mine), expected.numpy())
    assert ours.step_index == theirs.step_index == 5


def test_a_timestep_that_stands_twice_means_the_second_one():
    ours, theirs = both("defaults")
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(sigmas=[0.9, 0.5, 0.5, 0.2])
    ones = np.ones((1, 1, 1), np.float32)
    expected = theirs.step(torch.from_numpy(ones), 500.0, torch.from_numpy(ones))[0]
    np.testing.assert_array_equal(to_numpy(ours.step(mx.array(ones), 500.0, mx.array(ones))), expected.numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_before_and_between_steps(dtype):
    """As image-to-image adds it before the first step, and inpainting again after every step."""
    rng = np.random.default_rng(1)
    picture, noise = (torch.from_numpy(rng.standard_normal((2, 1, 4, 6, 4), np.float32)) for _ in range(2))
    picture, noise = (tensor.to(DTYPES[dtype][1]) for tensor in (picture, noise))
    ours, theirs = prepared("qwen", 9, 24)
    mine = [from_numpy(torch_to_numpy(tensor)) for tensor in (picture, noise)]
    for scheduler in (ours, theirs):
        scheduler.set_begin_index(3)
    for index in range(3, 9):
        timestep = theirs.timesteps[index : index + 1].repeat(2)
        expected = theirs.scale_noise(picture, timestep, noise)
        got = ours.scale_noise(mine[0], ours.timesteps[[index, index]], mine[1])
        np.testing.assert_array_equal(to_numpy(got), torch_to_numpy(expected))
        theirs.step(noise, theirs.timesteps[index], picture)
        ours.step(mine[1], ours.timesteps[index], mine[0])


def test_noise_at_a_timestep_of_each_sample():
    ours, theirs = prepared("lightning", 4, 24)
    picture, noise = (np.random.default_rng(i).standard_normal((2, 4, 8), np.float32) for i in range(2))
    expected = theirs.scale_noise(torch.from_numpy(picture), theirs.timesteps[[2, 0]], torch.from_numpy(noise))
    got = ours.scale_noise(mx.array(picture), ours.timesteps[[2, 0]], mx.array(noise))
    np.testing.assert_array_equal(to_numpy(got), expected.numpy())


def test_truncation_by_strength():
    strengths = [0.01, 0.1, 0.29, 0.3, 0.57, 0.6, 2 / 3, 0.7, 0.95, 0.999, 1.0]
    for steps in (1, 2, 3, 7, 10, 20, 28, 50, 100):
        for strength in strengths:
            ours, theirs = prepared("lightning", steps, 256)
            pipeline = SimpleNamespace(scheduler=theirs)
            expected, left = pipeline_qwenimage_img2img.QwenImageImg2ImgPipeline.get_timesteps(
                pipeline, steps, strength, "cpu"
            )
            if left < 1:
                with pytest.raises(ValueError, match="leaves none"):
                    ours.truncate(strength)
                continue
            np.testing.assert_array_equal(ours.truncate(strength), expected.numpy())
            assert ours.begin_index == theirs.begin_index == steps - left


@pytest.mark.parametrize("strength", [-0.1, 1.01, math.nan])
def test_a_strength_out_of_range(strength):
    ours, _ = prepared("lightning", 4, 256)
    with pytest.raises(ValueError, match="within 0…1"):
        ours.truncate(strength)


def test_no_step_is_left():
    ours, _ = prepared("lightning", 2, 256)
    with pytest.raises(ValueError, match="leaves none of 2 steps"):
        ours.truncate(0.0)
    ours.set_begin_index(0)
    ones = mx.ones((1, 1, 1))
    for _ in range(2):
        ours.step(ones, 1000.0, ones)
    with pytest.raises(ValueError, match="all 2 steps are done"):
        ours.step(ones, 1000.0, ones)


def test_a_timestep_that_is_not_there():
    ours, _ = prepared("lightning", 2, 256)
    with pytest.raises(ValueError, match="123"):
        ours.step(mx.ones((1,)), 123.0, mx.ones((1,)))


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps(steps):
    with pytest.raises(ValueError, match=f"steps is {steps}, expected at least 1"):
        both("qwen")[0].prepare(steps, 256)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({}, "no sigmas"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"sigmas": []}, "at least 1"),
        ({"num_inference_steps": 3, "sigmas": [1.0, 0.5]}, "same number"),
        ({"sigmas": [1.0, 0.5], "timesteps": [1000.0]}, "same number"),
    ],
)
def test_levels_that_do_not_agree(kwargs, said):
    with pytest.raises(ValueError, match=said):
        both("qwen")[0].set_timesteps(mu=0.5, **kwargs)


def test_dynamic_shift_needs_mu():
    with pytest.raises(ValueError, match="mu is needed"):
        both("qwen")[0].set_timesteps(4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sigma_min": 0.1}, "unknown keys sigma_min"),
        ({"invert_sigmas": True}, "invert_sigmas"),
        ({"use_karras_sigmas": True, "stochastic_sampling": True}, "use_karras_sigmas, stochastic_sampling"),
        ({"use_exponential_sigmas": True}, "use_exponential_sigmas"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas"),
        ({"time_shift_type": "cubic"}, "cubic"),
        ({"_class_name": "EulerDiscreteScheduler"}, "EulerDiscreteScheduler"),
        ({"base_image_seq_len": 8192}, "both 8192"),
        ({"num_train_timesteps": 0}, "num_train_timesteps 0"),
    ],
)
def test_a_config_that_is_not_supported(change, said):
    with pytest.raises(ValueError, match=said):
        SchedulerConfig.from_dict(QWEN | change)


def test_lightning_settings_are_the_published_ones():
    assert SchedulerConfig.from_dict(reference.LIGHTNING) == LIGHTNING
    assert calculate_shift(256, LIGHTNING) == calculate_shift(8192, LIGHTNING) == math.log(3)


def test_wide_reference_steps_in_float64():
    """GIVEN a float64 sample that float32 can't hold WHEN a step is taken THEN its digits are still there."""
    theirs = reference.build({"shift": 1.0}, torch.float64)
    theirs.set_timesteps(sigmas=[0.9, 0.11, 0.1])
    sigmas = np.array([0.9, 0.11], np.float32).astype(np.float64)
    width = sigmas[1] - sigmas[0]
    assert width != np.float32(width)  # the step's width is wide too
    rng = np.random.default_rng(0)
    sample, velocity = rng.standard_normal((1, 4, 8)), rng.standard_normal((1, 4, 8))
    theirs.set_begin_index(0)
    got = theirs.step(torch.from_numpy(velocity), theirs.timesteps[0], torch.from_numpy(sample), return_dict=False)[0]
    assert got.dtype == torch.float64
    np.testing.assert_array_equal(got.numpy(), sample + width * velocity)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline folder with nothing but a scheduler."""
    path = tmp_path_factory.mktemp("pipeline")
    Diffusers.from_config(QWEN).save_pretrained(path / "scheduler")
    return path


def case(**given) -> SchedulerCase:
    return SchedulerCase(**{"name": "a", "seed": 0, "image": (64, 48), "steps": 5, "batch": 2} | given)


def sessions(folder, dtype):
    """Ours, the reference, and the truth of a run."""
    ours, theirs = DTYPES[dtype]
    cpu = torch.device("cpu")
    return (
        scheduler_port.SchedulerSession(folder, ours, ours),
        reference_port.SchedulerSession(folder, cpu, theirs, theirs),
        reference_port.SchedulerSession(folder, cpu, torch.float64, theirs),
    )


def chain(session, graph, state):
    """All checkpoints of a session that feeds itself."""
    found = {}
    for stage in graph.stages:
        session.load(stage)
        state, made = session.run(stage, state, graph.names_of(stage))
        session.free(stage)
        found |= made
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "given",
    [{}, {"settings": "lightning", "steps": 1}, {"strength": 0.6}, {"strength": 1.0, "batch": 1}],
    ids=["text", "lightning", "strength", "all steps"],
)
def test_sessions_are_equal_at_every_checkpoint(folder, given, dtype):
    chosen = case(**given)
    graph = build_graph(chosen.graph({"scheduler": QWEN}, "full"))
    ours, theirs, _ = sessions(folder, dtype)
    inputs = chosen.inputs({"scheduler": QWEN}, dtype)
    expected, accumulated = chain(theirs, graph, inputs), chain(ours, graph, inputs)
    assert tuple(expected) == tuple(accumulated) == graph.expected
    assert graph.exact == set(graph.expected)
    state = inputs
    for stage in graph.stages:
        for session in (ours, theirs):
            session.load(stage)
        after, isolated = ours.run(stage, state, graph.names_of(stage))
        state, _ = theirs.run(stage, state, ())
        assert after.keys() == state.keys()
        for name, made in isolated.items():
            for got in (made, accumulated[name]):
                assert (got.shape, got.dtype) == (expected[name].shape, expected[name].dtype), name
                np.testing.assert_array_equal(got, expected[name], err_msg=name)


def test_truth_of_a_chain_is_good_to_float64(folder):
    chosen = case(strength=0.6)
    graph = build_graph(chosen.graph({"scheduler": QWEN}, "full"))
    inputs = chosen.inputs({"scheduler": QWEN}, "bfloat16")
    truth = chain(sessions(folder, "bfloat16")[2], graph, inputs)
    sigmas, wide = truth["sched.sigmas"], {name: array.astype(np.float64) for name, array in inputs.items()}
    sample = sigmas[2] * wide["noise"] + (1 - sigmas[2]) * wide["sample"]
    np.testing.assert_allclose(truth["sched.noise.sample"], sample, rtol=0, atol=1e-14)
    for step in range(2, 5):
        sample = sample + (sigmas[step + 1] - sigmas[step]) * wide[f"model_output.{step:02d}"]
        np.testing.assert_allclose(truth[f"sched.step.{step:02d}.sample"], sample, rtol=0, atol=1e-14)


def test_a_wrong_shift_is_seen_at_the_levels(folder, monkeypatch):
    """The twin of the tests above: a port that differs in one number does not pass."""
    monkeypatch.setattr(scheduler_port, "LIGHTNING", SchedulerConfig.from_dict(QWEN))
    chosen = case(settings="lightning")
    graph = build_graph(chosen.graph({"scheduler": QWEN}, "full"))
    inputs = chosen.inputs({"scheduler": QWEN}, "float32")
    got, expected = (chain(session, graph, inputs) for session in sessions(folder, "float32")[:2])
    assert {name for name in graph.expected if not np.array_equal(got[name], expected[name])} == (
        set(graph.expected) - {"sched.begin"}
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image": (64, 40)}, "64 × 40"),
        ({"steps": 0}, "steps is 0"),
        ({"batch": 0}, "batch 0"),
        ({"settings": "turbo"}, "turbo"),
        ({"strength": 0.123}, "0.123"),
        ({"strength": 0.0}, "0.0"),
        ({"strength": 1.5}, "1.5"),
    ],
)
def test_a_case_that_makes_no_sense(given, said):
    with pytest.raises(UsageError, match=said):
        case(**given)


def test_a_case_whose_reference_is_not_a_number():
    with pytest.raises(UsageError, match=r"shift_terminal 0\.02"):
        case(steps=1).graph({"scheduler": QWEN}, "full")
    case(steps=1).graph({"scheduler": QWEN | {"shift_terminal": None}}, "full")


def test_the_suite_covers_settings_and_strength():
    cases = [planned.case for planned in suites.load("scheduler").cases]
    assert {one.settings for one in cases} == {"checkpoint", "lightning"}
    assert any(one.strength for one in cases)
    assert any(one.image[0] != one.image[1] for one in cases)
