"""Tiles: exactly what there is without them; and blended ones, exactly what diffusers makes of them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage as Diffusers

from mlx_impl import conv, vae_layers, vae_tiling
from mlx_impl.vae import load_vae
from mlx_impl.vae_tiling import BlendedTiles
from parity.tap import Recorder, recording
from reference import synthetic_vae

# One step of an 8-bit channel, in pictures of -1…1.
STEP = 2 / 255
SMALL = BlendedTiles(128, 96, 96, 64)


@pytest.fixture(scope="module", params=["fitted", "as initialised"])
def folder(request, tmp_path_factory):
    """Weights that make pictures, and the ones that torch starts with."""
    path = tmp_path_factory.mktemp("model")
    if request.param == "fitted":
        synthetic_vae.write(path, base_dim=8, seed=0)
    else:
        torch.manual_seed(0)
        Diffusers(base_dim=8).save_pretrained(path / "vae")
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_vae(folder, "float32")


def drawn(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def seam(difference, period):
    """Largest jump of a difference of pictures B T H W 3 at the borders of tiles."""
    jumps = [np.abs(np.diff(difference, axis=axis)).swapaxes(2, axis)[:, :, period - 1 :: period] for axis in (2, 3)]
    return max(jump.max() for jump in jumps)


@pytest.mark.parametrize(("tile", "size"), [(32, (9, 13)), (64, (20, 16)), (96, (13, 28))])
def test_tiles_give_the_whole_picture_without_seams(model, tile, size):
    """Edge tiles are cut short; no picture is square."""
    z = model.denormalize(mx.array(drawn(1, 1, *size, 16)))
    whole, tiled = np.array(model.decode(z)), np.array(vae_tiling.decode(model, z, tile=tile))
    assert whole.std() > 1e-3
    assert np.abs(tiled - whole).max() < 1e-5 < STEP
    assert seam(tiled - whole, tile) < 1e-5 < 2 * STEP
    x = mx.array(np.clip(0.4 * drawn(1, 1, size[0] * 8, size[1] * 8, 3), -1, 1))
    for a, b in zip(model.encode(x), vae_tiling.encode(model, x, tile=tile), strict=True):
        assert float(mx.abs(a - b).max()) < 1e-5


def test_frames_in_tiles(model):
    z = mx.array(drawn(2, 2, 5, 7, 16))
    assert float(mx.abs(model.decode(z) - vae_tiling.decode(model, z, tile=32)).max()) < 1e-5
    x = mx.array(drawn(1, 5, 40, 56, 3))
    assert float(mx.abs(model.encode(x).mean - vae_tiling.encode(model, x, tile=32).mean).max()) < 1e-5


def test_bfloat16_in_tiles(folder):
    model = load_vae(folder, "bfloat16")
    z = mx.array(drawn(1, 1, 6, 9, 16)).astype(mx.bfloat16)
    whole, tiled = model.decode(z), vae_tiling.decode(model, z, tile=32)
    assert tiled.dtype == mx.bfloat16
    assert float(mx.abs(whole - tiled).max()) <= STEP


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_a_margin_that_is_too_narrow_is_seen(model, direction, monkeypatch):
    """The tests above can fail: the margin is no wider than the layers see."""
    by_tiles = vae_tiling._by_tiles
    # The encoder's margins are even numbers of pixels.
    less = {"decode": 1, "encode": 4}[direction]
    monkeypatch.setattr(
        vae_tiling, "_by_tiles", lambda *args, margin, scale: by_tiles(*args, margin=margin - less, scale=scale)
    )
    if direction == "decode":
        z = mx.array(drawn(1, 1, 9, 13, 16))
        difference = model.decode(z) - vae_tiling.decode(model, z, tile=32)
    else:
        x = mx.array(drawn(1, 1, 72, 104, 3))
        difference = model.encode(x).mean - vae_tiling.encode(model, x, tile=32).mean
    assert float(mx.abs(difference).max()) > 1e-5


def theirs(folder, tiles=None):
    model = Diffusers.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval().requires_grad_(False)
    if tiles is None:
        model.enable_tiling()
    else:
        model.enable_tiling(tiles.min_height, tiles.min_width, tiles.stride_height, tiles.stride_width)
    return model


def channels_first(array):
    return torch.from_numpy(np.moveaxis(np.array(array), -1, 1).copy())


def channels_last(tensor):
    return np.moveaxis(tensor.numpy(), 1, -1)


@pytest.mark.parametrize(
    ("tiles", "size"),
    [(SMALL, (17, 24)), (SMALL, (10, 30)), (BlendedTiles(64, 64, 64, 64), (12, 12)), (None, (12, 33)), (None, (8, 8))],
    ids=["truncated", "wide", "side by side", "defaults", "one tile"],
)
def test_blended_tiles_are_those_of_diffusers(folder, model, tiles, size):
    reference = theirs(folder, tiles)
    z = model.denormalize(mx.array(drawn(1, 1, *size, 16)))
    expected = channels_last(reference.decode(channels_first(z)).sample)
    made = np.array(vae_tiling.decode_blended(model, z, tiles))
    assert made.shape == expected.shape
    assert np.abs(made - expected).max() < 1e-4
    x = np.clip(0.4 * drawn(1, 1, size[0] * 8, size[1] * 8, 3), -1, 1)
    posterior = reference.encode(channels_first(x)).latent_dist
    moments = vae_tiling.encode_blended(model, mx.array(x), tiles)
    assert np.abs(np.array(moments.mean) - channels_last(posterior.mean)).max() < 1e-4
    assert np.abs(np.array(moments.logvar) - channels_last(posterior.logvar)).max() < 1e-4


def test_blended_frames_are_those_of_diffusers(folder, model):
    z = mx.array(drawn(1, 2, 10, 13, 16))
    expected = channels_last(theirs(folder, SMALL).decode(channels_first(z)).sample)
    assert np.abs(np.array(vae_tiling.decode_blended(model, z, SMALL)) - expected).max() < 1e-4


def test_tiles_may_be_computed_while_somebody_records(model):
    z, x = mx.array(drawn(1, 1, 9, 13, 16)), mx.array(drawn(1, 1, 72, 104, 3))
    with recording(Recorder()) as recorder:
        vae_tiling.decode(model, z, tile=32)
        vae_tiling.encode(model, x, tile=32)
        vae_tiling.decode_blended(model, z, BlendedTiles(64, 64, 48, 48))
        vae_tiling.encode_blended(model, x, BlendedTiles(64, 64, 48, 48))
    assert recorder.values == {}


def test_memory_is_that_of_tiles(model, monkeypatch):
    """GIVEN a picture of 36 tiles, THEN the peak is well below that without them."""
    monkeypatch.setattr(conv, "_PATCHES", 1 << 16)
    monkeypatch.setattr(vae_layers, "_SCORES", 1 << 16)
    z = mx.array(drawn(1, 1, 48, 48, 16))

    def peak(function):
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(function())
        mx.synchronize()
        return mx.get_peak_memory() - before

    assert peak(lambda: vae_tiling.decode(model, z, tile=64)) < 0.7 * peak(lambda: model.decode(z))


@pytest.mark.parametrize("tile", [0, -2, 33])
def test_impossible_tiles(model, tile):
    with pytest.raises(ValueError, match="positive even"):
        vae_tiling.decode(model, mx.zeros((1, 1, 8, 8, 16)), tile=tile)
    with pytest.raises(ValueError, match="positive even"):
        vae_tiling.encode(model, mx.zeros((1, 1, 8, 8, 3)), tile=tile)


@pytest.mark.parametrize("change", [{"stride_height": 300}, {"stride_width": 0}])
def test_impossible_strides(change):
    with pytest.raises(ValueError, match="strides between"):
        BlendedTiles(**change)


def test_shapes_are_checked(model):
    for function in (vae_tiling.decode, vae_tiling.decode_blended):
        with pytest.raises(ValueError, match="expected B t h w 16"):
            function(model, mx.zeros((1, 1, 8, 8, 3)))
    for function in (vae_tiling.encode, vae_tiling.encode_blended):
        with pytest.raises(ValueError, match="multiples of 8"):
            function(model, mx.zeros((1, 1, 8, 12, 3)))
