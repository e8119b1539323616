"""``parity plot``: draw the plots of finished runs, into files or in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from parity.errors import UsageError
from parity.overlay import named
from parity.runschema import read_whole

Kind = Literal["ranges", "growth", "steps", "errors", "heatmap", "budget", "pictures", "histogram", "profile"]


def plot(
    run: Path,
    /,
    *more: Path,
    kind: Annotated[tuple[Kind, ...], Parameter(negative=(), help="only plots of this kind; repeatable")] = (),
    case: Annotated[tuple[str, ...], Parameter(negative=(), help="only of this case; repeatable")] = (),
    checkpoint: Annotated[
        tuple[str, ...], Parameter(negative=(), help="its values, and where in it the error is; repeatable")
    ] = (),
    terminal: Annotated[bool, Parameter(negative=(), help="print them, 80 columns wide; no files are written")] = False,
    out: Annotated[Path | None, Parameter(help="folder for the plots; default RUN/plots")] = None,
    format: Annotated[tuple[Literal["png", "svg"], ...], Parameter(negative=(), help="default both; repeatable")] = (),
    dark: Annotated[bool, Parameter(negative=(), help="light lines on a dark ground")] = False,
    force: Annotated[bool, Parameter(negative=(), help="overwrite plots that are there")] = False,
) -> int:
    """Draw the plots of a finished run as PNG and SVG, and print their paths.

    Several runs are drawn over one another, case by case: before and after a fix, two versions of
    a library, two machines. A heatmap then shows where a run is better or worse than the first one.

    Parameters
    ----------
    run
        the run folder.
    more
        further run folders, to be drawn over the first one.
    """
    folders = [run, *more]
    if more and checkpoint:
        raise UsageError("--checkpoint is for one run: leave out all run folders but one")
    runs = [read_whole(folder) for folder in folders]
    source = run if run.is_dir() else run.parent
    if terminal:
        if out or format or force:
            raise UsageError("--terminal writes no files: leave out --out, --format and --force")
        from parity.reporters.terminal import print_plots

        print_plots(named(folders, runs), kind, case, dark=dark, source=source, checkpoints=checkpoint)
        return 0
    from parity.plots import FORMATS, render_overlays, render_plots

    options = {"formats": format or FORMATS, "dark": dark, "force": force, "kinds": kind, "cases": case}
    target = out or source / "plots"
    if more:
        paths = render_overlays(named(folders, runs), target, **options)
    else:
        paths = render_plots(runs[0], target, source=source, checkpoints=checkpoint, **options)
    for path in paths:
        print(path)
    return 0
