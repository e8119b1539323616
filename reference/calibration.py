"""Where the activations of a synthetic checkpoint must land, on which inputs, and how a row gets there.

B batch, L image tokens, S text tokens, J text-encoder width, C latent channels, N samples of
a linear layer's input (B·L or B·S), K its inputs, R its rows.

The rows of a random linear layer are independent: a gain on a row's weights and a bias move
its outputs anywhere, and no other row notices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.names import block_stage

Range = tuple[float, float]

# The guide's table and the ranges in its code comments; where the two differ, between them.
# `shift_scale` is the first shift and scale of the modulation together; `last` the last block.
TARGETS: dict[str, Range] = {
    "time.proj": (-1, 1),
    "time.linear_1": (-10, 14),
    "time.silu": (-0.3, 14),
    "temb": (-34, 63),
    "img_in": (-15, 16),
    "block.00.img.mod": (-132, 112),
    "block.00.img.mod.shift_scale": (-30, 20),
    "block.00.img.normed": (-9, 9),
    "block.00.img.modulated": (-68, 54.5),
    "block.00.img.attn": (-89, 119),
    "block.00.img.mid": (-246, 443),
    "block.00.img.ffn": (-25250, 25800),
    "block.00.img.out": (-1.96e6, 2e6),
    "last.img.out": (-45e6, 46e6),
    "norm_out": (-21, 13),
    "final": (-4.5, 4.5),
}
# How near the larger end must come, and how far beyond its mark the other may be.
TOLERANCE = 0.1
# The other end is "about" its mark from this share of it upwards.
PLAUSIBLE = 0.5


def calibration_case(
    config: Mapping[str, Any],
    *,
    seed: int = 0,
    height: int = 16,
    width: int = 16,
    text_tokens: int = 32,
    batch: int = 1,
    timestep: float = 0.9,
) -> dict[str, np.ndarray]:
    """The inputs the targets hold on, as the state of `parity.ports` that goes into ``embed``.

    Drawn as `parity.case.Case` draws them: the defaults are the case ``square`` of the default
    suite in float32.

    Args:
        config: in_channels C and joint_attention_dim J.
        seed, height, width, text_tokens, batch, timestep: other cases; sizes in latent tokens.

    Returns:
        latents B L C, prompt_embeds B S J, timestep B (all float32), img_shapes 1 3.
    """
    draw = np.random.Generator(np.random.Philox(key=seed))
    return {
        "latents": draw.standard_normal((batch, height * width, config["in_channels"]), dtype=np.float32),
        "prompt_embeds": draw.standard_normal((batch, text_tokens, config["joint_attention_dim"]), dtype=np.float32),
        "timestep": np.full(batch, timestep, np.float32),
        "img_shapes": np.array([[1, height, width]], np.int64),
    }


def describe_case() -> dict[str, Any]:
    """The defaults of `calibration_case`, in words."""
    return {
        "batch": 1, "image_tokens": 256, "img_shapes": [[1, 16, 16]], "text_tokens": 32, "timestep": 0.9, "seed": 0,
        "dtype": "float32",
    }  # fmt: skip


def wanted(num_layers: int) -> frozenset[str]:
    """Names of the checkpoints that `TARGETS` speaks of, in a model of so many blocks."""
    last = f"{block_stage(num_layers - 1)}.img.out"
    return frozenset({name for name in TARGETS if not name.startswith("last.")} | {last})


def measure(values: Mapping[str, Any], num_layers: int) -> dict[str, Range]:
    """Lowest and highest value of each row of `TARGETS` that is among the checkpoints.

    Args:
        values: arrays or tensors by checkpoint name.
        num_layers: which block is the last.
    """
    found = dict(values)
    if (mod := found.get("block.00.img.mod")) is not None:
        found["block.00.img.mod.shift_scale"] = mod[..., : mod.shape[-1] // 3]
    if (out := found.get(f"{block_stage(num_layers - 1)}.img.out")) is not None:
        found["last.img.out"] = out
    return {row: (float(found[row].min()), float(found[row].max())) for row in TARGETS if row in found}


def misses(achieved: Mapping[str, Range]) -> list[str]:
    """One line for each row of `TARGETS` that was not met; empty when all were."""
    lines = []
    for row, target in TARGETS.items():
        if row not in achieved:
            lines.append(f"{row}: not measured")
            continue
        # Equal magnitudes: either end may be the one that reaches its mark.
        big = max(abs(end) for end in target)
        shares = [(got / aim, abs(aim) == big) for got, aim in zip(achieved[row], target, strict=True)]
        met = any(abs(share - 1) <= TOLERANCE for share, larger in shares if larger)
        if not met or not all(PLAUSIBLE <= share <= 1 + TOLERANCE for share, _ in shares):
            low, high = achieved[row]
            lines.append(f"{row}: expected {target[0]:g} … {target[1]:g}, found {low:g} … {high:g}")
    return lines


def plan_rows(y: Tensor, size: Tensor, bias: Tensor, limit: float, floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """Gain and bias that give each row a size.

    What all samples have in common is kept. Cancelling it with the bias would leave livelier
    outputs, and with them the rounding noise of what was cancelled: a model made so loses five
    digits in 60 blocks.

    Args:
        y: N R, what the rows give with gain 1 and no bias.
        size: R, wanted rms over the samples (positive); rows smaller than the others stay smaller.
        bias: R, wanted bias as a share of the size.
        limit: no value may exceed it; gain and bias shrink together.
        floor: rms of `y` below which nothing is made larger.
    """
    rms = y.square().mean(0).sqrt()
    gain = size / torch.maximum(rms, rms.square().mean().sqrt()).clamp_min(floor)
    shrink = (limit / (y * gain + size * bias).abs().amax(0)).clamp(max=1)
    return gain * shrink, size * bias * shrink


def plan_end(y: Tensor, target: float, share: float = 0.3) -> tuple[Tensor, Tensor]:
    """Gain and bias that bring one row's most extreme sample to `target`.

    Args:
        y: N, what the row gives with gain 1 and no bias.
        target: its largest value where positive, its smallest where negative.
        share: size of what the weights give, as a share of the target; the rest is bias.
    """
    gain = share * abs(target) / y.abs().max()
    extreme = y.max() if target > 0 else y.min()
    return gain, target - gain * extreme


def solve_gate(base: Tensor, term: Tensor, target: float) -> float:
    """The g ≥ 0 with max(base + g·term) = target (min, where the target is negative), by bisection.

    Args:
        base, term: samples of one channel.
        target: reachable, that is: of the sign of some element of `term`.
    """
    if target < 0:
        base, term, target = -base, -term, -target
    low, high = 0.0, float(2 * target / term.max())
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if float((base + middle * term).max()) < target else (low, middle)
    return low


def place_rows(linear: nn.Linear, gain: Tensor, bias: Tensor) -> None:
    """Apply a plan to all rows and round to what will be stored."""
    linear.weight.mul_(gain[:, None]).copy_(linear.weight.bfloat16())
    linear.bias.copy_(bias.bfloat16())


def aim_rows(linear: nn.Linear, rows: slice, x: Tensor, aim: Tensor, share: Tensor) -> None:
    """Bring rows that see one sample to their aims, and round to what will be stored.

    Args:
        linear: changed in place.
        rows: which of its rows, R.
        x: 1 K, the sample.
        aim: R.
        share: R, how much of the aim comes from the weights and moves with the sample; the rest is bias.
    """
    weight = linear.weight[rows]
    weight.mul_((share * aim.abs() / x.square().mean().sqrt())[:, None]).copy_(weight.bfloat16())
    linear.bias[rows] = (aim - weight @ x[0]).bfloat16().float()
