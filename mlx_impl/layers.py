"""The layers of the transformer. Attribute names equal the diffusers state-dict keys.

B batch, N tokens of one stream, L image tokens, S text tokens, D width, H heads, d head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from parity.tap import scope, tap

from . import ops
from .rope import rotate, timestep_sinusoid

EPS = 1e-6
FLOAT16_LIMIT = 65504.0


class Linear(nn.Module):
    """x·weightᵀ + bias. weight: O I, bias: O."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, inputs))
        self.bias = mx.zeros((outputs,))

    def __call__(self, x: mx.array) -> mx.array:
        return ops.linear(x, self.weight, self.bias)

    def to_quantized(self, group_size: int = 64, bits: int = 4, mode: str = "affine", **_: object) -> QuantizedLinear:
        """The same layer on packed weights (the hook of ``mlx.nn.quantize``)."""
        return QuantizedLinear(self.weight, self.bias, group_size=group_size, bits=bits, mode=mode)


class QuantizedLinear(nn.Module):
    """A linear layer on packed weights. weight: O I·bits/32 uint32, scales and biases: O I/group, bias: O.

    Args:
        weight: O I, to be packed; O I zeros do where packed arrays are loaded afterwards.
        group_size: inputs that share a scale.
        bits: bits of one code.
    """

    def __init__(
        self, weight: mx.array, bias: mx.array | None, *, group_size: int, bits: int, mode: str = "affine"
    ) -> None:
        super().__init__()
        self.group_size, self.bits, self.mode = group_size, bits, mode
        self.weight, self.scales, *rest = mx.quantize(weight, group_size=group_size, bits=bits, mode=mode)
        if rest:
            self.biases = rest[0]
        if bias is not None:
            self.bias = bias

    def __call__(self, x: mx.array) -> mx.array:
        return ops.quantized_linear(
            x,
            self.weight,
            self.scales,
            self.get("biases"),
            self.get("bias"),
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis. weight: D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = mx.ones((width,))

    def __call__(self, x: mx.array) -> mx.array:
        return ops.rms_norm(x, self.weight, EPS)


class SiLU(nn.Module):
    """x·sigmoid(x)."""

    def __call__(self, x: mx.array) -> mx.array:
        return ops.silu(x)


class Identity(nn.Module):
    """Dropout's place in a diffusers list, so that the numbers in the keys agree."""

    def __call__(self, x: mx.array) -> mx.array:
        return x


class GELU(nn.Module):
    """A projection and the tanh approximation of GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = Linear(inputs, outputs)

    def __call__(self, x: mx.array) -> mx.array:
        return ops.gelu_tanh(self.proj(x))


def owner_of(module: Any, path: str) -> tuple[Any, Any]:
    """What holds a part of a module, which is a module or a list, and the part's name or index in it.

    Args:
        module: where the path begins.
        path: dotted, with numbers for places in lists, as in a checkpoint's keys.
    """
    *parents, name = (int(part) if part.isdecimal() else part for part in path.split("."))
    for part in parents:
        module = module[part]
    return module, name


def module_at(module: Any, path: str) -> Any:
    """The part of a module at a path; see `owner_of`."""
    owner, name = owner_of(module, path)
    return owner[name]


def chain(layers: list[nn.Module], x: mx.array) -> mx.array:
    """Layers one after the other: a diffusers ``Sequential`` or ``ModuleList``, whose keys are bare numbers."""
    for layer in layers:
        x = layer(x)
    return x


class FeedForward(nn.Module):
    """D to 4D to D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = [GELU(width, 4 * width), Identity(), Linear(4 * width, width)]

    def __call__(self, x: mx.array) -> mx.array:
        return chain(self.net, x)


class TimestepEmbedding(nn.Module):
    """The sinusoid's two linear layers."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(inputs, width)
        self.linear_2 = Linear(width, width)

    def __call__(self, x: mx.array) -> mx.array:
        x = tap("time.linear_1", self.linear_1(x))
        x = tap("time.silu", ops.silu(x))
        return self.linear_2(x)


class Embedding(nn.Module):
    """Rows of a table. weight: rows D."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = mx.zeros((rows, width))

    def __call__(self, index: mx.array) -> mx.array:
        return self.weight[index]


class TimeTextEmbed(nn.Module):
    """Timestep, and for layered models a second condition (0 or 1), to the vector that modulates."""

    def __init__(self, inputs: int, width: int, additional: bool) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(inputs, width)
        if additional:
            self.addition_t_embedding = Embedding(2, width)

    def __call__(self, timestep: mx.array, dtype: mx.Dtype, additional: mx.array | None) -> mx.array:
        """temb, B D in `dtype`.

        Raises:
            ValueError: the config wants additional_t_cond and there is none.
        """
        sinusoid = tap("time.proj", timestep_sinusoid(timestep))
        temb = self.timestep_embedder(sinusoid.astype(dtype))
        if "addition_t_embedding" in self:
            if additional is None:
                raise ValueError("the config has use_additional_t_cond: additional_t_cond (B integers) is missing")
            temb = temb + self.addition_t_embedding(additional).astype(dtype)
        return tap("temb", temb)


class Modulation(NamedTuple):
    """What one half of a block does to its stream, each B 1 D (B L D with zero_cond_t)."""

    shift: mx.array
    scale: mx.array
    gate: mx.array


def split_modulation(mod: mx.array, condition: mx.array | None = None) -> tuple[Modulation, Modulation]:
    """The two halves of a block's modulation.

    Args:
        mod: B 6D; 2B 6D where `condition` is given, the second half for a timestep of 0.
        condition: L bool, True for tokens of condition pictures.
    """
    chunks = mx.split(mod[:, None, :], 6, axis=-1)
    if condition is not None:
        chunks = [mx.where(condition[None, :, None], *reversed(mx.split(chunk, 2))) for chunk in chunks]
    return Modulation(*chunks[:3]), Modulation(*chunks[3:])


class AdaLayerNormOut(nn.Module):
    """The final LayerNorm with scale and shift (scale first) from temb."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = Linear(width, 2 * width)

    def __call__(self, x: mx.array, temb: mx.array) -> mx.array:
        mod = tap("norm_out.mod", self.linear(ops.silu(temb)))
        scale, shift = mx.split(mod[:, None, :], 2, axis=-1)
        return tap("norm_out", ops.modulate(ops.layer_norm(x, EPS), shift, scale))


class JointAttention(nn.Module):
    """Attention over text and image tokens together, with projections of their own."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.norm_q = RMSNorm(head_width)
        self.norm_k = RMSNorm(head_width)
        self.to_q = Linear(width, inner)
        self.to_k = Linear(width, inner)
        self.to_v = Linear(width, inner)
        self.add_q_proj = Linear(width, inner)
        self.add_k_proj = Linear(width, inner)
        self.add_v_proj = Linear(width, inner)
        self.to_out = [Linear(inner, width)]
        self.to_add_out = Linear(inner, width)
        self.norm_added_q = RMSNorm(head_width)
        self.norm_added_k = RMSNorm(head_width)
        self._head_width = head_width

    def __call__(
        self, img: mx.array, txt: mx.array, img_table: mx.array, txt_table: mx.array, mask: mx.array | None
    ) -> tuple[mx.array, mx.array]:
        """Image and text outputs.

        Args:
            img: B L D. txt: B S D.
            img_table: L d/2 2. txt_table: S d/2 2.
            mask: B S bool, True for text tokens that count.
        """
        with scope("img"):
            of_image = self._project(img, self.to_q, self.to_k, self.to_v, self.norm_q, self.norm_k, img_table)
        with scope("txt"):
            of_text = self._project(
                txt, self.add_q_proj, self.add_k_proj, self.add_v_proj, self.norm_added_q, self.norm_added_k, txt_table
            )
        # Text first. Heads move in front while the streams are joined: one copy instead of two.
        q, k, v = (
            mx.concatenate([t.swapaxes(1, 2), i.swapaxes(1, 2)], axis=2) for t, i in zip(of_text, of_image, strict=True)
        )
        if mask is not None:
            mask = mx.concatenate([mask, mx.ones(img.shape[:2], dtype=mx.bool_)], axis=1)[:, None, None, :]
        joint = ops.attention(q, k, v, mask, self._head_width**-0.5)
        text_tokens = txt.shape[1]
        of_text, of_image = (
            part.swapaxes(1, 2).flatten(2) for part in (joint[:, :, :text_tokens], joint[:, :, text_tokens:])
        )
        return chain(self.to_out, of_image), self.to_add_out(of_text)

    def _project(
        self,
        x: mx.array,
        to_q: Linear,
        to_k: Linear,
        to_v: Linear,
        norm_q: RMSNorm,
        norm_k: RMSNorm,
        table: mx.array,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """q, k, v of one stream, each B N H d."""
        q, k, v = (to(x).reshape(*x.shape[:2], -1, self._head_width) for to in (to_q, to_k, to_v))
        q = tap("q", rotate(norm_q(q), table))
        k = tap("k", rotate(norm_k(k), table))
        return q, k, tap("v", v)


class TransformerBlock(nn.Module):
    """One dual-stream block."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.img_mod = [SiLU(), Linear(width, 6 * width)]
        self.attn = JointAttention(width, heads, head_width)
        self.img_mlp = FeedForward(width)
        self.txt_mod = [SiLU(), Linear(width, 6 * width)]
        self.txt_mlp = FeedForward(width)

    def __call__(
        self,
        img: mx.array,
        txt: mx.array,
        temb: mx.array,
        img_table: mx.array,
        txt_table: mx.array,
        mask: mx.array | None = None,
        condition: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Image and text streams after the block.

        Args:
            img: B L D. txt: B S D.
            temb: B D; 2B D where `condition` is given, the second half for a timestep of 0.
            img_table: L d/2 2. txt_table: S d/2 2.
            mask: B S bool, True for text tokens that count.
            condition: L bool, True for tokens of condition pictures (zero_cond_t).
        """
        txt_temb = temb if condition is None else mx.split(temb, 2)[0]
        with scope("img"):
            img_first, img_second = split_modulation(tap("mod", chain(self.img_mod, temb)), condition)
            img_modulated = _normed_and_modulated(img, img_first, "")
        with scope("txt"):
            txt_first, txt_second = split_modulation(tap("mod", chain(self.txt_mod, txt_temb)))
            txt_modulated = _normed_and_modulated(txt, txt_first, "")
        img_attn, txt_attn = self.attn(img_modulated, txt_modulated, img_table, txt_table, mask)
        with scope("img"):
            img = _finish(img, tap("attn", img_attn), img_first, img_second, self.img_mlp)
        with scope("txt"):
            txt = _finish(txt, tap("attn", txt_attn), txt_first, txt_second, self.txt_mlp)
        return img, txt


def _normed_and_modulated(x: mx.array, by: Modulation, half: str) -> mx.array:
    normed = tap(f"normed{half}", ops.layer_norm(x, EPS))
    return tap(f"modulated{half}", ops.modulate(normed, by.shift, by.scale))


def _finish(x: mx.array, attn: mx.array, first: Modulation, second: Modulation, mlp: FeedForward) -> mx.array:
    """The part of a block behind attention, for one stream."""
    x = tap("mid", ops.gated_add(x, first.gate, attn))
    ffn = tap("ffn", mlp(_normed_and_modulated(x, second, "2")))
    x = ops.gated_add(x, second.gate, ffn)
    if x.dtype == mx.float16:
        x = mx.clip(x, -FLOAT16_LIMIT, FLOAT16_LIMIT)
    return tap("out", x)
