"""Qwen-Image's transformer: config, the whole model, and its three kinds of stage.

B batch, L image tokens, S text tokens, C channels of a latent token, J text-encoder width, D width.

The model is a pure function of arrays. Equal to diffusers 0.42.1's
``QwenImageTransformer2DModel``, whose state-dict keys are this parameter tree's flattened names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from parity.tap import scope, tap

from .layers import AdaLayerNormOut, Linear, RMSNorm, TimeTextEmbed, TransformerBlock
from .rope import TIME_CHANNELS, Shape, rotary_tables

# The published Qwen-Image has it in its config.json; diffusers dropped it in #12057, it never had an effect.
RETIRED_KEYS = ("pooled_projection_dim",)


@dataclass(frozen=True)
class TransformerConfig:
    """``config.json`` of the transformer, with the defaults of the diffusers class.

    Raises:
        ValueError: the axes do not add up to the head width.
    """

    patch_size: int = 2
    in_channels: int = 64
    out_channels: int | None = 16
    num_layers: int = 60
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 3584
    guidance_embeds: bool = False  # changes nothing, in diffusers either
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    zero_cond_t: bool = False
    use_additional_t_cond: bool = False
    use_layer3d_rope: bool = False

    def __post_init__(self) -> None:
        if len(self.axes_dims_rope) != 3 or sum(self.axes_dims_rope) != self.attention_head_dim:
            raise ValueError(
                f"axes_dims_rope {self.axes_dims_rope}: expected three widths that add up to "
                f"attention_head_dim {self.attention_head_dim}"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> TransformerConfig:
        """Read a config. Keys with a leading underscore (class name, version) are skipped.

        Raises:
            ValueError: keys that this model does not know.
        """
        known = {field.name for field in fields(cls)}
        given = {key: value for key, value in config.items() if not key.startswith("_") and key not in RETIRED_KEYS}
        if strangers := sorted(given.keys() - known):
            raise ValueError(f"config has unknown keys {', '.join(strangers)}; known: {', '.join(sorted(known))}")
        if "axes_dims_rope" in given:
            given["axes_dims_rope"] = tuple(given["axes_dims_rope"])
        return cls(**given)

    @property
    def width(self) -> int:
        """D."""
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class Streams:
    """What goes from stage to stage.

    Attributes:
        img: B L D. txt: B S D.
        temb: B D; 2B D with zero_cond_t.
        img_table: L d/2 2. txt_table: S d/2 2.
        mask: B S bool, True for text tokens that count.
        img_shapes: (frames, height, width) of each picture, the same for the whole batch.
        controlnet: residuals, each B L D, added after the blocks in equal runs.
    """

    img: mx.array
    txt: mx.array
    temb: mx.array
    img_table: mx.array
    txt_table: mx.array
    mask: mx.array | None = None
    img_shapes: tuple[Shape, ...] = ()
    controlnet: tuple[mx.array, ...] = ()


class QwenImageTransformer2DModel(nn.Module):
    """The transformer. Call it whole, or `embed`, `block` and `head` one at a time."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.time_text_embed = TimeTextEmbed(TIME_CHANNELS, width, config.use_additional_t_cond)
        self.txt_norm = RMSNorm(config.joint_attention_dim)
        self.img_in = Linear(config.in_channels, width)
        self.txt_in = Linear(config.joint_attention_dim, width)
        self.transformer_blocks = [
            TransformerBlock(width, config.num_attention_heads, config.attention_head_dim)
            for _ in range(config.num_layers)
        ]
        self.norm_out = AdaLayerNormOut(width)
        self.proj_out = Linear(width, config.patch_size**2 * (config.out_channels or config.in_channels))
        self._config = config

    @property
    def config(self) -> TransformerConfig:
        """The config the model was made from."""
        return self._config

    def __call__(
        self,
        hidden_states: mx.array,
        encoder_hidden_states: mx.array,
        encoder_hidden_states_mask: mx.array | None = None,
        timestep: mx.array | None = None,
        img_shapes: Sequence[Any] | None = None,
        *,
        controlnet_block_samples: Sequence[mx.array] | None = None,
        additional_t_cond: mx.array | None = None,
    ) -> mx.array:
        """Predict the velocity. Arguments are named as in diffusers.

        Args:
            hidden_states: B L C latent tokens, of all pictures of a sample one after the other.
            encoder_hidden_states: B S J prompt embeddings.
            encoder_hidden_states_mask: B S, nonzero for tokens that count; all of them when None.
            timestep: B, in 0…1.
            img_shapes: as in diffusers, one entry for each sample: a (frames, height, width), or
                a list of them. All samples must have the same.
            controlnet_block_samples: residuals, each B L D.
            additional_t_cond: B integers, 0 or 1.

        Returns:
            B L C', with C' = patch_size² · out_channels.

        Raises:
            ValueError: shapes that do not fit one another.
        """
        if timestep is None or img_shapes is None:
            raise ValueError("timestep and img_shapes are needed")
        streams = self.embed(
            hidden_states,
            encoder_hidden_states,
            timestep,
            shapes_of_a_sample(img_shapes),
            mask=encoder_hidden_states_mask,
            additional_t_cond=additional_t_cond,
            controlnet=controlnet_block_samples or (),
        )
        for index in range(len(self.transformer_blocks)):
            streams = self.block(index, streams)
        return self.head(streams)

    def embed(
        self,
        latents: mx.array,
        prompt_embeds: mx.array,
        timestep: mx.array,
        img_shapes: Sequence[Shape],
        *,
        mask: mx.array | None = None,
        additional_t_cond: mx.array | None = None,
        controlnet: Sequence[mx.array] = (),
    ) -> Streams:
        """The part before the blocks: projections, time embedding, rotary tables.

        Args:
            img_shapes: (frames, height, width) of each picture of one sample.

        Raises:
            ValueError: image tokens or mask of another shape than the rest says.
        """
        tokens = sum(math.prod(shape) for shape in img_shapes)
        if latents.shape[1] != tokens:
            raise ValueError(f"{latents.shape[1]} latent tokens, but img_shapes {list(img_shapes)} make {tokens}")
        if mask is not None and mask.shape != prompt_embeds.shape[:2]:
            raise ValueError(f"prompt mask of shape {mask.shape}, expected {prompt_embeds.shape[:2]}")
        img = tap("img_in", self.img_in(latents))
        txt = tap("txt_norm", self.txt_norm(prompt_embeds))
        txt = tap("txt_in", self.txt_in(txt))
        # In the hidden dtype before the sinusoid of 1000·t, as the reference does it.
        timestep = timestep.astype(img.dtype)
        if self.config.zero_cond_t:
            timestep = mx.concatenate([timestep, mx.zeros_like(timestep)])
        temb = self.time_text_embed(timestep, img.dtype, additional_t_cond)
        tables = rotary_tables(
            img_shapes, txt.shape[1], self.config.axes_dims_rope, layered=self.config.use_layer3d_rope
        )
        with scope("rope"):
            img_table, txt_table = (tap(name, table) for name, table in zip(("img", "txt"), tables, strict=True))
        mask = None if mask is None else mask.astype(mx.bool_)
        return Streams(img, txt, temb, img_table, txt_table, mask, tuple(img_shapes), tuple(controlnet))

    def block(self, index: int, streams: Streams) -> Streams:
        """Block `index`, and the ControlNet residual that follows it."""
        with scope(f"block.{index:02d}"):
            img, txt = self.transformer_blocks[index](
                streams.img,
                streams.txt,
                streams.temb,
                streams.img_table,
                streams.txt_table,
                streams.mask,
                self._condition_tokens(streams),
            )
        if streams.controlnet:
            interval = math.ceil(len(self.transformer_blocks) / len(streams.controlnet))
            img = img + streams.controlnet[index // interval]
        return replace(streams, img=img, txt=txt)

    def head(self, streams: Streams) -> mx.array:
        """The part behind the blocks: the final AdaLayerNorm and the output projection, B L C'."""
        temb = mx.split(streams.temb, 2)[0] if self.config.zero_cond_t else streams.temb
        return tap("final", self.proj_out(self.norm_out(streams.img, temb)))

    def _condition_tokens(self, streams: Streams) -> mx.array | None:
        """L bool, True for tokens of all pictures but the first; None without zero_cond_t."""
        if not self.config.zero_cond_t:
            return None
        return mx.arange(streams.img.shape[1]) >= math.prod(streams.img_shapes[0])


def shapes_of_a_sample(img_shapes: Sequence[Any]) -> tuple[Shape, ...]:
    """The pictures of one sample, from diffusers' list over the batch.

    Raises:
        ValueError: samples differ. diffusers goes on with the first one's and only warns.
    """
    samples = [(sample,) if isinstance(sample[0], int) else tuple(map(tuple, sample)) for sample in img_shapes]
    if any(sample != samples[0] for sample in samples):
        raise ValueError(f"img_shapes differ within the batch ({samples}): run such samples one at a time")
    return tuple(tuple(int(n) for n in shape) for shape in samples[0])
