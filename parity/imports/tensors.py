"""Tensors and sketches in safetensors files, as a port in any language writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from parity.errors import UsageError, WeightsError
from parity.imports.base import Imported, Reading
from parity.imports.measure import measure
from parity.imports.spelling import meant, suggested
from parity.safetensors_header import json_object, read_header, shown
from parity.trace import CASE_KEY, SKETCH_KEY
from parity.tracefile import ROWS, read_dump, read_sketches

# A sketch has no shape; a file of sketches may tell those of the arrays: {"block.07.img.attn": [1, 256, 3072]}.
SHAPES_KEY = "parity.shapes"
# How the port was run, where the file tells: ``accumulated`` or ``isolated``.
MODE_KEY = "parity.mode"


@dataclass(frozen=True, kw_only=True)
class Tensors(Imported):
    """Whole values.

    Attributes:
        arrays: name -> what gives the array; called again for each reading.
    """

    arrays: Mapping[str, Callable[[], np.ndarray]] = field(default_factory=dict, repr=False)

    def read(self, name: str, *, chunks: int = 0, sketched: bool = True) -> Reading:
        """Values are looked at once, in slices."""
        array = self.arrays[name]()
        stats, sketch = measure(array, chunks=chunks, spec=self.spec if sketched else None)
        return Reading(array.shape, array.dtype.name, stats.brief(), sketch, array)


@dataclass(frozen=True, kw_only=True)
class Sketches(Imported):
    """Sketches alone.

    Attributes:
        sketches: name -> sketch of `spec`.
        shapes: name -> shape of the array, where the file tells.
    """

    sketches: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)

    def read(self, name: str, *, chunks: int = 0, sketched: bool = True) -> Reading:
        """Nothing but a sketch, and a shape where the file tells it."""
        return Reading(self.shapes.get(name), sketch=self.sketches[name].astype(np.float64) if sketched else None)


def read_safetensors(files: Sequence[Path], label: str) -> Imported:
    """One or several files, all of tensors or all of sketches.

    Raises:
        UsageError: unreadable, garbled, a name in two files, or files that do not belong together.
    """
    parts = [_read(path) for path in files]
    kinds = {part.kind: path for part, path in zip(parts, files, strict=True)}
    if len(kinds) > 1:
        tensors, sketches = shown(kinds["tensors"].name), shown(kinds["sketches"].name)
        raise UsageError(f"{tensors} holds tensors and {sketches} sketches; give the one or the other")
    return joined(parts, [shown(path.name) for path in files], label)


def joined(parts: Sequence[Imported], labels: Sequence[str], label: str) -> Imported:
    """Several files' parts, all `Tensors` or all `Sketches`, as one.

    Raises:
        UsageError: a name in two of them, two cases, two kinds of sketch, or too many names.
    """
    owner: dict[str, str] = {}
    for part, its_label in zip(parts, labels, strict=True):
        for name in part.names:
            if name in owner:
                raise UsageError(f"{shown(name)} is in {owner[name]} and in {its_label}; expected it once")
            owner[name] = its_label
    if len(owner) > ROWS:
        raise UsageError(f"{label}: {len(owner)} names, against a limit of {ROWS}")
    cases = {part.case: its_label for part, its_label in zip(parts, labels, strict=True) if part.case}
    if len(cases) > 1:
        (one, first), (other, second) = list(cases.items())[:2]
        raise UsageError(f"{first} is of case {shown(one[:12])} and {second} of case {shown(other[:12])}; they differ")
    specs = {part.spec for part in parts}
    if len(specs) > 1:
        raise UsageError(f"{label}: its files hold sketches of different kinds: {' and '.join(map(_kind, specs))}")
    whole = parts[0]
    common = {
        "label": label,
        "names": tuple(owner),
        "case": next(iter(cases), ""),
        "notes": tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    }
    if isinstance(whole, Sketches):
        both = [part for part in parts if isinstance(part, Sketches)]
        sketches = {name: sketch for part in both for name, sketch in part.sketches.items()}
        return replace(
            whole, sketches=sketches, shapes={k: v for part in both for k, v in part.shapes.items()}, **common
        )
    arrays = {name: array for part in parts if isinstance(part, Tensors) for name, array in part.arrays.items()}
    return replace(whole, arrays=arrays, **common)


def _kind(spec: object) -> str:
    return f"{vars(spec)['buckets']} buckets with seed {vars(spec)['seed']}"


def _read(path: Path) -> Imported:
    label = shown(path.name)
    try:
        metadata = read_header(path).metadata
    except WeightsError as error:
        raise UsageError(str(error), error.details) from None
    case, about = metadata.get(CASE_KEY, ""), {"mode": metadata[MODE_KEY]} if MODE_KEY in metadata else {}
    if SKETCH_KEY in metadata:
        spec, sketches, _ = read_sketches(path)
        shapes = _shapes(metadata.get(SHAPES_KEY), f"{label}: {SHAPES_KEY}")
        return Sketches(
            label=label,
            kind="sketches",
            names=tuple(sketches),
            case=case,
            about=about,
            spec=spec,
            sketches=sketches,
            shapes=shapes,
        )
    arrays = read_dump(path)
    given = {name: (lambda array=array: array) for name, array in arrays.items()}
    return Tensors(label=label, kind="tensors", names=tuple(arrays), case=case, about=about, arrays=given)


def _shapes(text: str | None, where: str) -> dict[str, tuple[int, ...]]:
    if text is None:
        return {}
    try:
        told = json_object(text.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    for name, shape in told.items():
        fits = isinstance(shape, list) and len(shape) <= 8 and all(type(n) is int and 0 < n < 1 << 40 for n in shape)
        if not fits or math.prod(shape) >= 1 << 62:
            raise UsageError(f"{where}: that of {shown(name)} is {shown(json.dumps(shape))}, expected whole numbers")
    return {name: tuple(shape) for name, shape in told.items()}


def must_know(found: Imported, known: Collection[str]) -> None:
    """Check that a file's names are those of checkpoints.

    Raises:
        UsageError: none of them is known; it suggests the nearest ones.
    """
    if not known or any(name in known for name in found.names):
        return
    spelled = meant(found.names, known)
    if spelled:
        name, right = next(iter(spelled.items()))
        hint = f"{shown(name)} is {right} spelled otherwise; write {right} ({len(spelled)} names are spelled so)"
    else:
        hint = f"{suggested(found.names, known, 1)}; expected names such as block.07.img.attn"
    raise UsageError(f"{found.label}: none of its {len(found.names)} names is a checkpoint: {hint}")
