"""Picture files: opened whatever they are, or refused in one line; PNG written with the settings that made it.

H height, W width in pixels. What is opened ends as PIL images of mode RGB (pictures) or L (masks).
The same is done as diffusers' ``load_image`` does (turned as EXIF says, alpha dropped), and
where the file held more than the result does, a note says so.

Settings are JSON in an iTXt chunk with the keyword ``parity``:

    {"schema": 1, "prompt": "a cat", "seed": 7, "steps": 20, …}
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from parity.disk import room_for
from parity.errors import OutputExistsError, UsageError
from parity.safetensors_header import shown

# None of these decoders starts another program, as Pillow does for PostScript.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF")
# 134 million: more than a 100-megapixel camera makes, 400 MB in memory.
MOST_PIXELS = 1 << 27
_TOO_LARGE = f"more than {MOST_PIXELS:,} pixels, the most that is opened; make it smaller"
KEYWORD = "parity"
SCHEMA = 1

T = TypeVar("T")

_ORIENTATION = 0x0112
# Pillow's modes for 16-bit greyscale. A file with "I" may have 32 bits, except in these formats.
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_SIXTEEN_BITS_AS_I = ("PNG", "PPM")
_WITH_ALPHA = ("RGBA", "RGBa", "LA", "PA")
_CONVERTED = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", *_WITH_ALPHA)


@dataclass(frozen=True, eq=False)
class Opened:
    """A picture that was opened.

    Attributes:
        image: mode RGB, or L for a mask.
        notes: what of the file is not in it; one line each.
    """

    image: Image.Image
    notes: tuple[str, ...]


def open_picture(path: Path) -> Opened:
    """Open a picture as RGB.

    Raises:
        UsageError: there is no such file, it is no picture, it is damaged, or it has too many pixels.
    """
    return _open(path, "RGB")


def open_mask(path: Path) -> Opened:
    """Open a mask as greyscale: white is made anew, black stays.

    Raises:
        UsageError: as for a picture.
    """
    return _open(path, "L")


def check_output(path: Path, *, force: bool) -> None:
    """Find out before a long run whether a PNG can be written.

    Raises:
        UsageError: the name is not that of a PNG, or nothing can be written there.
        OutputExistsError: the file is there and `force` is not given.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: pictures are written as PNG; give --out a name that ends in .png")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give --out the name of a file")
    if path.exists() and not force:
        raise _exists(path)
    with room_for(path):
        _make_parent(path)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def write_png(path: Path, pixels: np.ndarray, settings: Mapping[str, Any], *, force: bool = False) -> None:
    """Write a picture with the settings that made it; a file that is cut off never stands under its name.

    Args:
        pixels: H W 3 uint8.
        settings: as JSON can hold them; ``schema`` is added.
        force: replace a file that is there.

    Raises:
        OutputExistsError: the file is there and `force` is not given.
        ResourceError, UsageError: no room, or no permission.
    """
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(KEYWORD, json.dumps({"schema": SCHEMA, **settings}, ensure_ascii=False, allow_nan=False))
    with room_for(path):
        _make_parent(path)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                Image.fromarray(pixels).save(file, "PNG", pnginfo=chunks)
            os.chmod(temporary, 0o644)
            if not force:
                path.open("xb").close()  # whoever is first has the name
            os.replace(temporary, path)
        except FileExistsError:
            raise _exists(path) from None
        finally:
            Path(temporary).unlink(missing_ok=True)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a picture that `write_png` wrote.

    Raises:
        UsageError: the file is no PNG, or holds no settings.
    """
    with _header(path, ("PNG",)) as image:
        text = image.text.get(KEYWORD)
    try:
        settings = json.loads(text) if text is not None else None
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise UsageError(f"{path}: no settings in it; they are in the PNG chunk {KEYWORD!r} of pictures made here")
    return settings


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(f"cannot write {path}: {path.parent} is no folder; choose another --out") from None


def _exists(path: Path) -> OutputExistsError:
    return OutputExistsError(f"{path} is already there; give --force to overwrite it, or choose another --out")


def _open(path: Path, mode: str) -> Opened:
    with _header(path) as image:
        frames = _decoded(path, lambda: getattr(image, "n_frames", 1))
        _decoded(path, image.load)
        upright, notes = _upright(path, image)
        if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in _SIXTEEN_BITS_AS_I):
            upright = Image.fromarray(np.rint(np.array(upright) / 257).astype(np.uint8))
            notes.append("16 bits a channel are scaled to 8")
        elif image.mode not in _CONVERTED:
            raise UsageError(f"{path}: pixels of mode {image.mode}; save it as RGB with 8 bits a channel")
        elif image.mode in _WITH_ALPHA or "transparency" in image.info:
            upright = _decoded(path, lambda: upright.convert("RGBA"))
            if upright.getextrema()[3][0] < 255:
                notes.append("alpha is dropped, as diffusers does: transparent pixels show the colour stored below")
        elif image.mode == "CMYK":
            notes.append("CMYK is converted to RGB without its colour profile")
        if frames > 1 and image.format != "MPO":  # in which cameras keep a preview
            notes.append(f"{frames} frames: the first one is taken")
        converted = _decoded(path, lambda: upright.convert(mode))
    return Opened(converted, tuple(f"{shown(path.name)}: {note}" for note in notes))


def _upright(path: Path, image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The picture as it is looked at, and a note if that is not as it is stored."""
    if _orientation(image) not in range(2, 9):
        return image, []
    return _decoded(path, lambda: ImageOps.exif_transpose(image)), ["turned as its EXIF orientation says"]


def _orientation(image: Image.Image) -> int:
    """EXIF's number for how to turn a picture; 1, as it is, where there is none or it can't be read."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a camera's EXIF that is broken leaves the picture as it was taken
        return 1


def _header(path: Path, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """An image whose header was read, and nothing else.

    Raises:
        UsageError: it can't be read, or says that it has too many pixels.
    """
    if not path.is_file():
        raise UsageError(f"{path}: {'a folder, not a picture' if path.is_dir() else 'there is no such file'}")
    Image.init()
    readable = [name for name in formats if name in Image.OPEN]
    try:
        with warnings.catch_warnings(action="ignore"):  # of Pillow's own limit, which is below this one
            image = Image.open(path, formats=readable)
    except Image.UnidentifiedImageError:
        raise UsageError(f"{path}: no picture, or one without pixels; formats: {', '.join(readable)}") from None
    except Image.DecompressionBombError:
        raise UsageError(f"{path}: {_TOO_LARGE}") from None
    except Exception as error:
        raise _damaged(path, error) from None
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise UsageError(f"{path}: {image.width} × {image.height} pixels are {_TOO_LARGE}")
    return image


def _decoded(path: Path, work: Callable[[], T]) -> T:
    """What `work` gives; whatever a decoder raises is about the file."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return work()
    except Exception as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UsageError:
    if isinstance(error, PermissionError):
        return UsageError(f"{path}: {error.strerror}")
    return UsageError(f"{path}: damaged, or not what its name says ({shown(str(error) or type(error).__name__)})")
