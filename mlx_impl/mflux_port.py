"""mflux's Qwen-Image transformer as a port: its modules, run stage by stage and watched from outside.

Nothing of mflux is restated. Each stage is an instance of mflux's own ``QwenTransformer`` with the stage's parts in
it; what belongs to other stages is a stand-in that hands over what the state has, so that mflux's ``__call__`` does
all the rest: order, casts, masks, positions. Weights come from the loaders of this package and are put into mflux's
modules by ``load_weights(strict=True)``; packed layers become MLX's own ``nn.QuantizedLinear``, as in mflux.

Every checkpoint of level ``full`` is captured. q and k with positions exist only inside the attention:
they are cut out of what its ``_compute_attention_qwen`` is given. The sinusoid after SiLU and the first residual are
arguments of the layers behind them.

What mflux's transformer has no place for is refused in one line: LoRAs in this port, ControlNet residuals,
``additional_t_cond``, layered positions, samples of a batch at different timesteps. Its constructor fixes the rotary
axes at (16, 56, 56); of a model with others the table is made by mflux's class with the model's axes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mflux.models.qwen.model.qwen_transformer.qwen_rope import QwenEmbedRopeMLX
from mflux.models.qwen.model.qwen_transformer.qwen_transformer import QwenTransformer

from parity.instrumentation import Call, instrument
from parity.layouts.lora import Adapter
from parity.layouts.rules import MFLUX, rules_of, to_stored

from .layers import owner_of
from .port import MlxPort
from .session import StagedSession, State
from .transformer import TransformerConfig
from .weights import EMBED_PARTS, HEAD_PARTS, Checkpoint, mlx_dtype

THETA, AXES = 10000, (16, 56, 56)  # of mflux's constructor
STREAMS = ("img", "txt")
PIXELS = 16  # of a latent token's side: mflux asks for sizes in pixels
CALLS = ".at.{call}"  # ending of names that come twice
_RULES = rules_of(MFLUX, "transformer")


class MfluxPort(MlxPort):
    """mflux's transformer on MLX's default device."""

    name = "mflux"

    def open(
        self,
        weights: Path,
        *,
        dtype: str,
        hold: str | None = None,
        component: str = "transformer",
        adapters: Sequence[Adapter] = (),
    ) -> MfluxSession:
        """See `parity.ports.Port.open`."""
        if component != "transformer":
            raise ValueError(f"no component {component!r}: the port mflux has only the transformer")
        if adapters:
            raise ValueError("the port mflux wears no LoRA: fuse it into the weights, or compare without")
        return MfluxSession(Path(weights), mlx_dtype(dtype), mlx_dtype(hold or dtype))

    def environment(self) -> dict[str, Any]:
        """mflux's version, and what `MlxPort` says."""
        return {"mflux": metadata.version("mflux"), **super().environment()}


class MfluxSession(StagedSession):
    """mflux's transformer in one dtype, on one checkpoint.

    Args:
        folder: the model's folder, or the transformer's own.
        dtype: dtype of weights and activations.
        hold: dtype the weights are rounded to first.

    Raises:
        ValueError: a model that mflux's transformer cannot be.
    """

    def __init__(self, folder: Path, dtype: mx.Dtype, hold: mx.Dtype) -> None:
        super().__init__(dtype, hold)
        self._checkpoint = Checkpoint(folder)
        check_config(self._checkpoint.config)
        blocks = {f"block.{i:02d}": i for i in range(self._checkpoint.config.num_layers)}
        # Of each stage: prefix in the checkpoint -> path in the stage's own model, whose only block is its first.
        self._parts = {"embed": dict(zip(EMBED_PARTS, EMBED_PARTS, strict=True))}
        self._parts |= {stage: {f"transformer_blocks.{i}": "transformer_blocks.0"} for stage, i in blocks.items()}
        self._parts["head"] = dict(zip(HEAD_PARTS, HEAD_PARTS, strict=True))
        self.stages: tuple[str, ...] = tuple(self._parts)
        self._models: dict[str, QwenTransformer] = {}
        self._text_tokens = 0
        self._calls = CALLS if self._checkpoint.config.zero_cond_t else ""

    def load_stage(self, stage: str) -> None:
        """See `StagedSession.load_stage`."""
        model = build(self._checkpoint.config, blocks=int(stage.startswith("block.")))
        for part in {*EMBED_PARTS, *HEAD_PARTS} - set(self._parts[stage]):
            setattr(model, part, None)  # no parameters; `compute` puts a stand-in there
        load(model, self._checkpoint, self._parts[stage], self.dtype, self.hold)
        instrument(model, self._names(stage))
        self._models[stage] = model

    def free_stage(self, stage: str) -> None:
        """See `StagedSession.free_stage`."""
        self._models.pop(stage, None)

    def run(
        self, stage: str, state: Mapping[str, np.ndarray], want: Collection[str], *, precision: str = "default"
    ) -> tuple[State, State]:
        """See `StagedSession.run`. With zero_cond_t what mflux makes in two calls is one value, as in diffusers."""
        halves = {name: (f"{name}.at.0", f"{name}.at.1") for name in want} if self._calls else {}
        asked = {*want, *(half for pair in halves.values() for half in pair)}
        after, values = super().run(stage, state, asked, precision=precision)
        for name, pair in halves.items():
            if found := [values.pop(half) for half in pair if half in values]:
                values[name] = np.concatenate(found)
        return after, values

    def compute(self, stage: str, state: dict[str, Any]) -> dict[str, Any]:
        """See `StagedSession.compute`."""
        if any(key.startswith("controlnet.") for key in state):
            raise ValueError("mflux's transformer takes no ControlNet residuals")
        model, last = self._models[stage], _Last()
        self._text_tokens = state["prompt_embeds" if stage == "embed" else "txt"].shape[1]
        if stage != "embed":
            _stand_in(model, state)
        if stage != "head":
            model.norm_out = model.proj_out = _given
            model.transformer_blocks = [*model.transformer_blocks[: int(stage != "embed")], last]
        result = model(**arguments(state))
        if stage == "head":
            return {"sample": result}
        after = {"img": last.seen["hidden_states"], "txt": last.seen["encoder_hidden_states"]}
        if stage == "embed":
            tables = zip(("rope.img", "rope.txt"), last.seen["image_rotary_emb"], strict=True)
            after |= {name: mx.stack(table, axis=-1) for name, table in tables}
            temb = last.seen["text_embeddings"], last.seen["cond_embeddings"]
            after["temb"] = temb[0] if temb[1] is None else mx.concatenate(temb)
        return {key: state[key] for key in state if key not in ("latents", "prompt_embeds", "timestep")} | after

    def _names(self, stage: str) -> dict[str, Any]:
        if stage in ("embed", "head"):
            return embed_names(self._calls) if stage == "embed" else head_names()
        return block_names(lambda: self._text_tokens, "0", stage, self._calls)

    def take(self, key: str, array: np.ndarray) -> Any:
        """See `StagedSession.take`; shapes are plain numbers."""
        return array.tolist() if key == "img_shapes" else super().take(key, array)


