"""The command line. Commands are loaded when they are called, so that ``--help`` is quick."""

from __future__ import annotations

import ast
import sys
import traceback
from pathlib import Path
from typing import Any

from cyclopts import App
from rich.console import Console

from parity import __version__
from parity.errors import EXIT_INTERNAL, EXIT_USAGE, ParityError
from parity.safetensors_header import printable

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


def _add(parent: App, target: str, name: str) -> None:
    """Add a command that is imported when it is called.

    Its help is the function's docstring, read from the source: importing twelve commands to
    print a list would take longer than most of them.
    """
    module, _, function = target.partition(":")
    tree = ast.parse((Path(__file__).parent / "commands" / f"{module}.py").read_text())
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    text = (ast.get_docstring(found) or "").partition("\nParameters\n---")[0]
    parent.command(f"parity.commands.{target}", name=name, help=text.strip())


for _name in ("run", "compare", "diagnose", "generate", "report", "plot", "synth", "doctor"):
    _add(app, f"{_name}:{_name}", _name)

ranges = App(name="ranges", help="Documented value ranges: check a run against them, record new ones, show them.")
for _name in ("check", "record", "show"):
    _add(ranges, f"ranges:{_name}", _name)
app.command(ranges)

trace = App(
    name="trace", help="What a reference or a port computes in one case, on disk: record it, import it, look at it."
)
_add(trace, "trace_record:record", "record")
_add(trace, "trace_import:import_", "import")
_add(trace, "trace_show:show", "show")
app.command(trace)

case = App(name="case", help="The inputs of a case, for ports in any language.")
_add(case, "case:export", "export")
app.command(case)

bench = App(name="bench", help="Measure the toolkit itself: speed, memory, cost of capture, false alarms, sensitivity.")
for _name in ("forward", "capture", "instrument", "clean", "sensitivity"):
    _add(bench, f"bench:{_name}", _name)
_add(bench, "bench_stream:stream", "stream")
_add(bench, "bench_golden:golden", "golden")
_add(bench, "bench_faults:faults", "faults")
_add(bench, "bench_pictures:pictures", "pictures")
_add(bench, "bench_report:report", "report")
app.command(bench)

weights = App(
    name="weights", help="What a checkpoint holds and what is wrong with it; the same weights otherwise stored."
)
for _name in ("check", "convert"):
    _add(weights, f"weights:{_name}", _name)
_add(weights, "quantize:quantize", "quantize")
_add(weights, "scan:scan", "scan")
app.command(weights)


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
        err.print(printable(error.message), markup=False)
        # A single detail that the message has already would be read twice.
        details = (
            error.details if len(error.details) > 1 else [one for one in error.details if one not in error.message]
        )
        for line in details:
            err.print(f"  {printable(line)}", markup=False)
        return error.exit_code
    except CycloptsError as error:
        message = " ".join(str(error).split())
        err.print("[bold red]error:[/] ", end="")
        err.print(f"{message} See parity --help.", markup=False)
        return EXIT_USAGE
    except KeyboardInterrupt:
        goes_on = "; the same command goes on where it stopped" if argv[:1] == ["run"] else ""
        err.print(f"interrupted{goes_on}", markup=False)
        return 130
    except BrokenPipeError:
        return EXIT_INTERNAL
    except Exception:
        # Python's own exit code for a traceback is 1, which here says divergence.
        traceback.print_exc()
        err.print("[bold red]error:[/] internal error; the lines above are worth a bug report")
        return EXIT_INTERNAL
    return code if isinstance(code, int) else 0
