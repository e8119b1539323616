"""``parity trace import``: what a port dumped, as a trace."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from parity.commands.trace_record import make_room
from parity.errors import UsageError
from parity.golden import Golden, read_golden
from parity.imports import Imported, open_candidate
from parity.imports.tracing import write_trace
from parity.safetensors_header import shown


def import_(
    first: Path,
    /,
    *more: Path,
    out: Annotated[Path, Parameter(help="folder to write")],
    golden: Annotated[
        Path | None, Parameter(help="golden trace to be compared with: its sketch, case, dtype and names")
    ] = None,
    passage: Annotated[
        str, Parameter(name="--pass", help="of a log, which pass: its step, or how many were before; default the first")
    ] = "",
    force: Annotated[bool, Parameter(negative=(), help="overwrite a trace that is there")] = False,
) -> int:
    """Turn what a port dumped into a trace, small enough to send.

    Of tensors it keeps statistics and sketches (16 kB a checkpoint), from which parity compare
    tells the error within 3 %; of a log, its ranges. Prints the folder.

    Parameters
    ----------
    first
        .safetensors or .npz whose keys are checkpoint names, a folder of them, or a log (.log, .txt).
    more
        further files of the same dump.
    """
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    expected = read_golden(golden) if golden else None
    found = open_candidate([first, *more], expected.graph.parents if expected else (), passage)
    _check(found, expected)
    make_room([out], force)
    with err.status("reading") as status:
        count = write_trace(
            found, out, expected, shlex.join(["parity", *sys.argv[1:]]),
            lambda done, of: status.update(f"{done} of {of} checkpoints"),
        )  # fmt: skip
    for note in found.notes:
        err.print(f"note: {note}", markup=False)
    size = sum(path.stat().st_size for path in out.iterdir())
    err.print(f"{count:,} checkpoints, {size / 1e6:.1f} MB", markup=False)
    print(out)
    return 0


def _check(found: Imported, golden: Golden | None) -> None:
    if found.about.get("side") == "golden":
        raise UsageError(f"{found.label}: a golden trace, the reference's own; name what a port dumped")
    if golden is not None and found.case and found.case != golden.about["case_hash"]:
        raise UsageError(
            f"{found.label}: of case {shown(found.case[:12])}… and {golden.label} of "
            f"{shown(golden.about['case_hash'][:12])}…: give the golden trace of the same inputs"
        )
