"""The command line. Commands are loaded when they are called, so that ``--help`` is quick."""

from __future__ import annotations

import sys
from typing import Any

from cyclopts import App
from rich.console import Console

from parity import __version__
from parity.errors import EXIT_INTERNAL, EXIT_USAGE, ParityError

app = App(
    name="parity",
    version=__version__,
    help="Numerical parity between a PyTorch model and its MLX port: where they part, and how good the rest is.",
    help_epilogue=(
        "Exit codes: 0 parity, 1 divergence, 2 usage, 3 internal error, 4 a precondition is missing, 5 incomplete."
    ),
    result_action="return_value",
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    print_error=False,
)
app.command("parity.commands.run:run", name="run")
app.command("parity.commands.report:report", name="report")
app.command("parity.commands.plot:plot", name="plot")
app.command("parity.commands.synth:synth", name="synth")
app.command("parity.commands.doctor:doctor", name="doctor")

ranges = App(name="ranges", help="Documented value ranges: check a run against them, record new ones, show them.")
ranges.command("parity.commands.ranges:check", name="check")
ranges.command("parity.commands.ranges:record", name="record")
ranges.command("parity.commands.ranges:show", name="show")
app.command(ranges)

bench = App(name="bench", help="Measure the toolkit itself: speed, cost of capture, false alarms, sensitivity.")
bench.command("parity.commands.bench:forward", name="forward")
bench.command("parity.commands.bench:capture", name="capture")
bench.command("parity.commands.bench:clean", name="clean")
bench.command("parity.commands.bench:sensitivity", name="sensitivity")
app.command(bench)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script. A user's mistake is one line on stderr, never a traceback."""
    sys.exit(call(sys.argv[1:] if argv is None else argv))


def call(argv: list[str]) -> int:
    """Run one command line and return its exit code."""
    from cyclopts.exceptions import CycloptsError

    err = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        code: Any = app(argv)
    except ParityError as error:
        err.print("[bold red]error:[/] ", end="")
        err.print(error.message, markup=False)
        for line in error.details:
            err.print(f"  {line}", markup=False)
        return error.exit_code
    except CycloptsError as error:
        message = " ".join(str(error).split())
        err.print("[bold red]error:[/] ", end="")
        err.print(f"{message} See parity --help.", markup=False)
        return EXIT_USAGE
    except KeyboardInterrupt:
        err.print("interrupted; the same command resumes a run")
        return 130
    except BrokenPipeError:
        return EXIT_INTERNAL
    return code if isinstance(code, int) else 0
