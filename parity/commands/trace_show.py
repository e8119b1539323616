"""``parity trace show``: what a trace is, as a table, JSON or a plot."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from parity import traceplots
from parity.errors import UsageError
from parity.imports.traces import read_traced
from parity.reporters.trace import print_trace, to_json
from parity.runfolder import to_json as plain
from parity.safetensors_header import shown
from parity.tracefile import Trace, unknown_names


def show(
    trace: Path,
    /,
    *,
    name: Annotated[
        tuple[str, ...], Parameter(negative=(), help="only checkpoints like 'block.07.*', a line each; repeatable")
    ] = (),
    plot: Annotated[Path | None, Parameter(help="also draw ranges (and floors) per block: .png or .svg")] = None,
    format: Annotated[Literal["table", "json"], Parameter(help="what stdout carries")] = "table",
    force: Annotated[bool, Parameter(negative=(), help="overwrite the plot")] = False,
) -> int:
    """Show what a trace is: whose, of which case, its checkpoints, ranges and noise floors.

    Parameters
    ----------
    trace
        a golden trace, a port's, or one of a run (trace/UNIT/candidate).
    """
    if not trace.is_dir():
        raise UsageError(f"{shown(str(trace))}: there is no such folder; `parity trace import` makes one of a dump")
    found = read_traced(trace).trace
    names = _chosen(found, name)
    if plot is not None:
        traceplots.plot(found, plot, force)
    if format == "json":
        print(json.dumps(plain(to_json(found, names)), allow_nan=False))
    else:
        print_trace(found, names, chosen=bool(name))
    return 0


def _chosen(found: Trace, patterns: tuple[str, ...]) -> list[str]:
    names = list(found.stats)
    for one in patterns:
        if not any(fnmatch.fnmatchcase(name, one) for name in names):
            near = unknown_names([one], names)[one]
            raise UsageError(
                f"--name {shown(one)}: {found.label} has no such checkpoint; "
                + (f"nearest: {', '.join(map(shown, near))}" if near else f"names are like {shown(names[0])}")
            )
    return [name for name in names if not patterns or any(fnmatch.fnmatchcase(name, one) for one in patterns)]
