"""What reports for machines and for tests say of one checkpoint, and which of them comes first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parity.safetensors_header import shown

Run = Mapping[str, Any]
Case = Mapping[str, Any]
Row = Mapping[str, Any]

NOT_COMPARED = ("missing", "skipped", "uncertain")


def printable(text: object) -> str:
    """Text in one line: what does not print (line ends, controls, marks that turn the direction) is spelled out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def title(case: Case) -> str:
    """``square.bfloat16.isolated``: an entry of a run, unique within it."""
    return shown(".".join(str(case[key]) for key in ("name", "dtype", "mode")))


def first_divergence(run: Run) -> tuple[Case, Row] | None:
    """The entry and the row in which a run's first divergence is, if it has one."""
    for case in run["cases"]:
        for row in case["checkpoints"]:
            if row["name"] in case["sources"][:1]:
                return case, row
    return None


def diverged(case: Case) -> list[Row]:
    """Diverged rows of an entry, sources first."""
    found = [row for row in case["checkpoints"] if row["verdict"] == "diverged"]
    return sorted(found, key=lambda row: not row.get("source"))


def not_compared(case: Case) -> list[Row]:
    """Rows that nothing can be said of: missing, skipped, uncertain."""
    return [row for row in case["checkpoints"] if row["verdict"] in NOT_COMPARED]


def number(value: float | str | None, digits: int = 3) -> str:
    """A figure, short; a dash where there is none. What JSON has no number for may stand in words."""
    return "–" if value is None else value if isinstance(value, str) else f"{value:.{digits}g}"


def shape(of: list[int] | None) -> str:
    """``1×16×16``; ``scalar`` without axes, a dash without an array."""
    return "–" if of is None else "×".join(map(str, of)) or "scalar"


def line(row: Row) -> str:
    """One checkpoint in one line: verdict, figures, shape and reason."""
    place = ", source" if row.get("source") else ", propagated" if row.get("propagated") else ""
    said = [f"{shown(row['name'])}: {row['verdict']}{place}"]
    if row.get("excess") is not None:
        said.append(f"excess {number(row['excess'])}")
    if row.get("rel_rmse") is not None:
        said.append(f"error {number(row['rel_rmse'])}, floor {number(row['floor'])}")
    if row.get("shape") is not None:
        said.append(f"shape {shape(row['shape'])}")
    return "; ".join([*said, shown(row["reason"])] if row.get("reason") else said)


def worst_lines(row: Row) -> list[str]:
    """The elements with the largest error, a line each: index, candidate, truth."""
    return [
        f"[{', '.join(map(str, at))}]: {number(ours, 7)}, truth {number(truth, 7)}"
        for at, ours, truth in row.get("worst") or []
    ]


def weights_line(run: Run) -> str:
    """Which weights were used; synthetic ones are said to be."""
    weights = run.get("weights") or {}
    if weights.get("synthetic"):
        return f"synthetic weights ({shown(weights.get('preset') or 'generated')}): random numbers, calibrated"
    return shown(weights["path"]) if weights.get("path") else "no weights"
