"""The error budget over blocks and by class of layers: quantization, precision, implementation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from parity import budget
from parity.budget import Parts
from parity.plotstyle import Theme, footnote, index_axis, key, log_axis, log_line, page
from parity.sections import Entry, Section, heading, role_of, stream_title

# Part -> style of its line and its mark.
STYLES = {"quantization": ("-", "s"), "precision": ((0, (2, 1.5)), "o"), "implementation": ((0, (1, 1)), "^")}


def budget_figure(run: Mapping[str, Any], entry: Entry, section: Section, colours: Theme) -> Figure:
    """Parts of the error after each block, and medians by class of layers."""
    text = "relative RMSE: quantized against original weights, the reference's dtype against truth, the port beyond it"
    figure = page(run, colours, "Error budget", text, what=heading(entry, section))
    blocks, classes = budget.by_block(entry), budget.by_class(entry)
    shown = [one for of in blocks.values() for one in of.values()] + list(classes.values())
    values = [value for one in shown for part in STYLES if (value := getattr(one, part))]
    across = figure.add_axes((0.065, 0.11, 0.5, 0.68), title="output of each block")
    log_axis(across, values)
    index_axis(across, section.span, section.unit, most=12)
    across.set_ylabel("relative RMSE")
    for stream, of in blocks.items():
        for part, (dashes, _) in STYLES.items():
            points = {block: value for block, one in of.items() if (value := getattr(one, part)) is not None}
            log_line(across, points, colours, color=getattr(colours, role_of(stream)), ls=dashes, lw=1.7)
    _classes(figure.add_axes((0.71, 0.11, 0.255, 0.68), title="classes of layers, median"), classes, values, colours)
    key(figure, [
        *(Line2D([], [], color=getattr(colours, role_of(s)), lw=1.7, label=stream_title(s)) for s in blocks),
        *(Line2D([], [], color=colours.ink, lw=1.5, ls=dashes, marker=mark, ms=6, mfc="none", label=part)
          for part, (dashes, mark) in STYLES.items()),
    ])  # fmt: skip
    words = "On the lower edge: nothing, the port is as near to truth as the reference or nearer. "
    unknown = all(one.quantization is None for one in shown)
    footnote(figure, words + "Quantization is not known: the run had no --original." * unknown, colours)
    return figure


def _classes(ax: Axes, classes: Mapping[str, Parts], values: list[float], colours: Theme) -> None:
    """A line a class, a mark a part."""
    log_axis(ax, values, along="x")
    low, _ = ax.get_xlim()
    for y, parts in enumerate(classes.values()):
        for part, (_, mark) in STYLES.items():
            value = getattr(parts, part)
            if value is not None:
                ax.plot([max(value, low)], [y], mark, color=colours.ink, mfc="none", ms=8, mew=1.5, clip_on=False)
    ax.set_yticks(range(len(classes)), list(classes))
    ax.set_ylim(len(classes) - 0.5, -0.5)
    ax.set_xlabel("relative RMSE")
