"""``parity weights scan``: which layers cost most when they are quantized."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from parity import suite as suites
from parity import weights_scan
from parity.commands.weights_option import open_model
from parity.errors import EXIT_PARITY, UsageError, WeightsError
from parity.memory import spell
from parity.ports import open_port
from parity.reporters import text
from parity.rounding import round_state
from parity.runfolder import to_json
from parity.weights_quantize import PACKED_AS, check_packing
from parity.weights_scan import Cost


def scan(
    weights: str,
    /,
    *,
    bits: Annotated[int, Parameter(help="2, 3, 4, 5, 6 or 8")] = 4,
    group_size: Annotated[int, Parameter(help="inputs that share a scale: 32, 64 or 128")] = 64,
    suite: Annotated[str, Parameter(help="where the inputs come from")] = "default",
    case: Annotated[tuple[str, ...], Parameter(negative=(), help="of the suite, repeatable; its first if none")] = (),
    truth: Annotated[Literal["float64", "float32"], Parameter(help="dtype of the arithmetic")] = "float64",
    format: Annotated[Literal["table", "json"], Parameter(help="what stdout carries")] = "table",
) -> int:
    """Quantize one class of the transformer's layers at a time and measure the error at the output.

    The classes come with the largest error first, and with the error for each GiB that they save; below are the rules
    for `parity weights quantize` that keep the costliest ones at 8 bits. The reference computes, in float64 or
    float32, on the original weights but for the class in hand. One stage is in memory at a time.

    Parameters
    ----------
    weights
        a model that is not quantized: a folder, a hub id, or synthetic:PRESET.
    """
    check_packing(bits, group_size)
    err = Console(stderr=True, highlight=False)
    planned = [one.case for one in suites.load(suite).narrowed(case, (), None, ()).cases]
    cases = [one for one in planned if one.component == "transformer"]
    cases = cases if case else cases[:1]
    if not cases:
        raise UsageError(f"suite {suite!r} has no case of the transformer there")
    model = open_model(weights, ("transformer",), err)
    if model.bits:
        raise WeightsError(f"{weights}: packed already; name the weights before quantization")
    entries = model.checkpoints["transformer"].located.entries
    classes = weights_scan.classes_of(entries, group_size)

    from mlx_impl.quantize import restored

    def restore(layer, weight):
        return restored(weight, bits, group_size, PACKED_AS[entries[f"{layer}.weight"].dtype])

    session = open_port("reference").open(model.root, dtype=truth, hold="float32")
    errors = []
    with text.progress(err) as progress:
        for one in cases:
            inputs = round_state(one.inputs(model.configs, "float32"), truth)
            name = one.name
            errors.append(weights_scan.scan(session, inputs, classes, restore, lambda *at, n=name: progress(n, *at)))
    found = weights_scan.costs(entries, classes, errors, bits, group_size)
    lines = weights_scan.rules(found, bits)
    if format == "json":
        about = {"weights": model.describe()["path"], "bits": bits, "group_size": group_size, "truth": truth}
        about["cases"] = [one.name for one in cases]
        print(json.dumps(to_json(about | {"classes": [cost.to_json() for cost in found], "rules": lines}), indent=1))
    else:
        _print(found, lines)
    return EXIT_PARITY


def _print(found: list[Cost], lines: list[str]) -> None:
    out = Console(file=sys.stdout, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("class")
    for name in ("layers", "error at final", "saves", "error per GiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for cost in found:
        table.add_row(cost.name, f"{cost.layers:,}", f"{cost.error:.2e}", spell(cost.saved), f"{cost.per_gib:.1e}")
    out.print(table)
    if lines:
        out.print(f"\nto keep the costliest at {weights_scan.KEPT_BITS} bits:", markup=False)
        for line in lines:
            out.print(f"  {line}", markup=False, soft_wrap=True)
