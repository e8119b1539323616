"""A buffer read with the wrong axis order or row stride: undone, and judged by how smooth it becomes.

H height, W width; pictures are H W 3 uint8. Each hypothesis has an exact inverse. It is accepted if
the inverse makes the picture much smoother in both directions, and if what was undone leaves no trace
of the raster that the picture has now: steps over the ends of the present rows are then no larger than
others. A clean picture has its own raster, however often its pattern repeats.
"""

from __future__ import annotations

import numpy as np
from scipy import fft

from parity.picturecheck.finding import Finding, rounded
from parity.picturecheck.steps import is_black_and_white, mean_steps

Axes = tuple[int, int, int]

ROWS_FIRST: Axes = (0, 1, 2)
PLANES_FIRST: Axes = (2, 0, 1)
ORDERS: dict[Axes, str] = {
    ROWS_FIRST: "HWC", PLANES_FIRST: "CHW", (0, 2, 1): "HCW", (2, 1, 0): "CWH", (1, 2, 0): "WCH", (1, 0, 2): "WHC",
}  # fmt: skip

# How the buffer lies and how it was read; an exchange of height and width alone is a stride.
HYPOTHESES = (
    (PLANES_FIRST, ROWS_FIRST), (ROWS_FIRST, PLANES_FIRST), ((0, 2, 1), ROWS_FIRST), ((2, 1, 0), ROWS_FIRST),
    ((1, 2, 0), ROWS_FIRST),
)  # fmt: skip

# Left of the mean step by undoing; clean pictures keep 0.59 and more, but for exact repetitions.
SMOOTHER = 0.5
SMOOTHER_PLANAR = 0.68
MUCH_SMOOTHER = 0.3
# The same of a plane that holds each grey value three times.
GREY_TRIPLES = 0.05
# Least over largest mean step of the three phases of a planar stream; it is 1 where no phase is special.
SAME_PHASES = 0.75
# Of a stride: mean step down the undone picture over that of the given one; steps over the ends of the
# given rows over those beside them; steps over the ends of the undone rows over those beside them.
STRIDE_SMOOTHER = 0.8
SEAMLESS = 1.6
SEAM = 1.25
LEAST_ROW = 16
MOST_STREAM = 3_000_000
# A mean step below this is a flat picture, of which nothing can be said.
LEAST_STEP = 0.2
LEAST_LEVELS = 8


def written_and_read(picture: np.ndarray, written: Axes, read: Axes) -> np.ndarray:
    """What is seen of `picture` when it is written in one axis order and the buffer is read in another."""
    buffer = np.ascontiguousarray(picture.transpose(written)).reshape(-1)
    return buffer.reshape([picture.shape[axis] for axis in read]).transpose(np.argsort(read))


def undone(picture: np.ndarray, written: Axes, read: Axes) -> np.ndarray:
    """The inverse of `written_and_read`."""
    return written_and_read(picture, read, written)


