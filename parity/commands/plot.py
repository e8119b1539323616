"""``parity plot``: draw the plots of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from parity.runfolder import read_run


def plot(
    run: Path,
    /,
    *,
    out: Annotated[Path | None, Parameter(help="folder for the plots; default RUN/plots")] = None,
    dark: Annotated[bool, Parameter(negative=(), help="light lines on a dark ground")] = False,
    force: Annotated[bool, Parameter(negative=(), help="overwrite plots that are there")] = False,
) -> int:
    """Draw the plots of a finished run as PNG and SVG, and print their paths.

    Parameters
    ----------
    run
        the run folder.
    """
    from parity.plots import render_plots

    for path in render_plots(read_run(run), out or run / "plots", dark=dark, force=force):
        print(path)
    return 0
