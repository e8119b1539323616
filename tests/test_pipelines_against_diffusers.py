"""diffusers' own five pipelines and ours on one folder, from identical inputs: the pictures are compared.

As a script it prints a table: ``python tests/test_pipelines_against_diffusers.py [FOLDER]``, where FOLDER is a model
in diffusers' layout (a small synthetic one is made without it).
"""

import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest import mock

# isort: off
import mlx_impl  # noqa: F401 - first, since it puts the BLAS in place
# isort: on

import numpy as np
import pytest
import torch
from diffusers import (
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from diffusers.utils import logging
from PIL import Image
from pipeline_folder import write_pipeline
from transformers import Qwen2Tokenizer

from mlx_impl.pipelines import KINDS, Request, open_pipeline
from parity.components.pipeline import draw_mask, draw_picture
from reference import pipeline_port
from reference.text import PictureProcessor
from reference.vision import load_processor

THEIRS = {
    "text_to_image": QwenImagePipeline,
    "image_to_image": QwenImageImg2ImgPipeline,
    "inpaint": QwenImageInpaintPipeline,
    "edit": QwenImageEditPipeline,
    "edit_plus": QwenImageEditPlusPipeline,
}
PICTURES = tuple(draw_picture(np.random.default_rng(seed), *size) for seed, size in enumerate(((100, 140), (90, 70))))
USUAL = {"prompts": ("A red fox in snow.",), "negative": (" ",), "height": 64, "width": 96, "steps": 4}
# Small pictures stand for large ones; diffusers' own areas are tried in a slow test.
SMALL = {"vae_area": 128 * 128}
REQUESTS = {
    "text to image": ("text_to_image", {"steps": 8}),
    "square": ("text_to_image", {"height": 128, "width": 128, "steps": 8}),
    "upright": ("text_to_image", {"height": 160, "width": 64, "steps": 8}),
    "batch": ("text_to_image", {"prompts": ("fox", "A bowl of oranges."), "negative": ("ugly, blurry", "")}),
    "unguided": ("text_to_image", {"negative": None}),
    "snapped": ("text_to_image", {"height": 79, "width": 100}),
    "image to image": ("image_to_image", {"picture": PICTURES[0], "strength": 0.6}),
    "image to image, snapped": ("image_to_image", {"picture": PICTURES[0], "height": 79, "strength": 1.0}),
    "image to image, batch": (
        "image_to_image", {"picture": PICTURES[1], "strength": 0.3, "prompts": ("a", "b c"), "negative": ("", "d")}
    ),
    "inpaint": ("inpaint", {"picture": PICTURES[0], "mask": draw_mask(100, 140), "strength": 0.75}),
    "inpaint, cropped": (
        "inpaint",
        {"picture": PICTURES[0], "mask": draw_mask(100, 140), "strength": 0.5, "crop_padding": 9, "steps": 2},
    ),
    "edit": ("edit", {"pictures": PICTURES[:1], **SMALL}),
    "edit plus, one": ("edit_plus", {"pictures": PICTURES[1:], "condition_area": 64 * 64, **SMALL}),
    "edit plus, two": ("edit_plus", {"pictures": PICTURES, "condition_area": 84 * 84, **SMALL}),
}  # fmt: skip


@cache
def theirs(folder: Path, kind: str):
    """A pipeline of diffusers; the library's own processor needs torchvision for its part for videos."""
    logging.disable_progress_bar()
    extra = {}
    if "edit" in kind:
        tokenizer = Qwen2Tokenizer.from_pretrained(folder / "processor")
        extra["processor"] = PictureProcessor(load_processor(folder), tokenizer)
    loaded = THEIRS[kind].from_pretrained(folder, dtype=torch.float32, low_cpu_mem_usage=False, **extra)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@contextmanager
def areas(request: Request):
    """diffusers has the areas of condition pictures as constants; here they are the request's."""
    plus = pipeline_qwenimage_edit_plus
    dimensions = plus.calculate_dimensions
    with ExitStack() as patches:
        if request.template == "edit":
            small = lambda _, ratio: (*dimensions(request.vae_area, ratio), None)  # noqa: E731
            patches.enter_context(mock.patch.object(pipeline_qwenimage_edit, "calculate_dimensions", small))
        elif request.template == "edit_plus":
            patches.enter_context(mock.patch.object(plus, "VAE_IMAGE_SIZE", request.vae_area))
            patches.enter_context(mock.patch.object(plus, "CONDITION_IMAGE_SIZE", request.condition_area))
        yield


def noisy(kind: str, request: Request) -> tuple[Request, dict]:
    """The request with all its noise injected, and what makes diffusers draw the same."""
    height, width = (pixels // 8 for pixels in request.size)
    draw = torch.Generator().manual_seed(7)
    fields, batch = {}, len(request.prompts)
    if kind in ("image_to_image", "inpaint"):
        # In the order in which the pipeline asks for them.
        fields["posterior_noise"] = packed(torch.randn(1, 16, 1, height, width, generator=draw))
    fields["latents"] = packed(torch.randn(batch, 1, 16, height, width, generator=draw))
    if fields.keys() > {"latents"}:
        return replace(request, **fields), {"generator": torch.Generator().manual_seed(7)}
    return replace(request, **fields), {"latents": torch.from_numpy(fields["latents"])}


def packed(latents: torch.Tensor) -> np.ndarray:
    batch, height, width = len(latents), *latents.shape[-2:]
    return QwenImagePipeline._pack_latents(latents, batch, 16, height, width).numpy()


def call_theirs(folder: Path, kind: str, request: Request, given: dict) -> np.ndarray:
    """B H W 3 in 0…1 of diffusers' pipeline."""
    arguments = {
        "prompt": list(request.prompts),
        "negative_prompt": None if request.negative is None else list(request.negative),
        "height": request.height,
        "width": request.width,
        "num_inference_steps": request.steps,
        "true_cfg_scale": request.guidance,
    }
    if kind in ("image_to_image", "inpaint"):
        arguments |= {"image": Image.fromarray(request.picture), "strength": request.strength}
    if kind == "inpaint":
        arguments |= {"mask_image": Image.fromarray(request.mask), "padding_mask_crop": request.crop_padding}
    if "edit" in kind:
        pictures = [Image.fromarray(picture) for picture in request.pictures]
        arguments["image"] = pictures if kind == "edit_plus" else pictures[0]
    with areas(request):
        if arguments.get("padding_mask_crop") is None:
            return theirs(folder, kind)(**arguments, **given, output_type="np").images
        made = theirs(folder, kind)(**arguments, **given, output_type="pil").images
        return np.stack([np.array(picture) / 255 for picture in made])


def compare(folder: Path, kind: str, fields: dict) -> tuple[np.ndarray, np.ndarray, Request]:
    """diffusers' picture in 0…1, ours in uint8, and the request."""
    request, given = noisy(kind, KINDS[kind](**USUAL | fields))
    expected = call_theirs(folder, kind, request, given)
    return expected, open_pipeline(folder, "float32").run(request).images, request


def as_pixels(picture: np.ndarray) -> np.ndarray:
    return (picture * 255).round().astype(int)


@pytest.mark.parametrize("name", REQUESTS)
def test_pictures_are_equal_to_within_one_step_at_every_pixel(name):
    kind, fields = REQUESTS[name]
    expected, found, request = compare(write_pipeline(), kind, fields)
    size = request.picture.shape[:2] if "cropped" in name else request.size
    assert found.shape == expected.shape == (len(request.prompts), *size, 3)
    assert expected.std() > 0.1, "not a picture of one colour"
    assert np.abs(as_pixels(expected) - found).max() <= 1


def test_conditions_free_of_noise():
    """Edit-2511's transformer."""
    folder = write_pipeline(zero_cond_t=True)
    expected, found, _ = compare(folder, *REQUESTS["edit plus, two"])
    assert np.abs(as_pixels(expected) - found).max() <= 1
    ordinary, _, _ = compare(write_pipeline(), *REQUESTS["edit plus, two"])
    assert np.abs(as_pixels(expected) - as_pixels(ordinary)).max() > 3, "the flag does something"


def test_another_seed_is_another_picture():
    expected, found, request = compare(write_pipeline(), *REQUESTS["text to image"])
    other = open_pipeline(write_pipeline(), "float32").run(replace(request, latents=None)).images
    assert np.abs(as_pixels(expected) - other).max() > 10
    assert np.abs(other.astype(int) - found).max() > 10


@pytest.mark.parametrize("name", ["batch", "unguided", "image to image", "inpaint", "edit", "edit plus, two"])
def test_the_references_stages_are_the_call_to_the_bit(name):
    kind, fields = REQUESTS[name]
    folder = write_pipeline()
    request, given = noisy(kind, KINDS[kind](**USUAL | fields))
    expected = call_theirs(folder, kind, request, given)
    found = through_stages(folder, kind, request)
    np.testing.assert_array_equal(found, expected)


def through_stages(folder: Path, kind: str, request: Request) -> np.ndarray:
    """B H W 3 in 0…1 of the reference's session, in float32."""

    def utf8(text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).copy()

    state = {
        "kind": utf8(kind),
        "size": np.array(request.size),
        "steps": np.array([request.steps]),
        "sched.guidance": np.array([request.guidance]),
        "latents": request.latents,
    }
    state |= {f"prompt.{index:02d}": utf8(prompt) for index, prompt in enumerate(request.prompts)}
    state |= {f"negative.{index:02d}": utf8(prompt) for index, prompt in enumerate(request.negative or ())}
    pictures = (request.picture,) if hasattr(request, "picture") else getattr(request, "pictures", ())
    state |= {f"image.{index:02d}": picture for index, picture in enumerate(pictures)}
    if hasattr(request, "strength"):
        state["strength_percent"] = np.array([round(request.strength * 100)])
        state["posterior_noise"] = request.posterior_noise
    if hasattr(request, "mask"):
        state["mask.00"] = request.mask
    if hasattr(request, "vae_area"):
        state["areas"] = np.array([getattr(request, "condition_area", 1), request.vae_area])
    session = pipeline_port.PipelineSession(folder, torch.device("cpu"), torch.float32, torch.float32)
    steps = request.steps - int(request.steps - request.steps * getattr(request, "strength", 1))
    for stage in ("pipeline.encode", *(f"step.{step:02d}" for step in range(steps)), "pipeline.decode"):
        session.load(stage)
        state, _ = session.run(stage, state, ())
        session.free(stage)
    return state["image"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["edit", "edit_plus"])
def test_pictures_are_equal_at_the_areas_of_diffusers(kind):
    fields = {"pictures": PICTURES[:1], "steps": 2}
    expected, found, _ = compare(write_pipeline(), kind, fields)
    assert np.abs(as_pixels(expected) - found).max() <= 1


def main() -> int:
    """Compare all requests on a folder; 1 if a picture differs by more than one step."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else write_pipeline()
    worst = 0
    print(f"{'request':24} {'size':>10} {'largest':>8} {'differing':>10}")
    for name, (kind, fields) in REQUESTS.items():
        expected, found, request = compare(folder, kind, fields)
        apart = np.abs(as_pixels(expected) - found)
        worst = max(worst, apart.max())
        size = " × ".join(map(str, request.size))
        print(f"{name:24} {size:>10} {apart.max():>8} {np.mean(apart > 0):>10.3%}", flush=True)
    return int(worst > 1)


if __name__ == "__main__":
    sys.exit(main())
