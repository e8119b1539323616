"""``parity report``: judge a finished run again and write its page."""

from __future__ import annotations

from pathlib import Path

from parity.reporters.formats import Format, show
from parity.result import rejudge
from parity.runfolder import read_run, write_json
from parity.verdict import exit_code


def report(run: Path, /, *, format: Format = "table") -> int:
    """Judge a finished run again and write its report.html; nothing is computed again.

    The verdicts in parity.json are renewed with this version's rules and constants; the page
    is made from parity.json alone, the same bytes each time.

    Parameters
    ----------
    run
        the run folder.
    """
    from parity.report import render_report

    result = rejudge(read_run(run))
    write_json(run / "parity.json", result)
    page = render_report(result, run / "report.html", force=True)
    show(result, format, page)
    return exit_code(result["verdict"])
