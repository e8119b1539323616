"""Synthetic VAEs: what diffusers makes of the folder, and what its pictures look like."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from safetensors import safe_open

from reference import synthetic_vae
from reference.synthetic_vae import CONTRAST


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    synthetic_vae.write(path, base_dim=16, seed=3)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return AutoencoderKLQwenImage.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()


def statistics(model):
    return (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (model.config.latents_mean, model.config.latents_std))


def raw_pictures(model, draw, rows, columns):
    """What latents of rms 1 decode to, before the clip, 3 H W."""
    found = []
    hook = model.decoder.conv_out.register_forward_hook(lambda _module, _args, output: found.append(output))
    mean, std = statistics(model)
    with torch.no_grad():
        model.decode(torch.randn(1, 16, 1, rows, columns, generator=draw) * std + mean)
    hook.remove()
    return found[0][0, :, 0]


def test_it_loads_without_a_warning_and_holds_all_keys_in_bfloat16(folder, caplog):
    logging.getLogger("diffusers").propagate = True
    try:
        with caplog.at_level(logging.WARNING):
            model = AutoencoderKLQwenImage.from_pretrained(
                folder / "vae", torch_dtype=torch.bfloat16, low_cpu_mem_usage=False
            )
    finally:
        logging.getLogger("diffusers").propagate = False
    assert [record.message for record in caplog.records] == []
    with safe_open(folder / "vae" / "diffusion_pytorch_model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(model.state_dict())
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_config_is_the_published_one_but_for_the_width(folder):
    config = json.loads((folder / "vae" / "config.json").read_text())
    published = AutoencoderKLQwenImage.load_config(folder / "vae") | {"base_dim": 16}
    assert config == published
    assert (config["z_dim"], config["dim_mult"], config["num_res_blocks"]) == (16, [1, 2, 4, 4], 2)
    assert config["temperal_downsample"] == [False, True, True]
    assert config["latents_mean"][0] == -0.7571
    assert config["latents_std"][-1] == 1.916


@pytest.mark.parametrize("size", [(16, 16), (24, 40)])
def test_latents_decode_to_smooth_pictures_within_the_visible_range(model, size):
    picture = raw_pictures(model, torch.Generator().manual_seed(9), *size)
    assert abs(picture.mean()) < 0.3 * CONTRAST * 2
    assert 0.7 * CONTRAST < picture.std() < 1.3 * CONTRAST
    assert (picture.abs() > 1).float().mean() < 0.03
    # White noise has √2 here.
    step = (picture[:, :, 1:] - picture[:, :, :-1]).std() / picture.std()
    assert 0.02 < step < 0.3


def test_colours_are_not_all_one(model):
    picture = raw_pictures(model, torch.Generator().manual_seed(9), 24, 24)
    correlation = torch.corrcoef(picture.flatten(1))
    assert correlation[0, 1].abs() < 0.9
    assert correlation[0, 2].abs() < 0.9


def test_pictures_encode_to_normalised_latents_of_rms_1(model):
    mean, std = statistics(model)
    with torch.no_grad():
        posterior = model.encode(synthetic_vae.pictures(torch.Generator().manual_seed(4))).latent_dist
    latents = (posterior.mean - mean) / std
    assert 0.8 < latents.square().mean().sqrt() < 1.25
    assert (latents.mean(dim=(0, 2, 3, 4)).abs() < 0.7).all()
    assert -9 < posterior.logvar.mean() < -7


def test_the_seed_decides(folder, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    synthetic_vae.write(again, base_dim=16, seed=3)
    synthetic_vae.write(other, base_dim=16, seed=4)
    first, second, third = (
        (path / "vae" / "diffusion_pytorch_model.safetensors").read_bytes() for path in (folder, again, other)
    )
    assert first == second
    assert first != third
