"""`assert_parity`: a test that fails where a port departs from its reference.

There is no tolerance to give. How large an error is a bug is measured each time, from the reference's own
noise on these inputs in this dtype: a number written into a test is either loose enough to let a wrong
kernel pass, or tight enough to fail on the next machine, and mostly both.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from parity.errors import ParityError, UsageError

if TYPE_CHECKING:
    from parity.ports import Port
    from parity.result import Run

__all__ = ["Observer", "ParityAssertionError", "assert_parity", "observing"]


class ParityAssertionError(AssertionError):
    """A candidate that is not at parity; the message says where it starts.

    Attributes:
        run: contents of ``parity.json``.
        page: ``report.html``, where one was written.
    """

    def __init__(self, message: str, run: Run, page: Path | None) -> None:
        super().__init__(message)
        self.run, self.page = run, page


class Observer(Protocol):
    """What a test runner does with the assertions of the test that it runs."""

    def folder(self) -> Path | None:
        """An empty folder for the next assertion's run, which is made; None where none is to be kept."""

    def told(self, run: Run, page: Path | None) -> None:
        """An assertion was made, whatever came of it."""


_observer: Observer | None = None


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Tell an observer of all assertions made meanwhile, in any thread."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


def assert_parity(
    candidate: str | Port | Callable[..., Any] | Mapping[str, Any] | Path,
    reference: str | Port | Callable[..., Any] | Path = "reference",
    *,
    inputs: Mapping[str, Any] | None = None,
    parents: Mapping[str, Sequence[str]] | None = None,
    suite: str | None = None,
    case: str | None = None,
    weights: str | Path | None = None,
    detail: str | None = None,
    dtype: str | None = None,
    truth: str = "float64",
    draws: int | None = None,
    mode: str | None = None,
) -> Run:
    """Fail unless a candidate agrees with its reference to the reference's own rounding noise.

    Three ways to say what is compared:

    - two **functions** and `inputs`: each takes a dictionary of numpy arrays and gives one (or one array).
      The reference is called on float64 inputs for the truth, on `dtype` and on jittered inputs for the noise.
    - two **ports**, by name (``"mlx_impl"``, ``"package.module:attribute"``) or as objects, on a case of a suite.
    - **values** (a dictionary of arrays, a ``.safetensors`` or ``.npz`` file, a trace's folder) against the path of
      a golden trace, as ``parity trace record`` writes it.

    There is no tolerance: see the head of the file. What could not be compared fails as well.

    Args:
        candidate, reference: as above.
        inputs: of functions: arrays by name; floating ones are rounded to `dtype`.
        parents: of functions: checkpoint -> those it is computed from; a chain where this is None.
        suite, case, weights, detail: of ports, as ``parity run`` takes them; all cases where none is named.
        dtype: of functions ``float32`` unless given; of ports instead of the suite's.
        truth: dtype of the truth.
        draws: of functions: calls on jittered inputs, 3 unless given.
        mode: of values: how the port was run, where the file does not say.

    Returns:
        the run, as in ``parity.json``.

    Raises:
        ParityAssertionError: it diverges, or something could not be compared.
        ParityError: the comparison itself cannot be made; the message says what to do.
    """
    __tracebackhide__ = True
    given = {
        "inputs": inputs, "parents": parents, "suite": suite, "case": case, "weights": weights, "detail": detail,
        "draws": draws, "mode": mode, "dtype": dtype,
    }  # fmt: skip
    try:
        run, page = _compared(candidate, reference, given, truth)
    except ParityError as error:
        # A mistake in the call, or something that is not there, is shown at the call.
        raise error.with_traceback(None) from error.__cause__
    if run["verdict"] != "parity":
        from parity.reporters.assertion import message

        raise ParityAssertionError(message(run, page), run, page)
    return run


def _compared(candidate: Any, reference: Any, given: Mapping[str, Any], truth: str) -> tuple[Run, Path | None]:
    """The run, and its page where the observer wants one."""
    kind = _kind(candidate, reference)
    _check_given(kind, given, truth)
    said = f"assert_parity({_spell(candidate)}, {_spell(reference)})"
    ask = _observer.folder if _observer else lambda: None
    if kind == "ports":
        kept = ask()
        run = _ports(candidate, reference, given, truth, said, kept)
    elif kind == "functions":
        run, kept = _functions(candidate, reference, given, truth, said), ask()
    else:
        run, kept = _golden(candidate, Path(reference), given["mode"], said), ask()
    page = _write(run, kept) if kept else None
    if _observer:
        _observer.told(run, page)
    return run, page


