"""What plots and report share: colours, the excess scale, numbers and names as text, rows by block.

The colours are Okabe and Ito's, which stay apart for colour-blind readers. The excess scale has
steps, three below the verdict `match`, two for `suspect`, four above, so that a verdict can be
read off a cell without a look at the colour bar: blue, amber, red to brown. Needs no matplotlib.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parity.names import BLOCK_KINDS, STREAMS, parse

Entry = Mapping[str, Any]
Row = Mapping[str, Any]

MATCH, SUSPECT = 3.0, 10.0


@dataclass(frozen=True)
class Theme:
    """Colours of one set of plots."""

    page: str
    panel: str
    ink: str
    muted: str
    grid: str
    img: str
    txt: str
    reference: str
    documented: str
    bad: str
    blank: str
    steps: tuple[str, ...]


LIGHT = Theme(
    page="#ffffff", panel="#ffffff", ink="#1c2430", muted="#5b6673", grid="#e3e7ec",
    img="#0072b2", txt="#c8660a", reference="#1c2430", documented="#009e73", bad="#c2410c", blank="#eceff2",
    steps=("#eaf3fa", "#c9e1f2", "#94c4e4", "#fbdc8c", "#f2b134", "#e8702a", "#c2410c", "#8a2a06", "#4d1502"),
)  # fmt: skip
DARK = Theme(
    page="#12171d", panel="#171d25", ink="#e8edf3", muted="#9fabb8", grid="#2b343f",
    img="#56b4e9", txt="#f2a65a", reference="#e8edf3", documented="#2fc596", bad="#ff7a45", blank="#232b35",
    steps=("#17293a", "#1f3f5b", "#2f6390", "#8a6a14", "#c9981f", "#d9541a", "#f4733a", "#ff9f73", "#ffd3bf"),
)  # fmt: skip


def theme(dark: bool) -> Theme:
    """The colours for a light or a dark page."""
    return DARK if dark else LIGHT


def ink_on(face: str) -> str:
    """Black or white, whichever can be read on `face`."""
    channels = [int(face[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#111111" if luminance > 0.18 else "#ffffff"


def rc(colours: Theme) -> dict[str, Any]:
    """Settings of matplotlib for these colours; names are never read as mathematics."""
    return {
        "figure.facecolor": colours.page, "axes.facecolor": colours.panel,
        "axes.edgecolor": colours.muted, "axes.labelcolor": colours.ink, "axes.titlecolor": colours.ink,
        "text.color": colours.ink, "xtick.color": colours.muted, "ytick.color": colours.muted,
        "grid.color": colours.grid, "grid.linewidth": 0.8, "axes.grid": True, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
        "font.family": ["DejaVu Sans"], "font.size": 10, "axes.titlesize": 10.5, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "axes.labelsize": 9.5, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
        "legend.frameon": False, "legend.fontsize": 9, "hatch.linewidth": 0.7, "text.parse_math": False,
        "axes.unicode_minus": True, "svg.fonttype": "none", "svg.hashsalt": "parity", "path.simplify": True,
    }  # fmt: skip


def limits(run: Mapping[str, Any]) -> tuple[float, float]:
    """Largest excess of a match and of a suspect in this run."""
    thresholds = run.get("thresholds") or {}
    return float(thresholds.get("match", MATCH)), float(thresholds.get("suspect", SUSPECT))


def excess_edges(match: float, suspect: float) -> tuple[float, ...]:
    """The eight borders of the nine steps: both verdict lines, and steps between and around them."""
    return (match / 10, match / 3, match, math.sqrt(match * suspect), suspect,
            3 * suspect, 10 * suspect, 100 * suspect)  # fmt: skip


def blocks_of(entry: Entry) -> int:
    """Number of blocks that an entry has rows of; 0 for a component without blocks."""
    return 1 + max((parts.block for row in entry["checkpoints"] if (parts := parse(row["name"])).stream), default=-1)


def grid_of(entry: Entry) -> tuple[dict[tuple[str, str], dict[int, Row]], list[Row], list[Row]]:
    """Rows by (stream, kind) and block, and the rows made before and after the blocks."""
    grid: dict[tuple[str, str], dict[int, Row]] = {}
    before: list[Row] = []
    after: list[Row] = []
    for row in entry["checkpoints"]:
        parts = parse(row["name"])
        if parts.stream is None:
            (after if grid else before).append(row)
        else:
            grid.setdefault((parts.stream, parts.kind), {})[parts.block] = row
    order = {kind: i for i, kind in enumerate(BLOCK_KINDS)}
    ordered = sorted(grid, key=lambda key: (STREAMS.index(key[0]), order.get(key[1], len(order))))
    return {key: grid[key] for key in ordered}, before, after


def points_of(rows: Mapping[int, Row], key: str, side: str | None = None) -> dict[int, float]:
    """One figure of each row by block, of `side` where given; rows it does not apply to are left out."""
    found = {block: (row[side] or {}).get(key) if side else row[key] for block, row in rows.items()}
    return {block: float(value) for block, value in sorted(found.items()) if value is not None}


def excess_of(row: Row) -> float | None:
    """The excess for a plot: infinite where a checkpoint diverged without a figure (a NaN, a wrong shape)."""
    if row["excess"] is None:
        return math.inf if row["verdict"] == "diverged" else None
    value = float(row["excess"])
    return math.inf if math.isnan(value) else value


def step_of(excess: float, edges: Sequence[float]) -> int:
    """Which of the nine steps an excess falls in; a value on a border belongs to the step below it."""
    return bisect.bisect_left(edges, excess)


def short(value: float) -> str:
    """A number for an axis: ``0``, ``-25k``, ``46M``, ``10⁻⁵``."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else f"{value}"
    size, sign = abs(value), "−" if value < 0 else ""
    if size < 1e-2 or size >= 1e15:
        exponent = math.floor(math.log10(size) + 1e-9)
        factor = size / 10**exponent
        lead = "" if abs(factor - 1) < 5e-3 else f"{factor:.2g}·"
        return sign + lead + "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{sign}{size / unit:.3g}{name}"
    return f"{sign}{size:.3g}"


def visible(text: str) -> str:
    r"""`text` with every control, direction and unassigned character spelled out (``\u202e``).

    Names come from other people's files. A mark that turns the reading direction around would
    make one name look like another one.
    """
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" else c for c in text)


def cut(text: str, length: int) -> str:
    """`text` made visible, and no longer than `length`."""
    text = visible(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def slug(text: str) -> str:
    """A part of a file name, lower case. Different texts get different ones, on any file system."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-")[:40]
    if plain == text:
        return plain
    return f"{plain or 'case'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
