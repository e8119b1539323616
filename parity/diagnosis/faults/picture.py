"""Faults of the picture that a pipeline hands over: range, layout, unpacked latents, tiles."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np

from parity.diagnosis.fault import fault
from parity.diagnosis.place import Array, Variants
from parity.diagnosis.recipes.pipeline import PipelinePlace


@fault("image.range", at=("pipeline.image",), component="pipeline", title="the picture has another range of values",
       fix="clip(x/2 + 1/2, 0, 1), then round(255·x)")  # fmt: skip
def image_range(p: PipelinePlace) -> Variants:
    def quantized(way: Callable[[Array], Array]) -> Callable[[Array], Array]:
        return lambda x: way(p.to_unit(x) * 255) / 255

    ways: dict[str, Callable[[Array], Array]] = {
        "-1…1 as it is": lambda x: np.clip(x, -1, 1), "-1…1 shown as 0…1": lambda x: np.clip(x, 0, 1),
        "not clipped": lambda x: x * 0.5 + 0.5, "-1…1 and over as it is": lambda x: x,
        "halved twice": lambda x: np.clip(np.clip(x * 0.5 + 0.5, 0, 1) * 0.5 + 0.5, 0, 1),
        "plus 1, not halved": lambda x: np.clip(x + 1, 0, 1), "halved, not moved": lambda x: np.clip(x * 0.5, 0, 1),
        "minus 1/2": lambda x: np.clip(x * 0.5 - 0.5, 0, 1), "inverted": lambda x: 1 - p.to_unit(x),
        "stretched to its own least and largest value": lambda x: (x - x.min()) / (x.max() - x.min()),
        "0…255": lambda x: p.to_unit(x) * 255, "0…255, rounded": lambda x: np.round(p.to_unit(x) * 255),
        "rounded to 1/255": quantized(np.round), "cut to 1/255": quantized(np.floor),
        "cut to 1/256": lambda x: np.minimum(np.floor(p.to_unit(x) * 256), 255) / 255,
        "wrapped at 256": lambda x: np.mod(np.round((x * 0.5 + 0.5) * 255), 256) / 255,
        "127.5·x + 128": lambda x: np.clip(x * 127.5 + 128, 0, 255) / 255,
        "sRGB curve": lambda x: np.where(p.to_unit(x) > 0.0031308,
                                         1.055 * p.to_unit(x) ** (1 / 2.4) - 0.055, 12.92 * p.to_unit(x)),
        "gamma 2.2": lambda x: p.to_unit(x) ** 2.2, "gamma 1/2.2": lambda x: p.to_unit(x) ** (1 / 2.2),
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "tanh": lambda x: np.tanh(x) * 0.5 + 0.5,
    }  # fmt: skip
    for what, way in ways.items():
        yield what, p.changed(to_unit=way)


@fault("layout.chw_hwc", at=("pipeline.image",), component="pipeline",
       title="channels first are read as channels last",
       fix="transpose to B H W C and make it contiguous before its bytes are read", seen="the guide")  # fmt: skip
def chw_hwc(p: PipelinePlace) -> Variants:
    yield "3 H W read as H W 3", p.changed(channels_last=lambda x: x.reshape(len(x), *x.shape[2:], x.shape[1]))
    yield (
        "W H 3 read as H W 3",
        p.changed(channels_last=lambda x: x.transpose(0, 3, 2, 1).reshape(len(x), *x.shape[2:], x.shape[1])),
    )
    yield (
        "H W 3 read as 3 H W",
        p.changed(channels_last=lambda x: x.transpose(0, 2, 3, 1).reshape(x.shape).transpose(0, 2, 3, 1)),
    )


@fault("image.channels", at=("pipeline.image",), component="pipeline",
       title="colours or sides of the picture are exchanged",
       fix="red, green, blue; rows from the top, columns from the left")  # fmt: skip
def channels(p: PipelinePlace) -> Variants:
    for order in permutations(range(3)):
        if order != (0, 1, 2):
            said = "".join("RGB"[i] for i in order)
            yield f"{said} for RGB", p.changed(channels_last=lambda x, o=order: p.channels_last(x)[..., list(o)])
    yield "upside down", p.changed(channels_last=lambda x: p.channels_last(x)[:, ::-1])
    yield "mirrored", p.changed(channels_last=lambda x: p.channels_last(x)[:, :, ::-1])
    yield "pictures in another order", p.changed(channels_last=lambda x: p.channels_last(x)[::-1])


@fault("layout.patch_order", at=("pipeline.image",), component="pipeline",
       title="latent tokens are unpacked in another order", fix="h w C 2 2 to C h 2 w 2")  # fmt: skip
def unpacking(p: PipelinePlace) -> Variants:
    def unpacked(split: tuple[int, int, int], to: tuple[int, int, int]) -> PipelinePlace:
        """`split`: which of channel, row, column come in a token, in order; `to`: where each is."""

        def way(tokens: Array) -> Array:
            rows, columns = p.grid()
            sizes = (tokens.shape[-1] // 4, 2, 2)
            parts = tokens.reshape(len(tokens), rows, columns, *(sizes[axis] for axis in split))
            channel, row, column = (3 + to.index(axis) for axis in range(3))
            parts = parts.transpose(0, channel, 1, row, 2, column)
            return parts.reshape(len(tokens), -1, 1, 2 * rows, 2 * columns)

        return _decoded_from(p, way)

    for order in permutations(range(3)):
        if order != (0, 1, 2):
            said = ", ".join(("channel", "row", "column")[axis] for axis in order)
            yield f"a token read as {said}", unpacked(order, order)
    yield "a token's parts one after the other, not beside one another", _decoded_from(p, lambda t: _blocks(p, t))


@fault("layout.width_height", at=("pipeline.image",), component="pipeline",
       title="width and height of the latent grid are exchanged", fix="height/16 rows of width/16 tokens")  # fmt: skip
def width_height(p: PipelinePlace) -> Variants:
    rows, columns = p.grid()
    yield "read with width and height exchanged", _decoded_from(p, lambda t: p.unpacked(
        t.reshape(len(t), columns, rows, -1).swapaxes(1, 2).reshape(t.shape)))  # fmt: skip
    yield "rows and columns exchanged", p.changed(channels_last=lambda x: x.transpose(0, 3, 2, 1), unpacked=p.unpacked)


def _blocks(p: PipelinePlace, tokens: Array) -> Array:
    rows, columns = p.grid()
    parts = tokens.reshape(len(tokens), rows, columns, -1, 2, 2).transpose(0, 3, 4, 1, 5, 2)
    return parts.reshape(len(tokens), -1, 1, 2 * rows, 2 * columns)


def _decoded_from(p: PipelinePlace, unpacked: Callable[[Array], Array]) -> PipelinePlace:
    """The picture of latents that were unpacked in another way."""
    other = p.changed(unpacked=unpacked)
    return p.changed(pictures=lambda: other.decoded())


@fault("vae.tiling", at=("pipeline.image",), component="pipeline", title="the picture is decoded in tiles that show",
       fix="let tiles overlap and blend them; decode small pictures whole")  # fmt: skip
def tiling(p: PipelinePlace) -> Variants:
    rows, columns = p.grid()
    for side in (2, 4, 8, 16, 32):
        if side < max(rows, columns):
            yield f"tiles of {16 * side} pixels side by side", p.changed(pictures=lambda n=side: _in_tiles(p, n))


def _in_tiles(p: PipelinePlace, side: int) -> Array:
    """Decoded tile by tile, `side` tokens each way, without any overlap."""
    whole = p.unpacked(p.fed("latents"))

    def tile(i: int, j: int) -> Array:
        part = whole[:, :, :, i : i + 2 * side, j : j + 2 * side]
        return p.changed(unpacked=lambda _: part).decoded()

    bands = range(0, whole.shape[3], 2 * side), range(0, whole.shape[4], 2 * side)
    return np.concatenate([np.concatenate([tile(i, j) for j in bands[1]], axis=3) for i in bands[0]], axis=2)
