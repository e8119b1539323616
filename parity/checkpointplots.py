"""One checkpoint as figures, from the traces of a run folder: how its values are spread, and where in it the error is.

`histogram` counts the values of both sides by magnitude, a bin a power of two; `profile` has the root mean square of
the error along each axis. Profiles are there for checkpoints that are no match, histograms where the traces have them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from parity.closeup import Checkpoint, checkpoints, said
from parity.plotstyle import Theme, cut, footnote, key, log_axis, mark_nonfinite, page, short, slug
from parity.rangeplots import pale
from parity.sections import Row
from parity.stats import HISTOGRAM_HIGH, HISTOGRAM_LOW

# Axes on one page.
AXES = 3
# More bins than this have a label at every second or fourth power of two.
LABELS = 16
# Letters that a name has at most in the name of a file.
LONGEST = 100


def plan(
    run: Mapping[str, Any], folder: Path | None, kinds: Collection[str], names: Collection[str] = ()
) -> list[tuple[str, Callable[[Theme], Figure]]]:
    """Name and maker of each figure of single checkpoints, such as ``profile.square.float32.isolated.img_in``.

    Args:
        run: a ``parity.json``.
        folder: its run folder.
        kinds: of `closeup.KINDS`; both where empty.
        names: of the checkpoints; without any, the one of each entry that tells most.

    Raises:
        UsageError: a checkpoint that the run has not, a trace that cannot be read.
    """
    makers = {"histogram": histogram_figure, "profile": profile_figure}
    found = []
    for one in checkpoints(run, folder, names):
        place = [*(slug(one.entry[part]) for part in ("name", "dtype", "mode")), file_words(one.name)]
        for kind, there in (("histogram", one.histogram), ("profile", one.axes)):
            if there and (not kinds or kind in kinds):
                found.append((".".join([kind, *place]), partial(makers[kind], run, one)))
    return found


def file_words(name: str) -> str:
    """A name as a part of a file's name: with its dots, or in short where that is long."""
    found = ".".join(map(slug, name[: LONGEST + 1].split(".")))
    return found if len(found) <= LONGEST else slug(name)


def histogram_figure(run: Mapping[str, Any], one: Checkpoint, colours: Theme) -> Figure:
    """Share of the values of both sides by magnitude, on a logarithmic axis."""
    figure = page(run, colours, f"Values of {cut(one.name, 34)}", said(one.row), what=one.what)
    first, *counts = one.histogram
    shares = [np.array(of, float) / max(sum(of), 1) for of in counts]
    last = first + len(shares[0])
    edges = np.arange(first, last + 1)
    ax = figure.add_axes((0.085, 0.125, 0.88, 0.68))
    log_axis(ax, [value for share in shares for value in share], pad=1.5)
    low, _ = ax.get_ylim()
    ax.set_ylim(low, 1)
    reference, candidate = (np.maximum(share, low) for share in shares)
    ax.stairs(candidate, edges, baseline=low, fill=True, color=pale(colours.img, colours), lw=0)
    ax.stairs(reference, edges, baseline=low, color=colours.reference, lw=1.8, zorder=3)
    every = 1 if len(edges) <= LABELS else 2 if len(edges) <= 2 * LABELS else 4
    shown = [edge for edge in edges if edge % every == 0]
    ax.set_xticks(shown, [short(float(f"{2.0**edge:.2g}")) for edge in shown])
    ax.set(xlim=(edges[0] - 0.3, edges[-1] + 0.3), xlabel="|value|, a bar a power of two", ylabel="share of the values")
    key(figure, [
        Patch(color=pale(colours.img, colours), lw=0, label=_sided("candidate", one.row)),
        Line2D([], [], color=colours.reference, lw=1.8, label=_sided("reference", one.row)),
    ])  # fmt: skip
    ends = [f"below {short(2.0**HISTOGRAM_LOW)}, zeros among them"] * (first < HISTOGRAM_LOW)
    ends += [f"from {short(2.0**HISTOGRAM_HIGH)} on"] * (last > HISTOGRAM_HIGH)
    footnote(figure, f"The bar at the end holds all values {' and '.join(ends)}." if ends else "", colours)
    return figure


def _sided(side: str, row: Row) -> str:
    stats = row.get(side)
    if not stats:
        return side
    low, high = (short(float(f"{float(stats[end]):.3g}")) for end in ("min", "max"))
    return f"{side}, {low} to {high}"


def profile_figure(run: Mapping[str, Any], one: Checkpoint, colours: Theme) -> Figure:
    """Root mean square of error and truth along each axis, a panel an axis."""
    figure = page(run, colours, f"Where in {cut(one.name, 34)}", said(one.row), what=one.what)
    shown = sorted(one.axes, key=lambda axis: axis["length"] < 2)[-AXES:]
    places = figure.add_gridspec(len(shown), 1, left=0.085, right=0.965, top=0.775, bottom=0.085, hspace=0.5)
    for i, axis in enumerate(shown):
        _axis_panel(figure.add_subplot(places[i, 0]), axis, colours)
    broken = any(axis["bad"] for axis in shown)
    key(figure, [
        Line2D([], [], color=colours.img, lw=2, label="error, root mean square"),
        *([Line2D([], [], color=colours.txt, lw=1.1, label="largest of a single index")]
          if any(axis["length"] > len(axis["error"]) for axis in shown) else []),
        Line2D([], [], color=colours.muted, lw=1.4, ls=(0, (2, 1.5)), label="truth, root mean square"),
        Line2D([], [], color=colours.ink, marker="v", lw=0, ms=7, label="worst index"),
        *([Line2D([], [], color=colours.bad, marker="x", lw=0, mew=1.8, label="not finite")] if broken else []),
    ])  # fmt: skip
    left = len(one.axes) - len(shown)
    footnote(figure, f"The last {len(shown)} of {len(one.axes)} axes." if left else "", colours)
    return figure


def _axis_panel(ax: Axes, axis: Mapping[str, Any], colours: Theme) -> None:
    length, lines = axis["length"], {part: _floats(axis[part]) for part in ("error", "peak", "truth")}
    bins = len(lines["error"])
    edges = np.arange(bins + 1) * length // bins
    log_axis(ax, [value for line in lines.values() for value in line], pad=1.6)
    low, high = ax.get_ylim()
    styles = {
        "truth": {"color": colours.muted, "lw": 1.4, "ls": (0, (2, 1.5))},
        "peak": {"color": colours.txt, "lw": 1.1},
        "error": {"color": colours.img, "lw": 2},
    }
    for part, style in styles.items():
        if part != "peak" or length > bins:
            ax.stairs(np.clip(lines[part], low, high), edges - 0.5, baseline=None, **style)
    ax.set(xlim=(-0.5, length - 0.5), ylabel="rms")
    counted = f"{length:,}" + (f" in {bins} bins" if length > bins else "")
    ax.set_title(f"{axis['title']}, {counted}; worst {axis['worst']:,}", pad=10)
    ticks = [tick for tick in ax.get_xticks() if 0 <= tick <= length - 1 and tick == int(tick)]
    ax.set_xticks(ticks, [f"{int(tick):,}" for tick in ticks])
    ax.plot([axis["worst"]], [1.0], "v", color=colours.ink, ms=7, transform=ax.get_xaxis_transform(), clip_on=False)
    middles = (edges[:-1] + edges[1:] - 1) / 2
    mark_nonfinite(ax, [x for x, count in zip(middles, axis["bad"] or (), strict=False) if count], colours)


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], float)
