"""Qwen2.5-VL's vision tower: config, blocks, the whole model and its kinds of stage.

N tokens (patches) of all pictures together, C·T·P·P = 1176 values of a patch, D width, H heads,
d head width, F width inside the MLP, m = 2 patches each way of a merge block, J text-encoder width.

Equal to transformers 5's ``Qwen2_5_VisionTransformerPretrainedModel``; its state-dict keys, which
a checkpoint has below ``visual.``, are this parameter tree's flattened names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from parity.tap import scope, tap

from . import ops
from .layers import Linear, chain
from .qwen2_layers import RMSNorm
from .vision_layout import Grid, Segments, check_grids, frames, rotary_table, segments, windows
from .weights import Shards, load_part, mlx_dtype

# Of its keys in the text encoder's checkpoint.
PREFIX = "visual"

# Keys of published configs that change no number: names, training, videos' clocks, and what
# transformers 5 does not read.
_NO_EFFECT = frozenset(
    {
        "_attn_implementation_autoset", "architectures", "dtype", "in_chans", "initializer_range", "model_type",
        "spatial_patch_size", "tokens_per_second", "torch_dtype", "transformers_version",
    }
)  # fmt: skip


@dataclass(frozen=True)
class VisionConfig:
    """``vision_config`` of the text encoder's ``config.json``, with the defaults of transformers' class.

    Raises:
        ValueError: sizes that do not fit each other, or another activation than SiLU.
    """

    depth: int = 32
    hidden_size: int = 3584
    hidden_act: str = "silu"
    intermediate_size: int = 3420
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112
    out_hidden_size: int = 3584
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or self.head_width % 4:
            raise ValueError(
                f"vision_config: hidden_size {self.hidden_size} in {self.num_heads} heads; "
                "expected a head width that is a multiple of 4"
            )
        if self.window_side < 1:
            raise ValueError(f"vision_config: window_size {self.window_size} is smaller than one merge block")
        if self.hidden_act != "silu":
            raise ValueError(f"vision_config: hidden_act {self.hidden_act!r}, expected 'silu'")

    @property
    def head_width(self) -> int:
        """d."""
        return self.hidden_size // self.num_heads

    @property
    def window_side(self) -> int:
        """Merge blocks each way of a window."""
        return self.window_size // self.spatial_merge_size // self.patch_size

    @property
    def patch_values(self) -> int:
        """C·T·P·P."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> VisionConfig:
        """Read a ``vision_config``.

        Raises:
            ValueError: keys that the model does not know, or another kind of rotary positions.
        """
        given = {key: value for key, value in config.items() if key not in _NO_EFFECT}
        rope = dict(given.pop("rope_parameters", None) or {})
        kind = rope.pop("rope_type", "axial")
        unknown = sorted(set(given) - {field.name for field in fields(cls)})
        unknown += sorted(f"rope_parameters.{key}" for key in set(rope) - {"rope_theta"})
        if unknown:
            raise ValueError(f"vision_config has unknown keys: {', '.join(unknown)}")
        if kind != "axial":
            raise ValueError(f"vision_config: rope_type {kind!r}, expected 'axial'")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in (given | rope).items()})


@dataclass(frozen=True)
class VisionStream:
    """What runs through the blocks, in the order of the windows.

    Attributes:
        hidden: N D.
        table: N d/2 2, (cos, sin), float32.
        window_index: N/m² int64, which merge block stands at each place.
        window_bounds: windows + 1, int32, tokens before each window.
        grids: (t, h, w) of each picture.
    """

    hidden: mx.array
    table: mx.array
    window_index: np.ndarray
    window_bounds: np.ndarray
    grids: tuple[Grid, ...]


class PatchProjection(nn.Module):
    """A convolution whose steps are as wide as its kernel: a product. weight: D C T P P, no bias."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        patch = (config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
        self.weight = mx.zeros((config.hidden_size, *patch))

    def __call__(self, pixels: mx.array) -> mx.array:
        return ops.linear(pixels, self.weight.reshape(len(self.weight), -1))


class PatchEmbed(nn.Module):
    """N C·T·P·P to N D."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = PatchProjection(config)

    def __call__(self, pixels: mx.array) -> mx.array:
        return self.proj(pixels)


