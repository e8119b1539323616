"""A run for GitHub Actions: one annotation, and a step summary in Markdown.

The runner reads the annotation from the step's output, and the summary from the file that it
names in ``GITHUB_STEP_SUMMARY``; of a step's summary it takes 1 MiB and drops a larger one whole.
"""

from __future__ import annotations

import os
from pathlib import Path

from parity.reporters import rows, text
from parity.reporters.rows import Run

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
SUMMARY_BYTES = 1 << 20
LINES_SHOWN = 10
_CUT = "\n_The rest is left out: a step's summary has 1 MiB. The run folder has all of it._\n"


def annotation(run: Run) -> str:
    """One workflow command: an error at the first divergence, an error of an incomplete run, else a notice."""
    if found := rows.first_divergence(run):
        case, row = found
        said = [rows.printable(run["sentence"]), f"First: {rows.line(row)}", *rows.worst_lines(row)]
        return command("error", f"parity: diverges at {rows.shown(row['name'])} ({rows.title(case)})", "\n".join(said))
    if run["verdict"] == "parity":
        return command("notice", "parity", rows.printable(run["sentence"]))
    absent = [(case, row) for case in run["cases"] for row in rows.not_compared(case)]
    said = [
        rows.printable(run["sentence"]),
        *(f"{rows.title(case)}: {rows.line(row)}" for case, row in absent[:LINES_SHOWN]),
    ]
    if len(absent) > LINES_SHOWN:
        said.append(f"and {len(absent) - LINES_SHOWN} more")
    return command("error", f"parity: {run['verdict']}", "\n".join(said))


def command(kind: str, title: str, message: str) -> str:
    """A workflow command as the runner reads it, in one line whatever the text holds.

    Args:
        kind: ``error``, ``notice``.
        title: shown first.
        message: lines of what prints.
    """
    message = "\n".join(map(rows.printable, message.split("\n")))
    return f"::{kind} title={_property(title)}::{_data(message)}"


def _data(value: str) -> str:
    return value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: str) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")


def summary(run: Run) -> str:
    """The step summary: verdict, table, first divergence with its worst elements, what was not compared."""
    lines = [f"### Numerical parity: {run['verdict']}", "", text.markdown(run)]
    if found := rows.first_divergence(run):
        case, row = found
        lines += ["", f"First divergence, {text.code(rows.title(case))}:", "", f"- {text.code(rows.line(row))}"]
        lines += [f"  - {text.code(line)}" for line in rows.worst_lines(row)]
    absent = [(case, row) for case in run["cases"] for row in rows.not_compared(case)]
    if absent:
        lines += ["", f"{len(absent):,} checkpoints could not be compared:", ""]
        lines += [f"- {text.code(f'{rows.title(case)}: {rows.line(row)}')}" for case, row in absent[:LINES_SHOWN]]
        lines += [f"- and {len(absent) - LINES_SHOWN:,} more"] * (len(absent) > LINES_SHOWN)
    return "\n".join(lines) + "\n"


def append_summary(run: Run) -> str | None:
    """Append the summary to the file that the runner names.

    Returns:
        None where it was done, else why not, in one line.
    """
    named = os.environ.get(SUMMARY_VARIABLE)
    if not named:
        return f"{SUMMARY_VARIABLE} is not set"
    path = Path(named)
    try:
        taken = path.stat().st_size if path.exists() else 0
        fitting = fit(summary(run), SUMMARY_BYTES - taken)
        if fitting is None:
            return f"{path} has {taken:,} bytes already, and a step's summary at most {SUMMARY_BYTES:,}"
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(fitting)
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return None


def fit(markdown: str, room: int) -> str | None:
    """As many whole lines as fit into so many bytes of UTF-8, with a remark where some are left out.

    Returns:
        None where not even the remark fits.
    """
    if len(markdown.encode()) <= room:
        return markdown
    room -= len(_CUT.encode())
    if room < 0:
        return None
    head = markdown.encode()[:room].decode(errors="ignore")
    return head[: head.rfind("\n") + 1] + _CUT
