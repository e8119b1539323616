"""``parity doctor``: what this machine has, what it lacks, and the command that mends it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.doctor import Finding, examine
from parity.errors import EXIT_PARITY, EXIT_PRECONDITION

STYLE = {"ok": "green", "warn": "bold yellow", "missing": "bold red"}


def doctor(
    *,
    format: Annotated[Literal["table", "json"], Parameter(help="what stdout carries")] = "table",
) -> int:
    """Look at packages, both ports, BLAS, TF32, memory, disk and compiler.

    Also measures one float32 matrix product a side, so that a slow BLAS is seen. Exit code 0:
    all that is needed is there; 4: something is missing, and what mends it is printed.
    """
    findings = examine()
    ready = all(finding.status != "missing" for finding in findings)
    if format == "json":
        print(json.dumps({"ready": ready, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        _print(findings, ready)
    return EXIT_PARITY if ready else EXIT_PRECONDITION


def _print(findings: list[Finding], ready: bool) -> None:
    out = Console(width=80, highlight=False)
    for section in dict.fromkeys(finding.section for finding in findings):
        grid = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
        for width in (7, 15, None):
            grid.add_column(width=width, overflow="fold")
        for one in (finding for finding in findings if finding.section == section):
            wanted = f" (required: {one.required})" if one.required and one.status != "ok" else ""
            grid.add_row(Text(one.status, STYLE[one.status]), Text(one.name), Text(_printable(one.found) + wanted))
        out.print(Text(section, "bold"))
        out.print(grid)
        out.print()
    for one in findings:
        if one.fix:
            out.print(Text(f"{one.section} {one.name}: {one.fix}", STYLE[one.status]))
    missing = sum(finding.status == "missing" for finding in findings)
    out.print(Text("Ready." if ready else f"Not ready: {missing} missing.", "bold green" if ready else "bold red"))


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)