class MLP(nn.Module):
    """SwiGLU, D to F to D."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, inner)
        self.up_proj = Linear(width, inner)
        self.down_proj = Linear(inner, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(ops.silu(self.gate_proj(x)) * self.up_proj(x))


class GELU(nn.Module):
    """x·Φ(x) by the error function, computed in float32."""

    def __call__(self, x: mx.array) -> mx.array:
        wide = x.astype(mx.float32)
        return (wide * (0.5 + 0.5 * mx.erf(wide * 0.5**0.5))).astype(x.dtype)


class Attention(nn.Module):
    """Self-attention within segments, after a rotation by row and column."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self._heads = heads

    def __call__(self, x: mx.array, table: mx.array, within: Segments) -> mx.array:
        """N D.

        Args:
            x: N D. table: N d/2 2.
        """
        qkv = self.qkv(x).reshape(len(x), 3, self._heads, -1)
        turned = rotate_halves(qkv[:, :2], table)
        q, k, v = tap("q", turned[:, 0]), tap("k", turned[:, 1]), tap("v", qkv[:, 2])
        return self.proj(attend_within(q, k, v, within).reshape(x.shape))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size)
        self.norm2 = RMSNorm(config.hidden_size)
        self.attn = Attention(config.hidden_size, config.num_heads)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def __call__(self, x: mx.array, table: mx.array, within: Segments) -> mx.array:
        """N D. See `Attention`."""
        attn = tap("attn", self.attn(tap("normed", self.norm1(x)), table, within))
        x = tap("mid", x + attn)
        ffn = tap("ffn", self.mlp(tap("normed2", self.norm2(x))))
        return tap("out", x + ffn)


class PatchMerger(nn.Module):
    """N D to N/m² J: the tokens of a merge block become one."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        merged = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = RMSNorm(config.hidden_size)
        self.mlp = [Linear(merged, merged), GELU(), Linear(merged, config.out_hidden_size)]

    def __call__(self, x: mx.array) -> mx.array:
        normed = tap("merger.norm", self.ln_q(x))
        return chain(self.mlp, normed.reshape(-1, self.mlp[0].weight.shape[1]))


class Qwen2_5_VisionTransformerPretrainedModel(nn.Module):
    """The vision tower. `embed`, `block` and `merge` are its stages; calling it runs all of them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.blocks = [Block(config) for _ in range(config.depth)]
        self.merger = PatchMerger(config)
        self._config = config

    def __call__(self, pixels: mx.array, grids: Sequence[Grid]) -> mx.array:
        """Features of all pictures, one picture after the other, row by row: N/m² J.

        Args:
            pixels: N C·T·P·P, as ``vision_preprocess`` makes them; rounded to the weights' dtype.
            grids: (t, h, w) of each picture.

        Raises:
            ValueError: pixels and grids do not fit each other or the model.
        """
        stream = self.embed(pixels, grids)
        for index in range(len(self.blocks)):
            stream = self.block(index, stream)
        return self.merge(stream)

    def embed(self, pixels: mx.array, grids: Sequence[Grid]) -> VisionStream:
        """Patches to tokens, put in the order of the windows. Arguments and errors: see `__call__`."""
        config, grids = self._config, tuple(map(tuple, grids))
        merge, side = config.spatial_merge_size, config.window_side
        check_grids(grids, merge)
        expected = (sum(t * h * w for t, h, w in grids), config.patch_values)
        if pixels.shape != expected:
            raise ValueError(f"pixels of shape {pixels.shape}, expected {expected} for grids {list(grids)}")
        cut = windows(grids, merge, side)
        with scope("vision"):
            hidden = tap("patch_embed", self.patch_embed(pixels.astype(self.patch_embed.proj.weight.dtype)))
            table = tap("rope", rotary_table(grids, merge, side, config.head_width, config.rope_theta))
            order = tap("window_index", mx.array(cut.index))
            tap("cu_window_seqlens", mx.array(cut.bounds))
        hidden = hidden.reshape(-1, merge**2, config.hidden_size)[order].reshape(hidden.shape)
        return VisionStream(hidden, table, cut.index, cut.bounds, grids)

    def block(self, index: int, stream: VisionStream) -> VisionStream:
        """One block; full attention where the config says so, else within windows."""
        full = index in self._config.fullatt_block_indexes
        within = segments(tuple((frames(stream.grids) if full else stream.window_bounds).tolist()))
        with scope(f"vision.block.{index:02d}"):
            return replace(stream, hidden=self.blocks[index](stream.hidden, stream.table, within))

    def merge(self, stream: VisionStream) -> mx.array:
        """The features, back in the order of the picture: N/m² J."""
        with scope("vision"):
            merged = self.merger(stream.hidden)
            return tap("merger", merged[mx.array(np.argsort(stream.window_index))])


