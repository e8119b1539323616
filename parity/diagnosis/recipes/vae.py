"""Recipes of Qwen-Image's VAE for one frame, float64, as diffusers 0.42.1 computes it.

B batch, C channels, H W pixels of a feature map, z latent channels; an axis of one frame after C, but not in attention.
"""

from __future__ import annotations

import re
from typing import ClassVar

import numpy as np
from scipy.special import expit, softmax

from parity.diagnosis.place import Array, Place, Values

EPS = 1e-12
# Parts of a checkpoint's name -> of its layer's canonical key, in the order in which they are tried.
_KEYS = (
    (r"encode\.down\.(\d+)\.resnet", r"encoder.down_blocks.\1"),
    (r"encode\.down\.(\d+)\.downsample", r"encoder.down_blocks.\1.resample.1"),
    (r"decode\.up\.(\d+)\.resnet\.(\d+)", r"decoder.up_blocks.\1.resnets.\2"),
    (r"decode\.up\.(\d+)\.upsample", r"decoder.up_blocks.\1.upsamplers.0.resample.1"),
    (r"(en|de)code\.mid\.resnet\.(\d+)", r"\1coder.mid_block.resnets.\2"),
    (r"(en|de)code\.mid\.attn", r"\1coder.mid_block.attentions.0"),
    (r"encode\.(mean|logvar)", "quant_conv"),
    (r"decode\.post_quant_conv", "post_quant_conv"),
    (r"decode\.image", "decoder.conv_out"),
    (r"(en|de)code\.(conv_in|norm_out|conv_out)", r"\1coder.\2"),
)
_INSIDE = {"shortcut": "conv_shortcut", "qkv": "to_qkv"}


