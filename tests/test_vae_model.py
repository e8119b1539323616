"""The MLX VAE against diffusers' on the same weights: pictures, frames, normalisation, loading, bad input."""

from __future__ import annotations

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage as Diffusers
from mlx.utils import tree_flatten
from safetensors.torch import load_file, save_file

from mlx_impl.vae import AutoencoderKLQwenImage, Moments, VaeConfig, load_vae
from parity.errors import WeightsError
from reference import synthetic_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    synthetic_vae.write(path, base_dim=8, seed=0)
    return path


@pytest.fixture(scope="module")
def theirs(folder):
    return Diffusers.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ours(folder):
    return load_vae(folder, "float32")


def pictures(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def channels_last(tensor):
    return np.moveaxis(tensor.numpy(), 1, -1)


def channels_first(array):
    return torch.from_numpy(np.moveaxis(array, -1, 1).copy())


def relative(x, truth):
    return float(np.sqrt(np.mean((np.array(x) - truth) ** 2) / np.mean(truth**2)))


@pytest.mark.parametrize("size", [(32, 32), (24, 56)])
def test_pictures_are_encoded_and_decoded_as_diffusers_does(ours, theirs, size):
    x = pictures(2, 1, *size, 3)
    posterior = theirs.encode(channels_first(x)).latent_dist
    moments = ours.encode(mx.array(x))
    assert relative(moments.mean, channels_last(posterior.mean)) < 2e-6
    assert relative(moments.logvar, channels_last(posterior.logvar)) < 2e-6
    z = np.random.default_rng(1).standard_normal((2, 1, size[0] // 8, size[1] // 8, 16)).astype(np.float32)
    expected = channels_last(theirs.decode(channels_first(z)).sample)
    picture = np.array(ours.decode(mx.array(z)))
    assert picture.shape == (2, 1, *size, 3)
    assert np.abs(picture - expected).max() < 1e-4
    assert np.abs(picture).max() <= 1


@pytest.mark.parametrize("latents", [2, 4])
def test_frames_are_encoded_and_decoded_as_diffusers_does_in_chunks(ours, theirs, latents):
    x = pictures(1, 1 + 4 * (latents - 1), 16, 24, 3)
    expected = channels_last(theirs.encode(channels_first(x)).latent_dist.mean)
    assert expected.shape[1] == latents
    assert relative(ours.encode(mx.array(x)).mean, expected) < 2e-6
    z = np.random.default_rng(1).standard_normal((1, latents, 2, 3, 16)).astype(np.float32)
    expected = channels_last(theirs.decode(channels_first(z)).sample)
    assert expected.shape[1] == x.shape[1]
    assert relative(ours.decode(mx.array(z)), expected) < 5e-6


def test_bfloat16_stays_bfloat16_and_near(folder, theirs):
    ours, x = load_vae(folder, "bfloat16"), pictures(1, 1, 32, 32, 3)
    moments = ours.encode(mx.array(x).astype(mx.bfloat16))
    picture = ours.decode(moments.mean)
    assert moments.mean.dtype == moments.logvar.dtype == picture.dtype == mx.bfloat16
    expected = channels_last(theirs.encode(channels_first(x)).latent_dist.mean)
    assert relative(moments.mean.astype(mx.float32), expected) < 0.03


def test_sampling_the_posterior(ours, theirs):
    x = pictures(1, 1, 16, 16, 3)
    posterior, moments = theirs.encode(channels_first(x)).latent_dist, ours.encode(mx.array(x))
    noise = np.random.default_rng(2).standard_normal(moments.mean.shape).astype(np.float32)
    expected = posterior.mean + posterior.std * channels_first(noise)
    assert relative(moments.sample(mx.array(noise)), channels_last(expected)) < 2e-6


def test_the_variance_is_limited_as_in_diffusers():
    moments = Moments.of(mx.array([0.0, 0.0, -100.0, 100.0]).reshape(1, 1, 1, 1, 4))
    assert moments.logvar.flatten().tolist() == [-30, 20]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalisation_rounds_as_the_pipelines_do(ours, theirs, dtype):
    """Bit for bit: img2img multiplies by the reciprocal, edit divides, and all of them decode by dividing by it."""
    z = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    mean = torch.tensor(theirs.config.latents_mean).view(1, 16, 1, 1, 1).to(dtype)
    std = torch.tensor(theirs.config.latents_std).view(1, 16, 1, 1, 1).to(dtype)
    x = mx.array(channels_last(z.float())).astype(mx.float32 if dtype == torch.float32 else mx.bfloat16)
    for made, expected in (
        (ours.normalize(x), (z - mean) * (1.0 / std)),
        (ours.normalize(x, divide=True), (z - mean) / std),
        (ours.denormalize(x), z / (1.0 / std) + mean),
    ):
        assert made.dtype == x.dtype
        np.testing.assert_array_equal(np.array(made.astype(mx.float32)), channels_last(expected.float()))


def test_one_half_alone(folder, ours):
    x, z = mx.array(pictures(1, 1, 16, 16, 3)), mx.array(pictures(1, 1, 2, 2, 16))
    encoder, decoder = (load_vae(folder, "float32", directions=(one,)) for one in ("encode", "decode"))
    assert mx.array_equal(encoder.encode(x).mean, ours.encode(x).mean)
    assert mx.array_equal(decoder.decode(z), ours.decode(z))
    keys = [{key for key, _ in tree_flatten(model.parameters())} for model in (encoder, decoder, ours)]
    assert keys[0] | keys[1] == keys[2]
    assert not keys[0] & keys[1]
    with pytest.raises(ValueError, match="both"):
        load_vae(folder, directions=("both",))


def test_keys_are_those_of_diffusers(ours, theirs):
    assert {key for key, _ in tree_flatten(ours.parameters())} == set(theirs.state_dict())


def test_defaults_of_the_config_are_those_of_diffusers():
    config, theirs = VaeConfig(), Diffusers.load_config.__self__
    model = theirs(base_dim=8)
    for name in VaeConfig.__dataclass_fields__:
        if name != "base_dim":
            expected = model.config[name]
            assert getattr(config, name) == (tuple(expected) if isinstance(expected, list) else expected), name
    assert (config.factor, config.frame_factor) == (model.spatial_compression_ratio, 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"depth": 3}, "unknown keys depth"),
        ({"attn_scales": [1.0]}, "attn_scales"),
        ({"temperal_downsample": [True]}, "1 entries; 4 resolutions have 3 steps"),
        ({"latents_std": [1.0]}, "latents_std has 1 entries for 16"),
    ],
)
def test_configs_that_do_not_fit(change, said):
    with pytest.raises(ValueError, match=said):
        VaeConfig.from_dict(change)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 1, 30, 32, 3), "30 × 32 pixels; expected multiples of 8"),
        ((1, 1, 32, 32, 4), "expected B T H W 3"),
        ((1, 32, 32, 3), "expected B T H W 3"),
        ((1, 1, 0, 32, 3), "expected B T H W 3"),
        ((1, 3, 32, 32, 3), "3 frames; expected one, and a multiple of 4 after it"),
    ],
)
def test_pictures_that_cannot_be_encoded(ours, shape, said):
    with pytest.raises(ValueError, match=said):
        ours.encode(mx.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 1, 4, 4, 3), (1, 4, 4, 16), (1, 1, 0, 4, 16)])
