"""``parity run``: compare the MLX port with the reference, checkpoint by checkpoint."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from parity import estimate, memory
from parity import suite as suites
from parity.commands.weights_option import asked, open_loras, open_model, open_original
from parity.ports import environment, open_port
from parity.reporters import text
from parity.reporters.formats import Format, show
from parity.run import LARGE_BYTES, Job, default_jobs, streams
from parity.run import run as run_job
from parity.runfolder import RunFolder
from parity.verdict import exit_code

RUNS = Path("runs")
# Weights above this size would keep the default suite busy for hours.
FULL_BYTES = 8 << 30


def run(
    suite: str | None = None,
    /,
    *,
    case: Annotated[tuple[str, ...], Parameter(negative=(), help="only this case of the suite; repeatable")] = (),
    weights: Annotated[
        str | None,
        Parameter(help="model folder, hub id org/name[@revision], or synthetic:tiny, synthetic:wide, synthetic:full"),
    ] = None,
    lora: Annotated[
        tuple[str, ...], Parameter(negative=(), help="FILE[@SCALE], a LoRA that both sides wear; repeatable")
    ] = (),
    original: Annotated[
        str | None, Parameter(help="what --weights was quantized from: adds quantization to the error budget")
    ] = None,
    candidate: Annotated[
        str, Parameter(help="the port under test: mlx_impl, a copy of it, package.module:attribute")
    ] = "mlx_impl",
    reference: Annotated[
        str, Parameter(help="the port it is held against, for a model of your own: package.module:attribute")
    ] = "reference",
    dtype: Annotated[
        tuple[Literal["float32", "bfloat16", "float16"], ...],
        Parameter(negative=(), help="instead of the suite's dtypes; repeatable"),
    ] = (),
    detail: Annotated[Literal["kinds", "block", "full"] | None, Parameter(help="which checkpoints")] = None,
    inside: Annotated[
        tuple[int, ...],
        Parameter(negative=(), help="also look inside this step of pipelines, -1 is the last; repeatable"),
    ] = (),
    truth: Annotated[Literal["float64", "float32"], Parameter(help="dtype of the truth")] = "float64",
    jobs: Annotated[
        int | None,
        Parameter(help="units at once; default: as many as cores, 1 for large weights", validator=Number(gte=1)),
    ] = None,
    out: Annotated[Path | None, Parameter(help="run folder; default runs/SUITE-DATE-TIME")] = None,
    format: Format = "table",
    force: Annotated[bool, Parameter(negative=(), help="overwrite a finished run in --out")] = False,
) -> int:
    """Compare a port with the reference, checkpoint by checkpoint.

    Runs a suite's cases through the float64 truth, the reference, its noise floor and the
    candidate, in lockstep, and writes a run folder: parity.json, traces, plots and report.html.
    A run that was killed is resumed by the same command.

    Parameters
    ----------
    suite
        name of a suite, or the path of a .toml file, which may name components of your own; without one
        "default", and "full" for a model of many gigabytes.
    """
    chosen = suites.load(suite or "default").narrowed(case, dtype, detail, inside)
    err = Console(stderr=True, highlight=False)
    planned = [one.case for one in chosen.cases]
    where = asked(weights, chosen)
    later = partial(streams, cases=planned)
    model = open_model(where, chosen.folders, err, later=later, plain=chosen.plain)
    if suite is None and model.nbytes > FULL_BYTES:
        chosen = suites.load("full").narrowed(case, dtype, detail, inside)
        err.print(f"{memory.spell(model.nbytes)} of weights: suite full, {chosen.title}", markup=False)
    loras = open_loras(lora, model, err)
    before = open_original(original, model, err) if original else None
    job = Job(chosen, model, candidate, truth, loras=loras, original=before, reference=reference)
    job = replace(job, jobs=default_jobs(model, len(job.units)) if jobs is None else jobs)
    _say_what_it_takes(job, err)
    plan = job.plan(model.fingerprint())
    folder = RunFolder.open(out or _default_out(chosen.name, plan), plan, force=force)
    with text.progress(err) as progress:
        result = run_job(job, folder, shlex.join(["parity", *sys.argv[1:]]), progress)
    page = _render(result, folder.path, err)
    show(result, format, page)
    return exit_code(result["verdict"])


def _say_what_it_takes(job: Job, err: Console) -> None:
    """Refuse a run that does not fit into memory; of a large one, say how long it will take."""
    levels = {planned.case.name: planned.detail for planned in job.suite.cases}
    units = [(unit, levels[unit.case.name]) for unit in job.units]
    need = estimate.check_memory(units, job.model, job.jobs, memory.available())
    if job.model.nbytes <= LARGE_BYTES:
        return
    rates = None
    if all(environment(open_port(spec)).get("device") == "cpu" for spec in (job.reference, job.candidate)):
        with err.status("measuring this machine"):
            rates = estimate.measure_rates(job.model)
    for unit, level in units:
        one = estimate.estimate(unit, job.model, level, rates, original=job.original is not None)
        passes = ", ".join(f"{side} {count}" for side, count in one.passes.items())
        took = "" if one.seconds is None else f"about {max(1, round(one.seconds / 60))} min, "
        err.print(f"{unit.key}: {took}{memory.spell(need)} of memory; passes: {passes}", markup=False)


def _default_out(suite: str, plan: dict) -> Path:
    """An unfinished run of the same plan, else a new folder named after the suite and the time."""
    for folder in sorted(RUNS.glob(f"{suite}-*"), reverse=True):
        if RunFolder(folder).holds(plan):
            return folder
    stamp = f"{suite}-{datetime.now():%Y%m%d-%H%M%S}"
    return next(p for i in range(1000) if not (p := RUNS / (stamp if i == 0 else f"{stamp}-{i}")).exists())


def _render(result: dict, folder: Path, err: Console) -> Path:
    """The page, and the plots of the cases that one looks at first, one a component; ``parity plot`` draws all."""
    from parity.plots import render_plots
    from parity.report import render_report

    first = {case["component"]: case["name"] for case in reversed(result["cases"])}
    if diverged := result["first_divergence"]:
        first = {"": diverged["case"]}
    with err.status("drawing plots and report"):
        of_shown = result | {"cases": [case for case in result["cases"] if case["name"] in first.values()]}
        render_plots(of_shown, folder / "plots", force=True)
        return render_report(result, folder / "report.html", force=True)
