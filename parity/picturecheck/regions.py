"""Parts of a picture that are missing: black blocks, a strip at the edge, a part full of noise.

H height, W width; pictures are H W 3 uint8. A part is missing where it is cut out along straight lines
through detail that goes up to them. Bars and frames lie on opposite sides, and drawings are flat.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from parity.picturecheck.finding import Finding, rounded
from parity.picturecheck.steps import grey

Box = tuple[int, int, int, int]

CELL = 8
LEAST_AREA = 0.003
# Of the picture: a strip at the right or lower edge up to this is taken for edge tiles.
STRIP = 0.25
LEAST_STRIP = 4
# Of the pixels along the cut: deviation in levels, once smoothed; and those that differ from the fill.
VARIED = 9.0
DIFFER = 0.75
DIFFER_ON_GRID = 0.5
NOISE_BLOCK = 16
# Mean step of the calmest line, below which neighbours are alike by nature.
LEAST_STEP = 0.6


def missing(picture: np.ndarray) -> Finding | None:
    """A strip of one colour, or of repeated pixels, at the right or lower edge; or black blocks."""
    if min(picture.shape[:2]) < 48 or (flat := _flat_share(picture)) > 0.9:
        return None
    if flat > 0.75:
        return _side(picture)
    return _strip(picture) or _side(picture) or _black(picture)


def _side(picture: np.ndarray) -> Finding | None:
    """All black from a line to an edge, and light up to the line."""
    black = (picture <= 2).all(axis=2)
    height, width = black.shape
    for axis, name in ((0, "lower"), (1, "right")):
        lines = black.all(axis=1 - axis)
        count = int(lines.size if lines.all() else np.argmin(lines[::-1]))
        if not STRIP * lines.size < count < 0.9 * lines.size or lines[0]:
            continue
        place = lines.size - count
        border = np.take(picture, [place - 1, place - 2], axis=axis).max(axis=2)
        if float(np.mean(border > 12)) < DIFFER_ON_GRID:
            continue
        box = (place, 0, height, width) if axis == 0 else (0, place, height, width)
        figures = {"black": rounded(count / lines.size), "lit_beside": rounded(np.mean(border > 12))}
        return Finding("picture.partly_black", f"all of the {name} part is black", figures, boxes=[box])
    return None


def _flat_share(picture: np.ndarray) -> float:
    """Of the pixels that are not black: those equal to the next, as in drawings."""
    steps = np.abs(np.diff(picture.astype(np.int16), axis=1)).max(axis=2)
    lit = picture[:, 1:].max(axis=2) > 2
    return float(np.mean(steps[lit] == 0)) if lit.any() else 1.0


def _strip(picture: np.ndarray) -> Finding | None:
    height, width, _ = picture.shape
    for axis, turned in ((1, picture), (0, picture.transpose(1, 0, 2))):
        length = turned.shape[1]
        for way, fill in (("of one colour", _filled(turned)), ("of repeated pixels", _repeated(turned))):
            near = _filled(turned[:, ::-1]) if way == "of one colour" else _repeated(turned[:, ::-1])
            if not LEAST_STRIP <= fill <= STRIP * length or near >= 2:
                continue
            border, inside = turned[:, length - fill - 1], turned[:, length - fill]
            if way == "of one colour" and not _is_cut(border, inside, on_grid=fill % CELL == 0):
                continue
            if way == "of repeated pixels" and _along(border) < VARIED:
                continue
            side = "right" if axis else "lower"
            box = (0, width - fill, height, width) if axis else (height - fill, 0, height, width)
            figures = {"pixels": int(fill), "along_the_cut": rounded(_along(border))}
            return Finding("vae.tiling", f"a strip {way} at the {side} edge", figures, boxes=[box])
    return None


def _filled(picture: np.ndarray) -> int:
    """How many last columns have the colour of the last pixel."""
    same = (np.abs(picture.astype(np.int16) - picture[-1, -1].astype(np.int16)).max(axis=2) <= 1).all(axis=0)
    return int(same.size if same.all() else np.argmin(same[::-1]))


def _repeated(picture: np.ndarray) -> int:
    """How many last columns equal the one before."""
    same = (np.abs(np.diff(picture.astype(np.int16), axis=1)).max(axis=2) <= 1).all(axis=0)
    last = int(same.size if same.all() else np.argmin(same[::-1]))
    elsewhere = np.abs(np.diff(picture.astype(np.int16), axis=1)).mean(axis=(0, 2))[: same.size - last]
    return last if elsewhere.size and elsewhere.min() > max(0.3 * np.median(elsewhere), LEAST_STEP) else 0


def _along(line: np.ndarray) -> float:
    """Deviation along a line of pixels (N, 3), once smoothed over 8 pixels."""
    return float(ndimage.uniform_filter1d(line.astype(np.float32).sum(axis=-1) / 3, 8).std())


def _is_cut(border: np.ndarray, inside: np.ndarray, *, on_grid: bool) -> bool:
    """Whether detail goes up to a line and ends there; where that is not on the latents' grid, varied detail."""
    differ = np.abs(border.astype(np.int16) - inside.astype(np.int16)).max(axis=1) > 8
    return float(differ.mean()) >= DIFFER and _along(border) >= (VARIED / 3 if on_grid else VARIED)


