"""Pictures into and out of the pipelines, against diffusers' VaeImageProcessor, bit for bit."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image

from mlx_impl import images

# As the pipelines make them: 8 pixels of the VAE times 2 of a patch.
PICTURES = VaeImageProcessor(vae_scale_factor=16, vae_latent_channels=16)
MASKS = VaeImageProcessor(
    vae_scale_factor=16, vae_latent_channels=16, do_normalize=False, do_binarize=True, do_convert_grayscale=True
)
# (width, height) as PIL has it: square, wide, high, odd, very narrow, one pixel.
SIZES = ((64, 64), (96, 32), (31, 77), (101, 53), (7, 200), (1, 1))


def picture(size: tuple[int, int], seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A picture with smooth parts and sharp edges."""
    width, height = size
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(2, 20) + y / rng.uniform(2, 20) + rng.uniform(0, 6)) for _ in range(3)]
    pixels = (np.stack(waves, axis=-1) * 100 + 128 + rng.integers(-27, 27, (height, width, 3))).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def mask(size: tuple[int, int], box: tuple[int, int, int, int], mode: str = "L") -> Image.Image:
    canvas = Image.new("L", size)
    canvas.paste(255, box)
    return canvas.convert(mode)


@pytest.mark.parametrize("mode", images.RESIZE_MODES)
@pytest.mark.parametrize("size", SIZES)
def test_resizing(size, mode):
    given = picture(size)
    for height, width in ((48, 80), (80, 48), (64, 64), (16, 160)):
        if mode != "default" and min(size[0] * height // size[1], size[1] * width // size[0]) == 0:
            continue  # PIL makes no picture without pixels, on either side
        expected = PICTURES.resize(given, height, width, resize_mode=mode)
        got = images.resize(given, height, width, mode)
        assert got.mode == expected.mode
        np.testing.assert_array_equal(np.array(got), np.array(expected))


def test_an_unknown_way_to_resize():
    with pytest.raises(ValueError, match="squeeze"):
        images.resize(picture((8, 8)), 8, 8, "squeeze")


@pytest.mark.parametrize("mode", images.RESIZE_MODES)
@pytest.mark.parametrize("box", [None, (5, 3, 60, 40)])
def test_pictures_for_the_encoder(box, mode):
    given = picture((90, 70))
    expected = PICTURES.preprocess(given, 48, 96, resize_mode=mode, crops_coords=box).numpy()
    got = images.preprocess(given, 48, 96, resize_mode=mode, crops_coords=box)
    assert (got.dtype, got.shape) == (np.float32, (1, 3, 48, 96))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK"])
def test_only_rgb_goes_to_the_encoder(mode):
    with pytest.raises(ValueError, match=f"mode {mode}, expected RGB"):
        images.preprocess(picture((32, 32), mode=mode), 32, 32)


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "RGBA"])
def test_masks(mode):
    soft = picture((90, 70), seed=3).convert("L")
    for given in (mask((90, 70), (20, 10, 71, 33), mode), soft.convert(mode)):
        expected = MASKS.preprocess(given, 48, 96).numpy()
        got = images.preprocess_mask(given, 48, 96)
        assert (got.dtype, got.shape) == (np.float32, (1, 1, 48, 96))
        np.testing.assert_array_equal(got, expected)
        assert set(np.unique(got)) == {0, 1}


def test_a_mask_over_latents():
    given = picture((96, 48), seed=5).convert("L")
    their_mask, our_mask = MASKS.preprocess(given, 48, 96), images.preprocess_mask(given, 48, 96)
    for size in ((6, 12), (48, 96), (12, 8)):
        expected = torch.nn.functional.interpolate(their_mask, size=size).numpy()
        np.testing.assert_array_equal(images.latent_mask(our_mask, *size), expected)


def test_the_region_around_a_mask():
    size = (90, 70)
    boxes = [(20, 10, 30, 60), (0, 0, 4, 4), (86, 66, 90, 70), (10, 30, 85, 35), (40, 0, 45, 70), (44, 33, 45, 34)]
    for box, pad, (width, height) in itertools.product(boxes, (0, 3, 32), ((64, 64), (96, 32), (32, 128))):
        given = mask(size, box)
        assert images.get_crop_region(given, width, height, pad) == PICTURES.get_crop_region(given, width, height, pad)


def test_a_mask_without_anything_masked():
    with pytest.raises(ValueError, match="black everywhere"):
        images.get_crop_region(Image.new("L", (8, 8)), 8, 8)


@pytest.mark.parametrize("box", [None, (10, 5, 74, 49)])
def test_laying_the_original_over(box):
    original, made = picture((90, 70)), picture((64, 64) if box else (90, 70), seed=1)
    original.putalpha(picture((90, 70), seed=4).convert("L"))
    for given in (mask((90, 70), (20, 10, 50, 60)), picture((90, 70), seed=9).convert("L")):
        expected = PICTURES.apply_overlay(given, original, made, box)
        got = images.apply_overlay(given, original, made, box)
        assert got.mode == "RGB"
        np.testing.assert_array_equal(np.array(got), np.array(expected))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_pictures_from_the_decoder(dtype):
    values = np.concatenate([np.linspace(-1.2, 1.2, 6000), (2 * np.arange(256) + 1) / 255 - 1, [np.inf, -np.inf]])
    values = np.resize(values, (2, 3, 40, 50)).astype(np.float32)
    tensor = torch.from_numpy(values).to(getattr(torch, dtype))
    ours = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    expected, got = PICTURES.postprocess(tensor), images.postprocess(ours)
    assert len(got) == 2
    for a, b in zip(got, expected, strict=True):
        assert (a.mode, a.size) == (b.mode, b.size) == ("RGB", (50, 40))
        np.testing.assert_array_equal(np.array(a), np.array(b))


def test_a_picture_that_is_not_a_number():
    broken = np.zeros((1, 3, 4, 4), np.float32)
    broken[0, 1, 2, :2] = np.nan
    with pytest.raises(ValueError, match="2 of 48 values"):
        images.postprocess(broken)


def test_sizes_of_condition_pictures():
    for width, height in itertools.product(range(1, 4000, 137), range(1, 4000, 151)):
        ratio = width / height
        for area in (images.CONDITION_AREA, images.VAE_AREA):
            expected = pipeline_qwenimage_edit_plus.calculate_dimensions(area, ratio)
            assert pipeline_qwenimage_edit.calculate_dimensions(area, ratio)[:2] == expected
            if min(expected) == 0:
                with pytest.raises(ValueError, match="too extreme"):
                    images.calculate_dimensions(area, ratio)
            else:
                assert images.calculate_dimensions(area, ratio) == expected
    assert pipeline_qwenimage_edit_plus.CONDITION_IMAGE_SIZE == images.CONDITION_AREA
    assert pipeline_qwenimage_edit_plus.VAE_IMAGE_SIZE == images.VAE_AREA


def test_sizes_that_do_not_divide():
    for height, width in ((1024, 1024), (1000, 777), (16, 31), (1027, 2047)):
        assert images.snap(height, width) == PICTURES.get_default_height_width(None, height, width)
    for size in ((15, 64), (64, 0), (-16, 64)):
        with pytest.raises(ValueError, match="at least 16 × 16"):
            images.snap(*size)
