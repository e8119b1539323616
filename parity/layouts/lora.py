"""Names in LoRA files: which pair of low-rank factors belongs to which linear layer, and what scales it.

A layer's output becomes y = base(x) + scale·(x·Aᵀ)·Bᵀ, with A rank × inputs and B outputs × rank. Trainers spell the
same pair in many ways, and a file says in its names alone which way is its own:

    transformer_blocks.0.attn.to_q           dotted, with a prefix of `PREFIXES` or none
    lora_unet_transformer_blocks_0_attn_to_q           kohya: the dots are gone, and are found again in the
                                                       names that the model has
    .lora_A.weight .lora_B.weight            also with an adapter's name in between, ``.lora_A.default.weight``
    .lora_down.weight .lora_up.weight        also ``.lora.down.weight``
    .alpha                                   scale = alpha / rank; 1 without it

Layers may also be called as mflux and mlx-rs call them. Nothing here reads a tensor's value.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parity.errors import WeightsError
from parity.layouts.rules import MFLUX, MLX_RS, rules_of, to_stored
from parity.safetensors_header import Shard, Tensor, and_more, json_file, json_object, read_header, shown

PEFT, KOHYA, BARE = "PEFT", "kohya", "without prefix"
# Prefix of dotted names -> the dialect that it speaks for.
PREFIXES = {
    "base_model.model.": PEFT, "model.diffusion_model.": "ComfyUI", "diffusion_model.": "ComfyUI",
    "transformer.": "diffusers",
}  # fmt: skip
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_")
DTYPES = ("BF16", "F16", "F32")
# Components that have a transformer in them.
ADAPTED = ("transformer", "pipeline")
# diffusers writes what PEFT calls the adapter's config into the file's metadata, PEFT into a file beside it.
METADATA, CONFIG_FILE = "lora_adapter_metadata", "adapter_config.json"

_PART = re.compile(
    r"\.(?:lora_(?P<letter>[AB])(?:\.(?P<adapter>[A-Za-z0-9_\-]+))?\.weight|lora[_.](?P<word>down|up)\.weight|(?P<alpha>alpha))$"
)
# What changes a layer in another way; leaving it out would give another model.
_OTHER_KINDS = re.compile(
    r"\.(dora_scale|lora_magnitude_vector|lora_mid|lokr_|hada_|oft_|boft_|diff_b$|diff$|lora_embedding_|lora_B\.bias|lora_B\.\w+\.bias)"
)
_HALVES = {"A": "down", "B": "up", "down": "down", "up": "up"}
_SHOWN = 3


class LoraError(WeightsError):
    """A LoRA file is damaged, or does not fit the model or the one who should read it."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA file, and the user's factor on top of the file's own scale."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class Pair:
    """The factors of one layer.

    Attributes:
        down: key of A, rank × inputs. up: key of B, outputs × rank.
        alpha: key of a number; A·B counts alpha / rank times. None: once.
        rank: of both.
        multiplier: a further factor, from an adapter's config.
    """

    down: str
    up: str
    alpha: str | None
    rank: int
    multiplier: float = 1.0


@dataclass(frozen=True)
class Binding:
    """What of a file belongs to which layer.

    Attributes:
        header: of the file.
        dialect: how its names are spelt, in words.
        pairs: layer -> its factors.
        unbound: stems of pairs that are of no layer of the model.
        near: the first few of those -> names that look like it.
    """

    header: Shard
    dialect: str
    pairs: Mapping[str, Pair]
    unbound: tuple[str, ...] = ()
    near: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def ranks(self) -> tuple[int, ...]:
        """All ranks, in ascending order."""
        return tuple(sorted({pair.rank for pair in self.pairs.values()}))


def bind_file(path: Path, modules: Mapping[str, tuple[int, int]]) -> Binding:
    """Read the header of a LoRA file and find the layer of each pair.

    Args:
        path: a safetensors file.
        modules: linear layer of the model -> its (outputs, inputs).

    Raises:
        LoraError: unreadable, damaged, no LoRA, of a kind that is not supported, of another model;
            the details list everything wrong.
    """
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise LoraError(f"{path}: pickled files are not read; save the LoRA as .safetensors")
    if path.is_dir() or not path.exists():
        what = "a folder; name the .safetensors file in it" if path.is_dir() else "there is no such file"
        raise LoraError(f"{path}: {what}")
    try:
        header = read_header(path)
        return bind(header, modules, _beside(path))
    except WeightsError as error:  # which names the file without its folder
        raise LoraError(f"{path.parent / error.message}", error.details) from None


