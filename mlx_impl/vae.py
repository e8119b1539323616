"""Qwen-Image's VAE: config, the whole model and its stages, and loading.

B batch, T frames, H W pixels, t h w frames, rows and columns of latents, z latent channels. Channels come last.

Equal to diffusers 0.42.1's ``AutoencoderKLQwenImage``, whose state-dict keys are this parameter tree's flattened
names; kernels are O D H W I here, and gammas have one axis. A picture is one frame (T = t = 1); of 1 + 4n frames
1 + n latents are made. For pictures that do not fit into memory there is ``vae_tiling``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from parity.tap import scope, tap

from .vae_layers import CausalConv3d, Decoder3d, Encoder3d
from .weights import Shards, load_part, mlx_dtype

# What each direction needs of the model.
PARTS = {"encode": ("encoder", "quant_conv"), "decode": ("post_quant_conv", "decoder")}

# Of the published model.
_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
_MEAN += (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
_STD += (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


@dataclass(frozen=True)
class VaeConfig:
    """``config.json`` of the VAE, with the defaults of the diffusers class.

    Raises:
        ValueError: values that do not fit one another, or attention outside of the middle block.
    """

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    dropout: float = 0.0  # only in training
    input_channels: int = 3
    latents_mean: tuple[float, ...] = _MEAN
    latents_std: tuple[float, ...] = _STD

    def __post_init__(self) -> None:
        if self.attn_scales:
            raise ValueError(f"attn_scales {list(self.attn_scales)}: diffusers runs no such encoder; expected none")
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temperal_downsample has {len(self.temperal_downsample)} entries; "
                f"{len(self.dim_mult)} resolutions have {len(self.dim_mult) - 1} steps between them"
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {self.z_dim} latent channels")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> VaeConfig:
        """Read a config. Keys with a leading underscore (class name, version) are skipped.

        Raises:
            ValueError: keys that this model does not know, or see the class.
        """
        known = {field.name for field in fields(cls)}
        given = {key: value for key, value in config.items() if not key.startswith("_")}
        if strangers := sorted(given.keys() - known):
            raise ValueError(f"config has unknown keys {', '.join(strangers)}; known: {', '.join(sorted(known))}")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})

    @property
    def factor(self) -> int:
        """Pixels each way that one place of the latent grid stands for."""
        return 2 ** len(self.temperal_downsample)

    @property
    def frame_factor(self) -> int:
        """Later frames that one latent stands for."""
        return 2 ** sum(self.temperal_downsample)


class Moments(NamedTuple):
    """The posterior of a picture's latents, each B t h w z.

    Attributes:
        mean: what editing pipelines take.
        logvar: logarithm of the variance, within -30…20.
    """

    mean: mx.array
    logvar: mx.array

    @classmethod
    def of(cls, features: mx.array) -> Moments:
        """From the encoder's B t h w 2z."""
        mean, logvar = mx.split(features, 2, axis=-1)
        return cls(mean, mx.clip(logvar, -30, 20))

    def sample(self, noise: mx.array) -> mx.array:
        """One draw from it. noise: B t h w z, standard normal."""
        std = mx.exp(0.5 * self.logvar.astype(mx.float32)).astype(self.mean.dtype)
        return self.mean + std * noise


