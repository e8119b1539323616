"""``parity bench report``: size of the page, time to make it, time until it can be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from parity import chromium
from parity.bench_report import SIZES, Made, made
from parity.commands.bench import Force, Out, Repeats, free, save

Sizes = tuple[Literal["blocks", "steps", "entry", "hostile"], ...]
_NONE = "–"


def report(
    *,
    size: Annotated[Sizes, Parameter(negative=(), help="which runs; repeatable")] = tuple(SIZES),
    repeats: Repeats = 3,
    out: Out = None,
    force: Force = False,
) -> int:
    """Make pages of large runs, and time until their charts are there in Chromium.

    The runs are seeded rows without a model, with traces: 60 blocks in both modes; 50 steps of a
    pipeline that is looked inside at each; 100,000 checkpoints of one entry; as many with hostile
    names. Each page is made in a process of its own, and opened in a new Chromium each time, where
    one is installed. Exits 1 when a page is beyond a limit.
    """
    free(out, force)
    err = Console(stderr=True, highlight=False)
    found = {}
    for name in dict.fromkeys(size):
        with err.status(name) as status:
            found[name] = made(SIZES[name], repeats=repeats, told=status.update)
    _print(found)
    over = {name: one.over(SIZES[name]) for name, one in found.items()}
    save(out, {"sizes": {name: asdict(one) | {"of_limit": over[name]} for name, one in found.items()},
               "chromium": chromium.installed() is not None})  # fmt: skip
    return 1 if any(ratio > 1 for of in over.values() for ratio in of.values()) else 0


def _print(found: Mapping[str, Made]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("run")
    for name in ("rows", "MB", "of", "made, s", "of", "ready, ms", "of", "opened, ms"):
        table.add_column(name, justify="right")
    for name, one in found.items():
        size = SIZES[name]
        table.add_row(
            size.title, f"{one.rows:,}",
            f"{one.nbytes / 1e6:.2f}", _limit(size.most_bytes, 1e6), f"{one.seconds:.1f}", _limit(size.most_seconds),
            _NONE if one.ready is None else f"{one.ready:,.0f}", _limit(size.most_ready),
            _NONE if one.opened is None else f"{one.opened:,.0f}",
        )  # fmt: skip
    out = Console(highlight=False)
    out.print(table)
    if chromium.installed() is None:
        out.print("Chromium is not installed: how long a page takes to be ready was not measured.")
    else:
        out.print("ready: from the load event until the charts can be seen; opened: since the page was asked for")


def _limit(most: float | None, unit: float = 1.0) -> str:
    return "" if most is None else f"{most / unit:,g}"
