"""A picture beside the one it should be: what maps the one on the other, exactly where that can be.

H height, W width; pictures are H W 3 uint8. Tried are readings of the buffer (axis orders, row strides,
shifts), turns and mirrors, orders of patches and of channels, and any table of values; then parts that
are missing, tiles with shades of their own, and noise. What meets every value to ±2 is proven.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import permutations

import numpy as np

from parity.picturecheck import mapping, patches, restride
from parity.picturecheck.differences import in_parts, in_tiles, noise
from parity.picturecheck.finding import Finding, rounded

# Correlation of what a hypothesis predicts with the picture: to be looked at, and to be likely where the
# picture was compressed since.
ALIKE = 0.9
LIKELY = 0.965
_PATCH_PART = 1024


@dataclass(frozen=True, eq=False)
class Guess:
    """A code, what is meant, and the picture that it makes of the reference, or of its upper left part.

    `whole` makes it of the whole reference where `made` is of a part.
    """

    code: str
    detail: str
    made: np.ndarray
    whole: Callable[[], np.ndarray] | None = None


def findings(picture: np.ndarray, reference: np.ndarray) -> list[Finding]:
    """What makes the picture of the reference; nothing where none of what is known does.

    Args:
        picture, reference: of one size, or of exchanged sides.
    """
    if picture.shape != reference.shape:
        return _exchanged(picture, reference)
    plain = mapping.fitted(reference, picture)
    if not plain.identity and (order := _order(picture, reference)) is not None:
        return [order]
    if plain.exact:
        return [] if plain.identity and plain.met == 1.0 else _toned(plain, [])
    found = in_parts(picture, reference)
    if found is None and picture.std() > 1:
        found = _moved(picture, reference) or in_tiles(picture, reference) or noise(picture, reference)
    return [found] if found is not None else []


def _order(picture: np.ndarray, reference: np.ndarray) -> Finding | None:
    """The order of channels that alone makes the picture."""
    for channels in list(permutations(range(3)))[1:]:
        near = np.abs(picture.astype(np.int16) - reference[..., list(channels)]) <= mapping.TOLERANCE
        if (met := float(near.mean())) >= mapping.MET:
            detail = f"R, G, B hold {', '.join('RGB'[c] for c in channels)} of the reference"
            figures = {"values_met": rounded(met)}
            return Finding("layout.channel_order", detail, figures, "proven", recovered=reference)
    return None


def _toned(plain: mapping.Mapping, before: list[Finding]) -> list[Finding]:
    if plain.identity:
        return before
    code, detail = mapping.named(plain)
    return [*before, Finding(code, detail, {"values_met": rounded(plain.met)}, "proven")]


def _exchanged(picture: np.ndarray, reference: np.ndarray) -> list[Finding]:
    """Pictures of W × H and H × W pixels."""
    if picture.shape != reference.transpose(1, 0, 2).shape:
        return []
    turned = reference.transpose(1, 0, 2)
    for code, detail, guess in (
        ("layout.width_height", "the buffer is as it should be, its sides are exchanged",
         np.ascontiguousarray(reference).reshape(picture.shape)),
        ("layout.transposed", "rows are columns", turned),
        ("layout.flipped", "turned by 90°", turned[:, ::-1]),
        ("layout.flipped", "turned by 270°", turned[::-1]),
    ):  # fmt: skip
        found = _verified(picture, Guess(code, detail, np.ascontiguousarray(guess)), reference)
        if found is not None:
            return [found]
    return []


def _moved(picture: np.ndarray, reference: np.ndarray) -> Finding | None:
    """The reading of the buffer, turn or order of patches or channels that makes the picture."""
    best: tuple[float, Guess] | None = None
    places = mapping.probes(picture.shape)
    for guess in _guesses(picture, reference):
        part = guess.made
        if part.shape == picture.shape:
            _, alike = mapping.channel_match(part, picture, places)
        else:
            of_part = np.ascontiguousarray(picture[: part.shape[0], : part.shape[1]])
            _, alike = mapping.channel_match(part, of_part, places % (part.shape[0] * part.shape[1]))
        if best is None or alike > best[0] + 1e-4:
            best = alike, guess
        if alike > 0.9999:
            break
    if best is None or best[0] < ALIKE:
        return None
    return _verified(picture, best[1], reference)


def _verified(picture: np.ndarray, guess: Guess, reference: np.ndarray) -> Finding | None:
    """The guess on the whole picture, with the order of channels and the table of values that go with it."""
    code, detail = guess.code, guess.detail
    made = guess.whole() if guess.whole is not None else guess.made
    channels, alike = mapping.channel_match(made, picture, mapping.probes(picture.shape))
    plain = mapping.fitted(made, picture, channels)
    difference = picture.astype(np.float32) - made[..., list(channels)]
    left = float(np.sqrt((difference**2).mean())) / max(float(picture.std()), 1e-6)
    figures = {"correlation": rounded(alike), "values_met": rounded(plain.met), "left_of_contrast": rounded(left)}
    if not plain.exact and alike < LIKELY:
        return None
    if channels != (0, 1, 2):
        order = "".join("RGB"[c] for c in channels)
        if code:
            detail = f"{detail}; and channels in the order {order}"
        else:
            code, detail = "layout.channel_order", f"R, G, B hold {', '.join(order)} of the reference"
    if not code:
        return None
    if plain.exact and not plain.identity:
        detail += f"; and {mapping.named(plain)[1]}"
    ties = ["layout.not_contiguous"] if code in ("layout.chw_hwc", "layout.width_height") else []
    return Finding(code, detail, figures, "proven" if plain.exact else "likely", recovered=reference, ties=ties)


def _guesses(picture: np.ndarray, reference: np.ndarray) -> Iterator[Guess]:
    yield Guess("", "", reference)
    exchange = (1, 0, 2), restride.ROWS_FIRST
    simple = (*restride.HYPOTHESES, exchange)
    for written, read in (*simple, *(pair for pair in permutations(restride.ORDERS, 2) if pair not in simple)):
        exchanged = {written, read} == set(exchange)
        code = "layout.width_height" if exchanged else "layout.chw_hwc"
        detail = f"the buffer lies as {restride.ORDERS[written]} and was read as {restride.ORDERS[read]}"
        yield Guess(code, detail, restride.written_and_read(reference, written, read))
    yield Guess("layout.flipped", "upside down", reference[::-1])
    yield Guess("layout.flipped", "mirrored", reference[:, ::-1])
    yield Guess("layout.flipped", "turned by 180°", reference[::-1, ::-1])
    if picture.shape[0] == picture.shape[1]:
        yield Guess("layout.transposed", "rows are columns", reference.transpose(1, 0, 2))
        yield Guess("layout.flipped", "turned by 90°", reference.transpose(1, 0, 2)[:, ::-1])
        yield Guess("layout.flipped", "turned by 270°", reference.transpose(1, 0, 2)[::-1])
    yield from _strides(picture, reference)
    yield from _shifts(picture, reference)
    for side in patches.SIDES:
        if all(n % (2 * side) == 0 for n in picture.shape[:2]):
            together = f"cells of {side} pixels of one place in their patches lie together"
            yield Guess("layout.patch_order", together, patches.gathered(reference, side))
            apart = f"four small pictures lie in each other, in cells of {side} pixels"
            yield Guess("layout.patch_order", apart, patches.spread(reference, side))
        part = np.ascontiguousarray(reference[:_PATCH_PART, :_PATCH_PART])
        part = part[: part.shape[0] // (2 * side) * 2 * side, : part.shape[1] // (2 * side) * 2 * side]
        for order in permutations(range(4)):
            if order != (0, 1, 2, 3) and part.size:
                detail = f"{side}-pixel quarters of each patch are in the order {order}"
                whole = partial(patches.quarters, reference, side, order)
                yield Guess("layout.patch_order", detail, patches.quarters(part, side, order), whole)


def _strides(picture: np.ndarray, reference: np.ndarray) -> Iterator[Guess]:
    """Rows that lie further apart, or closer, in one buffer than in the other."""
    row, height = picture.shape[1] * 3, picture.shape[0]
    given, wanted = (np.ascontiguousarray(one).reshape(-1) for one in (picture, reference))
    varied = reference[height // 8 + 1 : 3 * height // 4].std(axis=(1, 2))
    for number in (int(n) + height // 8 + 1 for n in np.argsort(varied)[::-1][:3]):
        place = given.tobytes().find(wanted[number * row : (number + 1) * row].tobytes())
        if place > 0 and place % number == 0 and place // number > row:
            pitch = place // number
            buffer = np.zeros((height, pitch), np.uint8)
            buffer[:, :row] = wanted.reshape(height, row)
            detail = f"rows are {pitch} bytes apart, and were read as {row}"
            yield Guess("layout.row_stride", detail, buffer.reshape(-1)[: picture.size].reshape(picture.shape))
        place = wanted.tobytes().find(given[number * row : (number + 1) * row].tobytes())
        if place > 0 and place % number == 0 and place // number != row:
            pitch = place // number
            longer = np.concatenate([wanted, np.zeros(max(0, pitch * height + row - wanted.size), np.uint8)])
            rows = np.lib.stride_tricks.as_strided(longer, (height, row), (pitch, 1))
            detail = f"rows are {row} bytes apart, and were read as {pitch}"
            yield Guess("layout.row_stride", detail, rows.reshape(picture.shape))


def _shifts(picture: np.ndarray, reference: np.ndarray) -> Iterator[Guess]:
    """The whole buffer, or all rows and columns, moved on and come round."""
    from scipy import fft

    one, other = (fft.rfft2(image.astype(np.float32).sum(axis=2)) for image in (reference, picture))
    cross = other * one.conj()
    peak = fft.irfft2(cross / np.maximum(np.abs(cross), 1e-6), picture.shape[:2])
    down, across = (int(n) for n in np.unravel_index(int(peak.argmax()), peak.shape))
    if down or across:
        detail = f"moved by {down} rows and {across} columns, and come round"
        yield Guess("layout.rows_shifted", detail, np.roll(reference, (down, across), (0, 1)))
    flat = [np.ascontiguousarray(image).reshape(-1).astype(np.float32) for image in (reference, picture)]
    one, other = (fft.rfft(values - values.mean()) for values in flat)
    cross = other * one.conj()
    move = int(fft.irfft(cross / np.maximum(np.abs(cross), 1e-6), flat[0].size).argmax())
    if move:
        made = np.roll(np.ascontiguousarray(reference).reshape(-1), move).reshape(reference.shape)
        signed = move if move <= flat[0].size // 2 else move - flat[0].size
        yield Guess("layout.rows_shifted", f"the buffer is moved by {signed} values", made)