class _Last:
    """Takes the place of the block behind a stage: it sees all that mflux hands on."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def __call__(self, **given: Any) -> tuple[mx.array, mx.array]:
        self.seen = given
        return given["encoder_hidden_states"], given["hidden_states"]


def _given(x: mx.array, *_: Any) -> mx.array:
    return x


def _stand_in(model: QwenTransformer, state: Mapping[str, Any]) -> None:
    """Put what earlier stages made in the place of the parts that made it."""
    tables = {key: (state[key][..., 0], state[key][..., 1]) for key in ("rope.img", "rope.txt")}
    model.img_in = lambda x: state["img"]
    model.txt_norm = _given
    model.txt_in = lambda x: state["txt"]
    # With zero_cond_t mflux asks a second time, for a timestep of 0.
    temb = iter(mx.split(state["temb"], state["temb"].shape[0] // state["img"].shape[0]))
    model.time_text_embed = lambda timestep, x: next(temb)
    model.pos_embed = lambda video_fhw, txt_seq_lens: (tables["rope.img"], tables["rope.txt"])


def arguments(state: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of mflux's transformer for a state before any stage; see `parity.ports`.

    Raises:
        ValueError: what it has no argument for.
    """
    img, txt = state.get("latents", state.get("img")), state.get("prompt_embeds", state.get("txt"))
    times = set(state["timestep"].astype(mx.float32).tolist()) if "timestep" in state else {0.0}
    if len(times) > 1:
        raise ValueError(f"mflux's transformer takes one timestep for the whole batch, not {sorted(times)}")
    (frames, height, width), *others = map(tuple, state["img_shapes"])
    if frames != 1:
        raise ValueError(f"mflux's transformer takes one frame of a picture, not {frames}")
    mask = state.get("prompt_mask")
    return {
        "t": times.pop(),
        "config": SimpleNamespace(height=height * PIXELS, width=width * PIXELS),
        "hidden_states": img,
        "encoder_hidden_states": txt,
        "encoder_hidden_states_mask": mx.ones(txt.shape[:2], dtype=mx.int32) if mask is None else mask,
        "cond_image_grid": others or None,
    }


def embed_names(calls: str = "") -> dict[str, Any]:
    """Where mflux makes the checkpoints before the blocks, for `parity.instrument`.

    Args:
        calls: ending of names that come twice with zero_cond_t, `CALLS` there.
    """
    return {
        "img_in": "img_in",
        "txt_norm": "txt_norm",
        "txt_in": "txt_in",
        "time_text_embed.time_proj": f"time.proj{calls}",
        "time_text_embed.timestep_embedder.linear_1": f"time.linear_1{calls}",
        "time_text_embed.timestep_embedder.linear_2": Call(takes={"x": f"time.silu{calls}"}),
        "time_text_embed": f"temb{calls}",
        "pos_embed": lambda tables: {
            f"rope.{s}": mx.stack(table, axis=-1) for s, table in zip(STREAMS, tables, strict=True)
        },
    }


