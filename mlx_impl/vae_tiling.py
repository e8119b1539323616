"""Large pictures in little memory: two ways to encode and decode in tiles.

`encode` and `decode` give what the VAE gives without tiles, to rounding, for any weights. What looks at the whole
picture, the attention of the middle block, runs on the whole latent grid. Everything else sees a known number of
pixels each way, so each resolution is computed in tiles with a margin as wide as that, and the margin is cut off.
There are no seams, and nothing is blended.

`encode_blended` and `decode_blended` do what diffusers does after ``enable_tiling()``: every tile is a small picture
of its own, attention and edges included, and neighbours are blended where they overlap. That equals diffusers, but
not the picture without tiles. How far it is off depends on the weights.

B batch, T frames, H W pixels, h w on the latent grid, C channels, z latent channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from parity.tap import Recorder, recording

from .vae import AutoencoderKLQwenImage, Moments, VaeConfig
from .vae_layers import DownResample

Layer = Callable[[mx.array], mx.array]

# Height and width of a tile in pixels. At coarser resolutions, which have more channels, it holds as many values.
TILE = 256
# Pixels of the largest picture that pipelines take whole: above it tiles halve the memory, and cost no time.
LARGEST_WHOLE = 512 * 512


def decode(model: AutoencoderKLQwenImage, z: mx.array, *, tile: int = TILE) -> mx.array:
    """What ``model.decode(z)`` gives, B T H W 3, in tiles. Checkpoints are not tapped.

    Args:
        z: B t h w z, denormalised.
        tile: height and width of a tile in pixels, even; smaller at coarser resolutions.

    Raises:
        ValueError: latents of another shape, or a tile that is not a positive even number.
    """
    model.check_latents(z)
    _check_tile(tile)
    decoder = model.decoder
    last = len(decoder.up_blocks) - 1
    with recording(Recorder(frozenset())):
        x = decoder.up_blocks[0].residual(model.decode_mid(model.decode_in(z)))
        mx.eval(x)
        for index in range(last):
            before, block = decoder.up_blocks[index], decoder.up_blocks[index + 1]
            layers: list[Layer] = [before.upsample, block.residual]
            # Two convolutions a resnet, one after upsampling, one at the end; each sees one more pixel each way.
            seen = 2 * len(block.resnets) + 1
            if index == last - 1:
                layers.append(model.decode_head)
                seen += 1
            side = _side(tile, model.config, last - 1 - index)
            x = _by_tiles(layers, x, side // 2, margin=-(-seen // 2), scale=(2, 1))
        return mx.clip(x if last else model.decode_head(x), -1, 1)


def encode(model: AutoencoderKLQwenImage, x: mx.array, *, tile: int = TILE) -> Moments:
    """What ``model.encode(x)`` gives, each B t h w z, in tiles. Checkpoints are not tapped.

    Args:
        x: B T H W 3 in -1…1.
        tile: height and width of a tile in pixels, even; smaller at coarser resolutions.

    Raises:
        ValueError: pictures of another shape, or a tile that is not a positive even number.
    """
    model.check_pictures(x)
    _check_tile(tile)
    with recording(Recorder(frozenset())):
        layers: list[Layer] = [model.encode_in]
        seen, resolution = 1, 0
        for layer in model.encoder.down_blocks:
            layers.append(layer)
            if isinstance(layer, DownResample):
                # The stride of 2 needs an even margin, and its kernel one more pixel on one side.
                side = _side(tile, model.config, resolution)
                x = _by_tiles(layers, x, side, margin=2 * (seen // 2 + 1), scale=(1, 2))
                layers, seen, resolution = [], 0, resolution + 1
            else:
                seen += 2
        for layer in layers:
            x = layer(x)
        return Moments.of(model.encode_head(model.encode_mid(x)))


def _side(tile: int, config: VaeConfig, resolution: int) -> int:
    """Height and width, even, of a tile that holds as many values as one of the finest resolution, number 0."""
    narrower = config.dim_mult[0] / config.dim_mult[resolution]
    return max(2, int(tile * narrower**0.5) // 2 * 2)


def _check_tile(tile: int) -> None:
    if tile < 2 or tile % 2:
        raise ValueError(f"a tile of {tile} pixels; expected a positive even number")


class _Span(NamedTuple):
    """Part of an axis: what a tile makes, and from where to where it looks."""

    start: int
    stop: int
    low: int
    high: int


def _spans(length: int, tile: int, margin: int) -> list[_Span]:
    """An axis cut into tiles; the last one may be shorter."""
    return [
        _Span(start, min(start + tile, length), max(start - margin, 0), min(start + tile + margin, length))
        for start in range(0, length, tile)
    ]


def _by_tiles(layers: list[Layer], x: mx.array, tile: int, *, margin: int, scale: tuple[int, int]) -> mx.array:
    """Layers one after the other, on tiles of B T H W C with a margin of neighbours that is cut off afterwards.

    Args:
        tile: height and width of a tile of the input.
        margin: pixels of the input that the layers see each way.
        scale: height of the output over that of the input, as numerator and denominator.
    """

    def scaled(n: int) -> int:
        return n * scale[0] // scale[1]

    joined = None
    for rows in _spans(x.shape[2], tile, margin):
        for columns in _spans(x.shape[3], tile, margin):
            part = x[:, :, rows.low : rows.high, columns.low : columns.high]
            for layer in layers:
                part = layer(part)
            if joined is None:
                joined = mx.zeros((*part.shape[:2], scaled(x.shape[2]), scaled(x.shape[3]), part.shape[4]), part.dtype)
            made, inside = (
                tuple(slice(scaled(span.start - at), scaled(span.stop - at)) for span, at in pairs)
                for pairs in (((rows, 0), (columns, 0)), ((rows, rows.low), (columns, columns.low)))
            )
            joined[:, :, made[0], made[1]] = part[:, :, inside[0], inside[1]]
            # One tile at a time is in memory.
            mx.eval(joined)
    return joined


@dataclass(frozen=True)
class BlendedTiles:
    """What diffusers' ``enable_tiling`` sets, in pixels, with its defaults.

    Attributes:
        min_height, min_width: of a tile; smaller pictures are not cut.
        stride_height, stride_width: from one tile to the next. The rest of a tile is blended with the next one.

    Raises:
        ValueError: a stride that is not positive, or longer than its tile.
    """

    min_height: int = 256
    min_width: int = 256
    stride_height: int = 192
    stride_width: int = 192

    def __post_init__(self) -> None:
        if not (0 < self.stride_height <= self.min_height and 0 < self.stride_width <= self.min_width):
            raise ValueError(f"{self}: expected strides between one pixel and the tile")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a tile."""
        return self.min_height, self.min_width

    @property
    def stride(self) -> tuple[int, int]:
        """(down, right)."""
        return self.stride_height, self.stride_width


