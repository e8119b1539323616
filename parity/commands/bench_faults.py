"""``parity bench faults``: how well planted faults are found, named and explained."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.progress import Progress

from parity import workers
from parity.commands.bench import Force, Out, free, save
from parity.commands.synth import ensure
from parity.errors import UsageError
from parity.faultbench import instances as listed
from parity.faultbench import score
from parity.faultbench.cases import CASES, Models
from parity.faultbench.lab import Lab
from parity.ports import environment, open_port
from parity.reporters import faults as reporter


def faults(
    *,
    half: Annotated[Literal["a", "b", "both"], Parameter(help="of the set: limits are chosen on a")] = "b",
    only: Annotated[str, Parameter(help="a code, the beginning of one, or fault, pair, unlisted, clean")] = "",
    limit: Annotated[int | None, Parameter(help="at most so many instances", validator=Number(gte=1))] = None,
    jobs: Annotated[int | None, Parameter(help="processes; default: as many as cores", validator=Number(gte=1))] = None,
    seed: Annotated[int, Parameter(help="of the set")] = 0,
    markdown: Annotated[bool, Parameter(negative=(), help="print the table in Markdown")] = False,
    out: Out = None,
    force: Force = False,
) -> int:
    """Plant known faults in copies of the MLX port, diagnose them, and count what was found.

    Every fault of the catalogue in several forms, at one place or many, in both dtypes; two at once;
    faults of no catalogue; and copies that are right, some of which compute otherwise. A planted
    fault that changes nothing above the floor is listed and not counted. Exits 1 where a diagnosis
    is not as it should be.
    """
    free(out, force)
    err = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="parity-faults-") as folder:
        scratch = Path(folder)
        with err.status("making the models"):
            models = Models.make(scratch, ensure, quantize_4_bits)
            lab = Lab(models, scratch)
            layers = {key: lab.layers(setting) for key, setting in CASES.items()}
        chosen = listed.chosen(listed.instances(layers, seed), half=half, only=only, limit=limit)
        if not chosen:
            raise UsageError(f"--only {only}: no such code or kind of instances in half {half}")
        with Progress(console=err, transient=True) as bar:
            task = bar.add_task("faults", total=len(chosen))
            outcomes = score.run(
                chosen, models, scratch, score.diagnose_run, jobs or workers.usable_cores(),
                lambda _: bar.advance(task),
            )  # fmt: skip
    lines = score.lines_of(outcomes)
    if markdown:
        print(reporter.markdown(lines))
    else:
        reporter.print_score(lines, outcomes)
    about = {
        "command": f"parity bench faults --half {half}" + (f" --only {only}" if only else "") + f" --seed {seed}",
        "environment": {name: environment(open_port(name)) for name in ("reference", "mlx_impl")},
    }
    save(out, {**about, "summary": [line.to_json() for line in lines.values()],
               "missed": reporter.missed(outcomes), "invisible": reporter.unseen(outcomes),
               "instances": [one.to_json() for one in outcomes]})  # fmt: skip
    return 0 if all(one.good for one in outcomes if one.visible or one.kind == "clean") else 1


def quantize_4_bits(source: Path, target: Path) -> None:
    """A model at 4 bits, groups of 64."""
    from mlx_impl.quantize import pack
    from parity import weights_convert, weights_quantize

    found = weights_quantize.plan(source, target, pack, 4, 64, [], None)
    weights_convert.write(found.conversion, target, False, lambda *_: None, lambda _: None)