def bind(header: Shard, modules: Mapping[str, tuple[int, int]], beside: Mapping[str, Any] | None = None) -> Binding:
    """Find the layer of each pair of a file.

    Args:
        header: of the file.
        modules: linear layer -> (outputs, inputs).
        beside: contents of PEFT's ``adapter_config.json``; it counts for files that PEFT itself wrote.

    Raises:
        LoraError: see `bind_file`.
    """
    found, problems = _sorted_out(header.tensors)
    names = _Names(modules)
    config = _config(header, beside, found)
    pairs: dict[str, Pair] = {}
    unbound, dialects = [], Counter()
    for stem, parts in found.items():
        module, dialect, ambiguous = names.find(stem)
        if dialect == BARE and any(_PART.search(key)["adapter"] for key in parts.values()):
            dialect = PEFT
        lacking = [half for half in ("down", "up") if half not in parts]
        if lacking:
            have = next((parts[half] for half in ("down", "up", "alpha") if half in parts), stem)
            problems.append(f"half a pair: {shown(have)} has no {' and no '.join(_SPELT[half] for half in lacking)}")
        elif ambiguous:
            problems.append(f"ambiguous: {shown(stem)} may be {' or '.join(ambiguous)}")
        elif module is None:
            unbound.append(stem)
            problems += _pair_problems(header.tensors, parts, None)
        elif module in pairs:
            problems.append(f"twice: {shown(parts['down'])} and {shown(pairs[module].down)} are both of {module}")
        else:
            problems += _pair_problems(header.tensors, parts, modules[module])
            dialects[dialect] += 1
            rank = (*header.tensors[parts["down"]].shape, 0)[0]
            multiplier = _multiplier(config, module, rank)
            pairs[module] = Pair(parts["down"], parts["up"], parts.get("alpha"), rank, multiplier)
    if problems:
        raise LoraError(f"{shown(header.name)}: {problems[0]}{and_more(problems)}", problems)
    near = {stem: names.near(stem) for stem in unbound[:_SHOWN]}
    if not pairs:
        raise _nothing_bound(header, unbound, near)
    return Binding(header, " and ".join(sorted(dialects)), pairs, tuple(unbound), near)


_SPELT = {"down": "lora_A (lora_down)", "up": "lora_B (lora_up)"}