def decode_blended(model: AutoencoderKLQwenImage, z: mx.array, tiles: BlendedTiles | None = None) -> mx.array:
    """diffusers' ``tiled_decode``, which does not clip: B T H W 3.

    Args:
        z: B t h w z, denormalised.
        tiles: diffusers' defaults where None.

    Raises:
        ValueError: latents of another shape.
    """
    model.check_latents(z)
    tiles, factor = tiles or BlendedTiles(), model.config.factor
    size, stride = (tuple(n // factor for n in both) for both in (tiles.size, tiles.stride))
    if all(n <= most for n, most in zip(z.shape[2:4], size, strict=True)):
        return model.decode(z)
    with recording(Recorder(frozenset())):
        grid = _on_tiles(model.pixels, z, size, stride)
    overlap = tuple(a - b for a, b in zip(tiles.size, tiles.stride, strict=True))
    return _joined(grid, overlap, tiles.stride)[:, :, : z.shape[2] * factor, : z.shape[3] * factor]


def encode_blended(model: AutoencoderKLQwenImage, x: mx.array, tiles: BlendedTiles | None = None) -> Moments:
    """diffusers' ``tiled_encode``: each B t h w z.

    Args:
        x: B T H W 3 in -1…1.
        tiles: diffusers' defaults where None.

    Raises:
        ValueError: pictures of another shape.
    """
    model.check_pictures(x)
    tiles, factor = tiles or BlendedTiles(), model.config.factor
    if all(n <= most for n, most in zip(x.shape[2:4], tiles.size, strict=True)):
        return model.encode(x)
    with recording(Recorder(frozenset())):
        grid = _on_tiles(model.features, x, tiles.size, tiles.stride)
    size, stride = (tuple(n // factor for n in both) for both in (tiles.size, tiles.stride))
    overlap = tuple(a - b for a, b in zip(size, stride, strict=True))
    moments = _joined(grid, overlap, stride)
    return Moments.of(moments[:, :, : x.shape[2] // factor, : x.shape[3] // factor])


def _on_tiles(layer: Layer, x: mx.array, size: tuple[int, int], stride: tuple[int, int]) -> list[list[mx.array]]:
    """layer of every tile, which may be cut short at the bottom and on the right."""
    grid = []
    for top in range(0, x.shape[2], stride[0]):
        row = []
        for left in range(0, x.shape[3], stride[1]):
            row.append(layer(x[:, :, top : top + size[0], left : left + size[1]]))
            mx.eval(row[-1])
        grid.append(row)
    return grid


def _joined(grid: list[list[mx.array]], overlap: tuple[int, int], stride: tuple[int, int]) -> mx.array:
    """Tiles blended with the one above and then with the one on the left, both of them blended already."""
    rows = []
    for i, row in enumerate(grid):
        for j, tile in enumerate(row):
            if i:
                tile = _blend(grid[i - 1][j], tile, overlap[0], axis=2)
            if j:
                tile = _blend(row[j - 1], tile, overlap[1], axis=3)
            row[j] = tile
        rows.append(mx.concatenate([tile[:, :, : stride[0], : stride[1]] for tile in row], axis=3))
    return mx.concatenate(rows, axis=2)


def _blend(before: mx.array, tile: mx.array, overlap: int, axis: int) -> mx.array:
    """`tile`, its first rows (axis 2) or columns (axis 3) faded in from the last ones of the tile before it."""
    overlap = min(before.shape[axis], tile.shape[axis], overlap)
    if overlap == 0:
        return tile
    faded_out = mx.split(before, [before.shape[axis] - overlap], axis=axis)[1]
    faded_in, rest = mx.split(tile, [overlap], axis=axis)
    share = mx.arange(overlap).reshape(-1, *[1] * (4 - axis)) / overlap
    faded_out = (faded_out.astype(mx.float32) * (1 - share)).astype(tile.dtype)
    faded_in = (faded_in.astype(mx.float32) * share).astype(tile.dtype)
    return mx.concatenate([faded_out + faded_in, rest], axis=axis)
