"""``parity bench golden``: how well golden traces tell errors, and what judging a dump takes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from parity import suite as suites
from parity.bench_golden import Accuracy, Judged, Size, accuracy, judged
from parity.commands.bench import Candidate, Dtype, Force, Out, Weights, free, save
from parity.commands.weights_option import open_model
from parity.memory import spell
from parity.run import Job

Count = Annotated[int, Parameter(help="checkpoints of the dump that is judged", validator=Number(gte=1))]


def golden(
    *,
    weights: Weights = "synthetic:tiny",
    candidate: Candidate = "mlx_impl",
    dtype: Dtype = "float32",
    checkpoints: Count = 1500,
    out: Out = None,
    force: Force = False,
) -> int:
    """Hold what sketches tell of errors against whole values, and time `parity compare`.

    First a case of both sides at level block: is the RMSE from sketches within 5 %, are exchanged
    channels and tokens and single wrong elements seen? Then a bfloat16 dump of 256 tokens at full
    width, 1.5 MB a checkpoint, random values written for it: once equal, once all wrong.
    """
    free(out, force)
    err = Console(stderr=True, highlight=False)
    suite = suites.load("default").narrowed(["square"], [dtype], "block")
    model = open_model(weights, suite.folders, err)
    with err.status("recording both sides"):
        found = accuracy(Job(suite, model, candidate).units[0], model, candidate)
    size, took = Size(checkpoints), {}
    for name, right in (("equal", True), ("all wrong", False)):
        with err.status(f"judging a dump of {spell(size.nbytes)}, {name}"):
            took[name] = judged(size, right=right)
    _print(found, size, took)
    save(
        out,
        {"accuracy": asdict(found), "size": asdict(size), "judged": {key: asdict(one) for key, one in took.items()}},
    )
    return 0


def _print(found: Accuracy, size: Size, took: dict[str, Judged]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1))
    table.add_row("golden trace", spell(found.nbytes))
    table.add_row(
        "RMSE within 5 %", f"{found.near:,} of {found.checkpoints:,} checkpoints; furthest {found.furthest:.1%}"
    )
    for change, (seen, of) in found.seen.items():
        table.add_row(f"seen: {change}", f"{seen:,} of {of:,}")
    for name, one in took.items():
        table.add_row(
            f"{size.checkpoints:,} × {size.tokens} × {size.width}, {name}",
            f"{one.seconds:.1f} s, {spell(one.peak_bytes)} of memory: {one.verdict}",
        )
    Console(highlight=False).print(table)
