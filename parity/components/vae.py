"""The VAE as a component: its checkpoints, and cases of drawn pictures or drawn latents.

B batch, C channels, H W pixels, h w = H/8 W/8 on the latent grid, z latent channels. Arrays have the reference's
shapes, with an axis of one frame: B C 1 H W; inside attention frames are folded into the batch: B C h w.

| name | shape | what |
|---|---|---|
| `vae.encode.conv_in` | B C 1 H W | the first convolution |
| `vae.encode.down.NN.resnet`, `.downsample` | B C 1 … | layer NN of the encoder, one or the other |
| `vae.encode.mid.resnet.00`, `.attn`, `.resnet.01` | B C 1 h w | the middle block |
| `vae.encode.norm_out`, `.conv_out` | B C 1 h w | the encoder's last norm and convolution |
| `vae.encode.mean`, `.logvar` | B z 1 h w | moments of the posterior; the variance's logarithm before it is clipped |
| `vae.encode.latents` | B z 1 h w | the mean, normalised for the transformer |
| `vae.decode.latents` | B z 1 h w | denormalised again |
| `vae.decode.post_quant_conv`, `.conv_in` | B C 1 h w | the decoder's first two convolutions |
| `vae.decode.mid.…` | B C 1 h w | as in the encoder |
| `vae.decode.up.NN.resnet.MM`, `.upsample` | B C 1 … | block NN of the decoder |
| `vae.decode.norm_out` | B C 1 H W | the decoder's last norm |
| `vae.decode.image` | B 3 1 H W | the picture before it is clipped to -1…1 |
| inside a resnet: `.shortcut`, `.norm1`, `.conv1`, `.norm2`, `.conv2` | B C 1 … | `.shortcut` where the width changes |
| inside attention: `.norm`, `.qkv`, `.proj` | B C h w | queries, keys and values one after the other in C |

State keys: ``image`` B 3 1 H W in -1…1 (or ``latents`` alone) before the first stage; ``hidden`` B C 1 … inside
encoder and decoder; ``latents`` B z 1 h w, normalised, between the two; ``sample`` B 3 1 H W in -1…1 at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from parity.components.base import DTYPES, Case, Configs, State
from parity.components.vision import draw_picture
from parity.errors import UsageError
from parity.names import LEVELS, Graph

STARTS = ("picture", "latents")
# Pixels each way that one place of the latent grid stands for, by default.
FACTOR = 8


def vae_graph(
    base_dim: int, dim_mult: tuple[int, ...], num_res_blocks: int, start: str = "picture", level: str = "full"
) -> Graph:
    """Graph of the VAE, for a picture (one frame).

    Args:
        base_dim: channels of the finest resolution.
        dim_mult: what multiplies them at each resolution.
        num_res_blocks: resnets of the encoder at each resolution; the decoder has one more.
        start: ``picture`` encodes and decodes; ``latents`` decodes.
        level: ``kinds`` (where the resolution changes), ``block`` (every resnet and attention) or ``full`` (inside
            them too).

    Raises:
        ValueError: an unknown level or start.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is none of {', '.join(LEVELS)}")
    if start not in STARTS:
        raise ValueError(f"start {start!r} is none of {', '.join(STARTS)}")
    names = _Names()
    if start == "picture":
        _encoder(names, [base_dim * m for m in (1, *dim_mult)], num_res_blocks)
    _decoder(names, [base_dim * m for m in (dim_mult[-1], *reversed(dim_mult))], num_res_blocks)
    shown = LEVELS[: LEVELS.index(level) + 1]
    return Graph(names.parents, names.stage, tuple(name for name in names.parents if names.level[name] in shown))


@dataclass
class _Names:
    """Names as they are made, each after its parents; `entering` is what the next layer takes."""

    parents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stage: dict[str, str] = field(default_factory=dict)
    level: dict[str, str] = field(default_factory=dict)
    entering: tuple[str, ...] = ()

    def add(self, stage: str, name: str, level: str, *parents: str) -> None:
        """One checkpoint, made of `parents` or of what enters; the next layer takes it."""
        self.parents[name] = parents or self.entering
        self.stage[name], self.level[name] = stage, level
        self.entering = (name,)

    def resnet(self, stage: str, here: str, level: str, changes_width: bool) -> None:
        """A residual block."""
        entering = self.entering
        if changes_width:
            self.add(stage, f"{here}.shortcut", "full")
        shortcut, self.entering = self.entering, entering
        for kind in ("norm1", "conv1", "norm2", "conv2"):
            self.add(stage, f"{here}.{kind}", "full")
        self.add(stage, here, level, *shortcut, *self.entering)

    def middle(self, here: str) -> None:
        """Resnet, attention, resnet: a stage of its own."""
        self.resnet(here, f"{here}.resnet.00", "block", False)
        entering = self.entering
        for kind in ("norm", "qkv", "proj"):
            self.add(here, f"{here}.attn.{kind}", "full")
        self.add(here, f"{here}.attn", "block", *entering, *self.entering)
        self.resnet(here, f"{here}.resnet.01", "kinds", False)


