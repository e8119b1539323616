"""The forms in which commands give a run: what ``--format`` takes, and what stdout then carries."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from parity.reporters import github, junit, text
from parity.runfolder import to_json

# The type of the option, the same for every command that ends with a run.
Format = Annotated[Literal["table", "json", "md", "junit", "github"], Parameter(help="what stdout carries")]


def as_json(run: Mapping[str, Any]) -> str:
    """``parity.json`` in one line."""
    return json.dumps(to_json(run), allow_nan=False)


# What is text as a whole; the table is drawn for the terminal at hand.
WRITERS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "json": as_json,
    "md": text.markdown,
    "junit": junit.render,
    "github": github.annotation,
}


def show(run: Mapping[str, Any], format: str, page: Path | None = None) -> None:
    """Give a run on stdout.

    The form ``github`` also appends to the runner's step summary; where there is none, stdout carries
    the summary as well, and stderr says why.

    Args:
        run: contents of ``parity.json``.
        format: one of `Format`.
        page: the report, named below the table.
    """
    if format == "table":
        text.print_table(run)
        if page is not None:
            print(page)
        return
    print(WRITERS[format](run).rstrip("\n"))
    if format == "github" and (problem := github.append_summary(run)):
        print(github.summary(run).rstrip("\n"))
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"no step summary: {problem}; it is on stdout", markup=False
        )
