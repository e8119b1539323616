"""Pictures on their way into and out of the pipelines, as diffusers 0.42.1's VaeImageProcessor has them.

B batch, H height, W width in pixels. Pictures are PIL images, arrays float32 B C H W in numpy;
every function equals the reference's bit for bit.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageOps

# What an editing model sees: areas in pixels, for the vision tower and for the VAE.
CONDITION_AREA = 384 * 384
VAE_AREA = 1024 * 1024
RESIZE_MODES = ("default", "fill", "crop")

Box = tuple[int, int, int, int]


def snap(height: int, width: int, multiple: int = 16) -> tuple[int, int]:
    """The size that is made when this one is asked for: the next smaller multiple each way.

    Args:
        multiple: pixels of a latent token.

    Raises:
        ValueError: less than one token.
    """
    if min(height, width) < multiple:
        raise ValueError(f"picture of {height} × {width} pixels: at least {multiple} × {multiple} are needed")
    return height - height % multiple, width - width % multiple


def calculate_dimensions(target_area: int, ratio: float) -> tuple[int, int]:
    """(width, height) of about an area with about a ratio, in multiples of 32.

    Args:
        target_area: pixels. ratio: width over height.

    Raises:
        ValueError: a picture so narrow that one side would have no pixels.
    """
    width = math.sqrt(target_area * ratio)
    height = width / ratio
    width, height = round(width / 32) * 32, round(height / 32) * 32
    if not width or not height:
        raise ValueError(f"a ratio of width to height of {ratio:.4g} is too extreme: one side would have no pixels")
    return width, height


def resize(image: Image.Image, height: int, width: int, mode: str = "default") -> Image.Image:
    """A picture in another size, by Lanczos.

    Args:
        mode: ``default`` stretches; ``crop`` keeps the ratio and cuts what stands over; ``fill`` keeps it
            and fills the bars with the colours of the edges.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in RESIZE_MODES:
        raise ValueError(f"resize mode {mode!r}: expected {', '.join(RESIZE_MODES)}")
    if mode == "default":
        return image.resize((width, height), resample=Image.Resampling.LANCZOS)
    too_wide, too_high = image.width * height > width * image.height, image.width * height < width * image.height
    if too_wide if mode == "fill" else too_high:
        size = width, image.height * width // image.width
    else:
        size = image.width * height // image.height, height
    scaled = image.resize(size, resample=Image.Resampling.LANCZOS)
    left, top = width // 2 - scaled.width // 2, height // 2 - scaled.height // 2
    canvas = Image.new("RGB", (width, height))
    canvas.paste(scaled, box=(left, top))
    if mode == "fill" and too_wide and top > 0:
        _fill(canvas, scaled, (0, 0, width, 0), (width, top), (0, 0))
        _fill(canvas, scaled, (0, scaled.height, width, scaled.height), (width, top), (0, top + scaled.height))
    if mode == "fill" and too_high and left > 0:
        _fill(canvas, scaled, (0, 0, 0, height), (left, height), (0, 0))
        _fill(canvas, scaled, (scaled.width, 0, scaled.width, height), (left, height), (left + scaled.width, 0))
    return canvas


def preprocess(
    image: Image.Image, height: int, width: int, *, resize_mode: str = "default", crops_coords: Box | None = None
) -> np.ndarray:
    """An RGB picture as the VAE's encoder takes it: 1 3 H W in [-1, 1].

    Args:
        height, width: in pixels, multiples of a latent token (see `snap`).
        crops_coords: cut this box (left, top, right, bottom) out first.

    Raises:
        ValueError: the picture is not RGB. The reference fails later, in the VAE.
    """
    if image.mode != "RGB":
        raise ValueError(f"a picture of mode {image.mode}, expected RGB: convert it first")
    image = image if crops_coords is None else image.crop(crops_coords)
    return 2.0 * _to_array(resize(image, height, width, resize_mode)) - 1.0


def preprocess_mask(
    mask: Image.Image, height: int, width: int, *, resize_mode: str = "default", crops_coords: Box | None = None
) -> np.ndarray:
    """A mask as inpainting takes it: 1 1 H W, 1 where the picture is made anew, 0 where it stays."""
    mask = mask if crops_coords is None else mask.crop(crops_coords)
    # Resized in its own mode, then made grey; the other order would round differently.
    grey = _to_array(resize(mask, height, width, resize_mode).convert("L"))
    return (grey >= 0.5).astype(np.float32)


