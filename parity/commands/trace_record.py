"""``parity trace record``: what a reference, or a port, computes in one case, to be compared elsewhere."""

from __future__ import annotations

import shlex
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from parity import estimate, memory
from parity import suite as suites
from parity.commands.weights_option import asked, open_loras, open_model
from parity.errors import OutputExistsError, UsageError
from parity.lockstep import Unit
from parity.ports import open_port
from parity.recording import Wanted, record_golden, record_port
from parity.reporters import text
from parity.run import Job, streams
from parity.sketch import BUCKETS, Spec
from parity.trace import MANIFEST, SKETCHES, STATS, TENSORS


def record(
    suite: str = "default",
    /,
    *,
    out: Annotated[Path, Parameter(help="folder; each case gets one in it, CASE.DTYPE")],
    case: Annotated[tuple[str, ...], Parameter(negative=(), help="only this case of the suite; repeatable")] = (),
    dtype: Annotated[
        tuple[Literal["float32", "bfloat16", "float16"], ...],
        Parameter(negative=(), help="instead of the suite's dtypes; repeatable"),
    ] = (),
    weights: Annotated[str | None, Parameter(help="as for `parity run`")] = None,
    lora: Annotated[tuple[str, ...], Parameter(negative=(), help="FILE[@SCALE]; repeatable")] = (),
    detail: Annotated[Literal["kinds", "block", "full"] | None, Parameter(help="default block")] = None,
    mode: Annotated[
        Literal["accumulated", "isolated"],
        Parameter(
            help="the port feeds itself, or each stage is fed the reference's state (parity case export --stages)"
        ),
    ] = "accumulated",
    keep: Annotated[
        tuple[str, ...],
        Parameter(negative=(), help="also keep whole values of checkpoints like 'block.07.*'; repeatable"),
    ] = (),
    port: Annotated[str | None, Parameter(help="record this port instead of the reference")] = None,
    reference: Annotated[str, Parameter(help="the reference, package.module:attribute")] = "reference",
    buckets: Annotated[int, Parameter(help="of a sketch, a power of two; RMSE is uncertain by 1.4/√buckets")] = BUCKETS,
    seed: Annotated[int, Parameter(help="of the sketches")] = 0,
    truth: Annotated[Literal["float64", "float32"], Parameter(help="dtype of the truth")] = "float64",
    force: Annotated[bool, Parameter(negative=(), help="overwrite traces that are there")] = False,
) -> int:
    """Record golden traces: what the reference computes, without its tensors.

    A golden trace has, of every checkpoint, statistics, the reference's own noise floor and a sketch of
    the truth from which the RMSE of a port's values can be told within 3 %. It takes 20 MB for 60 blocks,
    and judges a port with neither torch nor the reference's weights: parity compare GOLDEN DUMP.
    Prints the folders.

    Parameters
    ----------
    suite
        name of a suite, or the path of a .toml file.
    """
    err = Console(stderr=True, highlight=False)
    chosen = suites.load(suite).narrowed(case, dtype, detail or "block")
    spec = _spec(buckets, seed)
    planned = [one.case for one in chosen.cases]
    later = partial(streams, cases=planned)
    model = open_model(asked(weights, chosen), chosen.folders, err, later=later, plain=chosen.plain)
    loras = open_loras(lora, model, err)
    units = Job(chosen, model, port or "", truth, loras=loras).units
    folders = [out / unit.key for unit in units]
    make_room(folders, force)
    levels = {planned.case.name: planned.detail for planned in chosen.cases}
    estimate.check_memory([(unit, levels[unit.case.name]) for unit in units], model, 1, memory.available())
    command = shlex.join(["parity", *sys.argv[1:]])
    sides = open_port(reference), open_port(port) if port else None
    adapters = [one.adapter for one in loras]
    with text.progress(err) as progress:
        for unit, folder in zip(units, folders, strict=True):
            wanted = Wanted(mode, levels[unit.case.name], keep, spec, chosen.ranges, command)
            _check_kept(unit, keep)

            def told(stage: str, done: int, total: int, unit: Unit = unit) -> None:
                progress(unit.key, stage, done, total)

            if sides[1] is None:
                record_golden(unit, sides[0], model, folder, wanted, told, adapters)
            else:
                record_port(unit, sides[1], sides[0], model, folder, wanted, told, adapters)
            print(folder)
    return 0


def _spec(buckets: int, seed: int) -> Spec:
    try:
        return Spec(buckets, seed)
    except ValueError as error:
        raise UsageError(f"--buckets {buckets} --seed {seed}: {error}") from None


def _check_kept(unit: Unit, keep: tuple[str, ...]) -> None:
    wanted = Wanted(keep=keep)
    idle = [one for one in keep if not any(Wanted(keep=(one,)).keeps(name) for name in unit.graph.expected)]
    if idle:
        example = next((name for name in unit.graph.expected if not wanted.keeps(name)), unit.graph.expected[-1])
        raise UsageError(f"--keep {idle[0]}: no checkpoint of {unit.case.name} is named so; names are like {example}")


def make_room(folders: list[Path], force: bool) -> None:
    """Nothing is overwritten unasked, and only what a trace has is removed."""
    ours = {MANIFEST, STATS, SKETCHES, TENSORS}
    for folder in folders:
        if not folder.exists():
            continue
        strangers = (
            sorted(entry.name for entry in folder.iterdir() if entry.name not in ours) if folder.is_dir() else [""]
        )
        if strangers:
            raise OutputExistsError(f"{folder} is there and holds what no trace has; choose another --out")
        if any(folder.iterdir()) and not force:
            raise OutputExistsError(f"{folder} holds a trace; --force overwrites it, another --out keeps it")
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
