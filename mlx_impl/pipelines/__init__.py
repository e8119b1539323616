"""Prompt to picture: the five pipelines of Qwen-Image, each equal to diffusers 0.42.1's.

    pipeline = open_pipeline("Qwen-Image", dtype="bfloat16", low_memory=True)
    request = TextToImage(prompts=("a cat",), negative=(" ",), height=512, width=512, steps=20, seed=7)
    result = pipeline.run(request, on_step=lambda done, steps: print(done, "of", steps))
    result.images  # B H W 3 uint8

A *request* says everything about one run and is checked when it is made; `Request.notes` are the
sentences a user should read (a size that was snapped, guidance that does nothing). A request
*prepares* what the steps need (`prepared.Prepared`: embeddings, latents, noise levels), a *step*
is a pure function of that and the latents, and `decoding.decode` makes the picture. The parity
port runs the same three.
"""

from __future__ import annotations

from .edit import Edit
from .edit_plus import EditPlus
from .image_to_image import ImageToImage
from .inpaint import Inpaint
from .pipeline import Pipeline, Result, open_pipeline
from .request import Request
from .text_to_image import TextToImage

# What a suite and the command line call the pipelines.
KINDS: dict[str, type[Request]] = {
    "text_to_image": TextToImage,
    "image_to_image": ImageToImage,
    "inpaint": Inpaint,
    "edit": Edit,
    "edit_plus": EditPlus,
}

__all__ = [
    "KINDS",
    "Edit",
    "EditPlus",
    "ImageToImage",
    "Inpaint",
    "Pipeline",
    "Request",
    "Result",
    "TextToImage",
    "open_pipeline",
]
