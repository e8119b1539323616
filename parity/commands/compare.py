"""``parity compare``: hold what a port dumped against a golden trace."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from parity.compare import compare as judged
from parity.comparison_trace import measure
from parity.errors import UsageError
from parity.golden import read_golden
from parity.imports import open_candidate
from parity.reporters.formats import Format, show
from parity.runfolder import check_free, clear, write_json
from parity.verdict import exit_code


def compare(
    golden: Path,
    candidate: Path,
    /,
    *more: Path,
    mode: Annotated[
        Literal["accumulated", "isolated"] | None, Parameter(help="how the port was run; default as the golden trace")
    ] = None,
    only: Annotated[
        tuple[str, ...],
        Parameter(negative=(), help="judge checkpoints like 'block.07.*' alone, as of one block by hand; repeatable"),
    ] = (),
    passage: Annotated[
        str, Parameter(name="--pass", help="which pass of a log with several: a step's number; default the first")
    ] = "",
    out: Annotated[Path | None, Parameter(help="also write a run folder with parity.json and report.html")] = None,
    format: Annotated[Format, Parameter(help="what stdout carries")] = "table",
    force: Annotated[bool, Parameter(negative=(), help="overwrite a run in --out")] = False,
) -> int:
    """Judge a port in any language from what it dumped.

    Needs neither torch nor weights: the golden trace has the reference's statistics, its noise floor and a
    sketch of the truth. Tensors and sketches give verdicts, with the uncertainty of each figure; statistics
    and ranges can prove a divergence and never parity. docs/porting.md walks through it.

    Parameters
    ----------
    golden
        what `parity trace record` wrote, or somebody published.
    candidate
        .safetensors or .npz whose keys are checkpoint names, a file of sketches, a trace, or a log with ranges.
    more
        further files of the same dump.
    """
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    expected = read_golden(golden)
    found = open_candidate([candidate, *more], expected.graph.parents, passage)
    if out is not None:
        check_free(out, "a run", force=force)
        _check_apart(out, [golden, candidate, *more])
    with err.status(f"comparing {len(found.names):,} checkpoints"):
        run = judged(expected, found, mode=mode or "", only=only, command=shlex.join(["parity", *sys.argv[1:]]))
        keep = measure(run, expected, found) if out is not None else None
    for note in run["notes"]:
        err.print(f"note: {note}", markup=False)
    page = None
    if out is not None and keep is not None:
        from parity.report import render_report

        clear(out)  # of a run that was there, the page would show diagnosis and traces
        out.mkdir(parents=True, exist_ok=True)
        keep(out)
        write_json(out / "parity.json", run)
        page = render_report(run, out / "report.html", force=True, folder=out)
    show(run, format, page)
    return exit_code(run["verdict"])


def _check_apart(out: Path, read: list[Path]) -> None:
    """Refuse to overwrite what is compared."""
    inside = [path for path in read if path.resolve().is_relative_to(out.resolve())]
    if inside:
        raise UsageError(f"{inside[0]} is in {out}, which would be overwritten; choose another --out")
