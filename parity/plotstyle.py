"""What plots and report share: colours, the excess scale, numbers and names as text, axes.

The colours are Okabe and Ito's or near to them, which stay apart for colour-blind readers: a test measures it. The
excess scale has steps, three below the verdict `match`, two for `suspect`, four above, so that a verdict can be read
off a cell without the colour bar: blue, amber, red; the larger the excess, the further from the page's colour.
`Theme.changes` are seven, from much better to much worse.
matplotlib is imported only by the functions that draw, so that the report can do without it.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

Entry = Mapping[str, Any]
Row = Mapping[str, Any]

# 16:9, in inches: on a slide, and in a README 830 pixels wide, the smallest letters can be read.
SIZE = (11.2, 6.3)

# Letters that a line of the key has room for.
KEY = 156
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
    step: str
    reference: str
    documented: str
    bad: str
    blank: str
    steps: tuple[str, ...]
    changes: tuple[str, ...]


LIGHT = Theme(
    page="#ffffff", panel="#ffffff", ink="#1c2430", muted="#5b6673", grid="#e3e7ec",
    img="#0072b2", txt="#c8660a", step="#a3457e",
    reference="#1c2430", documented="#009e73", bad="#b3261e", blank="#eceff2",
    steps=("#eaf3fa", "#c9e1f2", "#94c4e4", "#fbdc8c", "#f2b134", "#e8702a", "#c2410c", "#8a2a06", "#4d1502"),
    changes=("#0b4f86", "#4f9bd1", "#b9d9ee", "#f1f3f5", "#fbdc8c", "#e8702a", "#8a2a06"),
)  # fmt: skip
DARK = Theme(
    page="#12171d", panel="#171d25", ink="#e8edf3", muted="#9fabb8", grid="#2b343f",
    img="#56b4e9", txt="#f2a65a", step="#d85fb0",
    reference="#e8edf3", documented="#62e9b8", bad="#f5505c", blank="#232b35",
    steps=("#17293a", "#1f3f5b", "#2f6390", "#725500", "#967200", "#ff6c5a", "#ff9881", "#ffc0b2", "#ffe5df"),
    changes=("#8fd0ff", "#3f8fc9", "#1f4a6e", "#232b35", "#725500", "#ff6c5a", "#ffc0b2"),
)  # fmt: skip


def theme(dark: bool) -> Theme:
    """The colours for a light or a dark page."""
    return DARK if dark else LIGHT


def ink_on(face: str) -> str:
    """Black or white, whichever can be read on `face`."""
    channels = [int(face[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#000000" if luminance > 0.179 else "#ffffff"


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


def points_of(rows: Mapping[int, Row], key: str, side: str | None = None) -> dict[int, float]:
    """One figure of each row by its index, of `side` where given; rows it does not apply to are left out."""
    found = {index: (row.get(side) or {}).get(key) if side else row.get(key) for index, row in rows.items()}
    return {index: float(value) for index, value in sorted(found.items()) if value is not None}


def excess_of(row: Row) -> float | None:
    """The excess for a plot: infinite where a checkpoint diverged without a figure (a NaN, a wrong shape)."""
    if row.get("excess") is None:
        return math.inf if row.get("verdict") == "diverged" else None
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
    if text.isprintable():
        return text
    hidden = (c for c in set(text) if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029")
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in hidden})


def cut(text: str, length: int) -> str:
    """`text` made visible, and no longer than `length`."""
    text = visible(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def slug(text: str) -> str:
    """A part of a file name, lower case. Different texts get different ones, on any file system."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-")[:40]
    if plain and plain == text:
        return plain
    return f"{plain or 'case'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def page(run: Mapping[str, Any], colours: Theme, title: str, text: str, *, what: Sequence[str]) -> Figure:
    """An empty figure with a title, `what` it shows, one line of explanation, and what the weights are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE)
    figure.text(0.035, 0.955, title, fontsize=17, fontweight="bold", va="center")
    shown = " · ".join(cut(part, 40) for part in what if part)
    figure.text(0.965, 0.955, shown, fontsize=12, va="center", ha="right", color=colours.muted)
    figure.text(0.035, 0.912, text, fontsize=10.5, va="center", color=colours.muted)
    if run["weights"].get("synthetic"):
        figure.text(0.965, 0.912, "synthetic weights", fontsize=10.5, fontweight="bold", va="center", ha="right",
                    color=colours.bad)  # fmt: skip
    return figure


def footnote(figure: Figure, text: str, colours: Theme) -> None:
    """A line at the bottom: what a figure leaves out; a long one in smaller letters."""
    text = cut(text, 190)
    size = min(9, 9 * 155 / max(len(text), 1))
    figure.text(0.035, 0.02, text, fontsize=size, va="center", color=colours.muted, style="italic")


def key(figure: Figure, handles: Sequence[Patch | Line2D]) -> None:
    """The legend in one line below the title; in two, then three, and in smaller letters, where it has too many."""
    letters = [len(str(handle.get_label())) + 8 for handle in handles] or [0]
    for lines in (1, 2, 3):
        # Columns are filled from top to bottom, each as wide as its longest label.
        wide = sum(max(letters[i : i + lines]) for i in range(0, len(letters), lines))
        if wide <= KEY:
            break
    size = min(9, 9 * KEY / max(wide, 1), 9 if lines < 3 else 7)
    figure.legend(handles=list(handles), loc="upper left", bbox_to_anchor=(0.03, 0.897), fontsize=size,
                  ncols=math.ceil(len(letters) / lines), columnspacing=1.8, handlelength=1.8,
                  labelspacing=0.25)  # fmt: skip


def index_axis(ax: Axes, span: range, unit: str, *, label: bool = True, most: int = 6) -> None:
    """The x axis of a panel over blocks, layers or steps: about `most` ticks, the first and the last among them."""
    first, last = span[0], span[-1]
    steps = (s for s in (1, 2, 5, 10, 15, 20, 50, 100, 1000) if len(span) <= most * s)
    step = next(steps, 10 ** math.ceil(math.log10(len(span) / most)))
    ticks = [t for t in range(-(-first // step) * step, last + 1, step) if last - t >= 0.6 * step or t == last]
    ax.set_xticks(sorted({*ticks, last, *([first] if not ticks or ticks[0] - first >= 0.6 * step else [])}))
    ax.set_xlim(first - 0.6, last + 0.6)
    if label:
        ax.set_xlabel(unit)


def log_axis(ax: Axes, values: Sequence[float], *, pad: float = 2.0, along: str = "y") -> None:
    """A log axis around the finite positive `values`, with plain numbers and at most seven ticks, along x four.

    Args:
        pad: factor of room at either end.
        along: ``x`` or ``y``.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    usable = [v for v in values if math.isfinite(v) and v > 0] or [0.1, 10.0]
    low, high = min(usable) / pad, max(usable) * pad
    if high / low < 100:
        middle = math.sqrt(low * high)
        low, high = min(low, middle / 10), max(high, middle * 10)
    (ax.set_xscale if along == "x" else ax.set_yscale)("log")
    (ax.set_xlim if along == "x" else ax.set_ylim)(low, high)
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    step = max(1, math.ceil((last - first + 1) / (4 if along == "x" else 7)))
    ticks = [10.0**e for e in range(first, last + 1, step)]
    if last - first < 2 and along == "y":
        ticks = [m * 10.0**e for e in range(first - 1, last + 1) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    axis = ax.xaxis if along == "x" else ax.yaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def log_line(ax: Axes, points: Mapping[int, float], colours: Theme, **style: Any) -> None:
    """A line over an index on a log axis whose limits are set, with gaps where there is no point.

    Zeros sit on the lower edge of the panel, crosses for non-finite values at the upper one.
    """
    low, high = ax.get_ylim()
    shown = {x: min(max(value, low), high) for x, value in points.items() if math.isfinite(value)}
    xs = range(min(shown, default=0), max(shown, default=0) + 1)
    ax.plot(xs, [shown.get(x, math.nan) for x in xs], **style)
    alone = [x for x in shown if not {x - 1, x + 1} & shown.keys()]
    ax.plot(alone, [shown[x] for x in alone], ".", color=style["color"], ms=5)
    mark_nonfinite(ax, [x for x in points if x not in shown], colours)


def has_nonfinite(rows: Iterable[Row]) -> bool:
    """Whether a figure of these rows has crosses: an error, a floor or a side's values are not finite."""
    for row in rows:
        figures = (row.get("rel_rmse"), row.get("floor"), excess_of(row))
        if not all(math.isfinite(float(value)) for value in figures if value is not None):
            return True
        if is_broken(row.get("reference")) or is_broken(row.get("candidate")):
            return True
    return False


def is_broken(stats: Mapping[str, Any] | None) -> bool:
    """Whether a side has values that are not finite."""
    return bool(stats) and not (stats["nan"] == stats["inf"] == 0 and math.isfinite(float(stats["absmax"])))


def cross(colours: Theme, rows: Iterable[Row]) -> list[Line2D]:
    """The key's entry for what is not finite; none where `rows` have nothing of it."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=colours.bad, marker="x", lw=0, mew=1.8, label="not finite")] * has_nonfinite(rows)


def ring(colours: Theme, rows: Iterable[Row]) -> list[Line2D]:
    """The key's entry for sources; none where `rows` have none."""
    from matplotlib.lines import Line2D

    mark = Line2D([], [], color=colours.ink, marker="o", mfc="none", lw=0, ms=7, label="source of a divergence")
    return [mark] * any(row.get("source") for row in rows)


def mark_nonfinite(ax: Axes, xs: Sequence[float], colours: Theme) -> None:
    """Crosses near the upper edge of a panel at `xs`."""
    ax.plot(xs, [0.96] * len(xs), "x", color=colours.bad, ms=6, mew=1.8, transform=ax.get_xaxis_transform(), zorder=5,
            clip_on=False)  # fmt: skip


def symlog_axis(ax: Axes, values: Iterable[float], *, along: str = "y") -> None:
    """A symlog axis around the finite `values`; up to a few tens everything lies in its linear part.

    Args:
        along: ``x`` or ``y``.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    finite = [float(v) for v in values if math.isfinite(v)] or [-1.0, 1.0]
    low, high = min(finite), max(finite)
    largest = max(abs(low), abs(high)) or 1.0
    linear = 1.0 if largest >= 30 else largest * 3
    set_scale, set_limits = (ax.set_xscale, ax.set_xlim) if along == "x" else (ax.set_yscale, ax.set_ylim)
    axis = ax.xaxis if along == "x" else ax.yaxis
    set_scale("symlog", linthresh=linear, linscale=0.5)
    if largest < 30:
        set_limits(min(low * 1.3, -0.1 * largest), max(high * 1.3, 0.1 * largest))
        axis.set_major_locator(MaxNLocator(4))
    else:
        set_limits(min(low * 2.5, -1.0), max(high * 2.5, 1.0))
        last = math.floor(math.log10(largest * 1.05))
        decades = [10.0**e for e in range(last, 0, -max(1, math.ceil(last / 3)))]
        axis.set_major_locator(FixedLocator([*(-d for d in decades), 0.0, *decades]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