def _sorted_out(tensors: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Stem -> part (``down``, ``up``, ``alpha``) -> key, and what is of no plain LoRA."""
    found: dict[str, dict[str, str]] = {}
    problems = []
    for key in tensors:
        part = _PART.search(key)
        if other := _OTHER_KINDS.search(key):
            problems.append(f"{shown(key)}: plain LoRA is supported, not {other[1].rstrip('_')}")
        elif part is None:
            problems.append(f"{shown(key)}: no name of a LoRA's tensor (lora_A, lora_B, lora_down, lora_up or alpha)")
        else:
            stem = key[: part.start()]
            what = "alpha" if part["alpha"] else _HALVES[part["letter"] or part["word"]]
            twice = found.setdefault(stem, {}).get(what)
            if twice is not None:
                problems.append(f"twice: {shown(key)} and {shown(twice)} are both {what} of {shown(stem)}")
            found[stem][what] = key
    return found, problems


def _pair_problems(
    tensors: Mapping[str, Tensor], parts: Mapping[str, str], expected: tuple[int, int] | None
) -> list[str]:
    """Wrong dtypes and shapes of one pair, and of its alpha."""
    problems = []
    down, up = (tensors[parts[half]] for half in ("down", "up"))
    for half, tensor in (("down", down), ("up", up)):
        if tensor.dtype not in DTYPES:
            problems.append(f"dtype: {shown(parts[half])} is {tensor.dtype}, expected {', '.join(DTYPES)}")
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            problems.append(f"shape: {shown(parts[half])} is {list(tensor.shape)}, expected a matrix")
    if "alpha" in parts:
        alpha = tensors[parts["alpha"]]
        if math.prod(alpha.shape) != 1 or alpha.dtype in ("BOOL", "F8_E4M3", "F8_E5M2"):
            problems.append(f"alpha: {shown(parts['alpha'])} is {alpha.dtype} {list(alpha.shape)}, expected one number")
    if problems or expected is None:
        return problems
    rank = down.shape[0]
    outputs, inputs = expected
    if up.shape[1] != rank:
        problems.append(f"rank: {shown(parts['down'])} has rank {rank}, {shown(parts['up'])} has {up.shape[1]}")
    if down.shape[1] != inputs:
        problems.append(f"shape: {shown(parts['down'])} is {list(down.shape)}, expected {[rank, inputs]}")
    if up.shape[0] != outputs:
        problems.append(f"shape: {shown(parts['up'])} is {list(up.shape)}, expected {[outputs, up.shape[1]]}")
    return problems


def _nothing_bound(header: Shard, unbound: Sequence[str], near: Mapping[str, tuple[str, ...]]) -> LoraError:
    first = shown(unbound[0]) if unbound else "nothing"
    lines = [nearest_line(stem, names) for stem, names in near.items()]
    return LoraError(
        f"{shown(header.name)}: none of its {len(unbound)} pairs is of a layer of this model, the first is {first}; "
        "is it a LoRA of another model?",
        lines,
    )


def nearest_line(stem: str, names: Sequence[str]) -> str:
    """An unbound pair and the names that look like it, in one line."""
    return f"no layer for {shown(stem)}" + (f"; near: {', '.join(names)}" if names else "")


class _Names:
    """All spellings of a model's layers."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._dotted: dict[str, set[str]] = {}
        self._flat: dict[str, set[str]] = {}
        for module in modules:
            for layout in (None, MFLUX, MLX_RS):
                name = module if layout is None else to_stored(module, rules_of(layout, "transformer"))
                self._dotted.setdefault(name, set()).add(module)
                self._flat.setdefault(name.replace(".", "_"), set()).add(module)

    def find(self, stem: str) -> tuple[str | None, str, tuple[str, ...]]:
        """(layer or None, dialect, layers where there are several)."""
        bare, dialect, table = self._bare(stem)
        layers = sorted(table.get(bare, ()))
        return (layers[0] if len(layers) == 1 else None), dialect, tuple(layers) if len(layers) > 1 else ()

    def near(self, stem: str) -> tuple[str, ...]:
        """Up to two names that look like one that is not there."""
        bare, _, table = self._bare(stem)
        close = difflib.get_close_matches(bare, table, n=2, cutoff=0.6)
        return tuple(layer for name in close for layer in sorted(table[name])[:1])

    def _bare(self, stem: str) -> tuple[str, str, Mapping[str, set[str]]]:
        for prefix in FLAT_PREFIXES:
            if stem.startswith(prefix):
                return stem.removeprefix(prefix), KOHYA, self._flat
        first = ""
        while prefix := next((p for p in PREFIXES if stem.startswith(p)), ""):
            stem, first = stem.removeprefix(prefix), first or prefix
        return stem, PREFIXES.get(first, BARE), self._dotted


def _beside(path: Path) -> Mapping[str, Any] | None:
    file = path.with_name(CONFIG_FILE)
    if not file.is_file():
        return None
    try:
        return json_file(file)
    except (OSError, ValueError) as error:
        raise LoraError(f"{file.name}: {error}") from None


def _config(header: Shard, beside: Mapping[str, Any] | None, stems: Iterable[str]) -> Mapping[str, Any]:
    """PEFT's config of an adapter: from the metadata, or from beside where the file is PEFT's own."""
    if METADATA in header.metadata:
        try:
            config = json_object(header.metadata[METADATA].encode())
        except ValueError as error:
            raise LoraError(f"{shown(header.name)}: metadata {METADATA}: {error}") from None
        config = {key.removeprefix("transformer."): value for key, value in config.items()}
    elif beside is not None and any(stem.startswith("base_model.model.") for stem in stems):
        config = beside
    else:
        return {}
    if config.get("use_dora"):
        raise LoraError(f"{shown(header.name)}: plain LoRA is supported, not DoRA (use_dora of its config)")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise LoraError(f"{shown(header.name)}: alpha_pattern of its config is {shown(patterns)}, expected a mapping")
    for key, alpha in {"lora_alpha": config.get("lora_alpha"), **patterns}.items():
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha <= 0:
            raise LoraError(f"{shown(header.name)}: {shown(key)} of its config is {shown(alpha)}, expected a number")
    return config


def _multiplier(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / rank (alpha / √rank with rsLoRA) as the config says it; 1 without one."""
    if not config or not rank:
        return 1.0
    patterns = config.get("alpha_pattern") or {}
    # A pattern means a layer, or the end of its name; a regular expression from a file is not run.
    named = next((p for p in patterns if f".{module}".endswith(f".{p.removeprefix('^')}")), None)
    alpha = config["lora_alpha"] if named is None else patterns[named]
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
