"""An entry's rows arranged as they are drawn: by what repeats, by stream and kind, by index.

A *section* is what shares one axis: the blocks of the transformer, the layers of the text encoder,
the steps of a pipeline, the blocks of the transformer inside one step. Rows that do not repeat
stand before and after the repetitions. An entry in which nothing repeats (a VAE) is one section
without an axis.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parity.errors import UsageError
from parity.names import Parts, parse
from parity.plotstyle import cut, excess_of

Entry = Mapping[str, Any]
Row = Mapping[str, Any]
Kind = tuple[str, str]

COMPONENTS = {
    "transformer": "transformer", "text": "text encoder", "vision": "vision tower", "vae": "VAE",
    "scheduler": "scheduler", "pipeline": "pipeline",
}  # fmt: skip
STREAMS = {
    "img": "image stream", "txt": "text stream", "text": "text encoder", "vision": "vision tower", "step": "steps",
    "sched": "scheduler",
}  # fmt: skip
# What of a stream has the colours of the image side and of the text side; the others have a third one.
ROLES = {"img": "img", "vision": "img", "txt": "txt", "text": "txt"}
# More rows than this that do not repeat are drawn by themselves, not beside the repetitions.
FEW = 16
# More rows than this that do not repeat are drawn part by part: an encoder, then a decoder.
MANY = 76
OUTSIDE = "outside"

_INDEX = re.compile(r"(?<![^.])(block|layer|step)\.(\d{2,})(?=\.)")
# Of the transformer inside a step, what is made outside of its blocks.
_STEPS = "step"
_INSIDE = re.compile(r"(step\.\d{2,}\.[a-z0-9_]+)\.(.+)")


@dataclass
class Section:
    """What is drawn over one axis.

    Attributes:
        key: unique within an entry: ``step``, ``text``; ``step.03.cond`` of what lies inside a step; empty
            for the transformer's blocks, and where nothing repeats.
        unit: ``block``, ``layer`` or ``step``; empty where nothing repeats.
        grid: (stream, kind) -> index -> row, streams together, in the order in which they are made.
        before, after: rows that do not repeat, around the repetitions.
    """

    key: str
    unit: str = ""
    grid: dict[Kind, dict[int, Row]] = field(default_factory=dict)
    before: list[Row] = field(default_factory=list)
    after: list[Row] = field(default_factory=list)

    @property
    def inner(self) -> bool:
        """Whether it lies inside one step of another section."""
        return bool(_INSIDE.match(f"{self.key}.x"))

    @property
    def others(self) -> list[Row]:
        """Rows that do not repeat, in order."""
        return self.before + self.after

    @property
    def streams(self) -> list[str]:
        """Streams in order."""
        return list(dict.fromkeys(stream for stream, _ in self.grid))

    @property
    def kinds(self) -> list[str]:
        """Kinds of all streams in order."""
        return list(dict.fromkeys(kind for _, kind in self.grid))

    @property
    def span(self) -> range:
        """First to last index."""
        indices = [index for rows in self.grid.values() for index in rows]
        return range(min(indices), max(indices) + 1) if indices else range(0)

    @property
    def rows(self) -> list[Row]:
        """All its rows: before, repeated, after."""
        return [*self.before, *(row for rows in self.grid.values() for row in rows.values()), *self.after]

    @property
    def title(self) -> str:
        """What it is, in words: ``blocks``, ``steps``, ``inside step 03, cond``, ``what does not repeat``."""
        if self.inner:
            _, index, branch = self.key.split(".")
            return f"inside step {index}, {branch}"
        return f"{self.unit}s" if self.unit else "what does not repeat" if self.key == OUTSIDE else self.key

    def local(self, name: str) -> str:
        """A name without the step that the section lies in."""
        return name.removeprefix(f"{self.key}.") if self.inner else name


def unit_of(name: str) -> str:
    """What the last index of a name counts: ``block``, ``layer``, ``step``; empty where it has none."""
    found = _INDEX.findall(name)
    return found[-1][0] if found and parse(name).block is not None else ""


def place_of(name: str) -> tuple[str, str]:
    """Section and stream of a row: (``step.03.cond``, ``img``); ("", "") for what does not repeat."""
    return _place_of(parse(name))


def _place_of(parts: Parts) -> tuple[str, str]:
    if parts.block is None:
        return "", ""
    head, _, stream = parts.stream.rpartition(".")
    return (head or ("" if stream in ("img", "txt") else stream)), stream


def role_of(stream: str) -> str:
    """``img``, ``txt`` or ``step``: the colour of a stream."""
    return ROLES.get(stream, "step")


def stream_title(stream: str) -> str:
    """A stream in words."""
    return STREAMS.get(stream, stream)


def component_title(entry: Entry) -> str:
    """The component that an entry is about, in words."""
    component = entry.get("component", "transformer")
    return COMPONENTS.get(component, component)


def group_of(name: str) -> tuple[str, dict[str, int]]:
    """A name with its indices taken out, ``block.NN.img.attn``, and the indices by what they count."""
    if parse(name).block is None:
        return name, {}
    return _INDEX.sub(r"\1.NN", name), {unit: int(index) for unit, index in _INDEX.findall(name)}


def spans(numbers: Iterable[int]) -> str:
    """Numbers in short: ``0–6, 9``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def is_exact(row: Row) -> bool:
    """Whether a checkpoint must equal the reference's bit for bit."""
    return row.get("floor_by") == "exact"


