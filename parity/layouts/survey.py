"""One component's files surveyed: layout, configuration, where each tensor is, and everything that is wrong.

`locate` is for readers, which need sound entries; `survey` is for checks, which list what is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from parity.errors import WeightsError
from parity.layouts import rules
from parity.layouts.entries import Entry, Located, Packing, Place, Problem
from parity.layouts.folder import CONFIG, Files, check_inside, read_files
from parity.layouts.infer import infer_transformer
from parity.layouts.packing import Reading, choose, packing_problem, readings
from parity.safetensors_header import HEADER_LIMIT, Tensor, and_more, json_object, shown
from parity.transformer_shape import TransformerShape, expected_tensors

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
        names = _Names(files, component)
    except WeightsError as error:
        result.problems.append(Problem("config", error.message))
        return result
    result.problems += names.problems
    notes = list(names.notes)
    try:
        config, more = _config(path, files, names, component)
    except WeightsError as error:
        result.problems += [Problem("config", text) for text in error.details or [error.message]]
        return result
    notes += more
    expected = _expected(config, component)
    entries = _entries(names, expected, result.problems, notes)
    missing = _compare(entries, names, expected, files, result.problems)
    result.located = Located(
        files.folder, names.layout, config, entries, tuple(names.extra(expected)), tuple(notes), tuple(missing),
        tuple(files.shards),
    )  # fmt: skip
    return result


@dataclass
class _Names:
    """Stored names sorted: `plain` canonical name -> stored name, `parts` packed layer -> part -> stored name."""

    files: Files
    component: str
    layout: str = ""
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
        others = [name for name in tensors if not name.startswith(prefix)]
        self._sort_out(stored, others, prefix)
        style = rules.detect(stored, self.component)
        self.layout = rules.SINGLE if prefix or self.files.single else style
        groups = rules.rules_of(style, self.component, _residuals(stored))
        for bare, name in stored.items():
            self._add(rules.to_canonical(bare, groups), name)
        self.absent = {rules.to_canonical(name.removeprefix(prefix), groups) for name in self.files.absent}
        for layer, parts in self.parts.items():
            weight = self.plain.pop(f"{layer}.weight", None)
            if weight is not None:
                parts["weight"] = weight
        self._note_level()

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
            place: dict[str, str] = self.parts.setdefault(layer, {})
            key = leaf
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
            count = f"{len(self.parts)} layers are packed"
            self.notes.append(f"the files' metadata say quantization_level {said}; {count}")

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


def _residuals(names: Mapping[str, str]) -> int:
    """Residual blocks in a stage of an MLX port's VAE encoder, 2 where names do not tell."""
    found = (name.split(".") for name in names if name.startswith("encoder.down_blocks.0.resnets."))
    return 1 + max((int(parts[4]) for parts in found if parts[4].isdecimal() and len(parts[4]) < 3), default=1)


def _config(path: Path, files: Files, names: _Names, component: str) -> tuple[dict[str, Any], list[str]]:
    file = files.folder / CONFIG
    if file.is_file():
        if files.single is None:
            check_inside(file, path)
        return read_config_file(file, component), []
    if component != "transformer" or names.layout == rules.DIFFUSERS:
        raise WeightsError(f"{file}: there is no such file; copy it from the model's repository")
    if files.unread:
        raise WeightsError(f"{file}: there is no such file, and not all weights can be read to do without")
    found = {canonical: names.tensor(name) for canonical, name in names.plain.items()}
    scales = {}
    for layer, parts in names.parts.items():
        if packing_problem(layer, {part: names.tensor(name) for part, name in parts.items()}) is None:
            found[f"{layer}.weight"], scales[layer] = names.tensor(parts["weight"]), names.tensor(parts["scales"])
    config, notes = infer_transformer(found, scales, names.marked)
    return completed(config), notes


def read_config_file(file: Path, component: str) -> dict[str, Any]:
    """Read a component's ``config.json``; the transformer's is checked and completed.

    Raises:
        WeightsError: unreadable, or not a configuration of this model.
    """
    try:
        if file.stat().st_size > HEADER_LIMIT:
            raise ValueError(f"{file.stat().st_size} bytes, against a limit of {HEADER_LIMIT}")
        raw = json_object(file.read_bytes())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file}: {error}") from None
    return completed(raw) if component == "transformer" else raw


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """All keys of `TransformerShape`, in JSON's types.

    Raises:
        WeightsError: keys that are unknown, or wrong values.
    """
    shape = TransformerShape.of(config)
    return asdict(shape) | {"axes_dims_rope": list(shape.axes_dims_rope)}


def _expected(config: Mapping[str, Any], component: str) -> dict[str, tuple[int, ...]] | None:
    """Canonical names and shapes; None where the configuration is of no model that is known here."""
    return expected_tensors(config) if component == "transformer" else None


def _entries(
    names: _Names, expected: Mapping[str, tuple[int, ...]] | None, problems: list[Problem], notes: list[str]
) -> dict[str, Entry]:
    entries = {}
    for canonical, name in names.plain.items():
        tensor = names.tensor(name)
        if tensor.dtype not in FLOATS:
            text = f"{shown(name)} is {tensor.dtype}, expected {', '.join(FLOATS)}"
            problems.append(Problem("dtype", text))
        elif expected is None or canonical in expected:
            entries[canonical] = Entry(tensor.shard, name, tensor.dtype, tensor.shape, tensor.shape)
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
    layer: str, parts: Mapping[str, str], names: _Names, expected: Mapping[str, tuple[int, ...]] | None,
    chosen: list[tuple[str, Reading, tuple[Reading, ...]]],
) -> tuple[Entry | None, str | None]:  # fmt: skip
    """The entry of a quantized layer, or what is wrong with it; neither for one that the model does not have."""
    tensors = {part: names.tensor(name) for part, name in parts.items()}
    problem = packing_problem(parts.get("weight", layer).removesuffix(".weight"), tensors)
    if problem is not None:
        return None, problem
    weight, scales, biases = tensors["weight"], tensors["scales"], tensors["biases"]
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
    entries: dict[str, Entry], names: _Names, expected: Mapping[str, tuple[int, ...]] | None, files: Files,
    problems: list[Problem],
) -> list[str]:  # fmt: skip
    """Add what is extra and wrongly shaped to the problems; gives the missing ones, which it adds as well."""
    if expected is None or (not files.shards and files.unread):
        return []
    held = names.plain.keys() | {f"{layer}.weight" for layer in names.parts}
    missing = [name for name in expected if name not in held and name not in names.absent]
    problems += [Problem("missing", f"{name} {list(expected[name])}") for name in missing]
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
