"""The layers of the VAE. Attribute names equal the diffusers state-dict keys.

B batch, T frames, H W height and width of a feature map, C channels; channels come last.

All frames are computed at once. diffusers goes through them in chunks and hands the last two inputs of every causal
convolution on to the next chunk, which gives the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn

from parity.tap import scope, tap

from . import ops
from .conv import conv2d, conv3d, in_stripes

# The square of the smallest length that the norm divides by.
_EPS = 1e-24
# Scores of attention in one product; MLX may hold some twenty of them at a time.
_SCORES = 1 << 20


def named(name: str, layer: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    """layer(x), tapped as `name`; what is tapped inside it is called ``name.…``."""
    with scope(name):
        y = layer(x)
    return tap(name, y)


class CausalConv3d(nn.Module):
    """A convolution that sees no later frame. weight: O kT kH kW I, bias: O.

    Args:
        kernel: frames, rows and columns.
        stride: of frames.
        history: frames of zeros before the first one; all that the kernel looks back on where None.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: Sequence[int], *, stride: int = 1, history: int | None = None
    ) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, *kernel, inputs))
        self.bias = mx.zeros((outputs,))
        self._stride = (stride, 1, 1)
        self._history = kernel[0] - 1 if history is None else history

    def __call__(self, x: mx.array) -> mx.array:
        _, frames, rows, columns, _ = self.weight.shape
        weight, before = self.weight, self._history
        if x.shape[1] == 1 and before == frames - 1:
            # One frame sees zeros in the past: what is left is the newest slice of the kernel.
            weight, before = weight[:, -1:], 0
        padding = ((before, 0), (rows // 2, rows // 2), (columns // 2, columns // 2))
        if weight.shape[1] == 1:
            pictures = conv2d(x.flatten(0, 1), weight[:, 0], self.bias, padding=padding[1:])
            return pictures.reshape(*x.shape[:-1], -1)
        return conv3d(x, weight, self.bias, stride=self._stride, padding=padding)


class Conv2d(nn.Module):
    """A convolution of pictures. weight: O kH kW I, bias: O.

    Args:
        kernel: rows and columns alike.
        padding: (before, after) of rows and columns alike.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, kernel, kernel, inputs))
        self.bias = mx.zeros((outputs,))
        self._stride, self._padding = stride, padding

    def __call__(self, x: mx.array) -> mx.array:
        return conv2d(x, self.weight, self.bias, stride=(self._stride,) * 2, padding=(self._padding,) * 2)


class RMSNorm(nn.Module):
    """Each pixel's channels, scaled to rms 1 and by gamma. gamma: C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = mx.ones((channels,))

    def __call__(self, x: mx.array) -> mx.array:
        return in_stripes(lambda part: ops.rms_norm(part, self.gamma, _EPS / part.shape[-1]), x)


def silu(x: mx.array) -> mx.array:
    """x·sigmoid(x)."""
    return in_stripes(ops.silu, x)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(inputs)
        self.conv1 = CausalConv3d(inputs, outputs, (3, 3, 3))
        self.norm2 = RMSNorm(outputs)
        self.conv2 = CausalConv3d(outputs, outputs, (3, 3, 3))
        if inputs != outputs:
            self.conv_shortcut = CausalConv3d(inputs, outputs, (1, 1, 1))

    def __call__(self, x: mx.array) -> mx.array:
        shortcut = tap("shortcut", self.conv_shortcut(x)) if "conv_shortcut" in self else x
        x = tap("norm1", self.norm1(x))
        x = tap("conv1", self.conv1(silu(x)))
        x = tap("norm2", self.norm2(x))
        x = tap("conv2", self.conv2(silu(x)))
        return x + shortcut


class AttentionBlock(nn.Module):
    """Attention of one head over the places of each frame, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels)
        self.to_qkv = Conv2d(channels, 3 * channels, 1)
        self.proj = Conv2d(channels, channels, 1)

    def __call__(self, x: mx.array) -> mx.array:
        pictures = tap("norm", self.norm(x.flatten(0, 1)))
        qkv = tap("qkv", self.to_qkv(pictures))
        joint = _attend(*mx.split(qkv.flatten(1, 2)[:, None], 3, axis=-1))
        return tap("proj", self.proj(joint.reshape(pictures.shape))).reshape(x.shape) + x


def _attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """Attention of N 1 L C arrays, some queries at a time: of a large picture all scores at once are gigabytes.

    In float32 whatever the dtype: MLX's kernel for a head as wide as this one rounds the scores.
    """
    length, width = q.shape[-2:]
    k, v = k.astype(mx.float32), v.astype(mx.float32)
    rows = max(1, _SCORES // (len(q) * length))
    pieces = [
        ops.attention(q[:, :, r : r + rows].astype(mx.float32), k, v, None, width**-0.5).astype(q.dtype)
        for r in range(0, length, rows)
    ]
    return mx.concatenate(pieces, axis=-2)


class MidBlock(nn.Module):
    """Resnet, attention, resnet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = [ResidualBlock(channels, channels) for _ in range(2)]
        self.attentions = [AttentionBlock(channels)]

    def __call__(self, x: mx.array) -> mx.array:
        x = named("resnet.00", self.resnets[0], x)
        x = named("attn", self.attentions[0], x)
        return named("resnet.01", self.resnets[1], x)


class Upsample(nn.Module):
    """Every pixel four times. x: N H W C."""

    def __call__(self, x: mx.array) -> mx.array:
        n, height, width, channels = x.shape
        wide = mx.broadcast_to(x[:, :, None, :, None], (n, height, 2, width, 2, channels))
        return wide.reshape(n, 2 * height, 2 * width, channels)


class Identity(nn.Module):
    """The padding's place in a diffusers list, so that the numbers in the keys agree; the convolution pads."""

    def __call__(self, x: mx.array) -> mx.array:
        return x


class Resample(nn.Module):
    """Twice or half the height and width, and with `temporal` the frames after the first one."""

    def __init__(self, *, temporal: bool) -> None:
        super().__init__()
        self._temporal = temporal

    def resampled(self, x: mx.array) -> mx.array:
        """All frames of B T H W C, as pictures of their own."""
        pictures = x.flatten(0, 1)
        for layer in self.resample:
            pictures = layer(pictures)
        return pictures.reshape(*x.shape[:2], *pictures.shape[1:])


class UpResample(Resample):
    """Twice the height and width at half the channels; each later frame becomes two."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__(temporal=temporal)
        self.resample = [Upsample(), Conv2d(channels, channels // 2, 3, padding=(1, 1))]
        if temporal:
            self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1))

    def __call__(self, x: mx.array) -> mx.array:
        if self._temporal and x.shape[1] > 1:
            first, later = x[:, :1], x[:, 1:]
            b, t, h, w, c = later.shape
            pairs = self.time_conv(later).reshape(b, t, h, w, 2, c)
            x = mx.concatenate([first, pairs.transpose(0, 1, 4, 2, 3, 5).reshape(b, 2 * t, h, w, c)], axis=1)
        return self.resampled(x)


class DownResample(Resample):
    """Half the height and width; each two later frames become one."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__(temporal=temporal)
        self.resample = [Identity(), Conv2d(channels, channels, 3, stride=2, padding=(0, 1))]
        if temporal:
            self.time_conv = CausalConv3d(channels, channels, (3, 1, 1), stride=2, history=0)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.resampled(x)
        if self._temporal and x.shape[1] > 1:
            x = mx.concatenate([x[:, :1], self.time_conv(x)], axis=1)
        return x


class UpBlock(nn.Module):
    """Resnets at one resolution, and the way up to the next one.

    Args:
        upsample: "2d" or, with frames, "3d"; None for the finest resolution.
    """

    def __init__(self, inputs: int, outputs: int, resnets: int, upsample: str | None) -> None:
        super().__init__()
        self.resnets = [ResidualBlock(outputs if i else inputs, outputs) for i in range(resnets)]
        if upsample:
            self.upsamplers = [UpResample(outputs, temporal=upsample == "3d")]

    def __call__(self, x: mx.array) -> mx.array:
        return self.upsample(self.residual(x))

    def residual(self, x: mx.array) -> mx.array:
        """The resnets."""
        for index, resnet in enumerate(self.resnets):
            x = named(f"resnet.{index:02d}", resnet, x)
        return x

    def upsample(self, x: mx.array) -> mx.array:
        """The way up, if there is one."""
        return named("upsample", self.upsamplers[0], x) if "upsamplers" in self else x


class Coder(nn.Module):
    """What encoder and decoder share: a convolution, a middle block, and norm, SiLU and convolution at the end."""

    conv_in: CausalConv3d
    mid_block: MidBlock
    norm_out: RMSNorm
    conv_out: CausalConv3d

    def mid(self, x: mx.array) -> mx.array:
        """The middle block."""
        with scope("mid"):
            return self.mid_block(x)

    def head(self, x: mx.array) -> mx.array:
        """The last norm and convolution."""
        return self.conv_out(silu(tap("norm_out", self.norm_out(x))))


class Encoder3d(Coder):
    """Pictures to the features of a posterior.

    Args:
        channels: of a pixel.
        widths: channels of the first convolution, then of each resolution, the finest first.
        resnets: at each resolution.
        outputs: channels of the result.
        temporal: for each way down, whether it halves the later frames too.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], resnets: int, outputs: int, temporal: Sequence[bool]
    ) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(channels, widths[0], (3, 3, 3))
        self.down_blocks = []
        for index, (inputs, width) in enumerate(pairwise(widths)):
            self.down_blocks += [ResidualBlock(width if i else inputs, width) for i in range(resnets)]
            if index < len(temporal):
                self.down_blocks.append(DownResample(width, temporal=temporal[index]))
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = RMSNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], outputs, (3, 3, 3))

    def down(self, index: int, x: mx.array) -> mx.array:
        """Layer `index` of the way down."""
        layer = self.down_blocks[index]
        with scope(f"down.{index:02d}"):
            return named("downsample" if isinstance(layer, DownResample) else "resnet", layer, x)


class Decoder3d(Coder):
    """Latents to pictures.

    Args:
        channels: of a pixel.
        widths: channels of the first convolution, then of each resolution, the coarsest first.
        resnets: at each resolution.
        inputs: channels of a latent.
        temporal: for each way up, whether it doubles the later frames too.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], resnets: int, inputs: int, temporal: Sequence[bool]
    ) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(inputs, widths[0], (3, 3, 3))
        self.mid_block = MidBlock(widths[0])
        self.up_blocks = []
        for index, (before, width) in enumerate(pairwise(widths)):
            upsample = None if index == len(temporal) else "3d" if temporal[index] else "2d"
            # A way up halves the channels.
            self.up_blocks.append(UpBlock(before // 2 if index else before, width, resnets, upsample))
        self.norm_out = RMSNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], channels, (3, 3, 3))

    def up(self, index: int, x: mx.array) -> mx.array:
        """Block `index` of the way up."""
        with scope(f"up.{index:02d}"):
            return self.up_blocks[index](x)
