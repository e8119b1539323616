"""Faults put into clean pictures, each with the codes that name it.

Pictures are H W 3 uint8. A fault is a function of the picture and a random generator; it gives the
broken picture. `alone` says whether the broken picture can show the fault without a reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Broken = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Corruption:
    """One fault of pictures.

    Attributes:
        name: of this way to make it.
        code: the cause that is right.
        make: breaks a picture.
        multiple: the sides of the picture are multiples of it.
        alone: it can be seen without a reference.
        referenced: a reference settles it.
        detailed: it needs a picture of many tones; a flat drawing does not show it.
        stretched: it is put into a picture that uses the whole range of values.
    """

    name: str
    code: str
    make: Broken
    multiple: int = 1
    alone: bool = True
    referenced: bool = True
    detailed: bool = False
    stretched: bool = False


CORRUPTIONS: dict[str, Corruption] = {}


def corruption(code: str, **options: object) -> Callable[[Broken], Broken]:
    """Enter a function as a way to make the fault `code`."""

    def enter(make: Broken) -> Broken:
        CORRUPTIONS[make.__name__] = Corruption(make.__name__, code, make, **options)
        return make

    return enter


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@corruption("picture.black", referenced=False)
def black(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All zero, as NaN cast to bytes."""
    return np.zeros_like(picture)


