"""How an error grows over the denoising steps of a pipeline: the curve, and what it says in words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from parity.plotstyle import (
    Theme,
    cross,
    footnote,
    index_axis,
    key,
    limits,
    log_axis,
    log_line,
    page,
    points_of,
    short,
)
from parity.sections import Entry, Section, heading, main_of, sections

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STREAM = "step"
KINDS = {
    "latents": "latents after the step",
    "noise_pred": "noise prediction, guided",
    "cond": "prediction with the prompt",
    "uncond": "prediction without the prompt",
}
MODES = ("accumulated", "isolated")
Curve = tuple[dict[int, float], dict[int, float]]


def has_steps(section: Section) -> bool:
    """Whether there is a curve to draw: what goes from step to step, over two steps or more."""
    return (STREAM, "latents") in section.grid and len(section.span) > 1


def curves(
    run: Mapping[str, Any], entry: Entry, parts_of: Callable[[Entry], list[Section]] = sections
) -> dict[str, dict[str, Curve]]:
    """Mode -> kind -> (relative RMSE, floor) by step, of all modes of an entry's case and dtype."""
    found = {}
    for mode in MODES:
        place = (entry["name"], entry["dtype"], mode)
        one = next((one for one in run["cases"] if (one["name"], one["dtype"], one["mode"]) == place), None)
        grid = main_of(parts_of(one)).grid if one else {}
        kinds = {kind: grid[STREAM, kind] for kind in KINDS if (STREAM, kind) in grid}
        if kinds:
            found[mode] = {kind: (points_of(of, "rel_rmse"), points_of(of, "floor")) for kind, of in kinds.items()}
    return found


def growth(line: Mapping[int, float]) -> tuple[float, float] | None:
    """(first, last) of a curve; None where that says nothing: one step, not finite, or no error to begin with."""
    if len(line) < 2:
        return None
    first, last = line[min(line)], line[max(line)]
    return (first, last) if 0 < first < math.inf and 0 < last < math.inf else None


def words(run: Mapping[str, Any], entry: Entry, parts_of: Callable[[Entry], list[Section]] = sections) -> str:
    """By what factor the error of the latents grows from the first to the last step, as a sentence or two.

    Empty where an entry has no steps, or only one. `parts_of` gives the sections of an entry.
    """
    if not has_steps(main_of(parts_of(entry))):
        return ""
    found = curves(run, entry, parts_of)
    error, floor = found.get("accumulated", {}).get("latents", ({}, {}))
    if len(error) < 2:
        return ""
    grown, grown_floor = growth(error), growth(floor)
    if grown is None:
        return "The error of the latents has no factor of growth: it begins at zero or is not finite."
    verb = "grows" if grown[1] >= grown[0] else "falls"
    said = f"Over {len(error)} steps the error of the latents {verb} from {_power(grown[0])} to {_power(grown[1])}"
    said += f", a factor of {_factor(grown)}"
    if grown_floor:
        said += f"; that of the floor, the reference's own error, is {_factor(grown_floor)}"
    alone, _ = found.get("isolated", {}).get("latents", ({}, {}))
    made = [value for value in alone.values() if math.isfinite(value)]
    if made:
        said += f". The error that a step makes by itself is at most {_power(max(made))}"
    return said + "."


def _factor(grown: tuple[float, float]) -> str:
    factor = grown[1] / grown[0]
    return f"{factor:.3g}" if factor < 1000 else f"{factor:,.0f}" if factor < 1e6 else _power(factor)


def _power(value: float) -> str:
    return short(float(f"{value:.2g}"))


def steps_figure(run: Mapping[str, Any], entry: Entry, section: Section, colours: Theme) -> Figure:
    """Relative RMSE over the steps, a panel a kind: grown over the steps, and made by each of them; with the floors."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    text = "relative RMSE against float64 truth of what goes from step to step"
    figure = page(run, colours, "Error over the steps", text, what=heading(entry, section, mode=False))
    found, tones = curves(run, entry), dict(zip(MODES, (colours.img, colours.txt), strict=True))
    kinds = [kind for kind in KINDS if any(kind in lines for lines in found.values())]
    values = [v for lines in found.values() for pair in lines.values() for line in pair for v in line.values()]
    match, _ = limits(run)
    columns = 1 if len(kinds) == 1 else 2
    deep = math.ceil(len(kinds) / columns)
    places = figure.add_gridspec(deep, columns, left=0.07, right=0.94, top=0.735, bottom=0.1, wspace=0.14,
                                 hspace=0.32)  # fmt: skip
    for i, kind in enumerate(kinds):
        ax = figure.add_subplot(places[i // columns, i % columns], title=f"{kind}: {KINDS[kind]}")
        index_axis(ax, section.span, section.unit, most=12, label=i + columns >= len(kinds))
        log_axis(ax, [*values, match * max((v for v in values if math.isfinite(v)), default=1)], pad=1.6)
        ax.set_ylabel("relative RMSE" if i % columns == 0 else "")
        for mode in found:
            error, floor = found[mode].get(kind, ({}, {}))
            _mode_lines(ax, error, floor, match, tones[mode], colours)
            grown = growth(error) if mode == "accumulated" else None
            if grown:
                ax.annotate(f"×{_factor(grown)}", (max(error), grown[1]), xytext=(8, 0), textcoords="offset points",
                            va="center", color=tones[mode], fontweight="bold", annotation_clip=False)  # fmt: skip
    said = words(run, entry)
    figure.text(0.035, 0.845, "\n".join(textwrap.wrap(said, 124)), fontsize=10.5, va="top", fontweight="bold",
                linespacing=1.45)  # fmt: skip
    labels = {"accumulated": "accumulated: grown since the first step", "isolated": "isolated: made by this step alone"}
    key(figure, [
        *(Line2D([], [], color=tones[mode], marker="o", ms=4, lw=2, label=labels[mode]) for mode in found),
        Line2D([], [], color=colours.muted, lw=1.2, ls=(0, (2, 1.5)), label="floor"),
        Patch(color=colours.muted, alpha=0.25, lw=0, label=f"match: up to {match:g} floors"),
        *cross(colours, section.rows),
    ])  # fmt: skip
    missing = [mode for mode in MODES if mode not in found]
    footnote(figure, f"This run has no {missing[0]} entry of this case." if missing else "", colours)
    return figure


def _mode_lines(
    ax: Axes, error: Mapping[int, float], floor: Mapping[int, float], match: float, tone: str, colours: Theme
) -> None:
    """One mode in one panel."""
    known = sorted(x for x, value in floor.items() if math.isfinite(value) and value > 0)
    ax.fill_between(known, [floor[x] for x in known], [match * floor[x] for x in known], color=tone, alpha=0.13, lw=0)
    log_line(ax, floor, colours, color=tone, lw=1.2, ls=(0, (2, 1.5)))
    log_line(ax, error, colours, color=tone, lw=2, marker="o", ms=4)
