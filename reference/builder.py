"""Fits the weights of a synthetic transformer, stage by stage.

B batch, L image tokens, S text tokens, N samples of a linear layer's input (B·L or B·S), D
width, K inputs and R rows of a linear layer.

`Builder` goes through the model in the order of its dataflow. It runs a stage up to a linear
layer, fits the layer's rows to what they are to give, rounds them to bfloat16 as they will be
stored, and goes on from what the rounded layer gives. Two fixed channels, the same in both
streams, carry the ends of every documented range, as the massive activations of the real
model do; all others stay well inside. One stage is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.names import STREAMS, block_stage
from parity.tap import Recorder, recording
from reference import transformer
from reference.calibration import (
    TARGETS,
    Range,
    aim_rows,
    calibration_case,
    measure,
    place_rows,
    plan_end,
    plan_rows,
    solve_gate,
    wanted,
)
from reference.transformer_port import EMBED_PARTS, HEAD_PARTS

if TYPE_CHECKING:
    from reference.presets import Preset

# The text stream is not documented; it is given half the size.
SIZE = {"img": 1.0, "txt": 0.5}
# Rms of an ordinary channel, as a share of the largest value.
BULK = 1 / 15
# No ordinary channel goes beyond this share of either end.
INSIDE = 0.6
# What attention adds to the residual in blocks after the first, as a share of its rms.
ATTENTION = 0.1
# How much of a conditioned value comes from the weights and moves with the timestep; the rest
# is bias. Ends are firm, so that their ranges hold at other timesteps as well.
FIRM, LOOSE = 0.2, 0.5


class _Reached(Exception):  # noqa: N818
    """All inputs that were asked for have been seen; the rest of the stage need not run."""


@dataclass(frozen=True)
class _Levels:
    """What one stream of one block is fitted to: rms of ordinary channels, ends of the two special ones."""

    attn: float
    gate1: float
    ffn: float
    gate2: float
    attn_ends: Range | None
    mid_ends: Range | None
    ffn_ends: Range
    out_ends: Range


class Builder:
    """Makes the weights of one preset, stage by stage.

    Args:
        preset: shape of the model.
        seed: of everything random in the weights (the calibration case has its own, fixed).

    Attributes:
        stages: names of the stages, in the order in which `tensors` must be called.
        achieved: what each row of `TARGETS` came to, filled as stages are made.
    """

    def __init__(self, preset: Preset, seed: int) -> None:
        self.preset = preset
        self.stages = ("embed", *(block_stage(i) for i in range(preset.num_layers)), "head")
        self.achieved: dict[str, Range] = {}
        self.model = transformer.build(preset.config, torch.float32, torch.device("cpu"))
        self._draw = torch.Generator().manual_seed(seed)
        self._high, self._low, *self._others = torch.randperm(preset.width, generator=self._draw)[:4].tolist()
        inputs = calibration_case(preset.config)
        shapes = [tuple(shape) for shape in inputs.pop("img_shapes").tolist()]
        self._state: dict[str, Any] = {key: torch.from_numpy(array) for key, array in inputs.items()}
        self._state["img_shapes"] = shapes

    def tensors(self, stage: str) -> Iterator[tuple[str, Tensor]]:
        """Fit one stage and yield its (key, bfloat16 tensor); its memory is freed at the end."""
        parts = self._parts(stage)
        with torch.no_grad():
            for module in parts.values():
                self._initialise(module)
            if stage == "embed":
                self._fit_embed()
            elif stage == "head":
                self._fit_head()
            else:
                self._fit_block(self.stages.index(stage) - 1)
            with recording(Recorder(wanted(self.preset.num_layers))) as recorder:
                self._state = self._run(stage)
        self.achieved |= measure(recorder.values, self.preset.num_layers)
        for prefix, module in parts.items():
            for key, parameter in module.named_parameters():
                yield f"{prefix}.{key}", parameter.bfloat16()
            module.to("meta")

    def _parts(self, stage: str) -> dict[str, nn.Module]:
        if stage in ("embed", "head"):
            return {name: getattr(self.model, name) for name in (EMBED_PARTS if stage == "embed" else HEAD_PARTS)}
        index = self.stages.index(stage) - 1
        return {f"transformer_blocks.{index}": self.model.transformer_blocks[index]}

    def _run(self, stage: str) -> dict[str, Any]:
        if stage == "embed":
            return transformer.embed(self.model, self._state)
        if stage == "head":
            return transformer.head(self.model, self._state)
        return transformer.block(self.model, self.stages.index(stage) - 1, self._state)

    def _initialise(self, root: nn.Module) -> None:
        """Weights that keep the size of their input, norms near 1."""
        root.to_empty(device="cpu")
        for module in root.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, module.in_features**-0.5, generator=self._draw)
                module.bias.zero_()
            elif getattr(module, "weight", None) is not None:
                module.weight.copy_((1 + 0.1 * self._normal(len(module.weight)).clamp(-2, 2)).bfloat16())

    def _normal(self, count: int) -> Tensor:
        return torch.empty(count).normal_(generator=self._draw)

    def _sizes(self, count: int) -> Tensor:
        """Log-normal factors around 1."""
        return (0.3 * self._normal(count)).exp().clamp(0.5, 2)

    def _fit_embed(self) -> None:
        model, state = self.model, self._state
        time, embedder = model.time_text_embed.time_proj, model.time_text_embed.timestep_embedder
        proj = time(state["timestep"])
        self._fit_vector(embedder.linear_1, proj, TARGETS["time.linear_1"])
        self._fit_vector(embedder.linear_2, F.silu(embedder.linear_1(proj)), TARGETS["temb"])
        self._fit_entry(model.img_in, state["latents"], "img")
        self._fit_entry(model.txt_in, model.txt_norm(state["prompt_embeds"]), "txt")

    def _fit_vector(self, linear: nn.Linear, x: Tensor, ends: Range) -> None:
        """A layer of the time embedding, which sees one sample."""
        aim = self._sizes(linear.out_features) * self._normal(linear.out_features).sign() * max(ends) * BULK
        share = torch.full_like(aim, LOOSE)
        aim[[self._low, self._high]] = torch.tensor(ends, dtype=torch.float32)
        share[[self._low, self._high]] = FIRM
        aim_rows(linear, slice(None), x, aim, share)

    def _fit_entry(self, linear: nn.Linear, x: Tensor, stream: str) -> None:
        """An input projection. How far its ends stand out decides the range after LayerNorm."""
        ends = _scaled(TARGETS["img_in"], SIZE[stream])
        y = F.linear(x.flatten(0, 1), linear.weight)
        gain, bias = self._plan(y, SIZE[stream], ends, torch.inf)
        z = y * gain + bias
        room = INSIDE * min(map(abs, ends)) / z.abs().amax(0)

        def factor(size: float) -> Tensor:
            return room.clamp(max=size).index_fill(0, torch.tensor([self._low, self._high]), 1)

        small, large = 1e-2, 1e2
        for _ in range(40):
            middle = (small * large) ** 0.5
            over = F.layer_norm(z * factor(middle), z.shape[1:]).abs().max() > TARGETS["block.00.img.normed"][1]
            small, large = (middle, large) if over else (small, middle)
        place_rows(linear, gain * factor(large), bias * factor(large))

    def _fit_head(self) -> None:
        norm_out, cond = self.model.norm_out, F.silu(self._state["temb"])
        width = self.preset.width
        normed = norm_out.norm(self._state["img"]).flatten(0, 1)
        scale, shift = (0.3 * self._normal(width).clamp(-2, 2) for _ in range(2))
        _meet_ends(self._low, self._high, normed, scale, shift, TARGETS["norm_out"])
        share = self._share()
        aim_rows(norm_out.linear, slice(0, width), cond, scale, share)
        aim_rows(norm_out.linear, slice(width, None), cond, shift, share)
        x = norm_out(self._state["img"], self._state["temb"]).flatten(0, 1)
        low, high = TARGETS["final"]
        y = F.linear(x, self.model.proj_out.weight)
        gain, bias = plan_rows(y, self._sizes(y.shape[1]), 0.3 * self._normal(y.shape[1]), 0.9 * high)
        gain[0], bias[0] = plan_end(y[:, 0], high)
        gain[1], bias[1] = plan_end(y[:, 1], low)
        place_rows(self.model.proj_out, gain, bias)

    def _fit_block(self, index: int) -> None:
        block, state = self.model.transformer_blocks[index], self._state
        attn, cond = block.attn, F.silu(state["temb"])
        mod = {"img": block.img_mod[1], "txt": block.txt_mod[1]}
        project = {"img": (attn.to_q, attn.to_k, attn.to_v), "txt": (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)}
        out = {"img": attn.to_out[0], "txt": attn.to_add_out}
        mlp = {"img": block.img_mlp.net, "txt": block.txt_mlp.net}
        levels = {s: self._levels(index, s) for s in STREAMS}

        near = self._position_bias()
        for s in STREAMS:
            first = (index, s) == (0, "img")
            normed = getattr(block, f"{s}_norm1")(state[s]).flatten(0, 1)
            self._fit_shift_scale(mod[s], 0, cond, normed, documented=first)
        x = self._inputs(index, {s: project[s][0] for s in STREAMS})
        for s in STREAMS:
            for linear in project[s]:
                self._fit(linear, x[s], 1.0)
            for linear in project[s][:2]:
                linear.bias.add_(near).copy_(linear.bias.bfloat16())
        x = self._inputs(index, out)
        mid = {}
        for s in STREAMS:
            # Values have rms 1 and averaging shrinks what tokens do not share. Bringing that back to 1
            # would multiply what they share, and errors in it, block after block.
            y = self._fit(out[s], x[s], levels[s].attn, levels[s].attn_ends, floor=0.5)
            mid[s] = self._fit_gate(mod[s], 2, cond, state[s].flatten(0, 1), y, levels[s].gate1, levels[s].mid_ends)
            self._fit_shift_scale(mod[s], 3, cond, getattr(block, f"{s}_norm2")(mid[s]))
        x = self._inputs(index, {s: mlp[s][0].proj for s in STREAMS})
        for s in STREAMS:
            self._fit(mlp[s][0].proj, x[s], 1.0)
        x = self._inputs(index, {s: mlp[s][2] for s in STREAMS})
        for s in STREAMS:
            y = self._fit(mlp[s][2], x[s], levels[s].ffn, levels[s].ffn_ends)
            documented = TARGETS["block.00.img.mod"] if (index, s) == (0, "img") else None
            self._fit_gate(mod[s], 5, cond, mid[s], y, levels[s].gate2, levels[s].out_ends, documented)

    def _position_bias(self) -> Tensor:
        """A bias that queries and keys share, so that after rotation near tokens attend to each other.

        It lies in the fast pairs of the row and column axes and is as large as what the input gives.
        Attention is then sharp without being sensitive to its input, and positions matter.
        """
        frame, *sides = self.preset.axes
        fast = torch.cat([torch.zeros(frame)] + [
            (10000.0 ** (-torch.arange(0, side, 2) / side) > 0.1).float().repeat_interleave(2) for side in sides
        ])  # fmt: skip
        bias = self._normal(self.preset.width).unflatten(0, (self.preset.heads, -1)) * fast
        return (bias / bias.square().mean(1, keepdim=True).sqrt()).flatten()

    def _levels(self, index: int, stream: str) -> _Levels:
        """Documented levels in the first block; after it, a residual that grows evenly to the last."""
        size = SIZE[stream]
        low, high = TARGETS["block.00.img.out"]
        growth = TARGETS["last.img.out"][1] / high
        reach = growth ** (index / (self.preset.num_layers - 1))
        out = _scaled((low, high), size * reach)
        rms = float(self._state[stream].flatten(0, 1).square().mean(0).sqrt().median())
        by_attention = ATTENTION * rms
        if index == 0:
            attn, mid, ffn = (_scaled(TARGETS[f"block.00.img.{kind}"], size) for kind in ("attn", "mid", "ffn"))
            # Outside the special channels the first block keeps most of what the projection gave: what
            # attention adds is nearly the same for all tokens.
            attn_rms, ffn_rms = attn[1] * BULK, ffn[1] / 12
            return _Levels(
                attn=attn_rms, gate1=3 * by_attention / attn_rms, ffn=ffn_rms, gate2=out[1] * BULK / ffn_rms,
                attn_ends=attn, mid_ends=mid, ffn_ends=ffn, out_ends=out,
            )  # fmt: skip
        by_ffn = max((out[1] * BULK) ** 2 - rms**2 - by_attention**2, by_attention**2) ** 0.5
        # A product of gate and branch is split so that both stay at sizes known from the first block.
        attn, ffn = (2 * by_attention) ** 0.5, (50 * by_ffn) ** 0.5
        return _Levels(
            attn=attn, gate1=by_attention / attn, ffn=ffn, gate2=by_ffn / ffn,
            attn_ends=None, mid_ends=None, ffn_ends=(-12 * ffn, 12 * ffn), out_ends=out,
        )  # fmt: skip

    def _fit_shift_scale(
        self, linear: nn.Linear, chunk: int, cond: Tensor, normed: Tensor, *, documented: bool = False
    ) -> None:
        """A shift and the scale after it.

        The special channels, which fill most of the LayerNorm, are damped and the others brought
        back to 1, as the real model does; where the guide has a range for it, all stand out.
        """
        width = self.preset.width
        ends = TARGETS["block.00.img.modulated"]
        size = max(ends) * BULK if documented else 1.0
        shift = 0.2 * size * self._normal(width).clamp(-2.5, 2.5)
        grow = size / normed.square().mean(0).sqrt().median()
        scale = grow * self._sizes(width) - 1
        scale[[self._low, self._high]] = -0.7
        if documented:
            low, high = TARGETS["block.00.img.mod.shift_scale"]
            scale.clamp_(max=0.9 * high)
            shift[self._others] = torch.tensor([low, high], dtype=torch.float32)
            scale[self._others] = 0
            _meet_ends(self._low, self._high, normed, scale, shift, ends)
        share = self._share()
        aim_rows(linear, slice(chunk * width, (chunk + 1) * width), cond, shift, share)
        aim_rows(linear, slice((chunk + 1) * width, (chunk + 2) * width), cond, scale, share)

    def _fit_gate(
        self, linear: nn.Linear, chunk: int, cond: Tensor, base: Tensor, term: Tensor, size: float,
        ends: Range | None, documented: Range | None = None,
    ) -> Tensor:  # fmt: skip
        """One gate of the modulation.

        Args:
            linear: the modulation's linear layer.
            chunk: which sixth of its rows.
            cond: 1 K, its input.
            base, term: N D, of the residual base + gate·term.
            size: of the gate in ordinary channels.
            ends: of the residual after it; None leaves the special channels almost alone.
            documented: range of the gate itself, met in two further channels.

        Returns:
            the residual, N D, with the gate as rounded.
        """
        width = self.preset.width
        gate = size * self._sizes(width)
        if ends:
            room = INSIDE * min(map(abs, ends)) - base.abs().amax(0)
            gate = torch.minimum(gate, room.clamp_min(0) / term.abs().amax(0))
        gate *= self._normal(width).sign()
        if documented:
            gate = gate.clamp(*_scaled(documented, 0.9))
            gate[self._others] = torch.tensor(documented, dtype=torch.float32)
        for channel, end in zip((self._low, self._high), ends or (), strict=False):
            gate[channel] = solve_gate(base[:, channel], term[:, channel], end)
        if not ends:
            gate[[self._low, self._high]] *= 0.3
        rows = slice(chunk * width, (chunk + 1) * width)
        aim_rows(linear, rows, cond, gate, self._share())
        return base + F.linear(cond, linear.weight[rows], linear.bias[rows]) * term

    def _share(self) -> Tensor:
        share = torch.full((self.preset.width,), LOOSE)
        share[[self._low, self._high, *self._others]] = FIRM
        return share

    def _plan(
        self, y: Tensor, level: float, ends: Range | None, limit: float, floor: float = 0
    ) -> tuple[Tensor, Tensor]:
        """Gain and bias of all rows of a layer that gives y, N R; see `_fit`."""
        rows = y.shape[1]
        gain, bias = plan_rows(y, level * self._sizes(rows), 0.2 * self._normal(rows), limit, floor)
        for channel, end in zip((self._low, self._high), ends or (), strict=False):
            gain[channel], bias[channel] = plan_end(y[:, channel], end)
        return gain, bias

    def _fit(self, linear: nn.Linear, x: Tensor, level: float, ends: Range | None = None, floor: float = 0) -> Tensor:
        """Give a layer's ordinary rows the rms `level` and its special ones their ends.

        Args:
            linear: fitted in place.
            x: N K, its input.
            level, ends: what it is to give.
            floor: see `plan_rows`.

        Returns:
            its output as rounded, N R.
        """
        y = F.linear(x, linear.weight)
        # A third of the ends leaves room for the largest gates on top.
        limit = min(map(abs, ends)) / 3 if ends else torch.inf
        place_rows(linear, *self._plan(y, level, ends, limit, floor))
        return linear(x)

    def _inputs(self, index: int, linears: Mapping[str, nn.Linear]) -> dict[str, Tensor]:
        """Run a block up to the linear layers named and return what they are given, N K."""
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, args: tuple) -> None:
                seen[name] = args[0].flatten(0, 1)
                if len(seen) == len(linears):
                    raise _Reached

            return hook

        hooks = [linear.register_forward_pre_hook(keep(name)) for name, linear in linears.items()]
        try:
            transformer.block(self.model, index, self._state)
        except _Reached:
            return seen
        finally:
            for hook in hooks:
                hook.remove()
        raise RuntimeError(f"block {index} never reached {set(linears) - set(seen)}")


def _meet_ends(lowest: int, highest: int, normed: Tensor, scale: Tensor, shift: Tensor, ends: Range) -> None:
    """Set two channels' scales so that (1 + scale)·normed + shift meets the ends in them."""
    low, high = ends
    scale[lowest] = (low - shift[lowest]) / normed[:, lowest].min() - 1
    scale[highest] = (high - shift[highest]) / normed[:, highest].max() - 1


def _scaled(ends: Range, factor: float) -> Range:
    return ends[0] * factor, ends[1] * factor
