"""Pictures become the patches that transformers' image processor makes of them, bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as theirs

from mlx_impl.vision_preprocess import Settings, load_settings, preprocess, smart_resize

PUBLISHED = {
    "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711], "max_pixels": 12845056, "merge_size": 2, "min_pixels": 3136,
    "patch_size": 14, "processor_class": "Qwen2_5_VLProcessor", "resample": 3, "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 12845056, "shortest_edge": 3136}, "temporal_patch_size": 2,
    "crop_size": None, "data_format": "channels_first", "device": None, "return_tensors": None,
}  # fmt: skip
SETTINGS = {
    "published": PUBLISHED,
    "defaults": {},
    "small": {"size": {"shortest_edge": 3136, "longest_edge": 50176}},
    "bilinear": {"resample": 2},
    "other patches": {"patch_size": 8, "merge_size": 3, "temporal_patch_size": 1},
    "not rescaled": {"do_rescale": False},
    "not normalised": {"do_normalize": False},
    "bytes": {"do_normalize": False, "do_rescale": False},
    "one mean": {"image_mean": [0.5, 0.5, 0.5], "rescale_factor": 0.01},
}
SIZES = [(384, 384), (200, 333), (333, 200), (1, 1), (5, 7), (1, 199), (10, 2000), (3, 40), (56, 56), (42, 70)]


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 10007 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def expected(pictures, config) -> tuple[np.ndarray, np.ndarray]:
    # The published file names the class; the class itself does not want to hear it.
    config = {key: value for key, value in config.items() if not key.endswith(("_type", "_class"))}
    made = theirs.Qwen2VLImageProcessorPil(**config)([Image.fromarray(p) for p in pictures], return_tensors="np")
    return made["pixel_values"], made["image_grid_thw"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SETTINGS)
def test_patches_equal_those_of_transformers_bit_for_bit(name, size):
    config = SETTINGS[name]
    pixels, grids = preprocess([picture(*size)], Settings.from_dict(config))
    wanted, grid = expected([picture(*size)], config)
    assert pixels.dtype == wanted.dtype == np.float32
    np.testing.assert_array_equal(pixels, wanted)
    np.testing.assert_array_equal(np.array(grids), grid)


@pytest.mark.slow
def test_a_huge_picture_is_shrunk_as_transformers_does():
    huge = np.kron(picture(300, 400), np.ones((12, 12, 1), np.uint8))
    pixels, grids = preprocess([huge], Settings.from_dict(PUBLISHED))
    wanted, grid = expected([huge], PUBLISHED)
    np.testing.assert_array_equal(pixels, wanted)
    assert grids == tuple(map(tuple, grid.tolist())) == ((1, 220, 294),)


def test_several_pictures_follow_each_other():
    pictures = [picture(60, 90), picture(200, 100), picture(60, 90)]
    pixels, grids = preprocess(pictures, Settings())
    wanted, grid = expected(pictures, {})
    np.testing.assert_array_equal(pixels, wanted)
    assert grids == tuple(map(tuple, grid.tolist()))


def test_the_comparison_goes_red():
    """GIVEN one pixel that is off by one, THEN the patches differ."""
    changed = picture(56, 56)
    changed[20, 30, 1] ^= 1
    assert not np.array_equal(preprocess([changed], Settings())[0], expected([picture(56, 56)], {})[0])


@given(
    st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([(56 * 56, 1003520), (3136, 12845056), (784, 784)]),
    st.sampled_from([28, 24]),
)  # fmt: skip
def test_sizes_are_those_of_transformers(height, width, bounds, factor):
    settings = Settings(min_pixels=bounds[0], max_pixels=bounds[1], patch_size=factor // 2)
    try:
        wanted = theirs.smart_resize(height, width, factor, *bounds)
    except ValueError:
        with pytest.raises(ValueError, match="times the other"):
            smart_resize(height, width, settings)
    else:
        assert smart_resize(height, width, settings) == wanted


@pytest.mark.parametrize(("size", "refused"), [((10, 2000), False), ((10, 2001), True), ((2001, 10), True)])
def test_the_narrowest_picture_is_the_one_that_transformers_takes(size, refused):
    if not refused:
        assert preprocess([picture(*size)], Settings())[1] == ((1, 2, 58),)
        return
    with pytest.raises(ValueError, match="aspect ratio"):
        expected([picture(*size)], {})
    with pytest.raises(ValueError, match=r"picture 0: a picture of .* 200\.1 times the other, expected at most 200"):
        preprocess([picture(*size)], Settings())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"shape 8 8 of uint8 \(greyscale\?\); expected H W 3 of uint8"),
        (np.zeros((8, 8, 1), np.uint8), r"shape 8 8 1 of uint8 \(greyscale\?\)"),
        (np.zeros((8, 8, 2), np.uint8), r"\(greyscale with alpha\?\)"),
        (np.zeros((8, 8, 4), np.uint8), r"\(RGB with alpha\?\)"),
        (np.zeros((3, 8, 8), np.uint8), r"shape 3 8 8 of uint8; expected H W 3"),
        (np.zeros((8, 8, 3), np.float32), r"shape 8 8 3 of float32; expected H W 3 of uint8"),
        (np.zeros((8, 8, 3), np.uint16), r"of uint16"),
        (np.zeros((0, 8, 3), np.uint8), r"0 × 8 pixels has none"),
        ([[1, 2, 3]], r"type list; expected a numpy array"),
    ],
)
def test_what_is_no_picture_is_refused(bad, message):
    with pytest.raises(ValueError, match=rf"picture 1.*{message}"):
        preprocess([picture(56, 56), bad], Settings())


def test_no_pictures_are_refused():
    with pytest.raises(ValueError, match="no pictures"):
        preprocess([], Settings())


@pytest.mark.parametrize("size", [(13, 13), (27, 28), (28, 30)])
def test_without_resizing_a_picture_must_fit(size):
    settings = Settings(do_resize=False)
    np.testing.assert_array_equal(
        preprocess([picture(28, 56)], settings)[0], expected([picture(28, 56)], {"do_resize": False})[0]
    )
    with pytest.raises(ValueError, match="no multiple of 28 each way, and do_resize is off"):
        preprocess([picture(*size)], settings)


def test_defaults_are_those_of_transformers():
    processor, ours = theirs.Qwen2VLImageProcessorPil(), Settings()
    assert (ours.min_pixels, ours.max_pixels) == (processor.size.shortest_edge, processor.size.longest_edge)
    for name in set(vars(ours)) - {"min_pixels", "max_pixels", "image_mean", "image_std"}:
        assert getattr(ours, name) == getattr(processor, name), name
    assert (ours.image_mean, ours.image_std) == (tuple(processor.image_mean), tuple(processor.image_std))


@pytest.mark.parametrize("config", [{}, {"min_pixels": 784, "max_pixels": 7840}, {"resample": 2, "do_rescale": False}])
def test_settings_that_transformers_saved_are_read(tmp_path, config):
    theirs.Qwen2VLImageProcessorPil(**config).save_pretrained(tmp_path / "processor")
    assert load_settings(tmp_path) == load_settings(tmp_path / "processor") == Settings.from_dict(config)


def test_settings_inside_the_processors_file_win(tmp_path):
    """GIVEN both files, as transformers 5 may leave them, THEN the nested settings count, as there."""
    folder = tmp_path / "processor"
    folder.mkdir()
    (folder / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen2_5_VLProcessor"}))
    assert load_settings(tmp_path).max_pixels == 12845056
    nested = {"processor_class": "Qwen2_5_VLProcessor", "image_processor": PUBLISHED | {"max_pixels": 5000}}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    assert load_settings(tmp_path).max_pixels == 5000
    found = theirs.Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
    assert found.size.longest_edge == 5000


def test_missing_settings_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sharpen": 2, "gamma": 1}, "unknown settings: gamma, sharpen"),
        ({"size": {"height": 3}}, "size.height"),
        ({"size": 224}, "size = 224"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"max_pixels": 1e6}, r"max_pixels is 1000000\.0, expected a whole number"),
        ({"image_std": [1, 1]}, "one value a channel"),
    ],
)
def test_settings_that_cannot_be_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        Settings.from_dict(config)
