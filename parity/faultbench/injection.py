"""What a planted fault is: edits of the port's source, where they act, and where they should show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

# What encloses the expression of a `swap`, inside the text around it.
OPEN, CLOSE = "‹", "›"
STREAMS = ("img", "txt")


class EditError(ValueError):
    """The text that an edit replaces is not in the file exactly once, or two edits overlap."""


@dataclass(frozen=True)
class Edit:
    """One change of a file.

    Attributes:
        file: in the package, ``layers.py``.
        before, old, after: text of the file, found exactly once; `old` is what is replaced.
        new: what stands there instead. ``site.at()`` in it says whether this is a place where the fault acts.
        guarded: `old` and `new` are expressions, and `old` stays where the fault does not act.
    """

    file: str
    old: str
    new: str
    before: str = ""
    after: str = ""
    guarded: bool = False

    def span(self, text: str) -> tuple[int, int]:
        """Where `old` stands in a file's text.

        Raises:
            EditError: it is not there, or more than once.
        """
        whole = self.before + self.old + self.after
        if (count := text.count(whole)) != 1:
            raise EditError(f"{self.file}: {count} times in the file, expected once: {whole!r}")
        start = text.index(whole) + len(self.before)
        return start, start + len(self.old)


def swap(file: str, marked: str, new: str) -> Edit:
    """Another expression in the place of one, where the fault acts.

    Args:
        marked: text of the file with the expression between ``‹`` and ``›``.
        new: the faulty expression.
    """
    before, _, rest = marked.partition(OPEN)
    old, _, after = rest.partition(CLOSE)
    return Edit(file, old, new, before, after, guarded=True)


def put(file: str, old: str, new: str) -> Edit:
    """Other text in the place of some, which asks ``site.at()`` itself, or acts everywhere."""
    return Edit(file, old, new)


@dataclass(frozen=True)
class Site:
    """Where a fault acts.

    Attributes:
        blocks: numbers of blocks or layers; None is everywhere, also outside of blocks.
        streams: ``img``, ``txt``; None is both, and where there are none.
    """

    blocks: tuple[int, ...] | None = None
    streams: tuple[str, ...] | None = None

    def describe(self, layers: int) -> str:
        """``block 3, img``."""
        if self.blocks is None:
            blocks = "everywhere"
        elif len(self.blocks) == 1:
            blocks = f"block {self.blocks[0]} of {layers}"
        else:
            blocks = f"{len(self.blocks)} of {layers} blocks"
        return f"{blocks}, {self.streams[0]}" if self.streams else blocks


@dataclass(frozen=True)
class Injection:
    """A fault of the port.

    Attributes:
        code: of the catalogue; ``unlisted.…`` of one that is in none; None of an implementation that is right.
        variant: which form of it, unique within the code.
        edits: what makes the fault.
        shows: checkpoints that are wrong by themselves, ``block.{b}.{s}.modulated``: {b} is each block and {s} each
            stream where the fault acts. The first one is where a run sees it first.
        cases: keys of `parity.faultbench.cases.CASES` that show it.
        dtypes: that it can be seen in.
        streams: it can be planted in one of these alone; with one of them, it is of that stream. Empty where a
            fault is of both or of none.
        also: other codes that are as right: the same change by another name.
        follows: among those it shows at, the ones whose wrongness follows from others of them, though no checkpoint
            is their parent: a mask is of the length of the ids. They may be called sources, and need not.
        outside: checkpoints outside of blocks that are wrong too where the fault acts everywhere.
        helpers: code of functions that the new text calls as ``site.…``.
        only: sites in blocks it can be planted at: "any", or "all" where it acts in all of them.
    """

    code: str | None
    variant: str
    edits: tuple[Edit, ...]
    shows: tuple[str, ...] = ()
    cases: tuple[str, ...] = ("square", "landscape", "batch")
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    streams: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    helpers: str = ""
    only: str = "any"

    @property
    def name(self) -> str:
        """``modulation.order:swapped``, unique."""
        return f"{self.code or 'clean'}:{self.variant}"

    @property
    def in_blocks(self) -> bool:
        """Whether it can be planted in some blocks only."""
        return self.only == "any" and any("{b}" in one for one in self.shows)

    def expected(self, site: Site, layers: int) -> tuple[str, ...]:
        """The checkpoints that should be wrong by themselves, block by block.

        Args:
            site: where it was planted.
            layers: blocks (or layers, or steps) of the model.
        """
        blocks = range(layers) if site.blocks is None else site.blocks
        streams = site.streams or self.streams or STREAMS
        inside = [one for one in self.shows if "{b}" in one]
        found = [one for one in self.shows if "{b}" not in one]
        found += self.outside if site.blocks is None else ()
        for block in blocks:
            for pattern in inside:
                found += [pattern.format(b=f"{block:02d}", s=s) for s in (streams if "{s}" in pattern else ("",))]
        return tuple(dict.fromkeys(found))


def apply(sources: Mapping[str, str], planted: Sequence[tuple[Injection, Site]]) -> dict[str, str]:
    """Sources with faults in them.

    Args:
        sources: file -> text.
        planted: faults and where they act; their order is the number that ``site.at`` is given.

    Returns:
        the files that are changed, and ``site.py``.

    Raises:
        EditError: a text to be replaced is not there exactly once, or two edits overlap.
    """
    spans: dict[str, dict[tuple[int, int], list[tuple[int, Edit]]]] = {}
    for number, (injection, _) in enumerate(planted):
        for edit in injection.edits:
            span = edit.span(sources[edit.file])
            spans.setdefault(edit.file, {}).setdefault(span, []).append((number, edit))
    changed = {file: _changed(file, sources[file], of_file) for file, of_file in spans.items()}
    helpers = dict.fromkeys(injection.helpers for injection, _ in planted if injection.helpers)
    sites = [(site.blocks, site.streams) for _, site in planted]
    return changed | {"site.py": _SITE.format(sites=sites) + "".join(f"\n\n{one.strip()}\n" for one in helpers)}


def _changed(file: str, text: str, spans: Mapping[tuple[int, int], Sequence[tuple[int, Edit]]]) -> str:
    ordered = sorted(spans.items())
    for ((_, end), _), ((start, _), others) in pairwise(ordered):
        if start < end:
            raise EditError(f"{file}: two edits overlap at {others[0][1].old!r}")
    for (start, end), edits in reversed(ordered):
        written = text[start:end]
        for number, edit in edits:
            new = edit.new.replace("site.at(", f"site.at({number}, ").replace("site.loads(", f"site.loads({number}, ")
            if edit.guarded:
                written = f"(({new}) if site.at({number}) else ({written}))"
            elif len(edits) > 1:
                raise EditError(f"{file}: two edits of {edit.old!r}")
            else:
                written = new
        text = text[:start] + written + text[end:]
    # The files begin with the future import, and site imports nothing of the package.
    anchor, dots = "from __future__ import annotations\n", "." * (file.count("/") + 1)
    if text.count(anchor) != 1:
        raise EditError(f"{file}: no place for an import")
    return text.replace(anchor, f"{anchor}\nfrom {dots} import site\n")


_SITE = '''"""Where the faults of this copy act."""

import re

import mlx.core as mx
import numpy as np

from parity.tap import current

# (blocks, streams) of each fault; None is all of them.
SITES = {sites}


def at(number, stream=None):
    blocks, streams = SITES[number]
    found = re.search(r"(?:block|layer)\\.(\\d+)\\.(img|txt)?", current())
    stream = stream or (found[2] if found else None)
    here = blocks is None or (found is not None and int(found[1]) in blocks)
    return here and (streams is None or stream is None or stream in streams)


def loads(number, prefix, stream=None):
    blocks, streams = SITES[number]
    found = re.search(r"(?:transformer_blocks|layers)\\.(\\d+)", prefix)
    return found is not None and (blocks is None or int(found[1]) in blocks) and (
        streams is None or stream is None or stream in streams
    )
'''