class VaePlace(Place):
    """A checkpoint of the VAE.

    Attributes:
        kind: the last part of the name: ``conv1``, ``norm2``, ``resnet``, ``attn``, ``upsample``, ….
        stream: ``encode`` or ``decode``.
    """

    component: ClassVar[str] = "vae"

    def __init__(self, values: Values, name: str) -> None:
        super().__init__(values, name)
        _, self.stream, *parts = name.split(".")
        self.block = None
        self.kind = [part for part in parts if not part.isdigit()][-1]

    @staticmethod
    def state_key(name: str) -> str:
        """See `Place.state_key`."""
        return "latents" if name == "vae.encode.latents" else "hidden"

    @property
    def layer(self) -> str:
        """Canonical prefix of the layer that makes this checkpoint."""
        name = re.sub(r"\.0(\d)", r".\1", self.name.removeprefix("vae."))
        for pattern, key in _KEYS:
            if match := re.match(pattern, name):
                inside = [_INSIDE.get(part, part) for part in name[match.end() :].split(".") if part]
                return ".".join((match.expand(key), *inside))
        raise KeyError(self.name)

    def parent(self, index: int = 0) -> Array:
        """What the checkpoint is made of."""
        parents = self.values.graph.parents[self.name]
        return self.values[parents[index]] if parents else self.entering()

    def entering(self) -> Array:
        """What the first stage was fed."""
        return self.fed("image" if self.stream == "encode" else "latents")

    # What a recipe is made of.

    def silu(self, x: Array) -> Array:
        """x·sigmoid(x)."""
        return x * expit(x)

    def norm(self, x: Array, layer: str) -> Array:
        """To length √C over the channels, which have weights."""
        length = np.sqrt((x**2).sum(1, keepdims=True))
        return x / np.maximum(length, EPS) * self.norm_scale(x.shape[1]) * self.gamma(layer, x.ndim)

    def norm_scale(self, channels: int) -> float:
        """√C."""
        return channels**0.5

    def gamma(self, layer: str, axes: int) -> Array:
        """Weights of a norm, C and as many ones as there are further axes."""
        return self.weight(f"{layer}.gamma").reshape(-1, *[1] * (axes - 2))

    def newest(self, kernel: Array) -> Array:
        """Of a causal kernel, O I T h w, what meets the only frame: those before it are zeros."""
        return kernel[:, :, -1]

    def kernel(self, layer: str) -> Array:
        """O I h w."""
        weight = self.weight(f"{layer}.weight")
        return self.newest(weight) if weight.ndim == 5 else weight

    def pad(self, x: Array, before: tuple[int, int], behind: tuple[int, int]) -> Array:
        """Zeros around the rows and columns of B C H W."""
        return np.pad(x, ((0, 0), (0, 0), (before[0], behind[0]), (before[1], behind[1])))

    def correlate(self, x: Array, kernel: Array, stride: int = 1) -> Array:
        """B O H W of padded B I H W: a product for each place of the kernel."""
        rows, columns = ((n - k) // stride + 1 for n, k in zip(x.shape[2:], kernel.shape[2:], strict=True))
        total = np.zeros((len(x), kernel.shape[0], rows * columns))
        for i in range(kernel.shape[2]):
            for j in range(kernel.shape[3]):
                seen = x[:, :, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
                total += kernel[:, :, i, j] @ seen.reshape(*x.shape[:2], -1)
        return total.reshape(len(x), -1, rows, columns)

    def conv(self, x: Array, layer: str) -> Array:
        """A convolution that keeps the size, of B C 1 H W or B C H W."""
        kernel, flat = self.kernel(layer), _flat(x)
        around = (kernel.shape[2] // 2, kernel.shape[3] // 2)
        return self.with_bias(self.correlate(self.pad(flat, around, around), kernel), layer, x.ndim)

    def with_bias(self, y: Array, layer: str, axes: int) -> Array:
        """Plus the bias, in as many axes as the layer was given."""
        bias = self.bias(layer)
        y = y if bias is None else y + bias[:, None, None]
        return y[:, :, None] if axes == 5 else y

    def enlarged(self, x: Array) -> Array:
        """Each pixel four times, B C H W."""
        return x.repeat(2, axis=2).repeat(2, axis=3)

    def upsample(self, x: Array, layer: str) -> Array:
        """Enlarged, then a convolution."""
        return self.conv(self.enlarged(_flat(x))[:, :, None], layer)

    def downsample(self, x: Array, layer: str) -> Array:
        """A convolution of every second place, padded below and on the right."""
        padded = self.down_pad(_flat(x))
        return self.with_bias(self.correlate(padded, self.kernel(layer), 2), layer, x.ndim)

    def down_pad(self, x: Array) -> Array:
        """One row below, one column on the right."""
        return self.pad(x, (0, 0), (1, 1))

    def qkv(self, x: Array) -> list[Array]:
        """Queries, keys and values, each B HW C."""
        return [part.reshape(*part.shape[:2], -1).swapaxes(1, 2) for part in np.split(x, 3, axis=1)]

    def score_scale(self, width: int) -> float:
        """What scores are multiplied by."""
        return width**-0.5

    def attend(self, q: Array, k: Array, v: Array) -> Array:
        """Attention of one head, B HW C."""
        return softmax(q @ k.swapaxes(1, 2) * self.score_scale(q.shape[-1]), axis=-1) @ v

    def unfolded(self, joint: Array, shape: tuple[int, ...]) -> Array:
        """B HW C to B C H W."""
        return joint.swapaxes(1, 2).reshape(len(joint), -1, *shape[2:])

    def add(self, x: Array, y: Array) -> Array:
        """A residual and what is added to it."""
        return x + y

    def statistic(self, name: str) -> Array:
        """``latents_mean`` or ``latents_std`` of the config, z 1 1 1; float32 as in the reference."""
        return np.array(self.config[name], np.float32).astype(np.float64)[:, None, None, None]

    def normalize(self, x: Array, mean: Array, std: Array) -> Array:
        """Latents for the transformer."""
        return (x - mean) * (1 / std)

    def denormalize(self, x: Array, mean: Array, std: Array) -> Array:
        """Latents for the decoder."""
        return x / (1 / std) + mean

    def moment(self, moments: Array, which: int) -> Array:
        """Mean (0) or logarithm of the variance (1) of B 2z 1 h w."""
        return np.split(moments, 2, axis=1)[which]

    # Recipes.

    def recipe(self) -> Array:
        """See `Place.recipe`."""
        return self._RECIPES[self.kind](self)

    def layers(self) -> tuple[str, ...]:
        """See `Place.layers`."""
        return () if self.kind in ("resnet", "attn", "latents") else (self.layer,)

    def _latents(self) -> Array:
        way = self.normalize if self.stream == "encode" else self.denormalize
        return way(self.parent(), self.statistic("latents_mean"), self.statistic("latents_std"))

    def _proj(self) -> Array:
        qkv = self.parent()
        return self.conv(self.unfolded(self.attend(*self.qkv(qkv)), qkv.shape), self.layer)

    _RECIPES: ClassVar = {
        **dict.fromkeys(("conv_in", "post_quant_conv", "shortcut", "qkv"), lambda p: p.conv(p.parent(), p.layer)),
        **dict.fromkeys(("conv1", "conv2", "conv_out", "image"), lambda p: p.conv(p.silu(p.parent()), p.layer)),
        **dict.fromkeys(("norm1", "norm2", "norm_out"), lambda p: p.norm(p.parent(), p.layer)),
        "norm": lambda p: p.norm(_flat(p.parent()), p.layer),
        "proj": _proj,
        "attn": lambda p: p.add(p.parent(), p.parent(1)[:, :, None]),
        "resnet": lambda p: p.add(p.parent(), p.parent(1)),
        "upsample": lambda p: p.upsample(p.parent(), p.layer),
        "downsample": lambda p: p.downsample(p.parent(), p.layer),
        "mean": lambda p: p.moment(p.conv(p.parent(), p.layer), 0),
        "logvar": lambda p: p.moment(p.conv(p.parent(), p.layer), 1),
        "latents": _latents,
    }


def _flat(x: Array) -> Array:
    """Without the axis of one frame."""
    return x[:, :, 0] if x.ndim == 5 else x
