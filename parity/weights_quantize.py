"""``parity weights quantize``: which layers are packed with how many bits, and a model written so.

The packing itself is MLX's own and is handed in; what is written is `parity.weights_convert`'s, layer by layer.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from parity import checkpoint as checkpoints
from parity import weights_convert
from parity.errors import UsageError, WeightsError
from parity.layer_classes import in_general, linear_layers
from parity.layouts import Entry, rules
from parity.layouts.packing import BITS, GROUPS, packed_shape
from parity.safetensors_header import shown
from parity.safetensors_writer import OutTensor

# weight, bits, group size, dtype of scales -> words, scales, biases.
Packer = Callable[[np.ndarray, int, int, str], tuple[np.ndarray, np.ndarray, np.ndarray]]
# Stored dtype of a weight -> what MLX packs it in, and what it then stores scales and biases in.
PACKED_AS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float32"}
STORED = {name: kind for kind, name in PACKED_AS.items() if kind != "F64"}


@dataclass(frozen=True)
class Rule:
    """What becomes of the layers that a pattern matches.

    Attributes:
        pattern: of canonical layer names, as a shell's.
        bits: None keeps them as they are.
        group_size: None takes the one given for all.
    """

    pattern: str
    bits: int | None
    group_size: int | None = None

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read ``PATTERN=BITS``, ``PATTERN=BITS:GROUP`` or ``PATTERN=keep``.

        Raises:
            UsageError: it is none of these.
        """
        found = re.fullmatch(r"([^=]+)=(?:(keep)|(\d+)(?::(\d+))?)", text)
        if not found:
            raise UsageError(f"rule {text!r}: expected PATTERN=BITS, PATTERN=BITS:GROUP or PATTERN=keep")
        pattern, keep, bits, group = found.groups()
        rule = cls(pattern.removesuffix(".weight"), None if keep else int(bits), int(group) if group else None)
        if rule.bits is not None:
            check_packing(rule.bits, rule.group_size or GROUPS[0], f"rule {text!r}: ")
        return rule


def check_packing(bits: int, group_size: int, where: str = "") -> None:
    """Refuse what MLX cannot pack.

    Raises:
        UsageError: no such number of bits or group size.
    """
    if bits not in BITS or group_size not in GROUPS:
        what = f"{bits} bits" if bits not in BITS else f"a group size of {group_size}"
        raise UsageError(
            f"{where}{what} is nothing MLX packs; bits: {', '.join(map(str, BITS))}; "
            f"group sizes: {', '.join(map(str, GROUPS))}"
        )


# What other tools write at 4 bits; at other bits they treat all layers alike. mflux: newer files (mflux#517); older
# ones have 4 bits everywhere. mlx-gen: the layers that its mixed checkpoints leave in bfloat16.
PRESETS: dict[str, tuple[Rule, ...]] = {
    "mflux": (Rule("*.img_mod.1", 8),),
    "mlx-gen": tuple(
        Rule(pattern, None)
        for pattern in ("img_in", "txt_in", "norm_out.linear", "proj_out", "time_text_embed.*", "*.???_mod.1")
    ),
}


@dataclass(frozen=True)
class Choice:
    """How each layer is packed.

    Attributes:
        packed: layer -> (bits, group size).
        kept: layers that a rule keeps.
        odd: layers whose width no group of that size divides, with their width.
    """

    packed: dict[str, tuple[int, int]] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    odd: dict[str, int] = field(default_factory=dict)


def rules_for(bits: int, preset: str | None, texts: Iterable[str]) -> list[Rule]:
    """The rules of a preset, then the user's: the last match counts."""
    return [*(PRESETS[preset] if preset and bits == 4 else ()), *map(Rule.parse, texts)]


def choose(shapes: Mapping[str, tuple[int, ...]], bits: int, group_size: int, rules: Sequence[Rule]) -> Choice:
    """Decide on every linear layer.

    Args:
        shapes: canonical name -> shape.
        bits, group_size: for layers that no rule matches.
        rules: the last match counts.

    Raises:
        UsageError: a rule matches no layer.
    """
    check_packing(bits, group_size)
    layers = linear_layers(shapes)
    for rule in rules:
        if not any(fnmatchcase(layer, rule.pattern) for layer in layers):
            raise UsageError(_matches_nothing(rule.pattern, layers))
    choice = Choice()
    for layer in layers:
        mine = next((rule for rule in reversed(rules) if fnmatchcase(layer, rule.pattern)), Rule("*", bits))
        width, group = shapes[f"{layer}.weight"][1], mine.group_size or group_size
        if mine.bits is None:
            choice.kept.append(layer)
        elif width % group:
            choice.odd[layer] = width
        else:
            choice.packed[layer] = (mine.bits, group)
    return choice