@corruption("picture.constant", referenced=False)
def constant(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One colour."""
    return np.broadcast_to(rng.integers(1, 256, 3).astype(np.uint8), picture.shape).copy()


@corruption("picture.noise", referenced=False)
def static(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Static: uniform or normal, grey or coloured."""
    channels = int(rng.choice([1, 3]))
    if rng.random() < 0.5:
        noise = rng.integers(0, 256, (*picture.shape[:2], channels))
    else:
        noise = rng.normal(128, rng.uniform(25, 70), (*picture.shape[:2], channels))
    return _bytes(noise + np.zeros(picture.shape))


@corruption("picture.noise", referenced=False)
def soft_static(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Coloured static that the decoder has smeared over a few pixels."""
    from scipy import ndimage

    noise = ndimage.gaussian_filter(rng.normal(size=picture.shape), (*[rng.uniform(0.4, 1.2)] * 2, 0))
    return _bytes(128 + noise / noise.std() * rng.uniform(30, 60))


@corruption("layout.chw_hwc")
def planar_as_interleaved(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """CHW read as HWC."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1)).reshape(picture.shape)


@corruption("layout.chw_hwc")
def interleaved_as_planar(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """HWC read as CHW."""
    height, width, _ = picture.shape
    return np.ascontiguousarray(picture.reshape(3, height, width).transpose(1, 2, 0))


@corruption("layout.width_height")
def sides_exchanged(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The buffer of a picture of exchanged sides: a transposed view read flat."""
    picture = picture if abs(picture.shape[0] - picture.shape[1]) > 8 else picture[: picture.shape[0] * 3 // 4]
    return np.ascontiguousarray(picture.transpose(1, 0, 2)).reshape(picture.shape)


@corruption("layout.row_stride", referenced=False)
def sheared(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows read at a width that is a few pixels off."""
    width = picture.shape[1]
    off = int(rng.choice([-1, 1]) * rng.integers(1, 17))
    flat = picture.reshape(-1, 3)
    rows = flat.shape[0] // (width + off)
    return flat[: rows * (width + off)].reshape(rows, width + off, 3).copy()


@corruption("layout.row_stride")
def padded_rows(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows lie further apart in memory than they are long, as aligned buffers do."""
    height, width, _ = picture.shape
    pad = int(rng.integers(1, 33))
    buffer = np.zeros((height, width * 3 + pad), np.uint8)
    buffer[:, : width * 3] = picture.reshape(height, -1)
    return buffer.reshape(-1)[: height * width * 3].reshape(picture.shape).copy()


@corruption("layout.patch_order", multiple=16)
def quadrants(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The 8-pixel quarters of each 16-pixel patch in another order."""
    return _quarters(picture, 8, _order(rng))


@corruption("layout.patch_order", multiple=16)
def pixel_shuffle(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The four pixels of each 2 × 2 group in another order."""
    return _quarters(picture, 1, _order(rng))


@corruption("layout.patch_order", multiple=16)
def not_interleaved(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Patches unpacked with the axis of the patch before that of the grid."""
    side = int(rng.choice([1, 8]))
    height, width, _ = picture.shape
    cells = picture.reshape(height // (2 * side), 2, side, width // (2 * side), 2, side, 3)
    return np.ascontiguousarray(cells.transpose(1, 0, 2, 4, 3, 5, 6)).reshape(picture.shape)


def _order(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(((0, 2, 1, 3), (1, 0, 3, 2), (3, 2, 1, 0), (2, 3, 0, 1), (1, 3, 0, 2))[int(rng.integers(5))])


def _quarters(picture: np.ndarray, side: int, order: tuple[int, ...]) -> np.ndarray:
    height, width, _ = picture.shape
    cells = picture.reshape(height // (2 * side), 2, side, width // (2 * side), 2, side, 3)
    cells = cells.transpose(1, 4, 0, 3, 2, 5, 6).reshape(4, height // (2 * side), width // (2 * side), side, side, 3)
    cells = cells[list(order)].reshape(2, 2, height // (2 * side), width // (2 * side), side, side, 3)
    return np.ascontiguousarray(cells.transpose(2, 0, 4, 3, 1, 5, 6)).reshape(picture.shape)


@corruption("picture.tiled", referenced=False)
def tiled(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same small picture k times beside and below itself."""
    from PIL import Image

    times = int(rng.integers(2, 5))
    height, width = (n // times for n in picture.shape[:2])
    small = np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
    return _bytes(
        np.tile(small, (times, times, 1)) + rng.normal(0, rng.choice([0, 2]), (height * times, width * times, 3))
    )


@corruption("image.range", detailed=True, stretched=True)
def washed_out(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[0, 1] taken for [-1, 1]."""
    return _bytes(picture / 2 + 127.5)


@corruption("image.range", detailed=True, stretched=True)
def crushed(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[-1, 1] taken for [0, 1]: the darker half is black."""
    return _bytes(picture * 2.0 + rng.uniform(-0.5, 0.5, picture.shape) - 255)


@corruption("image.wrapped", detailed=True, stretched=True)
def wrapped(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values beyond the range are cast without a clip and come round."""
    return ((picture * rng.uniform(1.25, 1.7) - rng.uniform(0, 40)).astype(np.int64) % 256).astype(np.uint8)


@corruption("picture.banding", detailed=True)
def banded(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Few levels a channel."""
    levels = int(rng.integers(5, 24))
    return _bytes(np.rint(picture / 255 * (levels - 1)) * 255 / (levels - 1))


@corruption("picture.grain", detailed=True)
def grain(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise over the picture, each channel its own."""
    return _bytes(picture + rng.normal(0, rng.uniform(12, 26), picture.shape))


@corruption("vae.tiling", multiple=16, detailed=True)
def seams(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tiles that were decoded apart and not blended: each with its own shade, less where contrast is low."""
    side = int(rng.choice([64, 96, 128]))
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    tiles = (picture.shape[0] // side + 1, picture.shape[1] // side + 1, 1)
    shade = rng.choice([-1, 1], tiles) * rng.uniform(4, 14, tiles) * min(1.0, float(picture.std()) / 40)
    return _bytes(picture * 0.85 + 19 + shade[rows // side, columns // side])


@corruption("vae.tiling", multiple=16, detailed=True)
def edge_tiles(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The last tiles of each row or column are missing: black, grey, or the last pixels repeated."""
    strip, way = int(rng.integers(2, 7)) * 8, int(rng.integers(3))
    broken = picture.copy()
    fill = broken[:, -strip - 1 : -strip] if way == 2 else (0, 128)[way]
    broken[:, -strip:] = fill
    return broken


@corruption("picture.partly_black", multiple=16, detailed=True)
def black_blocks(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blocks of NaN, cast to zero."""
    broken = picture.copy()
    for _ in range(int(rng.integers(1, 4))):
        height, width = (int(n) * 16 for n in rng.integers(2, 6, 2))
        top = int(rng.integers(0, (picture.shape[0] - height) // 16 + 1)) * 16
        left = int(rng.integers(0, (picture.shape[1] - width) // 16 + 1)) * 16
        broken[top : top + height, left : left + width] = 0
    return broken


@corruption("picture.partly_black", detailed=True)
def black_half(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All below a row is zero."""
    broken = picture.copy()
    broken[int(picture.shape[0] * rng.uniform(0.3, 0.7)) :] = 0
    return broken


@corruption("picture.partly_noise")
def noise_half(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All below a row, or right of a column, is whatever lay in memory."""
    broken = picture.copy()
    part = broken[int(picture.shape[0] * rng.uniform(0.3, 0.7)) :]
    if rng.random() < 0.5:
        part = broken[:, int(picture.shape[1] * rng.uniform(0.3, 0.7)) :]
    part[:] = rng.integers(0, 256, part.shape)
    return broken


@corruption("layout.channel_order", alone=False)
def channels_swapped(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """BGR, or another order."""
    return np.ascontiguousarray(picture[..., [[2, 1, 0], [1, 2, 0], [0, 2, 1]][int(rng.integers(3))]])


@corruption("image.inverted", alone=False)
def inverted(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light for dark."""
    return 255 - picture


@corruption("layout.flipped", alone=False)
def flipped(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Upside down, mirrored, or both."""
    return np.ascontiguousarray([picture[::-1], picture[:, ::-1], picture[::-1, ::-1]][int(rng.integers(3))])


@corruption("layout.rows_shifted", alone=False)
def rows_shifted(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The base of the buffer is off by some rows or pixels."""
    return np.roll(picture.reshape(-1, 3), int(rng.integers(1, picture.shape[0] * picture.shape[1])), axis=0).reshape(
        picture.shape
    )
