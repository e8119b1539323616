"""Stored names of a component sorted into canonical ones, quantized layers, and what is none of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from parity.errors import WeightsError
from parity.layouts import rules
from parity.layouts.entries import Problem
from parity.layouts.folder import Files
from parity.safetensors_header import Tensor, shown


@dataclass
class Naming:
    """What the names of a component's tensors say.

    Attributes:
        files, component: what was given.
        layout: ``single`` where the keys have a prefix or a file was named, else `style`.
        style: whose names they are, without the prefix.
        plain: canonical name -> stored name.
        parts: quantized layer -> last part of a name (``weight``, ``scales``, ``biases``) -> stored name.
        absent: canonical names of tensors in files that are missing or unread.
        marked: whether there is the mark of Qwen-Image-Edit-2511.
        problems, notes: what is wrong, and what was left aside.

    Raises:
        WeightsError: names of more than one layout.
    """

    files: Files
    component: str
    layout: str = ""
    style: str = ""
    plain: dict[str, str] = field(default_factory=dict)
    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    marked: bool = False
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        tensors = self.files.tensors
        prefix = rules.split_prefix(tensors) if self.component == "transformer" else ""
        stored = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
        self._sort_out(stored, [name for name in tensors if not name.startswith(prefix)], prefix)
        self.style = rules.detect(stored, self.component)
        self.layout = rules.SINGLE if prefix or self.files.single else self.style
        groups = rules.reading_rules(self.style, self.component, _residuals(stored))
        for bare, name in stored.items():
            self._add(rules.to_canonical(bare, groups), name)
        self.absent = {rules.to_canonical(name.removeprefix(prefix), groups) for name in self.files.absent}
        for layer, parts in self.parts.items():
            weight = self.plain.pop(f"{layer}.weight", None)
            if weight is not None:
                parts["weight"] = weight
        self._note_level()

    def tensor(self, name: str) -> Tensor:
        """The stored tensor behind a stored name."""
        return self.files.tensors[name]

    def extra(self, expected: Mapping[str, tuple[int, ...]] | None) -> list[str]:
        """Stored names that the model has no tensor for."""
        if expected is None:
            return []
        names = [name for canonical, name in self.plain.items() if canonical not in expected]
        for layer, parts in self.parts.items():
            if f"{layer}.weight" not in expected:
                names += parts.values()
        return names

    def _sort_out(self, stored: dict[str, str], others: list[str], prefix: str) -> None:
        """Take away what is no tensor of this component."""
        self.marked = stored.pop(rules.ZERO_COND_MARK, None) is not None
        derived = [bare for bare in stored if rules.DERIVED.fullmatch(bare)]
        for bare in derived:
            del stored[bare]
        if derived:
            self.notes.append(f"{len(derived)} derived tables are not read, the first is {shown(derived[0])}")
        foreign = [name for name in others if name.startswith(rules.FOREIGN)]
        own = [name for name in others if not name.startswith(rules.FOREIGN)]
        if foreign:
            self.notes.append(f"{len(foreign)} tensors of other components, the first is {shown(foreign[0])}")
        if own:
            with_prefix = next(iter(stored.values()), prefix)
            raise WeightsError(
                f"mixed layouts: {shown(with_prefix)} has the prefix {prefix}, {shown(own[0])} has none; "
                "keep the files of one layout"
            )

    def _add(self, canonical: str, name: str) -> None:
        layer, _, leaf = canonical.rpartition(".")
        if leaf in ("scales", "biases"):
            place, key = self.parts.setdefault(layer, {}), leaf
        else:
            place, key = self.plain, canonical
        if key in place:
            text = f"{shown(place[key])} and {shown(name)} are both {shown(canonical)}"
            self.problems.append(Problem("duplicate", text))
        else:
            place[key] = name

    def _note_level(self) -> None:
        level = self.files.metadata.get("quantization_level")
        if level is not None:
            said = "None, that is not quantized" if level in ("None", "null", "") else f"{shown(level)} bits"
            self.notes.append(f"metadata quantization_level: {said}; {len(self.parts)} layers are packed")


def canonical_shape(
    canonical: str, shape: tuple[int, ...], style: str, expected: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Shape in diffusers' axes, and the transposition that leads to it; None where it is stored so.

    MLX has the channels of a convolution last, and mflux makes vectors of the VAE's gammas.

    Args:
        canonical: name.
        shape: as stored.
        style: whose axes they are, as `Naming.style`.
        expected: canonical shape that the model asks for, where it is known.
    """
    if style != rules.MFLUX:
        return shape, None
    if len(shape) >= 4 and canonical.endswith(".weight"):
        axes = (0, len(shape) - 1, *range(1, len(shape) - 1))
        return tuple(shape[axis] for axis in axes), axes
    if canonical.endswith(".gamma") and len(shape) == 1:
        ones = len(expected) - 1 if expected else 2 if ".attentions." in canonical else 3
        return (*shape, *(1 for _ in range(ones))), (0,)
    return shape, None


def _residuals(names: Mapping[str, str]) -> int:
    """Residual blocks in a stage of an MLX port's VAE encoder, 2 where names do not tell."""
    found = (name.split(".") for name in names if name.startswith("encoder.down_blocks.0.resnets."))
    return 1 + max(
        (int(p[4]) for p in found if len(p) > 4 and p[4].isascii() and p[4].isdecimal() and len(p[4]) < 3), default=1
    )