def rotate_halves(x: mx.array, table: mx.array) -> mx.array:
    """Rotate pairs (x₀, x_d/2), (x₁, x_d/2+1), …, in float32.

    Args:
        x: N … H d. table: N d/2 2, (cos, sin), float32.

    Returns:
        N … H d in the dtype of `x`.
    """
    first, second = mx.split(x.astype(mx.float32), 2, axis=-1)
    cos, sin = (table[..., i].reshape(len(table), *[1] * (x.ndim - 2), -1) for i in (0, 1))
    return mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attend_within(q: mx.array, k: mx.array, v: mx.array, within: Segments) -> mx.array:
    """Attention of each token to the tokens of its segment, equally long segments together: N H d.

    Args:
        q, k, v: N H d.
    """
    if within.order is not None:
        q, k, v = (x[within.order] for x in (q, k, v))
    done, start = [], 0
    for count, length in within.groups:
        stop = start + count * length
        batch = (x[start:stop].reshape(count, length, *x.shape[1:]).swapaxes(1, 2) for x in (q, k, v))
        joint = ops.attention(*batch, None, q.shape[-1] ** -0.5)
        done.append(joint.swapaxes(1, 2).reshape(count * length, *q.shape[1:]))
        start = stop
    joined = done[0] if len(done) == 1 else mx.concatenate(done)
    return joined if within.inverse is None else joined[within.inverse]


@dataclass(frozen=True)
class VisionCheckpoint:
    """Where a vision tower's weights are: below `prefix` in the text encoder's shards."""

    config: VisionConfig
    shards: Shards
    prefix: str


def open_vision(root: str | Path) -> VisionCheckpoint:
    """Find the vision tower of a pipeline.

    Args:
        root: folder of the pipeline, or its ``text_encoder`` folder.

    Raises:
        WeightsError: config, weights or shards are not there, or damaged.
        ValueError: no ``vision_config``, unknown keys in it, or no tensor of a vision tower.
    """
    shards = Shards(root, "text_encoder")
    shards.check_strangers(PREFIX)
    config = shards.settings
    if "vision_config" not in config:
        raise ValueError(f"{shards.folder}/config.json has no vision_config: this text encoder has no vision tower")
    if not any(key.startswith(f"{PREFIX}.") for key in shards.keys):
        raise ValueError(f"{shards.folder} holds no tensor below {PREFIX}.")
    return VisionCheckpoint(VisionConfig.from_dict(config["vision_config"]), shards, PREFIX)


def load_vision(root: str | Path, dtype: str = "bfloat16") -> Qwen2_5_VisionTransformerPretrainedModel:
    """The whole vision tower with its weights in memory.

    Args:
        root: folder of the pipeline, or its ``text_encoder`` folder.
        dtype: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        WeightsError, ValueError: see `open_vision`; missing, extra or misshaped arrays.
    """
    checkpoint = open_vision(root)
    model = Qwen2_5_VisionTransformerPretrainedModel(checkpoint.config)
    load_part(model, checkpoint.shards, checkpoint.prefix, mlx_dtype(dtype), mlx_dtype(dtype))
    return model