def _matches_nothing(pattern: str, layers: Sequence[str]) -> str:
    # What most names begin with tells them apart no better than a star does.
    names = {name.removeprefix("transformer_blocks.*."): name for name in in_general(layers)}
    near = difflib.get_close_matches(pattern.strip("*.").removeprefix("transformer_blocks."), names, n=3, cutoff=0.3)
    listed = ", ".join(names[tail] for tail in near or list(names)[:3])
    return f"rule {shown(pattern)!r} matches no layer; the nearest names: {listed}"


@dataclass
class Quantization:
    """What is going to be written.

    Attributes:
        conversion: the files.
        choice: how each layer is packed.
        before: size of all tensors of the source.
    """

    conversion: weights_convert.Conversion
    choice: Choice
    before: int

    @property
    def after(self) -> int:
        """Size of all tensors of the result."""
        return sum(tensor.nbytes for plan in self.conversion.plans for tensor in plan.tensors)

    def census(self) -> list[tuple[str, int]]:
        """(how, number of layers), most bits last."""
        counted = Counter(f"{bits} bits in groups of {group}" for bits, group in self.choice.packed.values())
        found = sorted(counted.items())
        found += [("as they were, by a rule", len(self.choice.kept))] * bool(self.choice.kept)
        return found + [("as they were, for their width", len(self.choice.odd))] * bool(self.choice.odd)


def plan(
    source: Path, final: Path, pack: Packer, bits: int, group_size: int, rules_given: Sequence[Rule],
    scales_dtype: str | None = None,
) -> Quantization:  # fmt: skip
    """Inspect a model and say what is to be written, in the layout that mflux saves.

    Args:
        source: a model's folder, a transformer's, or a single file.
        final: name of the result.
        pack: packs one layer.
        bits, group_size: for layers that no rule matches.
        rules_given: the last match counts.
        scales_dtype: ``bfloat16``, ``float16`` or ``float32``; each weight's own if None.

    Raises:
        WeightsError: the source is not sound, or packed already.
        UsageError: a rule matches nothing, or the names do not go together.
    """
    checkpoint = checkpoints.inspect(source)
    if checkpoint.bits:
        raise WeightsError(
            f"{checkpoint.root}: {sum(checkpoint.bits.values())} layers are packed already; "
            "packing them again would add to their error: quantize the original weights"
        )
    shapes = {name: entry.true_shape for name, entry in checkpoint.located.entries.items()}
    choice = choose(shapes, bits, group_size, rules_given)
    packs = {f"{layer}.weight": Pack(pack, *how, scales_dtype) for layer, how in choice.packed.items()}
    conversion = weights_convert.plan(source, rules.MFLUX, final, packs=packs)
    before = weights_convert.plan(source, rules.MFLUX, final)
    size = sum(tensor.nbytes for one in before.plans for tensor in one.tensors)
    return Quantization(conversion, choice, size)


@dataclass(frozen=True)
class Pack:
    """How one layer is packed; see `parity.weights_convert.plan`."""

    pack: Packer
    bits: int
    group_size: int
    scales_dtype: str | None

    def tensors(self, layer: str, entry: Entry, read: Callable[[], np.ndarray]) -> list[OutTensor]:
        """What is written of it. The three come from one packing, which is held until the last is written.

        Args:
            layer: its stored name.
            entry: of its weight.
            read: gives the weight, O I.
        """
        dtype = self.scales_dtype or PACKED_AS[entry.dtype]
        words, scales = packed_shape(entry.true_shape, self.bits, self.group_size)
        made: list[np.ndarray] = []

        def pieces() -> Iterable[memoryview]:
            if not made:
                made.extend(reversed(self.pack(np.asarray(read()), self.bits, self.group_size, dtype)))
            yield np.ascontiguousarray(made.pop()).reshape(-1).view(np.uint8).data

        kind = STORED[dtype]
        return [
            OutTensor(f"{layer}.weight", "U32", words, pieces),
            OutTensor(f"{layer}.scales", kind, scales, pieces),
            OutTensor(f"{layer}.biases", kind, scales, pieces),
        ]