def estimated(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What figures that were not measured on whole values are worth; nothing where there are none."""
    said = []
    widths = [row["uncertainty"] for row in rows if row.get("uncertainty")]
    if widths:
        said.append(f"estimated from sketches at {len(widths):,} checkpoints: ±{max(widths):.1%} (95 % of them)")
    for evidence, what in (("statistics", "statistics"), ("range", "ranges")):
        if known := sum(row.get("evidence") == evidence for row in rows):
            said.append(f"known by its {what} alone at {known:,} checkpoints: divergence can be shown, parity can't")
    return said


def of_cases(run: Mapping[str, Any], names: Collection[str], who: str = "the run") -> Mapping[str, Any]:
    """The run with the entries of some cases only; all of them where `names` is empty. `who` is it in messages.

    Raises:
        UsageError: the run has no case of that name.
    """
    known = list(dict.fromkeys(entry["name"] for entry in run["cases"]))
    for name in names:
        if name not in known:
            has = ", ".join(cut(one, 40) for one in known[:8]) + " …" * (len(known) > 8)
            raise UsageError(f"--case {cut(name, 80)}: {who} has no such case; it has {has or 'none at all'}")
    return {**run, "cases": [entry for entry in run["cases"] if entry["name"] in names]} if names else run


def sections(entry: Entry) -> list[Section]:
    """The sections of an entry in order, at least one.

    Rows that do not repeat belong to the last section that is not inside a step.
    """
    parsed = [parse(row["name"]) for row in entry["checkpoints"]]
    places = [_place_of(parts) for parts in parsed]
    found = {key: Section(key) for key, stream in places if stream}
    main = next((section for section in reversed(found.values()) if not section.inner), None)
    if main is None:
        return [Section("", before=list(entry["checkpoints"]))]
    last = {}
    for row, parts, (key, stream) in zip(entry["checkpoints"], parsed, places, strict=True):
        inside = _INSIDE.fullmatch(row["name"]) if not stream or key == _STEPS else None
        if inside and inside[1] in found and key != inside[1]:
            _beside(found[inside[1]], row)
        elif not stream:
            _beside(main, row)
        else:
            last[key] = row["name"]
            found[key].grid.setdefault((stream, parts.kind), {})[parts.block] = row
    for key, name in last.items():
        found[key].unit = unit_of(name)
    for section in found.values():
        section.grid = _by_stream(section.grid)
    return list(found.values())


def _beside(section: Section, row: Row) -> None:
    (section.after if section.grid else section.before).append(row)


def _by_stream(grid: Mapping[Kind, dict[int, Row]]) -> dict[Kind, dict[int, Row]]:
    """Stream by stream, the transformer's text stream last, kinds as they are made."""
    streams = list(dict.fromkeys(stream for stream, _ in sorted(grid, key=lambda kind: kind[0] == "txt")))
    return {kind: grid[kind] for kind in sorted(grid, key=lambda kind: streams.index(kind[0]))}


def main_of(parts: Sequence[Section]) -> Section:
    """The section that an entry is about: the last one that is not inside a step."""
    return next((section for section in reversed(parts) if not section.inner), parts[-1])


def drawn(entry: Entry) -> list[tuple[str, Section]]:
    """The sections worth figures of their own, and what their files are called behind the entry's name.

    Of the passes inside steps, the one with the largest excess; many rows that do not repeat are split
    off as a section without an axis, ``outside``.
    """
    parts = sections(entry)
    main, inner = main_of(parts), [section for section in parts if section.inner]
    worst = max(inner, key=_worst, default=None)
    found = []
    for section in parts:
        if section is main and section.grid and len(section.others) > FEW:
            found.append(("", Section(section.key, section.unit, section.grid)))
            found.append((OUTSIDE, Section(OUTSIDE, before=section.others)))
        elif not section.grid and len(section.others) > MANY:
            found += [(part.key, part) for part in _parts_of(section)]
        elif not section.inner or section is worst:
            found.append(("" if section is main else section.key.replace(".", "-"), section))
    return found


def heading(entry: Entry, section: Section, *, mode: bool = True) -> list[str]:
    """What a figure shows, in words: component, case, dtype, mode, and which part of the entry."""
    part = section.title if section.inner or not section.grid else ""
    return [component_title(entry), entry["name"], entry["dtype"], *([entry["mode"]] if mode else []), part]


def local_names(rows: Sequence[Row], section: Section) -> list[str]:
    """Names of rows without the words that all of them begin with."""
    split = [section.local(row["name"]).split(".") for row in rows]
    while len(split) > 1 and min(map(len, split)) > 1 and len({words[0] for words in split}) == 1:
        split = [words[1:] for words in split]
    return [".".join(words) for words in split]


def _parts_of(section: Section) -> list[Section]:
    """Rows that do not repeat by the first word in which their names differ; all of them where that makes many."""
    parts: dict[str, list[Row]] = {}
    for row, name in zip(section.others, local_names(section.others, section), strict=True):
        parts.setdefault(name.partition(".")[0], []).append(row)
    if not 1 < len(parts) < 5:
        return [section]
    return [Section(key, before=rows) for key, rows in parts.items()]


def left_out(entry: Entry, section: Section) -> str:
    """What a figure of `section` does not show of its entry, in words; empty where it shows all."""
    inner = [one for one in sections(entry) if one.inner]
    if section.inner and len(inner) > 1:
        return f"Of {len(inner)} passes inside steps, the one with the largest excess. The page has all of them."
    if not section.inner and inner and section.grid:
        return f"Without the {len(inner)} passes inside steps, which have figures of their own."
    return ""


def _worst(section: Section) -> float:
    return max((value for row in section.rows if (value := excess_of(row)) is not None), default=-math.inf)
