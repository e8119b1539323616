"""``parity diagnose``: from a divergence, a trace, a log or a picture to a cause."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from parity import diagnosispage
from parity.components import COMPONENTS
from parity.diagnosis.fault import Fault, by_code, catalogue
from parity.errors import EXIT_DIVERGENCE, EXIT_PARITY, UsageError
from parity.reporters import diagnosis as reporter
from parity.runfolder import read_run, to_json, write_json

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LOGS = (".txt", ".log")


def diagnose(
    subject: Path | None = None,
    /,
    *,
    reference: Annotated[Path | None, Parameter(help="a picture or trace as it should be")] = None,
    weights: Annotated[
        str | None, Parameter(help="the run's weights, where they lie elsewhere now; of a dump, those the port had")
    ] = None,
    candidate: Annotated[str | None, Parameter(help="the run's port, where it has another name now")] = None,
    python: Annotated[
        tuple[Path, ...],
        Parameter(negative=(), help="an interpreter with another version of MLX, to make products with; repeatable"),
    ] = (),
    out: Annotated[Path | None, Parameter(help="folder for pictures of what was found")] = None,
    format: Annotated[Literal["table", "json", "md"], Parameter(help="what stdout carries")] = "table",
    list: Annotated[bool, Parameter(negative=(), help="show the catalogue of faults instead")] = False,
) -> int:
    """Say why a port diverges, or a picture is wrong, and prove it.

    Of a run folder, its stages are run once more, every checkpoint is held against what the
    reference makes of the candidate's own values, and the faults of the catalogue are tried
    until what the candidate computes is met down to the rounding noise. A picture, a trace or
    a log allow less; what would decide is said. Exits 0 when nothing is wrong, 1 otherwise.

    Parameters
    ----------
    subject
        a run folder, a trace (folder, or .safetensors whose keys are checkpoint names), a log
        (.txt, .log), or a picture.
    """
    if list:
        return _list(format)
    if subject is None:
        raise UsageError("nothing to diagnose: name a run folder, a trace, a log or a picture, or give --list")
    if not subject.exists():
        raise UsageError(f"{subject}: there is no such file or folder")
    found = _examine(subject, reference, weights, candidate, python, out)
    _print(found, format)
    wrong = found["causes"] or found["unexplained"] or found["sources"]
    return EXIT_DIVERGENCE if wrong else EXIT_PARITY


def _examine(
    subject: Path, reference: Path | None, weights: str | None, candidate: str | None, python: Sequence[Path],
    out: Path | None,
) -> dict[str, Any]:  # fmt: skip
    if subject.is_file() and subject.suffix.lower() in PICTURES:
        from parity.picturecheck import examine

        return examine(subject, reference, out)
    if subject.is_dir() and (subject / "parity.json").is_file():
        return _run(subject, weights, candidate, python)
    if subject.name == "parity.json":
        return _run(subject.parent, weights, candidate, python)
    if subject.is_file() and subject.suffix.lower() in LOGS:
        from parity.diagnosis.from_log import from_log

        return from_log(subject)
    if subject.is_file() and weights:
        return _dump(subject, weights)
    from parity.diagnosis.from_trace import from_trace

    found = from_trace(subject, reference)
    if subject.is_file():
        found["notes"].append("--weights DIR, with the weights the port had, holds each tensor against its parents")
    return found


def _dump(file: Path, weights: str) -> dict[str, Any]:
    """Tensors, each held against what the reference makes of its parents."""
    from parity.commands.weights_option import open_model
    from parity.diagnosis.from_dump import diagnose as from_dump
    from parity.tracefile import read_dump

    err = Console(stderr=True, highlight=False)
    dump = read_dump(file)
    with err.status("opening weights") as status:
        model = open_model(weights, ("transformer",), err, later=lambda _: True)
        return to_json(from_dump(dump, model, catalogue(), lambda what: status.update(f"diagnosing {what}")).to_json())


def _run(folder: Path, weights: str | None, candidate: str | None, python: Sequence[Path]) -> dict[str, Any]:
    from parity.commands.weights_option import open_loras, open_model
    from parity.diagnosis.from_run import diagnose as from_run
    from parity.diagnosis.reopen import Reopened, case_of
    from parity.known_bugs import matching
    from parity.ports import open_port

    run = read_run(folder)
    err = Console(stderr=True, highlight=False)
    if not isinstance(run.get("ports"), dict):
        if run.get("suite") == "compare":
            raise UsageError(
                f"{folder}: a comparison with a golden trace, whose port can't be run here; "
                "`parity diagnose DUMP --weights DIR` looks at what it dumped"
            )
        raise UsageError(f"{folder}: written by an older version, which did not keep its ports; run it again")
    cases = [case_of(row) for row in run["cases"] if row["component"] in COMPONENTS]
    if not cases:
        return _foreign(run, folder)
    folders = dict.fromkeys(name for case in cases for name in case.folders)
    with err.status("opening weights") as status:
        model = open_model(weights or run["ports"]["weights"], folders, err, later=lambda _: True)
        loras = open_loras(run["ports"]["lora"], model, err)
        port = open_port(candidate or run["ports"]["candidate"])
        bugs = tuple(matching(run["environment"]))
        ports = Reopened(model, open_port("reference"), port, loras, _libraries(python), bugs)
        diagnosis = from_run(run, ports, catalogue(), lambda what: status.update(f"diagnosing {what}"))
        if diagnosis.sources:
            diagnosis.notes += [
                f"known of this run's versions: {bug.line}" for bug in bugs if bug.code.startswith("backend.")
            ]
        return _kept(diagnosis.to_json(), run, folder)


def _foreign(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A run of components from outside alone: where it parts is said, why is not."""
    from parity.diagnosis.from_run import diagnose as from_run

    diagnosis = from_run(run, None, catalogue())
    components = ", ".join(dict.fromkeys(row["component"] for row in run["cases"]))
    diagnosis.notes.append(
        f"{components}: a component from outside: the run tells at which checkpoints it parts and what they are "
        "computed from; recipes and faults to prove a cause with are written for Qwen-Image only"
    )
    return _kept(diagnosis.to_json(), run, folder)


def _kept(found: dict[str, Any], run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What was found, written into the run's folder and its page."""
    from parity.report import render_report

    write_json(folder / diagnosispage.FILE, found)
    render_report(run, folder / "report.html", force=True)
    return to_json(found)


def _libraries(python: Sequence[Path]) -> tuple[Any, ...]:
    """What makes single operations of the candidate's library again, where that is installed, here and elsewhere."""
    from parity.diagnosis.elsewhere import Elsewhere

    elsewhere = tuple(Elsewhere(one) for one in python)
    try:
        from mlx_impl.replay import MlxReplay
    except ModuleNotFoundError:
        return elsewhere
    return (MlxReplay(), *elsewhere)


def _print(found: dict[str, Any], format: str) -> None:
    if format == "json":
        print(json.dumps(to_json(found), allow_nan=False))
    elif format == "md":
        print(reporter.markdown(found))
    else:
        reporter.print_diagnosis(found)


def _list(format: str) -> int:
    """Every code once, those that only pictures show among them."""
    from parity.picturecheck.catalogue import ENTRIES

    entries = {code: Fault(code, one.title, one.fix, one.source, "*", ()) for code, one in ENTRIES.items()}
    entries |= by_code()
    ordered = [entries[code] for code in sorted(entries)]
    if format == "json":
        rows = [{"code": one.code, "title": one.title, "fix": one.fix, "source": one.seen} for one in ordered]
        print(json.dumps(rows))
    else:
        reporter.print_catalogue(ordered, markdown=format == "md")
    return EXIT_PARITY
