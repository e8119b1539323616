"""``parity case export``: the inputs of a case as a file that any port reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from parity import outside
from parity import suite as suites
from parity.casefile import spell, write_inputs
from parity.commands.weights_option import asked, open_model
from parity.errors import OutputExistsError, UsageError
from parity.ports import open_port
from parity.recording import export_states
from parity.reporters import text
from parity.run import Job


def export(
    suite: str = "default",
    /,
    *,
    case: Annotated[str | None, Parameter(help="which case; may be left out where the suite has one")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, Parameter(help="of the inputs; default the case's first")
    ] = None,
    weights: Annotated[str | None, Parameter(help="as for `parity run`; sizes are those of the model")] = None,
    out: Annotated[Path | None, Parameter(help="file to write; default CASE.DTYPE.safetensors")] = None,
    stages: Annotated[
        Path | None, Parameter(help="folder: also write the reference's state before each stage, for isolated mode")
    ] = None,
    reference: Annotated[str, Parameter(help="the reference, package.module:attribute")] = "reference",
    force: Annotated[bool, Parameter(negative=(), help="overwrite files that are there")] = False,
) -> int:
    """Write the inputs of a case as one safetensors file, which a port in any language reads.

    Random generators differ between frameworks, so inputs are shared and never drawn again. Prints
    what the file holds. Copy the text 'parity.case' of its metadata into the metadata of what your port
    dumps: then it can't be compared with the trace of another case by mistake.

    Parameters
    ----------
    suite
        name of a suite, or the path of a .toml file.
    """
    err = Console(stderr=True, highlight=False)
    chosen = suites.load(suite)
    known = [planned.case.name for planned in chosen.cases]
    if case is None and len(known) != 1:
        raise UsageError(f"suite {chosen.name!r} has {len(known)} cases: name one with --case: {', '.join(known)}")
    planned = chosen.narrowed([case] if case else [], [dtype] if dtype else []).cases[0]
    chosen_dtype = dtype or planned.dtypes[0]
    path = out or Path(f"{planned.case.name}.{chosen_dtype}.safetensors")
    _check_free([path, *([stages] if stages else [])], force)
    # The first stage's inputs need no value of a weight: sizes are enough.
    model = open_model(
        asked(weights, chosen), planned.case.folders, err, later=lambda _: stages is None, plain=chosen.plain
    )
    inputs = outside.inputs(planned.case, model.configs, chosen_dtype)
    size = write_inputs(path, inputs, planned.case, chosen_dtype)
    for key, array in inputs.items():
        print(f"{key:<18} {spell(array)}")
    if stages:
        job = Job(chosen.narrowed([planned.case.name], [chosen_dtype]), model, "")
        with text.progress(err) as progress:
            told = lambda stage, done, total: progress(planned.case.name, stage, done, total)  # noqa: E731
            port, order = open_port(reference), job.units[0].graph.stages
            written = list(export_states(planned.case, chosen_dtype, port, model, stages, told, order))
        size += sum(one.stat().st_size for one in written)
        print(f"{len(written)} states in {stages}, {written[0].name} to {written[-1].name}")
    err.print(f"{size / 2**20:,.1f} MiB", markup=False)
    print(path)
    return 0


def _check_free(paths: list[Path], force: bool) -> None:
    for path in paths:
        if path.is_dir() and any(one.suffix != ".safetensors" for one in path.iterdir()):
            raise OutputExistsError(f"{path} is a folder that holds other files; choose another place")
        if path.exists() and not force and (path.is_file() or any(path.iterdir())):
            raise OutputExistsError(f"{path} is there; --force overwrites it, another place keeps it")