def block_names(
    text_tokens: Callable[[], int], path: str = "{n}", block: str = "block.{n:02}", calls: str = ""
) -> dict[str, Any]:
    """Where mflux makes the checkpoints of its blocks, for `parity.instrument`.

    Args:
        text_tokens: S of the pass that is recorded; text comes first in the joint attention.
        path: of the block in ``transformer_blocks``; all of them by default.
        block: scope of its names.
        calls: as in `embed_names`.
    """

    def cut(kind: str) -> Callable[[mx.array], dict[str, mx.array]]:
        return lambda joint: {
            f"{block}.txt.{kind}": joint[:, : text_tokens()], f"{block}.img.{kind}": joint[:, text_tokens() :],
        }  # fmt: skip

    at = f"transformer_blocks.{path}"
    found: dict[str, Any] = {
        at: (f"{block}.txt.out", f"{block}.img.out"),
        f"{at}.attn": Call(
            tuple(f"{block}.{s}.attn" for s in STREAMS), {f"{s}_modulated": f"{block}.{s}.modulated" for s in STREAMS}
        ),
        f"{at}.attn._compute_attention_qwen()": Call(
            takes={name: cut(kind) for name, kind in (("query", "q"), ("key", "k"), ("value", "v"))}
        ),
    }
    for s in STREAMS:
        found[f"{at}.{s}_mod_linear"] = f"{block}.{s}.mod{calls if s == 'img' else ''}"
        found[f"{at}.{s}_norm1"] = f"{block}.{s}.normed"
        found[f"{at}.{s}_norm2"] = Call(f"{block}.{s}.normed2", {"x": f"{block}.{s}.mid"})
        found[f"{at}.{s}_ff"] = Call(f"{block}.{s}.ffn", {"hidden_states": f"{block}.{s}.modulated2"})
    return found


def head_names() -> dict[str, Any]:
    """Where mflux makes the checkpoints behind the blocks, for `parity.instrument`."""
    return {"norm_out.linear": "norm_out.mod", "norm_out": "norm_out", "proj_out": "final"}


def check_config(config: TransformerConfig) -> None:
    """Refuse a model that mflux's transformer cannot be.

    Raises:
        ValueError: it has such a part.
    """
    for key in ("use_additional_t_cond", "use_layer3d_rope"):
        if getattr(config, key):
            raise ValueError(f"the port mflux has no {key}: the model's config.json asks for it")


def build(config: TransformerConfig, *, blocks: int) -> QwenTransformer:
    """mflux's transformer of a config's sizes with so many blocks; its random weights are never computed."""
    model = QwenTransformer(
        in_channels=config.in_channels,
        out_channels=config.out_channels or config.in_channels,
        num_layers=blocks,
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
        joint_attention_dim=config.joint_attention_dim,
        patch_size=config.patch_size,
        zero_cond_t=config.zero_cond_t,
    )
    if config.axes_dims_rope != AXES:
        model.pos_embed = QwenEmbedRopeMLX(theta=THETA, axes_dim=list(config.axes_dims_rope), scale_rope=True)
    return model


def load(model: nn.Module, checkpoint: Checkpoint, parts: Mapping[str, str], dtype: mx.Dtype, hold: mx.Dtype) -> None:
    """Put a checkpoint's tensors into mflux's modules, rounded to `hold` and cast to `dtype`; packed codes as they are.

    Args:
        model: has the parameters of `parts`, and no others.
        parts: prefix of the checkpoint's keys -> path in the model.

    Raises:
        ValueError: missing, extra or misshaped tensors.
    """
    arrays: dict[str, mx.array] = {}
    for prefix, path in parts.items():
        packed = _pack(model, checkpoint, prefix, path)
        for key, array in checkpoint.read(f"{prefix}.").items():
            layer, _, leaf = f"{path}.{key}".rpartition(".")
            layer = to_stored(layer, _RULES)
            # Scales too: left in float32 they would carry the whole of mflux there, whatever the run's dtype.
            codes = layer in packed and leaf == "weight"
            arrays[f"{layer}.{leaf}"] = array if codes else array.astype(hold).astype(dtype)
    try:
        model.load_weights(list(arrays.items()), strict=True)
    except ValueError as error:
        raise ValueError(f"{checkpoint.folder}: mflux: {' '.join(str(error).split())}") from None
    mx.eval(model.parameters())


def _pack(model: nn.Module, checkpoint: Checkpoint, prefix: str, path: str) -> set[str]:
    """Put MLX's quantized layers wherever the checkpoint's are packed; their paths."""
    found = set()
    for key, entry in checkpoint.below(f"{prefix}.").items():
        if entry.packing is None:
            continue
        layer = to_stored(f"{path}{key.removeprefix(prefix).removesuffix('.weight')}", _RULES)
        parent, place = owner_of(model, layer)
        outputs, inputs = entry.true_shape
        bias, packing = "bias" in parent[place], entry.packing
        parent[place] = nn.QuantizedLinear(inputs, outputs, bias, packing.group_size, packing.bits)
        found.add(layer)
    return found