def _black(picture: np.ndarray) -> Finding | None:
    black = (picture <= 2).all(axis=2)
    share = float(black.mean())
    if not LEAST_AREA <= share <= 0.9:
        return None
    labels, count = ndimage.label(black)
    boxes, places = [], ndimage.find_objects(labels)
    level = grey(picture).astype(np.float32) / 3
    height, width = black.shape
    sizes = np.bincount(labels.reshape(-1))[1:] if count else np.array([])
    for number in np.flatnonzero(sizes >= max(LEAST_AREA * black.size, 16 * CELL)) + 1:
        rows, columns = places[number - 1]
        part = labels[rows, columns] == number
        box = (rows.start, columns.start, rows.stop, columns.stop)
        lit, varied = _around(level, part, box)
        on_grid = all(n % CELL == 0 or n == end for n, end in zip(box, (0, 0, height, width), strict=True))
        if not _is_block(part, box):
            continue
        if (on_grid and lit >= DIFFER_ON_GRID) or (
            lit >= DIFFER and varied >= VARIED and part.sum() >= 0.5 * black.sum()
        ):
            boxes.append(box)
    if not boxes or _is_framed(black):
        return None
    area = sum(int(black[top:bottom, left:right].sum()) for top, left, bottom, right in boxes)
    figures = {"black": rounded(area / black.size), "blocks": len(boxes)}
    return Finding("picture.partly_black", f"{len(boxes)} black part{'s' * (len(boxes) > 1)}", figures, boxes=boxes)


def _is_block(part: np.ndarray, box: Box) -> bool:
    """A rectangle, or made of cells of the latents' grid."""
    if part.mean() > 0.985:
        return min(part.shape) >= CELL
    top, left = box[0] // CELL * CELL, box[1] // CELL * CELL
    padded = np.zeros((-(-(box[2] - top) // CELL) * CELL, -(-(box[3] - left) // CELL) * CELL), bool)
    padded[box[0] - top : box[2] - top, box[1] - left : box[3] - left] = part
    cells = padded.reshape(padded.shape[0] // CELL, CELL, -1, CELL).mean(axis=(1, 3))
    return float(((cells > 0.02) & (cells < 0.98)).sum()) <= 0.04 * max((cells > 0.5).sum(), 1)


def _around(level: np.ndarray, part: np.ndarray, box: Box) -> tuple[float, float]:
    """Of the rim of a part: the share that is lit, and how much it varies once smoothed."""
    top, left = max(box[0] - 4, 0), max(box[1] - 4, 0)
    around = level[top : box[2] + 4, left : box[3] + 4]
    mask = np.zeros(around.shape, bool)
    mask[box[0] - top : box[2] - top, box[1] - left : box[3] - left] = part
    grown = [ndimage.binary_dilation(mask, iterations=n) for n in (1, 2, 3)]
    rim, outer = grown[1] & ~grown[0], grown[2] & ~grown[0]
    if rim.sum() < 16:
        return 0.0, 0.0
    weight = np.maximum(ndimage.uniform_filter(outer.astype(np.float32), 7), 1e-6)
    smooth = ndimage.uniform_filter(np.where(outer, around, 0), 7) / weight
    return float(np.mean(around[rim] > 12)), float(smooth[rim].std())


def _is_framed(black: np.ndarray) -> bool:
    """Bars on opposite sides, or a frame."""
    rows, columns = black.mean(axis=1) > 0.98, black.mean(axis=0) > 0.98
    return bool((rows[1] and rows[-2]) or (columns[1] and columns[-2]))


def noisy_part(picture: np.ndarray) -> Finding | None:
    """A rectangle of white noise in a picture that has none elsewhere."""
    height, width = (n // NOISE_BLOCK for n in picture.shape[:2])
    if min(height, width) < 4:
        return None
    cut = picture[: height * NOISE_BLOCK, : width * NOISE_BLOCK].astype(np.float32)
    blocks = cut.reshape(height, NOISE_BLOCK, width, NOISE_BLOCK, 3).transpose(0, 2, 1, 3, 4)
    blocks = blocks - blocks.mean(axis=(2, 3), keepdims=True)
    power = (blocks**2).mean(axis=(2, 3))
    across = (blocks[:, :, :, 1:] * blocks[:, :, :, :-1]).mean(axis=(2, 3)) / np.maximum(power, 1e-6)
    down = (blocks[:, :, 1:] * blocks[:, :, :-1]).mean(axis=(2, 3)) / np.maximum(power, 1e-6)
    noisy = (power > 35**2).all(axis=2) & (np.abs(across).mean(axis=2) < 0.2) & (np.abs(down).mean(axis=2) < 0.2)
    share = float(noisy.mean())
    if not 0.04 < share < 0.95:
        return None
    columns = np.flatnonzero(noisy.mean(axis=0) > 0.5 * noisy.mean(axis=0).max())
    rows = np.flatnonzero(noisy[:, columns].mean(axis=1) > 0.6)
    if not rows.size:
        return None
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    inside = noisy[top:bottom, left:right]
    outside = noisy.sum() - inside.sum()
    if inside.mean() < 0.93 or outside > 0.2 * inside.size or inside.size > 0.95 * noisy.size:
        return None
    box = tuple(int(n) * NOISE_BLOCK for n in (top, left, bottom, right))
    levels = np.unique(picture[box[0] : box[2], box[1] : box[3], 0]).size
    if levels < 32:
        return None
    figures = {"noisy": rounded(share), "blocks_that_are_noise": rounded(inside.mean())}
    return Finding("picture.partly_noise", "a part is white noise", figures, boxes=[box])
