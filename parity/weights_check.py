"""``parity weights check``: what a checkpoint holds, and everything that is wrong with it.

Headers first: names, shapes, index, packing. Then the values are streamed once, for what is not finite or nothing but
zeros, and for hashes.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from parity import checkpoint as checkpoints
from parity.errors import WeightsError
from parity.layouts import Entry, Located
from parity.layouts.entries import Problem
from parity.layouts.folder import Files, components_of
from parity.layouts.packing import packed_shape
from parity.layouts.survey import Survey, survey
from parity.safetensors_header import shown

COMPONENTS = ("transformer", "text_encoder", "vae")
# The guide's table of packed shapes, for 4 bits in groups of 64: its name, the canonical weight (of every block where
# it has an N), rows as a multiple of the width D, and columns before packing (None: D).
_TIME = "time_text_embed.timestep_embedder.linear_1.weight"
_GUIDE = (
    ("time_text_embed.linear_1.weight", _TIME, 1, 256),
    ("time_text_embed.linear_1.scales", _TIME, 1, 256),
    ("time_text_embed.linear_1.biases", _TIME, 1, 256),
    ("transformer_blocks.N.img_mod_linear.weight", "transformer_blocks.N.img_mod.1.weight", 6, None),
    ("norm_out.linear.weight", "norm_out.linear.weight", 2, None),
)
_GUIDE_BITS, _GUIDE_GROUP = 4, 64


@dataclass(frozen=True)
class PackedGroup:
    """Layers that are packed alike; `bits` is None for matrices that are not packed."""

    bits: int | None
    group_size: int | None
    layers: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class GuideRow:
    """A row of the guide's table at this model's sizes.

    Attributes:
        name: as the guide has it.
        expected: shape at 4 bits in groups of 64.
        found: the shape that is there, as text.
        verdict: ``ok``, ``other`` (sound, but packed otherwise or not at all) or ``wrong``.
    """

    name: str
    expected: tuple[int, ...]
    found: str
    verdict: str


@dataclass
class ComponentReport:
    """What is known of a component; counts are of stored tensors, parameters of unpacked ones."""

    component: str
    path: str
    layout: str = "unknown"
    files: int = 0
    file_bytes: int = 0
    tensors: int = 0
    tensor_bytes: int = 0
    parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    packed: list[PackedGroup] = field(default_factory=list)
    guide: list[GuideRow] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    values_checked: bool = False
    fingerprint: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        problems = [problem._asdict() for problem in self.problems]
        return asdict(self) | {"problems": problems, "verdict": "wrong" if problems else "ok"}


def find(path: Path, components: Iterable[str] = ()) -> list[tuple[str, Survey]]:
    """Read the headers of every component.

    Args:
        path: a model's folder, a component's, or a single file.
        components: which; all that are there where none is named.

    Returns:
        (component, headers); of one of several that cannot be read at all, the reason as its problem.

    Raises:
        WeightsError: there are no weights, or one that was named is not there.
    """
    wanted = tuple(components)
    unknown = [name for name in wanted if name not in COMPONENTS]
    if unknown:
        raise WeightsError(f"no component {shown(unknown[0])}; known: {', '.join(COMPONENTS)}")
    there = components_of(path)
    if wanted or len(there) == 1:
        return [(name, survey(path, name)) for name in wanted or there]
    return [(name, _survey_of_several(path, name)) for name in there]


def _survey_of_several(path: Path, component: str) -> Survey:
    """A component of a model; where it cannot be read, the others are still to be looked at."""
    try:
        return survey(path, component)
    except WeightsError as error:
        problems = [Problem("file", text) for text in error.details or [error.message]]
        return Survey(Files(path / component), None, problems, [])


def check(
    component: str, found: Survey, values: bool = True, hashes: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ComponentReport:  # fmt: skip
    """Everything about one component.

    Args:
        component: its name.
        found: its headers.
        values: stream the values for what is not finite or nothing but zeros.
        hashes: SHA-256 of every file, in the same pass.
        progress: called with bytes, as they are read.

    Raises:
        WeightsError: a file changed while it was read.
    """
    files, located = found.files, found.located
    report = ComponentReport(component, str(files.single or files.folder))
    report.files, report.file_bytes = len(files.shards), sum(shard.size for shard in files.shards)
    report.tensors = len(files.tensors)
    report.tensor_bytes = sum(tensor.stop - tensor.start for tensor in files.tensors.values())
    report.dtypes = dict(Counter(tensor.dtype for tensor in files.tensors.values()).most_common())
    report.problems, report.warnings = list(found.problems), list(found.warnings)
    if located is not None:
        report.layout, report.notes = located.layout, list(located.notes)
        report.parameters = sum(math.prod(entry.true_shape) for entry in located.entries.values())
        report.packed = packed_groups(located)
        report.guide = guide_rows(located) if component == "transformer" else []
        report.fingerprint = checkpoints.fingerprint_of(located.folder, files.shards, located.config)
    if values or hashes:
        _read_values(report, found, values, hashes, progress)
    return report


def layer_class(name: str) -> str:
    """What kind of layer a canonical name is of: ``img_mod``, ``attn``, ``norm_out`` … of a transformer, else the part
    before the last.
    """
    parts = name.split(".")
    if parts[0] == "transformer_blocks" and len(parts) > 3:
        return parts[2]
    return parts[0] if parts[0] in ("img_in", "txt_in", "time_text_embed", "norm_out", "proj_out") else parts[-2]


def packed_groups(located: Located) -> list[PackedGroup]:
    """Layers by how they are packed, the most first; empty where none is."""
    kinds: dict[tuple[int | None, int | None], list[str]] = {}
    for name, entry in located.entries.items():
        if entry.packing is not None:
            kinds.setdefault((entry.packing.bits, entry.packing.group_size), []).append(name)
        elif name.endswith(".weight") and len(entry.true_shape) == 2:
            kinds.setdefault((None, None), []).append(name)
    if kinds.keys() <= {(None, None)}:
        return []
    groups = [PackedGroup(*kind, len(names), _classes(names)) for kind, names in kinds.items()]
    return sorted(groups, key=lambda group: (group.bits is None, -group.layers))


def _classes(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(layer_class, names)))


def guide_rows(located: Located) -> list[GuideRow]:
    """The guide's table of packed shapes, at a transformer's width; empty where no layer is packed."""
    if not any(entry.packing for entry in located.entries.values()):
        return []
    width = located.config["num_attention_heads"] * located.config["attention_head_dim"]
    rows = []
    for title, name, high, into in _GUIDE:
        blocks = range(located.config["num_layers"]) if ".N." in name else [0]
        entries = [located.entries.get(name.replace(".N.", f".{block}.")) for block in blocks]
        words, scales = packed_shape((high * width, into or width), _GUIDE_BITS, _GUIDE_GROUP)
        of_words = title.endswith("weight")
        rows.append(_judged(title, words if of_words else scales, entries, of_words))
    return rows


def _shape(entry: Entry, of_words: bool) -> tuple[int, ...]:
    if of_words or entry.packing is None:
        return entry.shape
    return packed_shape(entry.true_shape, entry.packing.bits, entry.packing.group_size)[1]


def _judged(title: str, expected: tuple[int, ...], entries: list[Entry | None], of_words: bool) -> GuideRow:
    there = [entry for entry in entries if entry is not None]
    if len(there) < len(entries):
        found = "missing" if not there else f"{len(entries) - len(there)} of {len(entries)} missing"
        return GuideRow(title, expected, found, "wrong")
    kinds = Counter(
        (_shape(one, of_words), f"{one.packing.bits}-bit group {one.packing.group_size}" if one.packing else one.dtype)
        for one in there
    )
    said = [f"{list(shape)} {how}" + (f" × {count}" if len(kinds) > 1 else "") for (shape, how), count in kinds.items()]
    same = all(one.packing for one in there) and {shape for shape, _ in kinds} == {expected}
    return GuideRow(title, expected, ", ".join(said), "ok" if same else "other")


def _read_values(
    report: ComponentReport, found: Survey, values: bool, hashes: bool, progress: Callable[[int], None] | None
) -> None:
    files = found.files
    digests = {shard.name: hashlib.sha256() for shard in files.shards} if hashes else None
    if values:
        matrices = _matrices(found.located)
        for one in checkpoints.scan(files.folder, files.shards, progress, digests):
            if one.non_finite:
                report.problems.append(Problem("non-finite", one.non_finite))
            elif one.zero:
                _add_zero(report, one.name, matrices)
    else:
        for shard in files.shards:
            checkpoints.hash_file(files.folder, shard, digests[shard.name], progress)
    report.values_checked = values
    report.sha256 = {name: digest.hexdigest() for name, digest in (digests or {}).items()}


def _matrices(located: Located | None) -> dict[str, str]:
    """Stored names of what must not be zero all over, and what its values are called."""
    if located is None:
        return {}
    entries = located.entries.values()
    return {entry.name: "codes" if entry.packing else "values" for entry in entries if len(entry.shape) >= 2} | {
        entry.packing.scales.name: "scales" for entry in entries if entry.packing
    }


def _add_zero(report: ComponentReport, name: str, matrices: Mapping[str, str]) -> None:
    """Zeros in a vector are legal; a matrix of zeros is what a hole in a file looks like."""
    text = f"{shown(name)}: all {matrices.get(name, 'values')} are zero"
    if name in matrices:
        report.problems.append(Problem("zero", text))
    else:
        report.warnings.append(text)