def latent_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask over latents: the nearest value above and to the left of each.

    Args:
        mask: B 1 H W from `preprocess_mask`. height, width: of the latents.
    """
    rows = np.arange(height) * mask.shape[2] // height
    columns = np.arange(width) * mask.shape[3] // width
    return mask[:, :, rows[:, None], columns]


def get_crop_region(mask: Image.Image, width: int, height: int, pad: int = 0) -> Box:
    """The box around everything masked, grown to the ratio of the picture that is made.

    Args:
        mask: white where the picture is made anew.
        width, height: of the picture that is made.
        pad: pixels more on each side.

    Returns:
        left, top, right, bottom in pixels of the mask.

    Raises:
        ValueError: nothing is masked.
    """
    marked = np.array(mask.convert("L")) != 0
    if not marked.any():
        raise ValueError("the mask is black everywhere: nothing would be made anew")
    left, right = _extent(marked.any(axis=0), pad)
    top, bottom = _extent(marked.any(axis=1), pad)
    ratio = width / height
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _grown(top, bottom, (right - left) / ratio, mask.height)
    else:
        left, right = _grown(left, right, (bottom - top) * ratio, mask.width)
    return left, top, right, bottom


def apply_overlay(
    mask: Image.Image, original: Image.Image, image: Image.Image, crop_coords: Box | None = None
) -> Image.Image:
    """Lay the unmasked part of the original over a picture that was made.

    Args:
        mask: of the original's size, white where the picture is made anew.
        image: the picture that was made; of the original's size unless `crop_coords` says where it belongs.
    """
    kept = Image.new("RGBa", original.size)
    kept.paste(original.convert("RGBA"), mask=ImageOps.invert(mask.convert("L")))
    if crop_coords is not None:
        left, top, right, bottom = crop_coords
        base = Image.new("RGBA", original.size)
        base.paste(resize(image, bottom - top, right - left, "crop"), (left, top))
        image = base.convert("RGB")
    image = image.convert("RGBA")
    image.alpha_composite(kept.convert("RGBA"))
    return image.convert("RGB")


def postprocess(images: np.ndarray) -> list[Image.Image]:
    """Pictures from the VAE's output.

    Args:
        images: B 3 H W, [-1, 1] and what stands over; in a half dtype the arithmetic up to [0, 1] is in it.

    Raises:
        ValueError: values that are not a number.
    """
    half = images.dtype.type(0.5)
    unit = np.clip(images * half + half, images.dtype.type(0), images.dtype.type(1)).astype(np.float32)
    if lost := np.count_nonzero(np.isnan(unit)):
        raise ValueError(f"{lost} of {unit.size} values of the picture are not a number")
    pixels = (unit.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
    return [Image.fromarray(one) for one in pixels]


def _to_array(image: Image.Image) -> np.ndarray:
    """1 C H W in [0, 1]."""
    pixels = np.array(image).astype(np.float32) / 255.0
    return pixels[None, None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)[None]


def _fill(canvas: Image.Image, scaled: Image.Image, edge: Box, size: tuple[int, int], at: tuple[int, int]) -> None:
    """Stretch an edge of the scaled picture, a box without area, over a bar of the canvas."""
    canvas.paste(scaled.resize(size, box=edge), box=at)


def _extent(marked: np.ndarray, pad: int) -> tuple[int, int]:
    """First and one past the last marked place, `pad` further out, within the line."""
    places = np.flatnonzero(marked)
    return max(int(places[0]) - pad, 0), min(int(places[-1]) + 1 + pad, len(marked))


def _grown(low: int, high: int, wanted: float, limit: int) -> tuple[int, int]:
    """Grow a stretch on both sides to a length, shifted to lie within 0…limit as far as it fits."""
    extra = int(wanted - (high - low))
    low, high = low - extra // 2, high + extra - extra // 2
    if high > limit:
        low, high = low - (high - limit), limit
    if low < 0:
        low, high = 0, high - low
    return low, min(high, limit)