def test_latents_that_cannot_be_decoded(ours, shape):
    with pytest.raises(ValueError, match="expected B t h w 16"):
        ours.decode(mx.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(ours, theirs, value):
    x = pictures(1, 1, 32, 32, 3)
    x[0, 0, 16, 16, 1] = value
    theirs_bad = ~np.isfinite(channels_last(theirs.encode(channels_first(x)).latent_dist.mean))
    assert theirs_bad.any()
    np.testing.assert_array_equal(~np.isfinite(np.array(ours.encode(mx.array(x)).mean)), theirs_bad)
    z = pictures(1, 1, 4, 4, 16)
    z[0, 0, 1, 2, 3] = value
    assert np.isnan(np.array(ours.decode(mx.array(z)))).any()


def changed(folder, tmp_path, change):
    """A copy of the model's folder with changed weights."""
    shutil.copytree(folder / "vae", tmp_path / "vae")
    weights = load_file(folder / "vae" / WEIGHTS)
    change(weights)
    save_file(weights, tmp_path / "vae" / WEIGHTS)
    return tmp_path


def test_missing_extra_and_misshaped_weights_are_named(folder, tmp_path):
    def transpose(weights):
        key = "encoder.down_blocks.3.conv1.weight"
        weights[key] = weights[key].transpose(0, 1).contiguous()

    for index, (change, said) in enumerate(
        (
            (lambda weights: weights.pop("decoder.conv_in.bias"), "conv_in.bias"),
            (lambda weights: weights.update({"decoder.extra": torch.zeros(1)}), "extra"),
            (lambda weights: weights.update({"ema.decoder": torch.zeros(1)}), "ema.decoder"),
            (transpose, "down_blocks.3.conv1.weight"),
        )
    ):
        error = WeightsError if change is transpose else ValueError
        with pytest.raises(error, match=said):
            load_vae(changed(folder, tmp_path / str(index), change), "float32")


def test_folders_without_a_vae(folder, tmp_path):
    with pytest.raises(WeightsError, match="no weights of a vae"):
        load_vae(tmp_path)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"base_dim": 8}))
    with pytest.raises(WeightsError, match="safetensors"):
        load_vae(tmp_path)
    with pytest.raises(ValueError, match="int8"):
        load_vae(folder, "int8")


def test_four_channels():
    model = AutoencoderKLQwenImage(VaeConfig(base_dim=8, input_channels=4))
    assert model.encode(mx.zeros((1, 1, 8, 8, 4))).mean.shape == (1, 1, 1, 1, 16)
    assert model.decode(mx.zeros((1, 1, 1, 1, 16))).shape == (1, 1, 8, 8, 4)
