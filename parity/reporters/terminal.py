"""Plots for a terminal: heatmaps of letters, sparklines and bars, 80 columns wide.

Everything can be read without colour: a letter stands for a verdict, and each sparkline has its smallest
and largest figure beside it. In a terminal that knows only ASCII, sparklines are drawn with letters too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.text import Text

from parity import budget, closeup
from parity.errors import UsageError
from parity.overlay import Run
from parity.plotstyle import Theme, cut, excess_edges, excess_of, ink_on, limits, points_of, short, step_of, theme
from parity.reporters.sparks import (
    NAME,
    WIDTH,
    Lines,
    axis,
    columns_of,
    first_column,
    plain,
    scale_of,
    spark_line,
    titled,
    two,
    wide,
)
from parity.sections import Entry, Kind, Row, Section, drawn, heading, is_exact, local_names, of_cases

# Steps of the excess, see plotstyle.excess_edges, and what has no figure.
LETTERS = ("·", "·", ":", "s", "S", "d", "D", "D", "#")
UNJUDGED = {"missing": "/", "uncertain": "?", "skipped": "-"}
SHOWN = ("heatmap", "errors", "growth", "steps", "budget")
SOURCES, FEW = 4, 6
# More entries than this are not shown in full where nothing is wrong.
MANY = 4
# Lines of what does not repeat.
MOST = 16


def print_plots(
    runs: Mapping[str, Run],
    kinds: Collection[str] = (),
    cases: Collection[str] = (),
    *,
    dark: bool = False,
    source: Path | None = None,
    checkpoints: Collection[str] = (),
) -> None:
    """Print the plots of one run, or of several over one another, to stdout.

    Args:
        runs: by label, see `overlay.named`.
        kinds: only these of `plots.KINDS`; `SHOWN` where empty.
        cases: only cases of these names; all where empty.
        dark: cells in the colours of a dark page.
        source: the folder of the only run, which has the traces.
        checkpoints: whose histograms and profiles are printed, and nothing else where `kinds` is empty.

    Raises:
        UsageError: a case or a checkpoint that a run has not, kinds of which there is nothing to show.
    """
    from parity.reporters.terminal_closeup import lines_of_checkpoints
    from parity.reporters.terminal_runs import lines_of_runs

    out = Console(width=WIDTH, highlight=False)
    chosen = {label: of_cases(run, cases, label if len(runs) > 1 else "the run") for label, run in runs.items()}
    # What a person asks for is shown, all of it.
    brief = not kinds and not cases
    kinds = kinds or (closeup.KINDS if checkpoints else ())
    if len(chosen) > 1:
        lines = list(lines_of_runs(chosen, kinds, theme(dark), brief=brief))
    else:
        (only,) = chosen.values()
        lines = list(lines_of(only, kinds, theme(dark), brief=brief))
        if single := [kind for kind in closeup.KINDS if kind in kinds]:
            lines += lines_of_checkpoints(only, source, single, checkpoints)
    if not lines and kinds and set(kinds) <= set(closeup.KINDS) and len(chosen) == 1:
        raise UsageError(closeup.nothing(kinds, checkpoints))
    if not lines:
        what = f"--kind {', '.join(kinds)}" if kinds else "this run"
        raise UsageError(f"{what}: there is nothing of it to show in a terminal")
    if any(run["weights"].get("synthetic") for run in chosen.values()):
        lines.insert(0, Text("Synthetic weights: random numbers, calibrated.", "yellow"))
    for line in lines:
        out.print(plain(line) if out.options.ascii_only else line, soft_wrap=True)


def lines_of(run: Run, kinds: Collection[str], colours: Theme, *, brief: bool = False) -> Lines:
    """The plots of one run, entry by entry, section by section; `brief`: of many entries, those at parity in a line."""
    # Ranges are many lines; they are shown where they are asked for.
    wanted = {kind: kind in (kinds or SHOWN) for kind in (*SHOWN, "ranges")}
    of_quantized = budget.entries(run)
    accumulated = {(entry["name"], entry["dtype"]) for entry in run["cases"] if entry["mode"] == "accumulated"}
    brief = brief and len(run["cases"]) > MANY
    for entry in run["cases"]:
        if brief and entry["verdict"] == "parity":
            yield _in_short(entry)
            continue
        # As in files, values are shown as they grow.
        shown = entry["mode"] == "accumulated" or (entry["name"], entry["dtype"]) not in accumulated
        for _, section in drawn(entry):
            plots: list[Lines] = []
            if section.grid:
                plots += [_heatmap(run, section, colours)] * wanted["heatmap"]
                plots += [_errors(section, "errors" in kinds)] * wanted["errors"]
                plots += [_ranges(section)] * (wanted["ranges"] and shown)
                plots += [_growth(section)] * (wanted["growth"] and shown and "out" in section.kinds)
                plots += [_steps(section)] * (wanted["steps"] and ("step", "latents") in section.grid)
                plots += [_budget(entry)] * (wanted["budget"] and entry in of_quantized and not section.inner)
            elif wanted["errors"]:
                plots.append(_bars(run, section, colours))
            lines = [line for plot in plots for line in plot]
            if lines:
                yield title(heading(entry, section))
                yield from lines
                yield Text()
    if brief:
        yield Text("What is at parity has a line; --case NAME shows all of a case.", "dim")


def _in_short(entry: Entry) -> Text:
    """An entry at parity: its name, and how near to the floor it is."""
    excesses = [value for row in entry["checkpoints"] if (value := excess_of(row)) is not None]
    line = Text(cut(" · ".join(heading(entry, drawn(entry)[0][1])[:4]), 54).ljust(55))
    return line.append(f"parity, excess ≤ {max(excesses, default=0.0):.2f}", "green")


def title(parts: Sequence[str]) -> Text:
    """Above the plots of one entry: component, case, dtype, mode."""
    return Text(" · ".join(cut(part, 30) for part in parts if part), "bold underline")


def name_of(section: Section, kind: Kind) -> str:
    """A kind, behind its stream where there are several."""
    return kind[1] if len(section.streams) == 1 else ".".join(kind)


def _heatmap(run: Run, section: Section, colours: Theme) -> Lines:
    edges = excess_edges(*limits(run))
    bins = columns_of(section.span, WIDTH - NAME - 1)
    said = f", {len(bins[0])} a column: the worst of them" if len(bins[0]) > 1 else ""
    yield Text(f"excess of each checkpoint, kind by {section.unit}{said}", "bold")
    yield axis(bins)
    for kind, rows in section.grid.items():
        line = first_column(name_of(section, kind))
        for indices in bins:
            letter, style = _cell([rows[i] for i in indices if i in rows], edges, colours)
            line.append(letter.ljust(wide(bins)), style)
        yield line
    match, suspect = limits(run)
    yield Text(f"· : match, up to {match:g}   s S suspect, up to {suspect:g}   d D # diverged   ! a source", "dim")
    yield Text("x not finite, or a wrong shape   / missing   ? uncertain   - skipped", "dim")
    yield from _sources(section)


def _cell(rows: Sequence[Row], edges: Sequence[float], colours: Theme) -> tuple[str, Style]:
    """Letter and colour of the worst of some rows."""
    if not rows:
        return " ", Style()
    row = max(rows, key=rank)
    value = excess_of(row)
    if value is None or row["verdict"] in UNJUDGED:
        return UNJUDGED.get(row["verdict"], "?"), Style(dim=True)
    face = colours.steps[step_of(value, edges)]
    letter = "x" if math.isinf(value) and not is_exact(row) else LETTERS[step_of(value, edges)]
    source = any(one.get("source") for one in rows)
    return "!" if source else letter, Style(color=ink_on(face), bgcolor=face, bold=source)


def rank(row: Row) -> float:
    """The excess, lowest where a row was not judged."""
    value = excess_of(row)
    return -1.0 if value is None else value


def _sources(section: Section) -> Lines:
    found = [row for row in section.rows if row.get("source")]
    for row in found[:SOURCES]:
        value = excess_of(row)
        said = (
            "not judged"
            if value is None
            else "not finite, or not equal"
            if math.isinf(value)
            else f"{short(float(f'{value:.3g}'))} floors"
        )
        yield Text(f"source: {cut(row['name'], 44)}, {said}", "bold red")
    if len(found) > SOURCES:
        yield Text(f"and {len(found) - SOURCES:,} more", "red")


def worst_kinds(kinds: Mapping[Kind, Collection[Row]]) -> list[Kind]:
    """The few kinds with the largest excess, in order; without those that must be equal, or have no measured error."""
    judged = {kind: rows for kind, rows in kinds.items() if not all(map(is_exact, rows))}
    measured = {kind: rows for kind, rows in judged.items() if any(row.get("rel_rmse") is not None for row in rows)}
    worst = {kind: max(map(rank, rows)) for kind, rows in measured.items()}
    kept = sorted(worst, key=lambda kind: -worst[kind])[:FEW]
    return [kind for kind in worst if kind in kept]


def _errors(section: Section, all_of_them: bool) -> Lines:
    lines, worst = {}, worst_kinds({kind: list(rows.values()) for kind, rows in section.grid.items()})
    for kind, rows in section.grid.items():
        measured = bool(points_of(rows, "rel_rmse")) and not all(map(is_exact, rows.values()))
        if kind in worst or (all_of_them and measured):
            off = any(row["verdict"] in ("suspect", "diverged") for row in rows.values())
            lines[name_of(section, kind)] = (points_of(rows, "rel_rmse"), "red" if off else "blue")
    if lines:
        floors = [v for rows in section.grid.values() for v in points_of(rows, "floor").values() if 0 < v < math.inf]
        some = "" if all_of_them or len(lines) < FEW else f" of the {FEW} worst kinds"
        yield from titled(f"relative RMSE{some}", lines, section.span)
        if floors:
            yield Text(f"floors, of all kinds: {short(two(min(floors)))} to {short(two(max(floors)))}", "dim")


def _ranges(section: Section) -> Lines:
    yield Text("largest |x| of the candidate, a scale a line; ×: of the reference's", "bold")
    for kind, rows in section.grid.items():
        points, theirs = points_of(rows, "absmax", "candidate"), points_of(rows, "absmax", "reference")
        ratios = [points[i] / theirs[i] for i in points.keys() & theirs.keys() if theirs[i]]
        line = spark_line(name_of(section, kind), points, section.span, scale_of([points]))
        most = max(ratios, key=lambda r: abs(math.log(r)) if 0 < r < math.inf else math.inf, default=1.0)
        if not 0.9 < most < 1.1:
            line.append(f" ×{most:.2g}", "bold red")
        yield line


def _growth(section: Section) -> Lines:
    lines = {}
    for (stream, kind), rows in section.grid.items():
        if kind == "out":
            for side, style in (("reference", "dim"), ("candidate", "blue")):
                lines[f"{cut(stream, 6)} {side}"] = (points_of(rows, "absmax", side), style)
    yield from titled(f"growth of the residual: largest |x| after each {section.unit}", lines, section.span)


def _steps(section: Section) -> Lines:
    lines = {}
    for kind in ("latents", "noise_pred"):
        rows = section.grid.get(("step", kind), {})
        lines |= {kind: (points_of(rows, "rel_rmse"), "blue"), f"{kind} floor": (points_of(rows, "floor"), "dim")}
    shown = {name: line for name, line in lines.items() if line[0]}
    yield from titled("error over the steps: relative RMSE", shown, section.span)


def _budget(entry: Entry) -> Lines:
    lines = {}
    for stream, of in budget.by_block(entry).items():
        for part in ("quantization", "precision", "implementation"):
            points = {block: value for block, found in of.items() if (value := getattr(found, part)) is not None}
            if points:
                lines[f"{cut(stream, 3)} {part}"] = (points, "blue" if part == "quantization" else "")
    if lines:
        span = range(1 + max(block for points, _ in lines.values() for block in points))
        yield from titled("error budget: relative RMSE of each block's output", lines, span)


def _bars(run: Run, section: Section, colours: Theme) -> Lines:
    """A bar a checkpoint, the borders of the verdicts marked on it; those with the largest excess."""
    rows = section.others
    largest = sorted(range(len(rows)), key=lambda i: -rank(rows[i]))[:MOST]
    shown = [rows[i] for i in sorted(largest)]
    match, suspect = limits(run)
    edges = excess_edges(match, suspect)
    finite = [v for row in shown if (v := excess_of(row)) is not None and math.isfinite(v)]
    low, high, room = match / 10, max([*finite, 3 * suspect]), WIDTH - 34 - 13
    some = f", the {len(shown)} largest of {len(rows)}" if len(shown) < len(rows) else ""
    yield Text(f"excess of each checkpoint{some}; log scale, | at {match:g} and {suspect:g}", "bold")

    def place(value: float) -> int:
        share = math.log(max(value, low) / low) / math.log(high / low)
        return room - 1 if math.isinf(value) else round((room - 1) * share)

    borders = (place(match), place(suspect))
    for row, name in zip(shown, local_names(shown, section), strict=True):
        value = excess_of(row)
        line = Text(cut(name, 33).ljust(34))
        if value is None:
            yield line.append(row["verdict"], "dim")
            continue
        end = place(value)
        line.append("█" * (end + 1), Style(color=colours.steps[max(2, step_of(value, edges))]))
        line.append("".join("|" if column in borders else " " for column in range(end + 1, room)), "dim")
        line.append(f" {'not finite' if math.isinf(value) else f'{value:.3g}'}")
        yield line.append(" !" if row.get("source") else "", "bold red")
