"""Pictures of what was found: lines and boxes on the picture, the fault undone, and the reference, side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from parity.disk import room_for
from parity.errors import OutputExistsError, UsageError
from parity.picturecheck.catalogue import ENTRIES
from parity.picturecheck.finding import Finding

# A panel's longer side, in pixels.
PANEL = 640
MARGIN = 16
HEAD = 30
_PAPER, _INK, _MUTED, _MARK = (250, 250, 249), (28, 28, 30), (110, 110, 116), (255, 45, 85)


def write(out: Path, picture: np.ndarray, reference: np.ndarray | None, found: list[Finding]) -> list[str]:
    """Write one PNG for each finding, or one of the differing pictures; the names of the files.

    Raises:
        OutputExistsError: one of them is already there.
        ResourceError, UsageError: no room, or no permission.
    """
    sheets = []
    for number, one in enumerate(found or [None]):
        panels = [("given", _marked(picture, one))]
        if one is not None and one.recovered is not None and reference is None:
            panels.append(("undone", _fitted(one.recovered)))
        if reference is not None:
            panels.append(("reference", _fitted(reference)))
            if reference.shape == picture.shape:
                panels.append(("difference", _fitted(_difference(picture, reference))))
        name = f"picture-{number + 1}-{one.code.replace('.', '-')}.png" if one is not None else "picture-difference.png"
        sheets.append((name, _sheet(panels, one)))
    with room_for(out):
        if out.exists() and not out.is_dir():
            raise UsageError(f"{out} is no folder; give --out a folder for the pictures of what was found")
        out.mkdir(parents=True, exist_ok=True)
        for name, _ in sheets:
            if (out / name).exists():
                raise OutputExistsError(f"{out / name} is already there; choose another --out")
        for name, sheet in sheets:
            sheet.save(out / name)
    return [name for name, _ in sheets]


def _difference(picture: np.ndarray, reference: np.ndarray) -> np.ndarray:
    size = np.abs(picture.astype(np.int16) - reference)
    return np.clip(size * (255 / max(int(size.max()), 1)), 0, 255).astype(np.uint8)


def _scale(shape: tuple[int, ...]) -> float:
    scale = PANEL / max(shape[:2])
    return scale if scale < 1 else float(max(1, int(scale)))


def _fitted(picture: np.ndarray) -> Image.Image:
    height, width = picture.shape[:2]
    scale = _scale(picture.shape)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return Image.fromarray(np.ascontiguousarray(picture)).resize(size, way)


def _marked(picture: np.ndarray, one: Finding | None) -> Image.Image:
    image, scale = _fitted(picture), _scale(picture.shape)
    if one is None:
        return image
    draw = ImageDraw.Draw(image)
    for column in one.columns:
        _dashed(draw, (column * scale, 0), (column * scale, image.height))
    for row in one.rows:
        _dashed(draw, (0, row * scale), (image.width, row * scale))
    for top, left, bottom, right in one.boxes:
        corners = [left * scale, top * scale, right * scale - 1, bottom * scale - 1]
        draw.rectangle(corners, outline=(255, 255, 255), width=4)
        draw.rectangle(corners, outline=_MARK, width=2)
    return image


def _dashed(draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A dashed line over a dark one, which is seen on any picture."""
    draw.line([start, end], fill=(20, 20, 20), width=2)
    length, across = max(abs(end[0] - start[0]), abs(end[1] - start[1])), end[0] != start[0]
    for place in range(0, int(length), 14):
        stop = min(place + 8, length)
        one = (place, start[1]) if across else (start[0], place)
        other = (stop, start[1]) if across else (start[0], stop)
        draw.line([one, other], fill=_MARK, width=2)


def _sheet(panels: list[tuple[str, Image.Image]], one: Finding | None) -> Image.Image:
    head = HEAD * 2 if one is not None else HEAD
    width = sum(image.width + MARGIN for _, image in panels) + MARGIN
    fonts = ImageFont.load_default(17), ImageFont.load_default(14)
    words = [] if one is None else [f"{one.code}: {ENTRIES[one.code].title}", one.detail]
    width = max([width, *(int(font.getlength(text)) + 2 * MARGIN for font, text in zip(fonts, words, strict=False))])
    top = head + HEAD
    sheet = Image.new("RGB", (width, top + max(image.height for _, image in panels) + MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, text in enumerate(words):
        draw.text((MARGIN, 12 + row * 26), text, fill=(_INK, _MUTED)[row], font=fonts[row])
    left = MARGIN
    for name, image in panels:
        draw.text((left, top - 22), name, fill=_MUTED, font=fonts[1])
        sheet.paste(image, (left, top))
        draw.rectangle((left - 1, top - 1, left + image.width, top + image.height), outline=(205, 205, 205))
        left += image.width + MARGIN
    return sheet
