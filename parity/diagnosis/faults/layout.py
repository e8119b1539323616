"""Faults of layout: packed channels, token grids, rows and buffers that are read in another order.

B batch, N tokens, C channels of a latent token (16 latent channels of 2 × 2), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import permutations

import numpy as np

from parity.diagnosis.arithmetic import flat_readings
from parity.diagnosis.fault import fault
from parity.diagnosis.place import Array, Variants, widened
from parity.diagnosis.recipes.transformer import TransformerPlace

PATCH = 2
TOKENS = ("img_in", "final")
_HEADS = tuple(f"written in order, read as axes ({axes})" for axes in ("0, 1, 3, 2", "0, 2, 1, 3"))
PACKED = ("channel", "row in the patch", "column in the patch")


def _fed(p: TransformerPlace, change: Callable[[Array], Array]) -> TransformerPlace:
    """img_in with its input in another order, or final with its output."""
    if p.kind == "final":
        return p.changed(recipe=lambda: change(p.recipe()))
    return p.changed(linear=lambda x, layer: p.linear(change(x), layer))


def _packings(channels: int) -> Iterator[tuple[str, Array]]:
    """Orders of a token's channels that are not (channel, row, column)."""
    sizes = (channels // PATCH**2, PATCH, PATCH)
    for order in permutations(range(3)):
        if order != (0, 1, 2):
            named = ", ".join(PACKED[i] for i in order)
            index = np.arange(channels).reshape(sizes).transpose(order).reshape(-1)
            yield f"({named}) written", index
            if order != tuple(np.argsort(order)) or sizes[0] != PATCH:
                back = np.argsort(index)
                if not np.array_equal(back, index):
                    yield f"({named}) read", back


@fault(
    "layout.patch_order", at=TOKENS, title="latent channels are packed or unpacked in another order",
    fix="a token's channels are (channel, row in the patch, column in the patch)",
)  # fmt: skip
def patch_order(p: TransformerPlace) -> Variants:
    """All orders of channel, row and column, each way."""
    channels = p.fed("latents").shape[-1] if p.kind == "img_in" else len(p.weight("proj_out.weight"))
    if channels % PATCH**2 == 0 and channels > PATCH**2:
        for detail, index in _packings(channels):
            yield detail, _fed(p, lambda x, index=index: x[..., index])


def _pictures(p: TransformerPlace, turned: Callable[[Array, int, int], Array]) -> Callable[[Array], Array]:
    """A change of each picture's tokens. turned: B F N C, height, width to B F N C."""
    shapes = p.fed("img_shapes").astype(int).tolist()
    cuts = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]

    def change(x: Array) -> Array:
        parts = []
        for part, (frames, height, width) in zip(np.split(x, cuts, axis=1), shapes, strict=True):
            grids = part.reshape(len(x), frames, height * width, -1)
            parts.append(turned(grids, height, width).reshape(part.shape))
        return np.concatenate(parts, axis=1)

    return change


def _turned(x: Array, height: int, width: int) -> Array:
    return x.reshape(*x.shape[:2], height, width, -1).swapaxes(2, 3).reshape(x.shape)


@fault(
    "layout.width_height", at=TOKENS, title="height and width of the token grid are exchanged",
    fix="tokens run row by row: latents of (height, width), columns fastest",
)  # fmt: skip
def width_height(p: TransformerPlace) -> Variants:
    """Tokens column by column, either way, and with the patches turned as well."""
    if not any(h > 1 and w > 1 for _, h, w in p.fed("img_shapes").astype(int).tolist()):
        return
    inner = lambda x: x.reshape(*x.shape[:-1], -1, PATCH, PATCH).swapaxes(-1, -2).reshape(x.shape)  # noqa: E731
    ways = {
        "tokens written column by column": _pictures(p, _turned),
        "tokens read column by column": _pictures(p, lambda x, h, w: _turned(x, w, h)),
    }
    for detail, change in ways.items():
        yield detail, _fed(p, change)
        yield f"{detail}, patches turned", _fed(p, lambda x, change=change: inner(change(x)))
    mirrored = {
        "rows from the bottom": lambda x, h, w: x.reshape(*x.shape[:2], h, w, -1)[:, :, ::-1],
        "columns from the right": lambda x, h, w: x.reshape(*x.shape[:2], h, w, -1)[:, :, :, ::-1],
    }
    for detail, turned in mirrored.items():
        yield detail, _fed(p, _pictures(p, turned))


