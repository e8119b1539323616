"""Plots of a run: pure functions from a ``parity.json`` dict to figures.

For each case and dtype `ranges` and `growth` (of the accumulated entry, where there is one: those are
the values that the picture is made of) and the `steps` of a pipeline; for each case, dtype and mode
`errors` and `heatmap`, and the `budget` of quantized weights. What lies inside a step, and what does
not repeat, has figures of its own. A figure that would show nothing is not drawn. Several runs are
drawn over one another by overlayplots.py. No pyplot, no global state, and the same run gives the
same bytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from parity import budget, checkpointplots, closeup, overlayplots, pictureplots
from parity.budgetplots import budget_figure
from parity.disk import room_for
from parity.errorplots import errors_figure, heatmap_figure
from parity.errors import OutputExistsError, UsageError
from parity.plotstyle import Theme, rc, slug, theme
from parity.rangeplots import growth_figure, ranges_figure
from parity.sections import Entry, Section, drawn, is_exact, of_cases
from parity.sequenceplots import sequence_figure, spans_figure
from parity.stepcurve import has_steps, steps_figure

Draw = Callable[[Mapping[str, Any], Entry, Section, Theme], Figure]
Planned = tuple[str, Draw, Entry, Section]
FORMATS = ("png", "svg")
KINDS = ("ranges", "growth", "steps", "errors", "heatmap", "budget", "pictures", *closeup.KINDS)
DPI = 144
# matplotlib writes the date and its own version otherwise, and the bytes would differ from day to day.
METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


def render_plots(
    run: Mapping[str, Any],
    folder: Path,
    formats: Sequence[str] = FORMATS,
    dark: bool = False,
    force: bool = False,
    *,
    kinds: Collection[str] = (),
    cases: Collection[str] = (),
    source: Path | None = None,
    checkpoints: Collection[str] = (),
) -> list[Path]:
    """Write figures of a run into `folder`, such as ``ranges.square.float32.png``.

    Args:
        run: a ``parity.json`` of schema 2.
        folder: made where it is not there.
        formats: of ``png`` and ``svg``.
        dark: on a dark page; ``.dark`` goes into the names.
        force: replace files that are there.
        kinds: only these of `KINDS`; where empty all, of single checkpoints only where `checkpoints` names some.
        cases: only cases of these names; all where empty.
        source: the run folder, which has the pictures and traces.
        checkpoints: whose histograms and profiles are drawn, and nothing else where `kinds` is empty.

    Returns:
        the files written, in order.

    Raises:
        UsageError: an unknown format, a case or checkpoint that the run has not, kinds of which it has nothing to show,
            a trace that cannot be read.
        OutputExistsError: a file is there and `force` is false; nothing has been written then.
    """
    run = of_cases(run, cases)
    asked = kinds or (closeup.KINDS if checkpoints else ())
    figures: list[tuple[str, Callable[[Theme], Figure]]] = [
        (name, partial(draw, run, entry, section)) for name, draw, entry, section in plan(run, asked)
    ]
    if not asked or "pictures" in asked:
        figures += pictureplots.plan(run, source)
    if single := [kind for kind in closeup.KINDS if kind in asked]:
        figures += checkpointplots.plan(run, source, single, checkpoints)
    if asked and not figures:
        raise UsageError(_nothing_of(run, asked, checkpoints))
    return write_figures(figures, folder, formats, dark, force)


def _nothing_of(run: Mapping[str, Any], kinds: Collection[str], checkpoints: Collection[str]) -> str:
    """What to say where a run has nothing of some kinds."""
    if set(kinds) <= set(closeup.KINDS):
        return closeup.nothing(kinds, checkpoints)
    has = list(dict.fromkeys(name.partition(".")[0] for name, *_ in plan(run)))
    return f"{_nothing(kinds)} there is {', '.join(has) or 'none'}"


def render_overlays(
    runs: Mapping[str, Mapping[str, Any]],
    folder: Path,
    formats: Sequence[str] = FORMATS,
    dark: bool = False,
    force: bool = False,
    *,
    kinds: Collection[str] = (),
    cases: Collection[str] = (),
) -> list[Path]:
    """Write figures of several runs over one another, such as ``overlay.errors.square.float32.isolated.png``.

    Args:
        runs: by label, see `overlay.named`; the first one is what the others are held against.
        folder, formats, dark, force, kinds, cases: as for `render_plots`.

    Raises:
        UsageError: as `render_plots`, or the runs have nothing in common.
        OutputExistsError: a file is there and `force` is false; nothing has been written then.
    """
    chosen = {label: of_cases(run, cases, label) for label, run in runs.items()}
    figures = overlayplots.plan(chosen, kinds)
    if not figures:
        has = list(dict.fromkeys(name.split(".")[1] for name, _ in overlayplots.plan(chosen)))
        raise UsageError(f"{_nothing(kinds)} of several runs there is {', '.join(has) or 'none'}")
    return write_figures(figures, folder, formats, dark, force)


def _nothing(kinds: Collection[str]) -> str:
    return f"--kind {', '.join(kinds)}: there is nothing of it to show;"


def write_figures(
    figures: Sequence[tuple[str, Callable[[Theme], Figure]]],
    folder: Path,
    formats: Sequence[str] = FORMATS,
    dark: bool = False,
    force: bool = False,
) -> list[Path]:
    """Draw figures and write them into `folder`, under their names.

    Raises:
        UsageError: an unknown format.
        OutputExistsError: a file is there and `force` is false; nothing has been written then.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UsageError(f"plot format {unknown[0]!r} is none of {', '.join(FORMATS)}")
    ending = ".dark" if dark else ""
    planned = [(draw, [folder / f"{name}{ending}.{form}" for form in formats]) for name, draw in figures]
    paths = [path for _, targets in planned for path in targets]
    there = [path for path in paths if path.exists()]
    if there and not force:
        raise OutputExistsError(f"{there[0]} is already there: choose another folder or add --force")
    with room_for(folder):
        folder.mkdir(parents=True, exist_ok=True)
    colours = theme(dark)
    with matplotlib.rc_context(rc(colours)), warnings.catch_warnings():
        # A name may hold a letter that the font lacks; a box in its place is good enough for a plot.
        warnings.filterwarnings("ignore", message="Glyph")
        for draw, targets in planned:
            figure = draw(colours)
            for path in targets:
                with room_for(path):
                    path.write_bytes(encode(figure, path.suffix[1:]))
    return paths


def plan(run: Mapping[str, Any], kinds: Collection[str] = ()) -> list[Planned]:
    """Name, maker, entry and section of each figure of a run, in order; of some kinds only where `kinds` names them."""
    return [one for one in _everything(run) if not kinds or one[0].partition(".")[0] in kinds]


def _everything(run: Mapping[str, Any]) -> list[Planned]:
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
