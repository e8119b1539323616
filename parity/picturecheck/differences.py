"""Where two pictures differ: in parts that are missing, in tiles with a shade of their own, or by noise.

H height, W width; pictures are H W 3 uint8 of one size.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from parity.picturecheck.finding import Finding, rounded

# More than JPEG leaves.
DIFFERS = 24
EQUAL_SHARE = 0.05
_STRIDES = range(32, 1025, 8)
_TILE_MET = 0.99


def in_parts(picture: np.ndarray, reference: np.ndarray) -> Finding | None:
    """Parts that are black, repeated, of one colour or noise, while the rest is as it should be."""
    difference = np.abs(picture.astype(np.int16) - reference).max(axis=2)
    untouched = float((difference == 0).mean()) > 0.3  # nothing was compressed since
    wrong, equal = difference > (2 if untouched else DIFFERS), difference <= 2
    share = float(wrong.mean())
    if not 0.001 < share < 1 - EQUAL_SHARE or not _apart(wrong, difference):
        return None
    rows, columns = np.flatnonzero(wrong.any(axis=1)), np.flatnonzero(wrong.any(axis=0))
    box = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    part = picture[box[0] : box[2], box[1] : box[3]]
    exact = float(equal[~_filled(wrong, box)].mean()) > 0.998 if (~_filled(wrong, box)).any() else False
    figures = {"differs": rounded(share), "equal": rounded(equal.mean())}
    strip = _strip(box, picture.shape)
    black = float((picture[wrong] <= 2).all(axis=1).mean())
    flat = np.ptp(part.reshape(-1, 3), axis=0).max() <= 2
    repeated = _repeats(part, strip)
    sure = "proven" if exact else "likely"
    if strip and (flat or repeated or black > 0.99):
        detail = f"a strip {'of repeated pixels' if repeated and not flat else 'of one colour'} at the {strip} edge"
        return Finding("vae.tiling", detail, figures, sure, boxes=[box])
    if black > 0.99:
        said = "where it differs, the picture is black"
        return Finding("picture.partly_black", said, figures, sure, boxes=_boxes(wrong))
    if _is_noise(part):
        return Finding("picture.partly_noise", "where it differs, the picture is noise", figures, sure, boxes=[box])
    return None


def _boxes(wrong: np.ndarray) -> list[tuple[int, int, int, int]]:
    """The largest connected parts."""
    labels, _ = ndimage.label(ndimage.binary_closing(wrong, iterations=2))
    places = ndimage.find_objects(labels)
    boxes = [(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in places]
    boxes.sort(key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))
    return [box for box in boxes if (box[2] - box[0]) * (box[3] - box[1]) >= 64][:16] or boxes[:1]


def _apart(wrong: np.ndarray, difference: np.ndarray) -> bool:
    """Whether what differs lies together, apart from what does not."""
    height, width = (n // 8 * 8 for n in wrong.shape)
    if not height or not width:
        return False
    cells = wrong[:height, :width].reshape(height // 8, 8, width // 8, 8).mean(axis=(1, 3))
    calm = difference[:height, :width].reshape(height // 8, 8, width // 8, 8).max(axis=(1, 3)) <= 2
    return float(calm.mean()) > EQUAL_SHARE and float(cells[cells > 0].mean()) > 0.3


def _filled(wrong: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(wrong.shape, bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    return mask


def _strip(box: tuple[int, int, int, int], shape: tuple[int, ...]) -> str:
    """The edge that the box lies along, as ``right``, ``lower`` or nothing."""
    height, width = shape[:2]
    if box[3] == width and width - box[1] <= width * 0.3 and box[2] - box[0] > 0.8 * height:
        return "right"
    if box[2] == height and height - box[0] <= height * 0.3 and box[3] - box[1] > 0.8 * width:
        return "lower"
    return ""


def _repeats(part: np.ndarray, strip: str) -> bool:
    if not strip or min(part.shape[:2]) < 2:
        return False
    return int(np.abs(np.diff(part.astype(np.int16), axis=1 if strip == "right" else 0)).max()) <= 2


def _is_noise(part: np.ndarray) -> bool:
    if min(part.shape[:2]) < 8:
        return False
    values = part.astype(np.float32) - part.mean(axis=(0, 1))
    power = max(float((values**2).mean()), 1e-6)
    near = [float((values[1:] * values[:-1]).mean()), float((values[:, 1:] * values[:, :-1]).mean())]
    return power > 20**2 and max(abs(one) for one in near) < 0.15 * power


def in_tiles(picture: np.ndarray, reference: np.ndarray) -> Finding | None:
    """Tiles of which each is the reference with a shade of its own."""
    difference = picture.astype(np.float32) - reference
    if float(np.abs(difference).mean()) < 0.5:
        return None
    best = None
    for stride in _STRIDES:
        if stride >= max(picture.shape[:2]):
            break
        met = _tiles_met(picture, reference, stride)
        if met >= _TILE_MET and (best is None or met > best[1] + 0.002 or stride % best[0] == 0):
            best = stride, met
    if best is None:
        return None
    stride, met = best
    figures = {"stride": stride, "values_met": rounded(met)}
    return Finding(
        "vae.tiling", f"tiles of {stride} pixels, each with a shade of its own", figures, "proven",
        columns=list(range(stride, picture.shape[1], stride)), rows=list(range(stride, picture.shape[0], stride)),
    )  # fmt: skip


def _tiles_met(picture: np.ndarray, reference: np.ndarray, stride: int) -> float:
    """Share of sampled values that a line of values through each tile meets to ±2."""
    met = total = 0
    for top in range(0, picture.shape[0], stride):
        for left in range(0, picture.shape[1], stride):
            here = np.s_[top : top + stride : 3, left : left + stride : 3]
            x, y = reference[here].astype(np.float32).ravel(), picture[here].astype(np.float32).ravel()
            slope = ((x - x.mean()) * (y - y.mean())).mean() / max(float(x.var()), 1e-3)
            expected = np.clip(y.mean() + slope * (x - x.mean()), 0, 255)
            met += int((np.abs(expected - y) <= 2).sum())
            total += y.size
        if total > 3000 and met < 0.9 * total:
            return 0.0
    return met / max(total, 1)


def noise(picture: np.ndarray, reference: np.ndarray) -> Finding | None:
    """White noise on the reference; JPEG's is not white."""
    difference = picture.astype(np.float32) - reference
    inner = difference[((picture > 40) & (picture < 215)).all(axis=2)]
    if inner.shape[0] < 400:
        return None
    spread = float(inner.std())
    values = difference - inner.mean(axis=0)
    power = float((values**2).mean())
    near = [float((values[1:] * values[:-1]).mean()) / power, float((values[:, 1:] * values[:, :-1]).mean()) / power]
    figures = {
        "noise_levels": rounded(spread), "offset": rounded(inner.mean()),
        "neighbour_correlation": rounded(max(near, key=abs)),
    }  # fmt: skip
    if spread < 2 or spread > 60 or max(abs(one) for one in near) > 0.12:
        return None
    return Finding("picture.grain", f"white noise of {spread:.0f} levels on the reference", figures, "likely")
