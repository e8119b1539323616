"""Plots of a run: pure functions from a ``parity.json`` dict to figures.

For each case and dtype `ranges` and `growth` (of the accumulated entry, where there is one: those are
the values that the picture is made of) and the `steps` of a pipeline; for each case, dtype and mode
`errors` and `heatmap`, and the `budget` of quantized weights. What lies inside a step, and what does
not repeat, has figures of its own. A figure that would show nothing is not drawn. No pyplot, no
global state, and the same run gives the same bytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from parity import budget
from parity.budgetplots import budget_figure
from parity.errorplots import errors_figure, heatmap_figure
from parity.errors import OutputExistsError, UsageError
from parity.plotstyle import Theme, rc, slug, theme
from parity.rangeplots import growth_figure, ranges_figure
from parity.sections import Entry, Section, drawn, is_exact
from parity.sequenceplots import sequence_figure, spans_figure
from parity.stepcurve import has_steps, steps_figure

Draw = Callable[[Mapping[str, Any], Entry, Section, Theme], Figure]
Planned = tuple[str, Draw, Entry, Section]
FORMATS = ("png", "svg")
DPI = 120
# matplotlib writes the date and its own version otherwise, and the bytes would differ from day to day.
METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


def render_plots(
    run: Mapping[str, Any],
    folder: Path,
    formats: Sequence[str] = FORMATS,
    dark: bool = False,
    force: bool = False,
) -> list[Path]:
    """Write every figure of a run into `folder`, such as ``ranges.square.float32.png``.

    Args:
        run: a ``parity.json`` of schema 2.
        folder: made where it is not there.
        formats: of ``png`` and ``svg``.
        dark: on a dark page; ``.dark`` goes into the names.
        force: replace files that are there.

    Returns:
        the files written, in order.

    Raises:
        UsageError: an unknown format.
        OutputExistsError: a file is there and `force` is false; nothing has been written then.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UsageError(f"plot format {unknown[0]!r} is none of {', '.join(FORMATS)}")
    ending = ".dark" if dark else ""
    figures = [(one, [folder / f"{one[0]}{ending}.{form}" for form in formats]) for one in plan(run)]
    paths = [path for _, targets in figures for path in targets]
    there = [path for path in paths if path.exists()]
    if there and not force:
        raise OutputExistsError(f"{there[0]} is already there: choose another folder or add --force")
    folder.mkdir(parents=True, exist_ok=True)
    colours = theme(dark)
    with matplotlib.rc_context(rc(colours)), warnings.catch_warnings():
        # A name may hold a letter that the font lacks; a box in its place is good enough for a plot.
        warnings.filterwarnings("ignore", message="Glyph")
        for (_, draw, entry, section), targets in figures:
            figure = draw(run, entry, section, colours)
            for path in targets:
                path.write_bytes(encode(figure, path.suffix[1:]))
    return paths


def plan(run: Mapping[str, Any]) -> list[Planned]:
    """Name, maker, entry and section of each figure of a run, in order."""
    shown: dict[tuple[str, str], Entry] = {}
    for entry in run["cases"]:
        key = (entry["name"], entry["dtype"])
        if key not in shown or entry["mode"] == "accumulated":
            shown[key] = entry
    found: list[Planned] = []
    for (case, dtype), entry in shown.items():
        for part, section in drawn(entry):
            name = ".".join(map(slug, filter(None, (case, dtype, part))))
            found.append((f"ranges.{name}", ranges_figure if section.grid else spans_figure, entry, section))
            if "out" in section.kinds:
                found.append((f"growth.{name}", growth_figure, entry, section))
            if has_steps(section):
                found.append((f"steps.{name}", steps_figure, entry, section))
    of_quantized = budget.entries(run)
    for entry in run["cases"]:
        for part, section in drawn(entry):
            name = ".".join(map(slug, filter(None, (entry["name"], entry["dtype"], entry["mode"], part))))
            if not section.grid:
                found.append((f"errors.{name}", sequence_figure, entry, section))
                continue
            if not all(is_exact(row) for row in section.rows):
                found.append((f"errors.{name}", errors_figure, entry, section))
            found.append((f"heatmap.{name}", heatmap_figure, entry, section))
            if entry in of_quantized and not section.inner:
                found.append((f"budget.{name}", budget_figure, entry, section))
    return found


def encode(figure: Figure, form: str) -> bytes:
    """A figure as the bytes of a PNG or SVG file, the same at every call."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=DPI, metadata=METADATA[form])
    return buffer.getvalue()