def _encoder(names: _Names, widths: list[int], num_res_blocks: int) -> None:
    """Names of the encoder.

    Args:
        widths: channels of the first convolution, then of each resolution.
    """
    names.add("vae.encode.conv_in", "vae.encode.conv_in", "kinds")
    index = 0
    for resolution, (inputs, outputs) in enumerate(pairwise(widths)):
        for number in range(num_res_blocks):
            here = f"vae.encode.down.{index:02d}"
            names.resnet(here, f"{here}.resnet", "block", number == 0 and inputs != outputs)
            index += 1
        if resolution < len(widths) - 2:
            here = f"vae.encode.down.{index:02d}"
            names.add(here, f"{here}.downsample", "kinds")
            index += 1
    names.middle("vae.encode.mid")
    here = "vae.encode.head"
    names.add(here, "vae.encode.norm_out", "block")
    names.add(here, "vae.encode.conv_out", "block")
    names.add(here, "vae.encode.logvar", "kinds", "vae.encode.conv_out")
    names.add(here, "vae.encode.mean", "kinds", "vae.encode.conv_out")
    names.add(here, "vae.encode.latents", "kinds")


def _decoder(names: _Names, widths: list[int], num_res_blocks: int) -> None:
    """Names of the decoder.

    Args:
        widths: channels of the first convolution, then of each resolution, the coarsest first.
    """
    for kind, level in (("latents", "block"), ("post_quant_conv", "block"), ("conv_in", "kinds")):
        names.add("vae.decode.in", f"vae.decode.{kind}", level)
    names.middle("vae.decode.mid")
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        here = f"vae.decode.up.{index:02d}"
        inputs = inputs if index == 0 else inputs // 2  # upsampling halves the width
        for number in range(num_res_blocks + 1):
            names.resnet(here, f"{here}.resnet.{number:02d}", "block", number == 0 and inputs != outputs)
        if index < len(widths) - 2:
            names.add(here, f"{here}.upsample", "kinds")
    names.add("vae.decode.head", "vae.decode.norm_out", "block")
    names.add("vae.decode.head", "vae.decode.image", "kinds")


@dataclass(frozen=True, kw_only=True)
class VaeCase(Case):
    """Pictures drawn from the seed, encoded and decoded; or latents drawn from it, decoded.

    Attributes:
        image: (height, width) in pixels.
        batch: how many.
        start: one of `STARTS`.
    """

    component: ClassVar[str] = "vae"
    plain: ClassVar[bool] = False
    folders: ClassVar[tuple[str, ...]] = ("vae",)

    image: tuple[int, int]
    batch: int = 1
    start: str = "picture"

    def __post_init__(self) -> None:
        if len(self.image) != 2 or any(side < FACTOR or side % FACTOR for side in self.image):
            raise UsageError(
                f"case {self.name!r}: image size {' × '.join(map(str, self.image))}; expected height and width in "
                f"pixels, each a multiple of {FACTOR}"
            )
        if self.batch < 1:
            raise UsageError(f"case {self.name!r}: a batch of {self.batch}; at least one picture is needed")
        if self.start not in STARTS:
            raise UsageError(f"case {self.name!r}: start {self.start!r} is none of {', '.join(STARTS)}")

    def describe(self) -> dict[str, Any]:
        """See `Case.describe`."""
        return {"image": list(self.image), "batch": self.batch, "start": self.start, "seed": self.seed}

    def graph(self, configs: Configs, level: str) -> dict[str, Any]:
        """See `Case.graph`; the function is `vae_graph`."""
        config = configs["vae"]
        shape = {key: config[key] for key in ("base_dim", "dim_mult", "num_res_blocks")}
        return {"name": self.component, **shape, "start": self.start, "level": level}

    def inputs(self, configs: Configs, dtype: str) -> State:
        """``image`` B C 1 H W, or ``latents`` B z 1 h w.

        Args:
            configs: the VAE's has z_dim and input_channels.
            dtype: dtype of the run.
        """
        draw, config = self.draw(), configs["vae"]
        if self.start == "latents":
            grid = [side // FACTOR for side in self.image]
            latents = draw.standard_normal((self.batch, config["z_dim"], 1, *grid), dtype=np.float32)
            return {"latents": latents.astype(DTYPES[dtype])}
        pictures = np.stack([draw_picture(draw, *self.image) for _ in range(self.batch)])
        pixels = np.moveaxis(pictures.astype(np.float32) / 127.5 - 1, 3, 1)
        if (alpha := config.get("input_channels", 3) - pixels.shape[1]) > 0:
            # Layered models have a fourth channel, opacity.
            pixels = np.concatenate([pixels, np.ones_like(pixels[:, :alpha])], axis=1)
        return {"image": np.ascontiguousarray(pixels[:, :, None]).astype(DTYPES[dtype])}
