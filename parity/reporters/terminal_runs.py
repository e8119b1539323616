"""Plots of several runs for a terminal: where one is better or worse, and sparklines one below the other."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence

from rich.style import Style
from rich.text import Text

from parity.overlay import BORDERS, Overlay, Run, change, differences, overlays, step_of_change, turned
from parity.plotstyle import Theme, cut, excess_of, ink_on, points_of, short
from parity.reporters.sparks import (
    NAME,
    WIDTH,
    Lines,
    axis,
    columns_of,
    first_column,
    scale_of,
    spark_line,
    two,
    wide,
)
from parity.reporters.terminal import FEW, MANY, MOST, SHOWN, name_of, title, worst_kinds
from parity.sections import Kind

# Letters of the factor, from much better to much worse.
LETTERS = ("=", "-", "-", "·", "+", "+", "#")


def lines_of_runs(runs: Mapping[str, Run], kinds: Collection[str], colours: Theme, *, brief: bool = False) -> Lines:
    """The plots of what the runs have in common, case by case; `brief`: of many, those without a change in a line.

    Raises:
        UsageError: they have nothing in common.
    """
    wanted = {kind: kind in (kinds or SHOWN) for kind in SHOWN}
    any_shown = False
    found = overlays(runs)
    for one in found:
        if brief and len(found) > MANY and not _changed(one):
            any_shown = True
            yield Text(cut(" · ".join(part for part in one.heading() if part), 58).ljust(59)).append(
                "no change", "green"
            )
            continue
        plots: list[Lines] = []
        if one.section.grid:
            plots += [_changes(one, colours)] * wanted["heatmap"]
            plots += [_errors(one)] * wanted["errors"]
            plots += [_growth(one)] * wanted["growth"]
            plots += [_steps(one)] * wanted["steps"]
        elif wanted["errors"]:
            plots.append(_worst(one))
        lines = [line for plot in plots for line in plot]
        if lines:
            any_shown = True
            yield title(one.heading())
            yield from lines
            yield Text()
    said = differences(runs)
    if said and any_shown:
        yield from map(Text, textwrap.wrap(cut(said.strip(), 2 * WIDTH), WIDTH))


def _changed(one: Overlay) -> bool:
    """Whether any checkpoint's excess or verdict is another one than in the first run."""
    first, *others = one.labels
    rows = {label: {row["name"]: row for row in section.rows} for label, section in one.sections.items()}
    for label in others:
        if rows[label].keys() != rows[first].keys():
            return True
        for name, before in rows[first].items():
            factor = change(before, rows[label][name])
            if before["verdict"] != rows[label][name]["verdict"] or (factor and step_of_change(factor) != 3):
                return True
    return False


def _changes(one: Overlay, colours: Theme) -> Lines:
    """Heatmaps of where each run is better or worse than the first one."""
    first, *others = one.labels
    bins = columns_of(one.span, WIDTH - NAME - 1)
    for label in others:
        yield Text(f"excess of “{label}” against “{first}”", "bold")
        yield axis(bins)
        for kind in one.kinds:
            rows = one.rows(kind)
            line = first_column(name_of(one.section, kind))
            for indices in bins:
                pairs = [(rows[first].get(i), rows[label].get(i)) for i in indices]
                letter, style = _cell(pairs, colours)
                line.append(letter.ljust(wide(bins)), style)
            yield line
    yield Text(f"= - better, beyond {BORDERS[0]} and {BORDERS[2]}  · no change  + # worse, beyond {BORDERS[3]} and "
               f"{BORDERS[5]}", "dim")  # fmt: skip
    yield Text("! verdict got worse   / not judged in both; an excess below 1 counts as 1", "dim")


def _cell(pairs: Sequence[tuple], colours: Theme) -> tuple[str, Style]:
    """Letter and colour of the largest change among some pairs of rows."""
    factors = [factor for pair in pairs if (factor := change(*pair)) is not None]
    if not factors:
        return ("/" if any(any(pair) for pair in pairs) else " "), Style(dim=True)
    step = max(map(step_of_change, factors), key=lambda step: abs(step - 3))
    worse = any(turned(*pair) > 0 for pair in pairs)
    face = colours.changes[step]
    return "!" if worse else LETTERS[step], Style(color=ink_on(face), bgcolor=face, bold=worse)


def _of_each(one: Overlay, said: str, kinds: Sequence[Kind], *figure: str) -> Lines:
    """A sparkline a run below each kind, all on one scale."""
    lines = {kind: {label: points_of(rows, *figure) for label, rows in one.rows(kind).items()} for kind in kinds}
    scale = scale_of([points for of in lines.values() for points in of.values()])
    yield Text(f"{said}; log scale, {short(two(scale[0]))} to {short(two(scale[1]))}", "bold")
    for kind, of in lines.items():
        yield Text(cut(name_of(one.section, kind), WIDTH))
        for label, points in of.items():
            yield spark_line(f"  {label}", points, one.span, scale, "blue")


def _errors(one: Overlay) -> Lines:
    kept = worst_kinds({kind: [row for rows in one.rows(kind).values() for row in rows.values()] for kind in one.kinds})
    if kept:
        some = f" of the {FEW} worst kinds" if FEW <= len(kept) < len(one.kinds) else ""
        yield from _of_each(one, f"relative RMSE{some}", kept, "rel_rmse")


def _growth(one: Overlay) -> Lines:
    kinds = [kind for kind in one.kinds if kind[1] == "out"]
    if kinds and one.entry["mode"] == "accumulated":
        yield from _of_each(one, "growth of the residual: largest |x|", kinds, "absmax", "candidate")


def _steps(one: Overlay) -> Lines:
    kinds = [("step", kind) for kind in ("latents", "noise_pred") if ("step", kind) in one.kinds]
    if kinds:
        yield from _of_each(one, "error over the steps: relative RMSE", kinds, "rel_rmse")


def _worst(one: Overlay) -> Lines:
    """A line a checkpoint with the excess in each run, those with the largest."""
    found = {name: {label: excess_of(row) for label, row in rows.items()} for name, rows in one.other_rows().items()}
    worst = sorted(found, key=lambda name: -max((v for v in found[name].values() if v is not None), default=-1.0))[
        :MOST
    ]
    yield Text(f"excess of the {len(worst)} worst checkpoints of {len(found)}", "bold")
    for i, label in enumerate(one.labels):
        yield Text(f"{' ' * (39 + 8 * i)}┌ {label}"[:WIDTH], "dim")
    for name in (name for name in found if name in worst):
        cells = [_figure(found[name].get(label)) for label in one.labels]
        yield Text(cut(name, 37).ljust(38) + "".join(cell.rjust(8) for cell in cells))


def _figure(excess: float | None) -> str:
    return "–" if excess is None else "inf" if math.isinf(excess) else f"{excess:.3g}"
