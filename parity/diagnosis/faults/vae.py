"""Faults of the VAE: statistics of the latents, layout of kernels, norms, resampling, attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import permutations

import numpy as np
from scipy.special import erf

from parity.diagnosis.faults.inside import component_fault
from parity.diagnosis.place import Array, Variants
from parity.diagnosis.recipes.vae import VaePlace

_vae_fault = partial(component_fault, component="vae")
_CONVS = ("conv_in", "post_quant_conv", "shortcut", "conv1", "conv2", "conv_out", "image", "qkv", "proj", "upsample",
          "downsample", "mean", "logvar")  # fmt: skip
_NORMS = ("norm1", "norm2", "norm_out", "norm")
_ACTIVATED = ("conv1", "conv2", "conv_out", "image")


@_vae_fault("vae.stats", at=("latents",), title="latents are normalised or denormalised otherwise",
           fix="decoding takes latents·std + mean, encoding gives (latents - mean)/std")  # fmt: skip
def stats(p: VaePlace) -> Variants:
    name = "normalize" if p.stream == "encode" else "denormalize"
    other = p.denormalize if p.stream == "encode" else p.normalize
    ways: dict[str, Callable[[Array, Array, Array], Array]] = {
        "not at all": lambda x, m, s: x,
        "the other way round": other,
        "divided by std, plus mean": lambda x, m, s: x / s + m,
        "times std, minus mean": lambda x, m, s: x * s - m,
        "divided by std, minus mean": lambda x, m, s: x / s - m,
        "times std, plus mean": lambda x, m, s: x * s + m,
        "mean first: (x + mean)·std": lambda x, m, s: (x + m) * s,
        "(x - mean)·std": lambda x, m, s: (x - m) * s,
        "(x + mean)/std": lambda x, m, s: (x + m) / s,
        "std alone": lambda x, m, s: x * s if name == "denormalize" else x / s,
        "mean alone": lambda x, m, s: x + m if name == "denormalize" else x - m,
        "mean and std exchanged": lambda x, m, s: getattr(p, name)(x, s, m),
        "variance for std": lambda x, m, s: getattr(p, name)(x, m, s**2),
        "root of std": lambda x, m, s: getattr(p, name)(x, m, np.sqrt(s)),
        "twice": lambda x, m, s: getattr(p, name)(getattr(p, name)(x, m, s), m, s),
        "channels in reverse": lambda x, m, s: getattr(p, name)(x, m[::-1], s[::-1]),
        "one mean and one std for all channels": lambda x, m, s: getattr(p, name)(x, 0 * m + m.mean(), s.mean()),
        "along the rows": lambda x, m, s: getattr(p, name)(x, _along(m, x, 3), _along(s, x, 3)),
        "along the columns": lambda x, m, s: getattr(p, name)(x, _along(m, x, 4), _along(s, x, 4)),
    }  # fmt: skip
    for factor in (0.18215, 0.13025, 0.3611, 1.5305, 0.9152):
        scaled = (lambda x, m, s, f=factor: x / f) if name == "denormalize" else (lambda x, m, s, f=factor: x * f)
        ways[f"a scaling factor of {factor} instead"] = scaled
    ways["FLUX's: x/0.3611 + 0.1159"] = lambda x, m, s: x / 0.3611 + 0.1159
    for what, way in ways.items():
        yield what, p.changed(**{name: way})


def _along(statistic: Array, x: Array, axis: int) -> Array:
    """Statistics repeated along another axis than that of the channels."""
    return np.resize(statistic.ravel(), x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(1, 5)])


@_vae_fault("layout.conv_weight", at=_CONVS, title="a kernel's axes are read in another order",
           fix="the checkpoint has O I (T) h w; MLX takes O (T) h w I: transpose, do not reshape")  # fmt: skip
def conv_weight(p: VaePlace) -> Variants:
    weight = p.weight(f"{p.layer}.weight")
    square = weight.shape[0] == weight.shape[1]

    def kernel(way: Callable[[Array], Array]) -> VaePlace:
        return p.changed(kernel=lambda layer: way(p.kernel(layer)))

    def stored(way: Callable[[Array], Array]) -> VaePlace:
        return p.changed(kernel=lambda layer: _newest(p, way(p.weight(f"{layer}.weight"))))

    yield "reshaped to O h w I instead of transposed", stored(_reshaped_last)
    yield "O h w I read as O I h w", stored(_read_as_first)
    if square:
        yield "inputs and outputs exchanged", kernel(lambda k: k.swapaxes(0, 1))
    if weight.shape[-1] > 1:
        yield "rows and columns exchanged", kernel(lambda k: k.swapaxes(2, 3))
        yield "flipped: convolved instead of correlated", kernel(lambda k: k[:, :, ::-1, ::-1])
        yield "rows flipped", kernel(lambda k: k[:, :, ::-1])
        yield "columns flipped", kernel(lambda k: k[:, :, :, ::-1])
    axes = weight.ndim
    for order in permutations(range(axes)):
        if order[:2] == (0, 1) or order == tuple(range(axes)):
            continue
        if tuple(weight.shape[axis] for axis in order) == weight.shape:
            yield (
                f"axes {' '.join('OIThw'[i] if axes == 5 else 'OIhw'[i] for i in order)}",
                stored(lambda w, o=order: w.transpose(o)),
            )


def _newest(p: VaePlace, weight: Array) -> Array:
    return p.newest(weight) if weight.ndim == 5 else weight


def _reshaped_last(weight: Array) -> Array:
    """What a layer sees that takes O … I, where O I … was reshaped to that."""
    return np.moveaxis(weight.reshape(weight.shape[0], *weight.shape[2:], weight.shape[1]), -1, 1)


def _read_as_first(weight: Array) -> Array:
    return np.moveaxis(weight, 1, -1).reshape(weight.shape)


@_vae_fault("vae.causal_slice", at=_CONVS, title="another slice of the causal kernel meets the only frame",
           fix="one frame meets the newest slice, weight[:, :, -1]: those before it meet zeros")  # fmt: skip
def causal_slice(p: VaePlace) -> Variants:
    if p.weight(f"{p.layer}.weight").ndim == 5 and p.weight(f"{p.layer}.weight").shape[2] > 1:
        yield "the oldest", p.changed(newest=lambda k: k[:, :, 0])
        yield "the middle one, as without causality", p.changed(newest=lambda k: k[:, :, k.shape[2] // 2])
        yield "the sum of all: the frame repeated into the past", p.changed(newest=lambda k: k.sum(2))
        yield "the mean of all", p.changed(newest=lambda k: k.mean(2))


@_vae_fault("vae.padding", at=_CONVS, title="a convolution pads otherwise",
           fix="zeros all around; a downsampling convolution pads below and on the right only")  # fmt: skip
def padding(p: VaePlace) -> Variants:
    kernel = p.kernel(p.layer)
    if kernel.shape[2] == 1:
        return
    for mode in ("edge", "reflect", "wrap", "symmetric"):

        def padded(x: Array, before: tuple[int, int], behind: tuple[int, int], mode: str = mode) -> Array:
            return np.pad(x, ((0, 0), (0, 0), (before[0], behind[0]), (before[1], behind[1])), mode=mode)

        yield f"with {mode} values", p.changed(pad=padded)
    yield "above and on the left", p.changed(pad=lambda x, before, behind: p.pad(
        x, tuple(map(sum, zip(before, behind, strict=True))), (0, 0)))  # fmt: skip
    if p.kind == "downsample":
        yield "on the left and above", p.changed(down_pad=lambda x: p.pad(x, (1, 1), (0, 0)))
        yield "all around", p.changed(down_pad=lambda x: p.pad(x, (1, 1), (1, 1)))
    else:
        yield "below and on the right", p.changed(pad=lambda x, before, behind: p.pad(
            x, (0, 0), tuple(map(sum, zip(before, behind, strict=True)))))  # fmt: skip


@_vae_fault("weights.bias_missing", at=_CONVS, title="the bias of a convolution is not added",
           fix="load and add <layer>.bias")  # fmt: skip
def bias_missing(p: VaePlace) -> Variants:
    yield "no bias", p.changed(bias=lambda layer: None)


@_vae_fault("norm.vae_scale", at=_NORMS, title="the VAE's norm is scaled otherwise",
           fix="x / max(‖x‖, 1e-12) · √C · gamma, ‖x‖ over the channels of each pixel")  # fmt: skip
def norm_scale(p: VaePlace) -> Variants:
    yield "without √C", p.changed(norm_scale=lambda channels: 1.0)
    yield "times C", p.changed(norm_scale=lambda channels: float(channels))
    yield "divided by √C", p.changed(norm_scale=lambda channels: channels**-0.5)
    yield "without gamma", p.changed(gamma=lambda layer, axes: np.ones(1))
    yield "1 + gamma", p.changed(gamma=lambda layer, axes: 1 + p.gamma(layer, axes))
    yield "no norm", p.changed(norm=lambda x, layer: x)


@_vae_fault("norm.axis", at=_NORMS, title="the VAE's norm goes over other axes",
           fix="over the channels of each pixel: axis 1 of B C T H W, the last of B T H W C")  # fmt: skip
def norm_axis(p: VaePlace) -> Variants:
    def over(axes: tuple[int, ...], mean: bool) -> VaePlace:
        def norm(x: Array, layer: str) -> Array:
            square = (x**2).mean(axes, keepdims=True) if mean else (x**2).sum(axes, keepdims=True) / x.shape[1]
            return x / np.sqrt(np.maximum(square, 1e-24)) * p.gamma(layer, x.ndim)

        return p.changed(norm=norm)

    yield "columns", over((-1,), True)
    yield "columns, scaled by the channels", over((-1,), False)
    yield "rows", over((-2,), True)
    yield "all pixels of a channel", over((-2, -1), True)
    yield "channels and pixels", over((1, -2, -1), True)


@_vae_fault("norm.rms_for_layer", at=_NORMS, title="another norm in the VAE than RMSNorm",
           fix="x / max(‖x‖, 1e-12) · √C · gamma")  # fmt: skip
def another_norm(p: VaePlace) -> Variants:
    yield "LayerNorm", p.changed(norm=lambda x, layer: p.norm(x - x.mean(1, keepdims=True), layer))
    for groups in (32, 16, 8, 4):

        def grouped(x: Array, layer: str, groups: int = groups) -> Array:
            parts = x.reshape(len(x), groups, -1)
            parts = (parts - parts.mean(-1, keepdims=True)) / np.sqrt(parts.var(-1, keepdims=True) + 1e-6)
            return parts.reshape(x.shape) * p.gamma(layer, x.ndim)

        yield f"GroupNorm of {groups} groups", p.changed(norm=grouped)


@_vae_fault("norm.eps", at=_NORMS, title="the VAE's norm has an epsilon under the root",
           fix="no epsilon in the mean: the length is kept above 1e-12", seen="mlx-examples#1434")  # fmt: skip
def eps(p: VaePlace) -> Variants:
    for value in (1e-3, 1e-4, 1e-5, 1e-6, 1e-8):
        yield f"{value:g}", p.changed(norm=lambda x, layer, e=value: (
            x / np.sqrt((x**2).mean(1, keepdims=True) + e) * p.gamma(layer, x.ndim)
        ))  # fmt: skip


@_vae_fault("vae.activation", at=_ACTIVATED, title="another activation before a convolution of the VAE",
           fix="conv(silu(norm(x)))")  # fmt: skip
def activation(p: VaePlace) -> Variants:
    ways: dict[str, Callable[[Array], Array]] = {
        "none": lambda x: x, "ReLU": lambda x: np.maximum(x, 0),
        "GELU, exact": lambda x: 0.5 * x * (1 + erf(x / 2**0.5)),
        "GELU, tanh": lambda x: 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
        "twice": lambda x: p.silu(p.silu(x)), "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh,
        "quick GELU": lambda x: x / (1 + np.exp(-1.702 * x)),
    }  # fmt: skip
    for what, way in ways.items():
        yield what, p.changed(silu=way)


@_vae_fault("vae.resample", at=("upsample", "downsample"), title="a picture is made larger or smaller otherwise",
           fix="up: each pixel 2 × 2 times, then a convolution; down: one of every second place")  # fmt: skip
def resample(p: VaePlace) -> Variants:
    if p.kind == "downsample":
        yield "from the second place on", p.changed(down_pad=lambda x: p.pad(x[:, :, 1:, 1:], (0, 0), (2, 2)))
        yield "means of 2 × 2 before a convolution", p.changed(downsample=lambda x, layer: p.conv(_halved(x), layer))
        return
    yield "bilinear", p.changed(enlarged=lambda x: _bilinear(_bilinear(x, 2), 3))
    yield "in blocks: the whole picture 2 × 2 times", p.changed(enlarged=lambda x: np.tile(x, (1, 1, 2, 2)))
    yield "zeros between the pixels", p.changed(enlarged=_spread)
    yield "rows and columns exchanged within", p.changed(enlarged=lambda x: x.repeat(4, axis=3).reshape(
        *x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]))  # fmt: skip


def _halved(x: Array) -> Array:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def _spread(x: Array) -> Array:
    wide = np.zeros((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]))
    wide[:, :, ::2, ::2] = x
    return wide


def _bilinear(x: Array, axis: int) -> Array:
    """Twice as long along an axis, between the middles of pixels."""
    at = (np.arange(2 * x.shape[axis]) + 0.5) / 2 - 0.5
    low = np.floor(at).astype(int)
    share = (at - low).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    first, second = (np.take(x, np.clip(low + k, 0, x.shape[axis] - 1), axis=axis) for k in (0, 1))
    return first * (1 - share) + second * share


@_vae_fault("attention.scale_missing", at=("proj",), title="scores of the VAE's attention are not divided",
           fix="scores / sqrt(C)")  # fmt: skip
def scale_missing(p: VaePlace) -> Variants:
    yield "no scale", p.changed(score_scale=lambda width: 1.0)


@_vae_fault("attention.scale_wrong", at=("proj",), title="scores of the VAE's attention have another scale",
           fix="scores / sqrt(C)")  # fmt: skip
def scale_wrong(p: VaePlace) -> Variants:
    yield "1/C", p.changed(score_scale=lambda width: 1 / width)
    yield "C^-¼", p.changed(score_scale=lambda width: width**-0.25)
    yield "1/√(3C)", p.changed(score_scale=lambda width: (3 * width) ** -0.5)


@_vae_fault("attention.kv_swapped", at=("proj",), title="queries, keys and values of the VAE's attention are exchanged",
           fix="to_qkv gives q, k, v one after the other")  # fmt: skip
def qkv_order(p: VaePlace) -> Variants:
    for order in permutations(range(3)):
        if order != (0, 1, 2):
            yield "".join("qkv"[i] for i in order), p.changed(qkv=lambda x, o=order: [p.qkv(x)[i] for i in o])
    yield (
        "channels of q, k, v taken in turn",
        p.changed(qkv=lambda x: p.qkv(np.concatenate([x[:, i::3] for i in range(3)], axis=1))),
    )


@_vae_fault("layout.chw_hwc", at=("proj",), title="channels and pixels of attention are exchanged in a reshape",
           fix="B HW C back to B C H W by a transpose")  # fmt: skip
def unfolding(p: VaePlace) -> Variants:
    yield (
        "reshaped instead of transposed",
        p.changed(unfolded=lambda joint, shape: joint.reshape(shape[0], -1, *shape[2:])),
    )
    yield "rows and columns exchanged", p.changed(unfolded=lambda joint, shape: joint.swapaxes(1, 2).reshape(
        len(joint), -1, shape[3], shape[2]).swapaxes(2, 3))  # fmt: skip


@_vae_fault("residual.missing", at=("resnet", "attn"), title="a residual of the VAE is dropped",
           fix="x + conv2(…), through conv_shortcut where the width changes")  # fmt: skip
def residual(p: VaePlace) -> Variants:
    yield "dropped", p.changed(add=lambda x, y: y)
    yield "nothing added", p.changed(add=lambda x, y: x)
    yield "divided by √2", p.changed(add=lambda x, y: (x + y) / 2**0.5)
    yield "subtracted", p.changed(add=lambda x, y: x - y)


@_vae_fault("vae.moments", at=("mean", "logvar"), title="mean and variance of the posterior are exchanged",
           fix="the first half of the channels is the mean, the second the variance's logarithm")  # fmt: skip
def moments(p: VaePlace) -> Variants:
    yield "halves exchanged", p.changed(moment=lambda x, which: p.moment(x, 1 - which))
    yield "channels taken in turn", p.changed(moment=lambda x, which: x[:, which::2])
    yield "clipped to -30…20", p.changed(moment=lambda x, which: np.clip(p.moment(x, which), -30, 20))
    yield "not through quant_conv", p.changed(conv=lambda x, layer: x)
