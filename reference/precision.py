"""How the reference computes in each dtype: float64 truth, and half precision on CPUs.

diffusers keeps a few float32 islands (RMSNorm's variance, the rotation, the timestep
sinusoid). In a float64 run they would bound the truth at 1e-7, so they are widened here, by
hooks and by an attention processor of our own, never by patching diffusers.

On CPUs the weights of large linear layers stay as narrow as they are stored, in the pages of their
mapped file, and are widened a slice at a time while the product is made: that costs 5 % of its time
and saves the memory of a stage in float64, four times what bfloat16 takes.

torch's half-precision GEMM on CPUs without AVX512-BF16 or AMX runs at 1 GFLOP/s, and a float16
convolution takes 130 times as long as in float32 with them too. Products of two bfloat16 numbers are
exact in float32, so widening, multiplying with float32 accumulation and rounding once is what a
half-precision GEMM with float32 accumulation computes, 80 times faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import Timesteps
from diffusers.models.normalization import RMSNorm
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

HALF = (torch.bfloat16, torch.float16)
# The first three arguments are input, weight and bias.
_CONVOLUTIONS = (F.conv2d, F.conv3d)
# Bytes of a widened slice of a weight: it stays in the last-level cache, and is tall enough for a fast product.
_SLICE = 16 << 20


def widen_islands(module: torch.nn.Module) -> None:
    """Make a float64 module float64 throughout: RMSNorm and the timestep sinusoid.

    The hooks replace the module's output; they are for modules that only ever see float64.
    """
    for part in module.modules():
        if isinstance(part, RMSNorm):
            part.register_forward_hook(_rms_norm_float64)
        elif isinstance(part, Timesteps):
            part.register_forward_hook(_sinusoid_float64)


def _rms_norm_float64(norm: RMSNorm, args: tuple, _: torch.Tensor) -> torch.Tensor:
    (x,) = args
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps)
    return y if norm.weight is None else y * norm.weight


def _sinusoid_float64(proj: Timesteps, args: tuple, _: torch.Tensor) -> torch.Tensor:
    (timestep,) = args
    half = proj.num_channels // 2
    steps = torch.arange(half, dtype=torch.float64, device=timestep.device)
    frequency = torch.exp(-math.log(10000) * steps / (half - proj.downscale_freq_shift))
    angle = proj.scale * timestep.double()[:, None] * frequency[None]
    pair = (angle.cos(), angle.sin()) if proj.flip_sin_to_cos else (angle.sin(), angle.cos())
    return torch.cat(pair, dim=-1)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x·weightᵀ + bias in the dtype of `x`, float32 or float64, whatever narrower dtype the weight has.

    Args:
        x: … I. weight: O I. bias: O.
    """
    bias = None if bias is None else bias.to(x.dtype)
    rows = max(1, _SLICE // (weight.shape[1] * x.element_size()))
    if weight.dtype == x.dtype or rows >= len(weight):
        return F.linear(x, weight.to(x.dtype), bias)
    flat = x.flatten(0, -2)
    y = flat.new_empty(len(flat), len(weight))
    wide = flat.new_empty(rows, weight.shape[1])
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        some = wide[: len(weight[part])].copy_(weight[part])
        if bias is None:
            torch.mm(flat, some.T, out=y[:, part])
        else:
            torch.addmm(bias[part], flat, some.T, out=y[:, part])
    return y.unflatten(0, x.shape[:-1])


class _NarrowWeights(TorchFunctionMode):
    """Linear layers whose weights are narrower than what they multiply."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear and args[1].dtype != args[0].dtype:
            return linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _HalfOnCpu(TorchFunctionMode):
    """Linear layers, convolutions and attention of half-precision tensors through float32.

    Args:
        round_probabilities: round the softmax to the half dtype before it meets the values, as
            fused kernels on GPUs do; the other choice keeps it in float32.
    """

    def __init__(self, round_probabilities: bool) -> None:
        super().__init__()
        self._round = round_probabilities

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.linear and args[0].dtype in HALF:
            x, *rest = args
            return linear(x.float(), *rest, **kwargs).to(x.dtype)
        if func in _CONVOLUTIONS and args[0].dtype in HALF:
            return self._convolution(func, *args, **kwargs)
        if func is F.scaled_dot_product_attention and (args[0] if args else kwargs["query"]).dtype in HALF:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    @staticmethod
    def _convolution(
        func: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None,
        *geometry: Any, **options: Any,
    ) -> torch.Tensor:  # fmt: skip
        bias = None if bias is None else bias.float()
        return func(x.float(), weight.float(), bias, *geometry, **options).to(x.dtype)

    def _attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """The function of torch, whose arguments these are."""
        wide = [x.float() for x in (query, key, value)]
        if attn_mask is not None and attn_mask.dtype != torch.bool:
            attn_mask = attn_mask.float()  # numbers to add
        if not self._round:
            options = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
            return F.scaled_dot_product_attention(*wide, attn_mask=attn_mask, **options).to(query.dtype)
        q, k, v = wide
        if enable_gqa:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if attn_mask is not None and attn_mask.dtype != torch.bool:
            scores, attn_mask = scores + attn_mask, None
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        probabilities = scores.softmax(-1)
        if attn_mask is not None:
            # A query without any key gives zeros, as in torch.
            probabilities = probabilities.masked_fill(~attn_mask.any(-1, keepdim=True), 0)
        return (probabilities.to(query.dtype).float() @ v).to(query.dtype)


def modes(dtype: torch.dtype, device: torch.device) -> tuple[str, ...]:
    """Names of the legitimate precision modes of a dtype on a device, ``default`` first."""
    if dtype == torch.float64:
        return ("default",)
    if device.type == "cuda" and dtype in HALF:
        return ("default", "math", "reduced")
    return ("default", "math")


@contextmanager
def mode(name: str, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Run the body in one of `modes`.

    ``math`` is unfused attention (with probabilities rounded in half precision); ``reduced``
    allows reduced-precision accumulation in half-precision GEMMs, where the device has it.
    """
    if name not in modes(dtype, device):
        raise ValueError(f"precision mode {name!r} is none of {modes(dtype, device)} for {dtype} on {device}")
    if device.type == "cpu":
        with _on_cpu(name, dtype):
            yield
    elif name == "math":
        with sdpa_kernel(SDPBackend.MATH), _float32_convolutions():
            yield
    elif name == "reduced":
        flags = torch.backends.cuda.matmul
        saved = flags.allow_bf16_reduced_precision_reduction, flags.allow_fp16_reduced_precision_reduction
        flags.allow_bf16_reduced_precision_reduction = flags.allow_fp16_reduced_precision_reduction = True
        try:
            yield
        finally:
            flags.allow_bf16_reduced_precision_reduction, flags.allow_fp16_reduced_precision_reduction = saved
    else:
        with _float32_convolutions():
            yield


@contextmanager
def _on_cpu(name: str, dtype: torch.dtype) -> Iterator[None]:
    if dtype in HALF:
        with _HalfOnCpu(round_probabilities=name == "math"):
            yield
    elif name == "math":
        with sdpa_kernel(SDPBackend.MATH), _NarrowWeights():
            yield
    else:
        with _NarrowWeights():
            yield


@contextmanager
def _float32_convolutions() -> Iterator[None]:
    """cuDNN rounds the inputs of float32 convolutions to TF32 unless told otherwise: a floor of 1e-4 in the VAE."""
    saved = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = saved
