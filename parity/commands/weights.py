"""``parity weights``: what a checkpoint holds, and the same weights in another layout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from parity import weights_check, weights_convert
from parity.commands.weights_option import find_model
from parity.errors import EXIT_PARITY, EXIT_PRECONDITION, UsageError
from parity.memory import spell
from parity.reporters import weights as reporter
from parity.weights_quantize import STORED

Component = Literal["transformer", "text_encoder", "vae"]


def check(
    path: str,
    /,
    *,
    component: Annotated[
        tuple[Component, ...], Parameter(negative=(), help="only this one; may be given several times")
    ] = (),
    format: Annotated[Literal["table", "json"], Parameter(help="what stdout carries")] = "table",
    values: Annotated[bool, Parameter(help="stream the values, for what is not finite or all zero")] = True,
    hash: Annotated[bool, Parameter(negative=(), help="SHA-256 of every file, as hubs have it")] = False,
) -> int:
    """Say what a checkpoint holds, and everything that is wrong with it.

    Of every component: layout, sizes, dtypes, bits of each layer; every tensor that is missing, extra, wrongly
    shaped, twice there, packed in no known way, not finite or, if it is a matrix, all zero; and the documented table
    of packed shapes at this model's width. Exit code 0: nothing is wrong; 4: something is.

    Parameters
    ----------
    path
        a model's folder, a component's, a single safetensors file, or what --weights takes.
    """
    found = weights_check.find(find_model(path, component or None), component)
    total = sum(shard.size for _, one in found for shard in one.files.shards) if values or hash else 0
    with bar("reading", total) as advance:
        reports = [weights_check.check(name, one, values, hash, advance) for name, one in found]
    if format == "json":
        print(json.dumps(reporter.to_json(path, reports), indent=1))
    else:
        reporter.print_table(Console(width=reporter.WIDTH, highlight=False), reports)
    return EXIT_PRECONDITION if any(report.problems for report in reports) else EXIT_PARITY


def convert(
    source: str,
    target: Path,
    /,
    *,
    to: Annotated[Literal["diffusers", "mflux", "mlx-rs", "single"], Parameter(help="layout of the result")],
    dequantize: Annotated[bool, Parameter(negative=(), help="write packed layers out")] = False,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None, Parameter(help="of what is written out; bfloat16 otherwise")
    ] = None,
    force: Annotated[bool, Parameter(negative=(), help="replace weights that are there")] = False,
) -> int:
    """Write the same weights in another layout, bit for bit.

    All components go along, with tokenizer, scheduler and processor; a single file holds the transformer alone.
    Packed layers stay packed between MLX's layouts; the others can't hold them. The layout of the source is found
    out. The result has its name only when it is whole.

    Parameters
    ----------
    source
        a model's folder, a component's, a single safetensors file, or what --weights takes.
    target
        name of the new folder, or with --to single of the new file.
    """
    if dtype is not None and not dequantize:
        raise UsageError("--dtype is for what --dequantize writes out; everything else keeps its own")
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    written_as = STORED[dtype or "bfloat16"] if dequantize else None
    conversion = weights_convert.plan(find_model(source), to, target, written_as)
    for note in conversion.notes:
        err.print(f"note: {note}", markup=False)
    total = sum(tensor.nbytes for one in conversion.plans for tensor in one.tensors)
    with bar("writing", total) as advance:
        weights_convert.write(conversion, target, force, advance, lambda line: err.print(line, markup=False))
    print(f"{target}: {conversion.tensors} tensors, {spell(total)}, layout {to}")
    return EXIT_PARITY


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that counts bytes; nothing where there are none to count."""
    columns = (
        TextColumn(what),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, disable=not total) as bar:
        task = bar.add_task(what, total=total)
        yield lambda size: bar.advance(task, size)
