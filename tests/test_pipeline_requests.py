"""Requests to the pipelines: what they refuse, what they say, which size they make."""

# isort: off
import mlx_impl  # noqa: F401 - first, since it puts the BLAS in place
import mlx.core as mx
# isort: on

import numpy as np
import pytest

from mlx_impl.pipelines import KINDS, Edit, EditPlus, ImageToImage, Inpaint, TextToImage, open_pipeline
from mlx_impl.pipelines.decoding import to_pixels
from mlx_impl.pipelines.latents import noise, pack, unpack

PICTURE = np.zeros((48, 64, 3), np.uint8)
MASK = np.zeros((48, 64), np.uint8)
# What each kind needs beside a prompt.
NEEDED = {
    "text_to_image": {},
    "image_to_image": {"picture": PICTURE},
    "inpaint": {"picture": PICTURE, "mask": MASK},
    "edit": {"pictures": (PICTURE,)},
    "edit_plus": {"pictures": (PICTURE, PICTURE)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompts": ()}, "no prompt"),
        ({"negative": ("a", "b")}, "2 negative prompts for 1 prompts"),
        ({"steps": 0}, "steps is 0"),
        ({"max_sequence_length": 1025}, "max_sequence_length is 1025"),
        ({"height": 15}, "height is 15, expected at least 16"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_every_pipeline_refuses_what_makes_no_picture(kind, fields, said):
    with pytest.raises(ValueError, match=said):
        KINDS[kind](**{"prompts": ("a cat",), **NEEDED[kind], **fields})


@pytest.mark.parametrize(
    ("request_class", "fields", "said"),
    [
        (ImageToImage, {"picture": PICTURE, "strength": 1.1}, "strength is 1.1, expected 0…1"),
        (ImageToImage, {"picture": PICTURE, "strength": -0.1}, "strength is -0.1"),
        (ImageToImage, {"picture": PICTURE, "strength": 0.0}, "strength 0.0 leaves none of 50 steps"),
        (ImageToImage, {"picture": MASK}, r"picture: expected height width 3 of uint8, found \(48, 64\)"),
        (ImageToImage, {"picture": PICTURE / 255}, "picture: .* of float64"),
        (ImageToImage, {"picture": "cat.png"}, "picture: .* found None of str"),
        (Inpaint, {"picture": PICTURE, "mask": MASK[1:]}, r"mask of \(47, 64\) pixels for a picture of \(48, 64\)"),
        (Inpaint, {"picture": PICTURE, "mask": PICTURE}, r"mask: expected height width of uint8"),
        (Inpaint, {"picture": PICTURE, "mask": MASK, "crop_padding": 8}, "the mask is black everywhere"),
        (Inpaint, {"picture": PICTURE, "mask": MASK + 1, "crop_padding": -1}, "crop_padding is -1"),
        (Edit, {"pictures": ()}, "0 pictures to edit, expected one"),
        (Edit, {"pictures": (PICTURE, PICTURE)}, "2 pictures to edit, expected one"),
        (Edit, {"pictures": (PICTURE,), "prompts": ("a", "b")}, "2 prompts: pictures are edited one at a time"),
        (Edit, {"pictures": (PICTURE[:1],), "vae_area": 1024}, "too extreme"),
        (EditPlus, {"pictures": ()}, "no picture to edit"),
        (EditPlus, {"pictures": (PICTURE, MASK)}, "picture 2: expected height width 3"),
        (EditPlus, {"pictures": (PICTURE,), "prompts": ("a", "b")}, "one at a time"),
    ],
)
def test_pictures_and_strength_are_checked(request_class, fields, said):
    with pytest.raises(ValueError, match=said):
        request_class(**{"prompts": ("a cat",), **fields})


def test_strength_is_enough_where_it_leaves_a_step():
    assert ImageToImage(prompts=("a",), negative=(" ",), picture=PICTURE, strength=0.01, steps=5).notes == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"height": 250, "width": 512}, ["size 250 × 512 is not a multiple of 16 pixels each way: 240 × 512 is made"]),
        ({"guidance": 4.0, "negative": None}, ["guidance 4.0 does nothing without a negative prompt"]),
        ({"guidance": 1.0}, ["the negative prompt does nothing with guidance 1.0"]),
        ({"guidance": 1.0, "negative": None}, []),
        ({}, []),
    ],
)
def test_notes_say_what_a_user_should_know(fields, said):
    request = TextToImage(**{"prompts": ("a",), "negative": (" ",), **fields})
    assert len(request.notes) == len(said)
    assert all(note.startswith(start) for note, start in zip(request.notes, said, strict=True))
    assert request.guided == (request.guidance > 1 and request.negative is not None)


@pytest.mark.parametrize(("shape", "size"), [((640, 480), (1184, 896)), ((100, 300), (576, 1760))])
def test_edits_make_the_last_pictures_proportions(shape, size):
    last = np.zeros((*shape, 3), np.uint8)
    assert Edit(prompts=("a",), pictures=(last,)).size == size
    assert EditPlus(prompts=("a",), pictures=(PICTURE, last)).size == size
    assert EditPlus(prompts=("a",), pictures=(last,), height=50).size == (48, size[1])


def test_a_folder_without_components_is_named(tmp_path):
    (tmp_path / "transformer").mkdir()
    with pytest.raises(FileNotFoundError, match="no folder vae, text_encoder, tokenizer, scheduler"):
        open_pipeline(tmp_path).run(TextToImage(prompts=("a",)))
    with pytest.raises(ValueError, match="float8"):
        open_pipeline(tmp_path, "float8")


def test_a_picture_that_is_no_number_is_not_made():
    pixels = mx.array([0.0, 0.5, 1.0])
    assert to_pixels(pixels).tolist() == [0, 128, 255]
    with pytest.raises(FloatingPointError, match="1 of 3 values"):
        to_pixels(mx.where(pixels == 0.5, mx.nan, pixels))


def test_packing_is_the_reference_s_and_undone_by_unpacking():
    import torch
    from diffusers import QwenImagePipeline

    latents = np.random.default_rng(0).standard_normal((2, 6, 8, 5)).astype(np.float32)
    packed = pack(mx.array(latents))
    expected = QwenImagePipeline._pack_latents(torch.from_numpy(latents).permute(0, 3, 1, 2).contiguous(), 2, 5, 6, 8)
    np.testing.assert_array_equal(np.array(packed), expected.numpy())
    np.testing.assert_array_equal(np.array(unpack(packed, 3, 4)), latents)


def test_noise_depends_on_the_seed_and_its_use_and_is_injected_whole():
    drawn = [noise(None, seed, stream, 1, (32, 48), 4) for seed, stream in ((0, 0), (0, 0), (0, 1), (1, 0))]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert drawn[0].shape == (1, 6, 4)
    assert all(np.abs(drawn[0] - other).max() > 0.1 for other in drawn[2:])
    expected = np.random.Generator(np.random.Philox(key=0)).standard_normal((1, 6, 4), dtype=np.float32)
    np.testing.assert_array_equal(drawn[0], expected)
    assert noise(drawn[3], 0, 0, 1, (32, 48), 4) is drawn[3]
    with pytest.raises(ValueError, match=r"injected noise of shape \(1, 6, 4\), expected \(2, 6, 4\) for 32 × 48"):
        noise(drawn[0], 0, 0, 2, (32, 48), 4)