def axis_orders(picture: np.ndarray) -> Finding | None:
    """The axis orders whose exchange, undone, makes the picture much smoother; None where none does."""
    before = mean_steps(picture)
    if before.sum() < 6 * LEAST_STEP:
        return None
    best = None
    for written, read in HYPOTHESES:
        recovered = undone(picture, written, read)
        after = mean_steps(recovered)
        ratio = after.sum() / before.sum()
        if best is None or ratio < best[0] * 0.99:
            best = ratio, written, read, recovered, after
    ratio, written, read, recovered, after = best
    worst = float((after.sum(axis=1) / np.maximum(before.sum(axis=1), 1e-9)).max())
    figures = {"step_left": rounded(ratio), "step_left_worst_axis": rounded(worst)}
    if read == ROWS_FIRST:
        phases = _phases(picture, 1)
        figures["phases"] = rounded(phases)
        planar = written[0] == 2
        if phases < SAME_PHASES or ratio > (SMOOTHER_PLANAR if planar else SMOOTHER) or worst > 0.8:
            return None
    else:
        ends = _row_ends(picture.transpose(2, 0, 1), 3)
        figures["over_given_row_ends"] = rounded(ends)
        down = float(after[0].sum() / max(before[0].sum(), 1e-9))
        triples = _phases(picture.transpose(2, 0, 1), 1) < GREY_TRIPLES and down < 0.5 and ratio < SMOOTHER_PLANAR
        coloured = ratio < SMOOTHER and worst < 0.75
        if not (triples or coloured) or (ends > SEAMLESS and ratio > MUCH_SMOOTHER):
            return None
    figures |= {"written": ORDERS[written], "read": ORDERS[read]}
    detail = f"the buffer lies as {ORDERS[written]} and was read as {ORDERS[read]}"
    height, width = picture.shape[:2]
    tiles = read == ROWS_FIRST and written == PLANES_FIRST
    return Finding(
        "layout.chw_hwc", detail, figures, recovered=recovered,
        columns=[width // 3, 2 * width // 3] if tiles else [], rows=[height // 3, 2 * height // 3] if tiles else [],
        ties=["layout.not_contiguous"],
    )  # fmt: skip


def _phases(picture: np.ndarray, distance: int) -> float:
    """Least over largest mean step along the buffer, by position modulo 3."""
    stream = np.ascontiguousarray(picture).reshape(-1)[:MOST_STREAM].astype(np.int16)
    steps = np.abs(stream[distance:] - stream[:-distance])
    means = [steps[phase::3].mean() for phase in range(3)]
    return float(min(means) / max(*means, 1e-9))


def _row_ends(planes: np.ndarray, distance: int) -> float:
    """Mean step over the ends of rows of a buffer C H W, over the mean of all; at `distance` values.

    Every third end is left out: there a row of the picture that was written ends as well.
    """
    stream = np.ascontiguousarray(planes).reshape(-1).astype(np.int16)
    width = planes.shape[2]
    steps = np.abs(stream[distance:] - stream[:-distance])
    ends = [steps[width - distance + i :: width] for i in range(distance)]
    inner = np.concatenate([one[np.arange(one.size) % 3 != 2] for one in ends])
    return float(inner.mean() / max(steps.mean(), 1e-9))


def row_stride(picture: np.ndarray) -> Finding | None:
    """The row length, in bytes, that the buffer has where it is not that of the picture; None where it is."""
    height, width, _ = picture.shape
    stream = np.ascontiguousarray(picture).reshape(-1)
    if mean_steps(picture)[1].mean() < LEAST_STEP or height < LEAST_ROW or width < LEAST_ROW:
        return None
    found = _period(stream, 3 * width, 3 * height)
    if found is None or found == 3 * width:
        return None
    if not 1.5 * width < found < 4.5 * width and found != 3 * height:
        return None
    if np.unique(picture[:512, :512, 1]).size < LEAST_LEVELS or is_black_and_white(picture):
        return None
    figures = _judged(stream, 3 * width, found)
    recovered = stream[: stream.size // found * found].reshape(-1, found)
    recovered = recovered[:, : found // 3 * 3].reshape(len(recovered), found // 3, 3)
    if not _is_stride(figures):
        return None
    figures = {"row_bytes": found, "picture_row_bytes": 3 * width} | {k: rounded(v) for k, v in figures.items()}
    exchanged = found == 3 * height
    columns = found / 3
    detail = (
        f"the buffer is {height} wide and {width} high" if exchanged
        else f"rows are {columns:g} pixels apart, not {width}"
    )  # fmt: skip
    code = "layout.width_height" if exchanged else "layout.row_stride"
    return Finding(code, detail, figures, recovered=recovered, ties=["layout.not_contiguous"] if exchanged else [])


def _period(stream: np.ndarray, row: int, other: int) -> int | None:
    """The distance at which the horizontal slope along a buffer is most like itself; `row` is the expected one."""
    start = max(0, (stream.size - MOST_STREAM) // 2) // row * row
    part = stream[start : start + MOST_STREAM].astype(np.float32)
    slope = part[3:] - part[:-3]
    np.clip(slope, -48, 48, out=slope)  # lone edges do not decide
    most = min(slope.size // 4, 2 * max(row, other) + 3)
    length = fft.next_fast_len(slope.size + most, real=True)
    power = np.abs(fft.rfft(slope, length)) ** 2
    likeness = fft.irfft(power, length)[: most + 1]
    least = max(3 * LEAST_ROW, row // 8)
    if most <= least or likeness[0] <= 0:
        return None
    likeness = likeness / likeness[0]
    place = least + int(np.argmax(likeness[least:]))
    return place if likeness[place] > 1.15 * max(likeness[min(row, most)], 0.0) and likeness[place] > 0.05 else None


def _judged(stream: np.ndarray, row: int, found: int) -> dict[str, float]:
    """How the rows of `found` bytes compare with those of `row` bytes."""
    wide = stream.astype(np.int16)

    def down(distance: int) -> float:
        return float(np.abs(wide[distance:] - wide[:-distance]).mean())

    steps = np.abs(wide[3:] - wide[:-3])

    def over_ends(length: int, other: int) -> np.ndarray:
        places = np.arange(length - 3, steps.size - 3, length)
        apart = places[np.minimum(places % other, -places % other) > 6]  # where rows of the other length don't end
        return steps[(apart if apart.size > 4 else places)[:, None] + np.arange(3)]

    def beside_ends(length: int) -> np.ndarray:
        return np.stack(
            [steps[(length - 3 + i + 3 * k) % length :: length][: steps.size // length - 1]
             for k in (-4, -3, -2, -1, 1, 2, 3, 4) for i in range(3)], axis=1,
        )  # fmt: skip

    return {
        "step_left_down": down(found) / max(down(row), 1e-9),
        "over_given_row_ends": float(over_ends(row, found).mean() / max(beside_ends(row).mean(), 1e-9)),
        "over_found_row_ends": float(over_ends(found, row).mean() / max(beside_ends(found).mean(), 1e-9)),
        "given_row_ends_step": float(beside_ends(row).mean() / max(steps.mean(), 1e-9)),
    }


def _is_stride(figures: dict[str, float]) -> bool:
    given, found = figures["over_given_row_ends"], figures["over_found_row_ends"]
    much = figures["step_left_down"] < 0.4 and given < min(3.0, found / 3)
    return (
        figures["step_left_down"] < STRIDE_SMOOTHER
        and (given < SEAMLESS or much)
        and found > SEAM
        and figures["given_row_ends_step"] > 0.3
    )