@fault(
    "layout.rows_shifted", at=("txt_norm", "txt_in", "img_in"), title="rows start too early or too late",
    fix="read from the view's own offset: make the slice contiguous before its buffer is passed on",
)  # fmt: skip
def rows_shifted(p: TransformerPlace) -> Variants:
    """By as many rows as fits the candidate best; rows that come from elsewhere are not known and taken as found."""
    value = p.values.candidate.get(p.name)
    if value is None or value.ndim != 3 or value.shape[1] < 4 or not np.isfinite(value.astype(np.float64)).all():
        return
    value, right = widened(value), p.recipe()
    if value.shape != right.shape:
        return
    for shift in _shifts(value, right):
        said = f"{abs(shift)} too {'early' if shift > 0 else 'late'}"
        yield f"{said}, around the end", p.changed(recipe=lambda s=shift: np.roll(p.recipe(), s, axis=1))
        yield f"{said}, on into the next sample", p.changed(recipe=lambda s=shift: _rolled_flat(p.recipe(), s))
        yield f"{said}, the end repeated", p.changed(recipe=lambda s=shift: _filled(p.recipe(), s, None))
        yield f"{said}, other rows beyond", p.changed(recipe=lambda s=shift: _filled(p.recipe(), s, value))


def _shifts(value: Array, right: Array) -> list[int]:
    """The shift at which most rows agree, if most of those that can do."""
    rows = value.shape[1]
    best: tuple[float, int] | None = None
    for shift in range(-(rows // 2), rows // 2 + 1):
        if shift:
            there, here = _overlap(value, right, shift)
            off = float(np.linalg.norm(there - here) / max(np.linalg.norm(here), 1e-300))
            best = (off, shift) if best is None or off < best[0] else best
    return [best[1]] if best and best[0] < 0.1 else []


def _overlap(value: Array, right: Array, shift: int) -> tuple[Array, Array]:
    return (value[:, shift:], right[:, :-shift]) if shift > 0 else (value[:, :shift], right[:, -shift:])


def _rolled_flat(x: Array, shift: int) -> Array:
    return np.roll(x.reshape(-1, x.shape[-1]), shift, axis=0).reshape(x.shape)


def _filled(x: Array, shift: int, beyond: Array | None) -> Array:
    """Rows moved; those beyond the end are the end's own again, or those of another array."""
    moved = np.roll(x, shift, axis=1)
    outside = slice(0, shift) if shift > 0 else slice(x.shape[1] + shift, None)
    end = x[:, :1] if shift > 0 else x[:, -1:]
    moved[:, outside] = end if beyond is None else beyond[:, outside]
    return moved


@fault(
    "layout.not_contiguous", title="a transposed view is read as if it were contiguous",
    fix="make the array contiguous before its buffer is passed on or reshaped", seen="the guide; mlx-rs#77; mlx-rs#310",
)  # fmt: skip
def not_contiguous(p: TransformerPlace) -> Variants:
    """The checkpoint itself, every order of its axes."""
    value = p.values.candidate.get(p.name)
    shape = value.shape if value is not None else p.recipe().shape
    once = cache(p.recipe)
    for detail, reading in flat_readings(shape):
        # Exchanged heads of v are also what a wrong reshape makes: `attention.heads_layout`.
        if p.kind != "v" or detail not in _HEADS:
            yield detail, p.changed(recipe=lambda reading=reading: reading(once()))


@fault(
    "layout.not_contiguous", at=("img_in", "txt_in", "mod", "q", "k", "v", "ffn", "final", "txt_norm", "temb"),
    title="a layer's input is a transposed view that is read as if it were contiguous",
    fix="make the array contiguous before its buffer is passed on or reshaped", seen="the guide; mlx-rs#77",
)  # fmt: skip
def input_not_contiguous(p: TransformerPlace) -> Variants:
    """What goes into the first layer, every order of its axes."""
    for detail, reading in flat_readings(_input(p).shape):
        if p.kind == "txt_norm":
            yield f"input {detail}", p.changed(rms_norm=lambda x, w, reading=reading: p.rms_norm(reading(x), w))
        else:
            yield f"input {detail}", p.changed(linear=_first(p, reading))


def _first(p: TransformerPlace, reading: Callable[[Array], Array]) -> Callable[[Array, str], Array]:
    first = p.layers()[0]
    return lambda x, layer: p.linear(reading(x) if layer == first else x, layer)


def _input(p: TransformerPlace) -> Array:
    named = {"img_in": "latents", "txt_norm": "prompt_embeds", "txt_in": "prompt_embeds"}
    if p.kind in named:
        return p.fed(named[p.kind])
    if p.kind in ("q", "k", "v", "ffn"):
        return p.of("modulated2" if p.kind == "ffn" else "modulated")
    if p.kind == "mod":
        return p.temb()[: len(p.entering())] if p.stream == "txt" else p.temb()
    return {"temb": lambda: p.values["time.silu"], "final": lambda: p.values["norm_out"]}[p.kind]()
