"""One component's files surveyed: layout, configuration, where each tensor is, and everything that is wrong.

`locate` is for readers, which need sound entries; `survey` is for checks, which list what is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parity.errors import WeightsError
from parity.layouts import rules
from parity.layouts.configs import Shapes, expected_shapes, find_config
from parity.layouts.entries import Entry, Located, Packing, Place, Problem
from parity.layouts.folder import Files, read_files
from parity.layouts.naming import Naming, canonical_shape
from parity.layouts.packing import Reading, choose, packing_problem, readings
from parity.safetensors_header import and_more, shown
from parity.text_shape import is_optional

COMPONENTS = ("transformer", "text_encoder", "vae")
FLOATS = ("BF16", "F16", "F32", "F64")
# Problems that leave no sound entry behind; the others a strict loader sees itself.
_LEFT_TO_LOADERS = ("missing", "extra")


@dataclass
class Survey:
    """What was found.

    Attributes:
        files: headers and index.
        located: entries as far as they are sound; None without a configuration.
        problems: everything wrong.
        warnings: what is odd but harmless.
    """

    files: Files
    located: Located | None
    problems: list[Problem]
    warnings: list[str]


def locate(path: Path | str, component: str = "transformer") -> Located:
    """Find every tensor of a component, in whatever layout it is stored.

    Args:
        path: a model's folder, a component's, or a single safetensors file.
        component: ``transformer``, ``text_encoder`` or ``vae``.

    Raises:
        WeightsError: no weights there, damaged, mixed layouts, a quantization that is not read, or shapes that are
            not those of the configuration; the details list everything. Missing and extra tensors are in the result.
    """
    found = survey(Path(path), component)
    wrong = [str(one) for one in found.problems if one.kind not in _LEFT_TO_LOADERS]
    if wrong or found.located is None:
        folder = found.files.single or found.files.folder
        raise WeightsError(f"{folder}: this checkpoint cannot be used: {wrong[0]}{and_more(wrong)}", wrong)
    return found.located


def survey(path: Path, component: str) -> Survey:
    """Read a component's configuration and headers and find all that is wrong at once.

    Args:
        path: a model's folder, a component's, or a single safetensors file.
        component: ``transformer``, ``text_encoder`` or ``vae``.

    Raises:
        WeightsError: there are no weights, or their layout cannot be told.
    """
    files = read_files(path, component)
    result = Survey(files, None, list(files.problems), list(files.warnings))
    try:
        names = Naming(files, component)
    except WeightsError as error:
        result.problems.append(Problem("config", error.message))
        return result
    result.problems += names.problems
    notes = list(names.notes)
    try:
        config, more = find_config(path, files, names)
        expected = expected_shapes(config, component)
    except WeightsError as error:
        # First what may be why no configuration follows from the shapes.
        result.problems += _packing_problems(names)
        result.problems += [Problem("config", text) for text in error.details or [error.message]]
        return result
    notes += more
    entries = _entries(names, expected, result.problems, notes)
    missing = _compare(entries, names, expected, files, result.problems, notes)
    result.located = Located(
        files.folder, names.layout, config, entries, tuple(names.extra(expected)), tuple(notes), tuple(missing),
        tuple(files.shards),
    )  # fmt: skip
    return result


def _packing_problems(names: Naming) -> list[Problem]:
    found = (_packing_problem(layer, parts, names) for layer, parts in names.parts.items())
    return [Problem("packing", text) for text in found if text is not None]


def _packing_problem(layer: str, parts: Mapping[str, str], names: Naming) -> str | None:
    """What is wrong with a quantized layer whatever its width is."""
    stored = parts.get("weight", layer).removesuffix(".weight")
    return packing_problem(stored, {part: names.tensor(name) for part, name in parts.items()})


def _entries(names: Naming, expected: Shapes | None, problems: list[Problem], notes: list[str]) -> dict[str, Entry]:
    entries = {}
    for canonical, name in names.plain.items():
        tensor = names.tensor(name)
        if tensor.dtype not in FLOATS:
            text = f"{shown(name)} is {tensor.dtype}, expected {', '.join(FLOATS)}"
            problems.append(Problem("dtype", text))
        elif expected is None or canonical in expected:
            wanted = None if expected is None else expected[canonical]
            shape, axes = canonical_shape(canonical, tensor.shape, names.style, wanted)
            entries[canonical] = Entry(tensor.shard, name, tensor.dtype, tensor.shape, shape, axes)
    chosen: list[tuple[str, Reading, tuple[Reading, ...]]] = []
    for layer, parts in names.parts.items():
        entry, text = _packed(layer, parts, names, expected, chosen)
        if text is not None:
            problems.append(Problem("packing", text))
        elif entry is not None:
            entries[f"{layer}.weight"] = entry
    notes += _ambiguities(chosen)
    if expected is None:
        return entries
    return {name: entries[name] for name in expected if name in entries}


def _packed(
    layer: str, parts: Mapping[str, str], names: Naming, expected: Shapes | None,
    chosen: list[tuple[str, Reading, tuple[Reading, ...]]],
) -> tuple[Entry | None, str | None]:  # fmt: skip
    """The entry of a quantized layer, or what is wrong with it; neither for one that the model does not have."""
    problem = _packing_problem(layer, parts, names)
    if problem is not None:
        return None, problem
    weight, scales, biases = (names.tensor(parts[part]) for part in ("weight", "scales", "biases"))
    true = None if expected is None else expected.get(f"{layer}.weight")
    if expected is not None and true is None:
        return None, None
    possible = readings(weight.shape[-1], scales.shape[-1])
    if true is None:
        if len(possible) != 1:
            return None, f"{shown(layer)} may be packed in {len(possible)} ways, and no config.json tells its width"
        true = (*weight.shape[:-1], possible[0].width)
    reading = choose(parts["weight"], weight, scales, true[-1])
    if isinstance(reading, str):
        return None, reading
    chosen.append((layer, reading, possible))
    places = (Place(scales.shard, parts["scales"]), Place(biases.shard, parts["biases"]))
    packing = Packing(reading.bits, reading.group_size, *places)
    shape = (*weight.shape[:-1], reading.width)
    return Entry(weight.shard, parts["weight"], "U32", weight.shape, shape, packing=packing), None


def _ambiguities(chosen: list[tuple[str, Reading, tuple[Reading, ...]]]) -> list[str]:
    """One sentence for each way in which shapes alone left a choice."""
    cases = Counter(
        (one.bits, one.group_size, tuple((r.bits, r.group_size) for r in possible if r != one))
        for _, one, possible in chosen
        if len(possible) > 1
    )
    notes = []
    for (bits, group, others), count in cases.items():
        layer, one = next((layer, one) for layer, one, _ in chosen if one[:2] == (bits, group))
        alternatives = " or ".join(f"{b} bits in groups of {g}" for b, g in others)
        notes.append(
            f"{count} layers are read as {bits} bits in groups of {group}: their shapes also fit {alternatives}, "
            f"the input width decides ({one.width} of {shown(layer)})"
        )
    return notes


def _compare(
    entries: dict[str, Entry], names: Naming, expected: Shapes | None, files: Files,
    problems: list[Problem], notes: list[str],
) -> list[str]:  # fmt: skip
    """Add what is extra and wrongly shaped to the problems; gives the missing ones, which it adds as well."""
    if expected is None or (not files.shards and files.unread):
        return []
    held = names.plain.keys() | {f"{layer}.weight" for layer in names.parts}
    missing = [name for name in expected if name not in held and name not in names.absent]
    left_out = [name for name in missing if names.style != rules.DIFFUSERS and is_optional(name)]
    if left_out:
        notes.append(f"{len(left_out)} tensors that prompts do not need are left out, the first is {left_out[0]}")
    problems += [Problem("missing", f"{name} {list(expected[name])}") for name in missing if name not in left_out]
    for name in names.extra(expected):
        tensor = names.tensor(name)
        problems.append(Problem("extra", f"{shown(name)} {list(tensor.shape)} in {shown(tensor.shard)}"))
    for name, shape in expected.items():
        entry = entries.get(name)
        if entry is not None and entry.true_shape != shape:
            problems.append(
                Problem("shape", f"{shown(entry.name)} is {list(entry.true_shape)}, expected {list(shape)}")
            )
    return missing