class AutoencoderKLQwenImage(nn.Module):
    """The VAE. `encode` and `decode` it whole, or run the stages one at a time.

    Args:
        config: shape of the model.
        directions: ``encode``, ``decode`` or both; the other half has no weights.
    """

    def __init__(self, config: VaeConfig, directions: tuple[str, ...] = tuple(PARTS)) -> None:
        super().__init__()
        z, base, mult = config.z_dim, config.base_dim, config.dim_mult
        if "encode" in directions:
            self.encoder = Encoder3d(
                config.input_channels,
                [base * m for m in (1, *mult)],
                config.num_res_blocks,
                2 * z,
                config.temperal_downsample,
            )
            self.quant_conv = CausalConv3d(2 * z, 2 * z, (1, 1, 1))
        if "decode" in directions:
            self.post_quant_conv = CausalConv3d(z, z, (1, 1, 1))
            self.decoder = Decoder3d(
                config.input_channels,
                [base * m for m in (mult[-1], *reversed(mult))],
                config.num_res_blocks + 1,
                z,
                config.temperal_downsample[::-1],
            )
        self._config = config

    @property
    def config(self) -> VaeConfig:
        """The config the model was made from."""
        return self._config

    def encode(self, x: mx.array) -> Moments:
        """The posterior of pictures.

        Args:
            x: B T H W 3 in -1…1.

        Raises:
            ValueError: another shape, sizes that don't divide, or a number of frames that is not 1 + 4n.
        """
        self.check_pictures(x)
        return Moments.of(self.features(x))

    def features(self, x: mx.array) -> mx.array:
        """Both moments of `encode` in one array, B t h w 2z."""
        x = self.encode_in(x)
        for index in range(len(self.encoder.down_blocks)):
            x = self.encode_down(index, x)
        return self.encode_head(self.encode_mid(x))

    def decode(self, z: mx.array) -> mx.array:
        """Pictures within -1…1, B T H W 3.

        Args:
            z: B t h w z, denormalised.

        Raises:
            ValueError: another shape.
        """
        self.check_latents(z)
        return mx.clip(self.pixels(z), -1, 1)

    def pixels(self, z: mx.array) -> mx.array:
        """What `decode` clips."""
        x = self.decode_mid(self.decode_in(z))
        for index in range(len(self.decoder.up_blocks)):
            x = self.decode_up(index, x)
        return self.decode_head(x)

    def normalize(self, latents: mx.array, *, divide: bool = False) -> mx.array:
        """Latents for the transformer, from those of the encoder; … z, rounded after each operation.

        Args:
            divide: by the standard deviation, as the pipelines Edit, EditPlus and Layered do; the others multiply
                by its reciprocal, which rounds differently.
        """
        mean, std = self._statistics(latents.dtype)
        return (latents - mean) / std if divide else (latents - mean) * (1 / std)

    def denormalize(self, latents: mx.array) -> mx.array:
        """Latents for the decoder, from those of the transformer; … z, rounded after each operation."""
        mean, std = self._statistics(latents.dtype)
        return latents / (1 / std) + mean

    def _statistics(self, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """Mean and standard deviation of each latent channel, z, in the latents' dtype as in diffusers."""
        return mx.array(self.config.latents_mean).astype(dtype), mx.array(self.config.latents_std).astype(dtype)

    def encode_in(self, x: mx.array) -> mx.array:
        """The encoder's first convolution."""
        with scope("vae.encode"):
            return tap("conv_in", self.encoder.conv_in(x))

    def encode_down(self, index: int, x: mx.array) -> mx.array:
        """Layer `index` of the encoder's way down."""
        with scope("vae.encode"):
            return self.encoder.down(index, x)

    def encode_mid(self, x: mx.array) -> mx.array:
        """The encoder's middle block."""
        with scope("vae.encode"):
            return self.encoder.mid(x)

    def encode_head(self, x: mx.array) -> mx.array:
        """The encoder's end: mean and logarithm of the variance, B t h w 2z."""
        with scope("vae.encode"):
            moments = self.quant_conv(tap("conv_out", self.encoder.head(x)))
            mean, logvar = mx.split(moments, 2, axis=-1)
            return mx.concatenate([tap("mean", mean), tap("logvar", logvar)], axis=-1)

    def decode_in(self, z: mx.array) -> mx.array:
        """The decoder's first convolutions."""
        with scope("vae.decode"):
            z = tap("post_quant_conv", self.post_quant_conv(z))
            return tap("conv_in", self.decoder.conv_in(z))

    def decode_mid(self, x: mx.array) -> mx.array:
        """The decoder's middle block."""
        with scope("vae.decode"):
            return self.decoder.mid(x)

    def decode_up(self, index: int, x: mx.array) -> mx.array:
        """Block `index` of the decoder's way up."""
        with scope("vae.decode"):
            return self.decoder.up(index, x)

    def decode_head(self, x: mx.array) -> mx.array:
        """The decoder's end: B T H W 3, not clipped."""
        with scope("vae.decode"):
            return tap("image", self.decoder.head(x))

    def check_pictures(self, x: mx.array) -> None:
        """Raise a ValueError where `encode` cannot take this shape."""
        config = self.config
        if x.ndim != 5 or x.shape[-1] != config.input_channels or 0 in x.shape:
            raise ValueError(f"pictures of shape {x.shape}; expected B T H W {config.input_channels}")
        _, frames, height, width, _ = x.shape
        if height % config.factor or width % config.factor:
            raise ValueError(f"pictures of {height} × {width} pixels; expected multiples of {config.factor} each way")
        if (frames - 1) % config.frame_factor:
            raise ValueError(f"{frames} frames; expected one, and a multiple of {config.frame_factor} after it")

    def check_latents(self, z: mx.array) -> None:
        """Raise a ValueError where `decode` cannot take this shape."""
        if z.ndim != 5 or z.shape[-1] != self.config.z_dim or 0 in z.shape:
            raise ValueError(f"latents of shape {z.shape}; expected B t h w {self.config.z_dim}")


class VaeShards(Shards):
    """The VAE's config and weights in a model's folder, read in MLX's layout.

    Args:
        root: the model's folder.

    Raises:
        WeightsError: it is not there, or damaged.
        ValueError: the config has keys that the model does not know, or values that do not fit one another, or there
            are tensors that the model does not have.
    """

    def __init__(self, root: str | Path) -> None:
        super().__init__(Path(root), "vae")
        self.check_strangers()
        self.config = VaeConfig.from_dict(self.settings)

    def read(self, prefix: str) -> dict[str, mx.array]:
        """See `Shards.read`. Kernels O I … become O … I, gammas C 1 1 (1) become C."""
        return {key: _channels_last(key, array) for key, array in super().read(prefix).items()}


def _channels_last(key: str, array: mx.array) -> mx.array:
    if key.endswith("gamma"):
        return array.flatten()
    return mx.contiguous(mx.moveaxis(array, 1, -1)) if array.ndim > 1 else array


def load_vae(
    root: str | Path, dtype: str = "bfloat16", *, directions: tuple[str, ...] = tuple(PARTS)
) -> AutoencoderKLQwenImage:
    """The VAE with its weights in memory.

    Args:
        root: a model's folder, with a folder ``vae``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        directions: ``encode``, ``decode`` or both: what is needed is loaded.

    Raises:
        ValueError: missing, extra or misshaped arrays, an unknown dtype, direction or config key.
        WeightsError: config or weights are not there, or damaged.
    """
    wanted, shards = mlx_dtype(dtype), VaeShards(root)
    if strangers := set(directions) - set(PARTS):
        raise ValueError(f"directions {sorted(strangers)}: expected {' or '.join(PARTS)}")
    model = AutoencoderKLQwenImage(shards.config, directions)
    for part in (part for direction in directions for part in PARTS[direction]):
        load_part(model[part], shards, part, wanted, wanted)
    return model
