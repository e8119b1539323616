"""``parity report``: judge a finished run again and write its page; two runs compared; an index of many."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from parity.errors import EXIT_PARITY, UsageError
from parity.reporters.formats import Format, show
from parity.result import rejudge
from parity.runfolder import write_json
from parity.runschema import read_whole
from parity.safetensors_header import shown
from parity.verdict import exit_code


def report(
    run: Path,
    other: Path | None = None,
    /,
    *,
    index: Annotated[bool, Parameter(negative=(), help="a page over all runs below a folder")] = False,
    out: Annotated[
        Path | None,
        Parameter(help="where the page goes; default report.html, OTHER/comparison.html or index.html in the folder"),
    ] = None,
    format: Annotated[
        Format, Parameter(help="what stdout carries; of two runs and of many table, md or json")
    ] = "table",
    force: Annotated[bool, Parameter(negative=(), help="overwrite a file that this command did not write")] = False,
) -> int:
    """Judge a finished run again and write its report.html; nothing is computed again.

    The verdicts in parity.json are renewed with this version's rules and constants; the page
    is made from it and the traces alone, the same bytes each time.

    With two runs: what got better, worse, new, gone between them; the exit code is 1 where
    something got worse and is no match. With --index: all runs below a folder, and the trend
    of each case. Neither changes a run.

    Parameters
    ----------
    run
        the run folder; with --index, a folder of them.
    other
        a second run: what changed since the first.
    """
    if index or other is not None:
        if format not in ("table", "md", "json"):
            raise UsageError(f"--format {format}: two runs and an index have table, md and json")
        if index and other is not None:
            raise UsageError(f"--index takes one folder, got {shown(str(run))} and {shown(str(other))}")
        return _index(run, out, format, force) if index else _compare(run, other, out, format, force)
    return _one(run, out, format, force)


def _one(run: Path, out: Path | None, format: Format, force: bool) -> int:
    from parity.report import render_report

    before, path = read_whole(run), run / "parity.json" if run.is_dir() else run
    result, folder = rejudge(before), path.parent
    # Most often nothing has changed, and of a hundred thousand rows writing takes seconds.
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if result == before else write_json(path, result)
    del before
    page = render_report(
        result, out or folder / "report.html", force=out is None or force, folder=folder, digest=digest
    )
    show(result, format, page)
    return exit_code(result["verdict"])


def _compare(before: Path, after: Path, out: Path | None, format: Format, force: bool) -> int:
    from parity.diffpage import comparison_html
    from parity.pages import link, write_page
    from parity.reporters import rundiff as written
    from parity.rundiff import diff
    from parity.rundiff import exit_code as code_of

    files = [path / "parity.json" if path.is_dir() else path for path in (before, after)]
    runs = [rejudge(read_whole(path)) for path in (before, after)]
    if files[0].samefile(files[1]):
        raise UsageError(f"{shown(str(before))} is given twice; expected two runs, the one before and the one after")
    found = diff(runs[0], runs[1], (shown(str(before)), shown(str(after))))
    if files[0].read_bytes() == files[1].read_bytes():
        found["notes"].insert(0, "Both folders hold the same run, byte for byte: one is a copy of the other.")
    out = out or files[1].with_name("comparison.html")
    links = tuple(link(file.with_name("report.html"), out) for file in files)
    page = write_page(comparison_html(found, links), out, force=force)
    _show(found, format, written, page)
    return code_of(found)


def _index(folder: Path, out: Path | None, format: Format, force: bool) -> int:
    from parity.indexpage import index_html
    from parity.pages import way, write_page
    from parity.reporters import runindex as written
    from parity.runindex import index as read_all

    found = read_all(folder)
    out = out or folder / "index.html"
    page = write_page(index_html(found, way(folder, out)), out, force=force)
    _show(found, format, written, page)
    return EXIT_PARITY


def _show(found: dict, format: Format, written: object, page: Path) -> None:
    if format == "table":
        written.print_table(found)
        print(page)
    else:
        print(written.WRITERS[format](found))
