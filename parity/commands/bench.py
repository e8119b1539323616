"""``parity bench``: speed, cost of capture, false alarms, sensitivity. Ratios, not absolute times."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from parity import bench, stopwatch, verdict
from parity.commands.weights_option import open_model
from parity.components.transformer import TransformerCase
from parity.errors import OutputExistsError, UsageError
from parity.names import qwen_image_transformer
from parity.ports import environment, open_port
from parity.runfolder import write_json

Out = Annotated[Path | None, Parameter(help="also write the figures to this JSON file")]
Force = Annotated[bool, Parameter(negative=(), help="overwrite that file")]
Weights = Annotated[str, Parameter(help="checkpoint folder, or synthetic:PRESET")]
Runs = Annotated[int, Parameter(help="clean runs", validator=Number(gte=1))]
Repeats = Annotated[int, Parameter(help="timed passes", validator=Number(gte=1))]
Candidate = Annotated[str, Parameter(help="the port to measure")]
Dtype = Annotated[Literal["float32", "bfloat16"], Parameter(help="of weights and inputs")]


def forward(*, repeats: Repeats = 7, dtype: Dtype = "float32", out: Out = None, force: Force = False) -> int:
    """Time a forward pass of MLX with and without an optimised BLAS, and of torch.

    Four blocks, D = 512, 256 image and 32 text tokens. torch's own bfloat16 GEMM is slow on
    CPUs without AVX512-BF16: its figure is for the kernels as they come.
    """
    free(out, force)
    with _checkpoint() as folder:
        rounds = {"mlx": [], "mlx, PARITY_BLAS=none": [], "torch": []}
        for _ in range(3):  # processes in turn, so that a change of the machine's speed meets all of them
            rounds["mlx"] += stopwatch.measure("mlx", folder, ["plain"], repeats=repeats, dtype=dtype)["plain"]
            slow = stopwatch.measure(
                "mlx", folder, ["plain"], repeats=1, dtype=dtype, environment={"PARITY_BLAS": "none"}
            )
            rounds["mlx, PARITY_BLAS=none"] += slow["plain"]
            torch = stopwatch.measure("torch", folder, ["untapped"], repeats=repeats, dtype=dtype)
            rounds["torch"] += torch["untapped"]
    best = {name: stopwatch.fastest(seconds) for name, seconds in rounds.items()}
    figures = {name: {"seconds": seconds, "over_mlx": seconds / best["mlx"]} for name, seconds in best.items()}
    table = _table("one forward pass", "fastest, ms", "over mlx")
    for name, one in figures.items():
        table.add_row(name, f"{one['seconds'] * 1e3:.0f}", f"{one['over_mlx']:.2f}")
    Console().print(table)
    return save(out, {"dtype": dtype, "forward": figures})


def capture(*, repeats: Repeats = 15, out: Out = None, force: Force = False) -> int:
    """Time what taps and statistics cost: no taps, taps without a recorder, statistics at level block."""
    free(out, force)
    names = ["untapped", "plain", "recorded"]
    figures = {}
    with _checkpoint() as folder:
        for side in ("torch", "mlx"):
            seconds = stopwatch.measure(side, folder, names, repeats=repeats)
            figures[side] = {
                "milliseconds": median(seconds["untapped"]) * 1e3,
                "taps": stopwatch.ratio(seconds["plain"], seconds["untapped"]),
                "statistics": stopwatch.ratio(seconds["recorded"], seconds["untapped"]),
            }
    table = _table("side", "untapped, ms", "taps, no recorder", "statistics, level block")
    for side, one in figures.items():
        table.add_row(side, f"{one['milliseconds']:.0f}", f"{one['taps']:.3f} ×", f"{one['statistics']:.2f} ×")
    Console().print(table)
    return save(out, {"capture": figures})


def instrument(
    *, repeats: Repeats = 15, dtype: Dtype = "float32", out: Out = None, force: Force = False
) -> int:  # fmt: skip
    """Time what instrumenting mflux's transformer costs: nobody records, values, statistics at level block.

    Four blocks, D = 512, 256 image and 32 text tokens, in one process, with an optimised BLAS in place.
    """
    free(out, force)
    open_port("mflux")  # says what is missing before anything is timed
    names = ["plain", "inactive", "values", "recorded"]
    with _checkpoint() as folder:
        seconds = stopwatch.measure("mflux", folder, names, repeats=repeats, dtype=dtype)
    figures = {"milliseconds": median(seconds["plain"]) * 1e3}
    figures |= {name: stopwatch.ratio(seconds[name], seconds["plain"]) for name in names[1:]}
    table = _table("dtype", "mflux, ms", "instrumented, no recorder", "values recorded", "statistics, level block")
    ratios = [f"{figures[name]:.3f} ×" for name in names[1:]]
    table.add_row(dtype, f"{figures['milliseconds']:.0f}", *ratios)
    Console().print(table)
    return save(out, {"dtype": dtype, "instrument": figures})


def clean(
    *, runs: Runs = 50, weights: Weights = "synthetic:tiny", candidate: Candidate = "mlx_impl", out: Out = None,
    force: Force = False,
) -> int:  # fmt: skip
    """Count false alarms: clean runs over seeds, sizes, prompts, timesteps and dtypes, both modes.

    Exits 1 when any checkpoint of any run is not a match. The thresholds of the verdicts rest
    on these figures; reports/clean-runs.json has the ones they were set by.
    """
    free(out, force)
    found = open_model(weights, TransformerCase.folders, Console(stderr=True))
    graph = qwen_image_transformer(found.configs["transformer"]["num_layers"], "full")
    ports = open_port("reference"), open_port(candidate)
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for case, dtype in bar.track(bench.clean_cases(runs, ("float32", "bfloat16")), description="clean runs"):
            rows.append(bench.clean_run(case, dtype, graph, ports, found.root, found.configs))
    summary = _print_clean(rows)
    about = {
        "command": f"parity bench clean --runs {runs} --weights {weights}",
        "thresholds": verdict.DEFAULT.as_dict(),
        "environment": {"reference": environment(ports[0]), "candidate": environment(ports[1])},
    }
    save(out, {**about, "summary": summary, "runs": [asdict(row) for row in rows]})
    return 1 if summary["alarms"] else 0


def _print_clean(rows: Sequence[bench.CleanRun]) -> dict:
    summary: dict = {"runs": len(rows), "alarms": sum(len(row.alarms) for row in rows)}
    table = _table("dtype", "runs", "checkpoints", "alarms", "median excess", "worst excess", "worst peak")
    for dtype in dict.fromkeys(row.dtype for row in rows):
        of = [row for row in rows if row.dtype == dtype]
        figures = {
            "runs": len(of),
            "checkpoints": sum(row.checkpoints for row in of),
            "alarms": sum(len(row.alarms) for row in of),
            "median_excess": median(row.median for row in of),
            "worst_excess": max(row.worst for row in of),
            "worst_peak": max(row.worst_peak for row in of),
            "quiet_share": min(row.quiet for row in of),
        }
        summary[dtype] = figures
        cells = [figures[key] for key in ("runs", "checkpoints", "alarms")]
        excess = [f"{figures[key]:.2f}" for key in ("median_excess", "worst_excess", "worst_peak")]
        table.add_row(dtype, *(f"{n:,}" for n in cells), *excess)
    out = Console()
    out.print(table)
    for row in rows:
        for alarm in row.alarms[:3]:
            out.print(f"{row.case} {row.dtype}: {alarm}", markup=False)
    return summary


def sensitivity(
    *, weights: Weights = "synthetic:tiny", candidate: Candidate = "mlx_impl", out: Out = None, force: Force = False
) -> int:
    """Plant noise of 1e-5 of the rms at each checkpoint in turn; is it found there and only there?

    Exits 1 when fewer than 95 % of the checkpoints have an isolated float32 floor of 1e-6, or
    any planted error is not found at its own checkpoint.
    """
    free(out, force)
    found = open_model(weights, TransformerCase.folders, Console(stderr=True))
    graph = qwen_image_transformer(found.configs["transformer"]["num_layers"], "full")
    ports = open_port("reference"), open_port(candidate)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("planting", total=len(graph.expected))
        planted = list(
            bench.sensitivity(
                stopwatch.CASE, "float32", graph, ports, found.root, found.configs,
                told=lambda stage, done, total: bar.update(task, description=f"planting {stage}", completed=done),
            )
        )  # fmt: skip
    missed = [one for one in planted if not one.exact]
    quiet = len(planted) / len(graph.expected)
    print(f"floor at most 1e-6: {len(planted)} of {len(graph.expected)} checkpoints ({quiet:.1%})")
    print(f"noise of 1e-5 found at its own checkpoint and nowhere else: {len(planted) - len(missed)} of {len(planted)}")
    for one in missed[:10]:
        print(f"  {one.name} (floor {one.floor:.1e}): found {', '.join(one.found) or 'nothing'}")
    save(out, {"quiet_share": quiet, "planted": len(planted), "missed": [asdict(one) for one in missed]})
    return 1 if missed or quiet < 0.95 else 0


@contextmanager
def _checkpoint() -> Iterator[Path]:
    """A random checkpoint of the bench's config, gone afterwards."""
    from reference.workload import random_checkpoint

    with tempfile.TemporaryDirectory(prefix="parity-bench-") as folder:
        with Console(stderr=True).status("writing a random checkpoint"):
            random_checkpoint(stopwatch.CONFIG, Path(folder))
        yield Path(folder)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def free(out: Path | None, force: bool) -> None:
    """Refuse before measuring, not after."""
    if out is not None and out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a JSON file")
    if out is not None and out.exists() and not force:
        raise OutputExistsError(f"{out} is there already; --force overwrites it")
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}")


def save(out: Path | None, figures: dict) -> int:
    """Write a benchmark's figures where they are wanted."""
    if out is not None:
        write_json(out, figures)
    return 0
