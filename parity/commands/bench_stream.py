"""``parity bench stream``: what a comparison of a model larger than memory takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from parity import bench_stream, model_folder
from parity.bench_stream import Setting, Streamed
from parity.commands.bench import Candidate, Force, Out, free, save
from parity.commands.weights_option import find_model
from parity.components.transformer import TransformerCase
from parity.memory import spell
from parity.ports import environment, open_port

_SIDES = ("truth", "reference", "candidate")


def stream(
    *,
    weights: Annotated[str, Parameter(help="checkpoint folder, or synthetic:PRESET")] = "synthetic:full",
    size: Annotated[tuple[int, ...], Parameter(negative=(), help="pixels each way; repeatable")] = (256,),
    dtype: Annotated[Literal["float32", "bfloat16"], Parameter(help="of the run")] = "bfloat16",
    truth: Annotated[Literal["float64", "float32"], Parameter(help="dtype of the truth")] = "float64",
    draws: Annotated[int, Parameter(help="jittered runs of the floor", validator=Number(gte=1))] = 3,
    candidate: Candidate = "mlx_impl",
    out: Out = None,
    force: Force = False,
) -> int:
    """Compare a large model block by block, and measure peak memory and where the time goes.

    Each size is one `parity run` in a process of its own, level block, both modes. Its time is held
    against what bare matrix products of the same size, and reading the weights once, take on this
    machine. The preset full needs 43 GB of disk. Exits 1 when a run is not at parity.
    """
    free(out, force)
    err = Console(stderr=True, highlight=False)
    folder = find_model(weights)
    model = model_folder.inspect(folder, TransformerCase.folders)
    environments = {spec: environment(open_port(spec)) for spec in ("reference", candidate)}
    rows = []
    for pixels in size:
        with err.status(f"{pixels} × {pixels}"):
            setting = Setting(pixels, dtype, truth, draws)
            rows.append(bench_stream.run(setting, folder, model, candidate))
    _print(rows, model)
    save(out, {"weights": model.describe(), "environment": environments, "runs": [asdict(row) for row in rows]})
    return 0 if all(row.verdict == "parity" for row in rows) else 1


def _print(rows: Sequence[Streamed], model: model_folder.ModelFolder) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("")
    for row in rows:
        table.add_column(f"{row.setting.size} × {row.setting.size}", justify="right")
    for label, cell in (
        ("checkpoints compared", lambda row: f"{row.compared:,} of {row.expected:,}"),
        ("verdict, largest excess", lambda row: f"{row.verdict}, {row.worst:.2f}"),
        ("peak memory", lambda row: spell(row.peak_bytes)),
        ("  as estimated before", lambda row: spell(row.expected_bytes)),
        ("time", lambda row: _minutes(row.seconds)),
        ("  as estimated before", lambda row: _minutes(row.expected_seconds)),
        *((f"  {side}: computing, loading", _shares(side)) for side in _SIDES),
        ("  everything else", lambda row: _share(row.seconds - sum(_of(row, side) for side in _SIDES), row)),
        ("bare matrix products", lambda row: f"{_minutes(row.arithmetic)}, {row.arithmetic / row.seconds:.0%} of it"),
        ("reading the weights once", lambda row: f"{_minutes(row.reading)}, {row.reading / row.seconds:.0%} of it"),
    ):
        table.add_row(label, *(cell(row) for row in rows))
    out = Console()
    bits = ", ".join(f"{count} layers {how}" for how, count in _bits(model).items()) or "not quantized"
    out.print(f"{spell(model.nbytes)} of weights, {bits}", highlight=False)
    out.print(table)


def _bits(model: model_folder.ModelFolder) -> dict[str, int]:
    return {how: count for one in model.checkpoints.values() for how, count in one.bits.items()}


def _of(row: Streamed, side: str) -> float:
    return row.spent.get(f"{side}.run", 0.0) + row.spent.get(f"{side}.load", 0.0)


def _shares(side: str) -> Callable[[Streamed], str]:
    return lambda row: f"{_share(row.spent[f'{side}.run'], row)}, {_share(row.spent[f'{side}.load'], row)}"


def _share(seconds: float, row: Streamed) -> str:
    return f"{seconds / row.seconds:.0%}"


def _minutes(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds / 60:.1f} min"
