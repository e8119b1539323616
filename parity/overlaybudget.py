"""The error budgets of several runs: 8 bits against 4, one set of rules against another."""

from __future__ import annotations

from matplotlib.figure import Figure

from parity import budget
from parity.budgetplots import STYLES
from parity.overlay import Overlay, differences
from parity.overlaystyle import handles_of, page_of, styles_of
from parity.plotstyle import Theme, footnote, index_axis, key, log_axis, log_line
from parity.sections import stream_title

Lines = dict[str, dict[int, float]]


def has_budget(one: Overlay) -> bool:
    """Whether at least one of the runs is on quantized weights; parts of the others are precision and the rest."""
    return not one.section.inner and any(one.entries[label] in budget.entries(one.runs[label]) for label in one.labels)


def budget_overlay(one: Overlay, colours: Theme) -> Figure:
    """Each part of the error after each block, a panel a stream and part, a line a run."""
    figure = page_of(one, colours, "Error budget", "relative RMSE: quantized against original weights, the reference's "
                     "dtype against truth, the port beyond it")  # fmt: skip
    blocks = {label: budget.by_block(one.entries[label]) for label in one.labels}
    streams = list(dict.fromkeys(stream for of in blocks.values() for stream in of))
    panels = {(stream, part): _lines(blocks, stream, part) for stream in streams for part in STYLES}
    values = [v for lines in panels.values() for line in lines.values() for v in line.values() if v]
    places = figure.add_gridspec(len(streams), len(STYLES), left=0.075, right=0.965, top=0.79, bottom=0.11, wspace=0.08,
                                 hspace=0.34)  # fmt: skip
    for i, ((stream, part), lines) in enumerate(panels.items()):
        row, column = divmod(i, len(STYLES))
        ax = figure.add_subplot(places[row, column], title=f"{part}, {stream_title(stream)}")
        log_axis(ax, values)
        index_axis(ax, one.span, one.section.unit, label=row == len(streams) - 1)
        ax.tick_params(labelleft=column == 0)
        ax.set_ylabel("relative RMSE" if column == 0 else "")
        for label, style in styles_of(one, colours).items():
            log_line(ax, lines[label], colours, **style)
        if not any(lines.values()):
            ax.text(0.5, 0.5, "not known: no run had --original", transform=ax.transAxes, ha="center", va="center",
                    color=colours.muted, style="italic")  # fmt: skip
    key(figure, handles_of(one, colours))
    words = "On the lower edge: nothing, the port is as near to truth as the reference or nearer. "
    footnote(figure, words + differences(one.runs), colours)
    return figure


def _lines(blocks: dict[str, dict[str, dict[int, budget.Parts]]], stream: str, part: str) -> Lines:
    """Label -> block -> one part; nothing for a run that does not know it."""
    return {
        label: {i: value for i, found in of.get(stream, {}).items() if (value := getattr(found, part)) is not None}
        for label, of in blocks.items()
    }