# Arguments that each kind of comparison takes, besides the two sides and `truth`.
_TAKES = {
    "functions": ("inputs", "parents", "draws", "dtype"),
    "ports": ("suite", "case", "weights", "detail", "dtype"),
    "golden": ("mode",),
}


def _kind(candidate: Any, reference: Any) -> str:
    if is_golden(reference):
        return "golden"
    sides = (candidate, reference)
    if all(isinstance(side, str) or hasattr(side, "open") for side in sides):
        return "ports"
    if all(callable(side) and not hasattr(side, "open") for side in sides):
        return "functions"
    raise UsageError(
        f"assert_parity of {type(candidate).__name__} and {type(reference).__name__}: expected two functions, "
        "two ports, or values and the path of a golden trace"
    )


def is_golden(reference: Any) -> bool:
    """Whether a reference is the path of a golden trace; names of ports have no separator in them."""
    if not isinstance(reference, str):
        return isinstance(reference, Path)
    return "/" in reference or os.sep in reference or (Path(reference) / "manifest.json").is_file()


def _check_given(kind: str, given: Mapping[str, Any], truth: str) -> None:
    odd = [key for key, value in given.items() if value is not None and key not in _TAKES[kind]]
    if odd:
        raise UsageError(f"assert_parity of {kind} takes no {odd[0]}; it takes {', '.join(_TAKES[kind])}")
    if kind == "golden" and truth != "float64":
        raise UsageError("assert_parity of golden takes no truth; the trace has it")
    if kind == "functions" and given["inputs"] is None:
        raise UsageError("assert_parity of functions needs inputs, a dictionary of arrays by name")


def _spell(side: Any) -> str:
    if isinstance(side, str | Path):
        return str(side)
    return getattr(side, "__name__", None) or getattr(side, "name", None) or type(side).__name__


def _functions(candidate: Any, reference: Any, given: Mapping[str, Any], truth: str, said: str) -> Run:
    from parity.functions import compare

    options = {"draws": given["draws"]} if given["draws"] is not None else {}
    dtype = given["dtype"] or "float32"
    return compare(
        candidate, reference, given["inputs"], dtype=dtype, truth=truth, parents=given["parents"], command=said,
        **options,
    )  # fmt: skip


def _golden(candidate: Any, golden: Path, mode: str | None, said: str) -> Run:
    from parity.compare import compare
    from parity.golden import read_golden
    from parity.imports import open_candidate
    from parity.imports.tensors import Tensors

    expected = read_golden(golden)
    if isinstance(candidate, Mapping):
        from parity.functions import named

        arrays = named(candidate, "candidate")
        given = {name: (lambda array=array: array) for name, array in arrays.items()}
        found = Tensors(label="arrays", kind="tensors", names=tuple(arrays), arrays=given, spec=expected.spec)
    else:
        found = open_candidate([Path(candidate)], expected.graph.parents)
    return compare(expected, found, mode=mode or "", command=said)


def _ports(
    candidate: str | Port, reference: str | Port, given: Mapping[str, Any], truth: str, said: str, kept: Path | None
) -> Run:
    from rich.console import Console

    from parity import run as runs
    from parity import suite as suites
    from parity.commands.weights_option import open_model
    from parity.runfolder import RunFolder

    one = [(given[key],) if given[key] else () for key in ("case", "dtype")]
    chosen = suites.load(given["suite"] or "default").narrowed(*one, given["detail"])
    where = str(given["weights"] or chosen.weights)
    if not where:
        raise UsageError(f"suite {chosen.name!r} names no weights: give weights=")
    model = open_model(where, chosen.folders, Console(stderr=True, highlight=False), plain=chosen.plain)
    job = runs.Job(chosen, model, candidate, truth, reference=reference)
    with ExitStack() as stack:
        path = kept or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parity-")))
        folder = RunFolder.open(path, job.plan(model.fingerprint()))
        return runs.run(job, folder, said, lambda *_: None)


def _write(run: Run, folder: Path) -> Path:
    from parity.report import render_report
    from parity.runfolder import write_json

    write_json(folder / "parity.json", run)
    return render_report(run, folder / "report.html", force=True)
