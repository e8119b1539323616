"""``parity.json``: made from measured rows, and judged again from itself.

docs/parity-json.md describes it. Everything a person reads (table, plots, page) is made from
this one dictionary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from parity import verdict
from parity.components import build_graph
from parity.errors import UsageError
from parity.memory import uncollected
from parity.names import parse
from parity.rangetable import RangeTable
from parity.runfolder import SCHEMA, as_read
from parity.safetensors_header import shown

Run = dict[str, Any]


# Figures of a row that judging makes; they have the digits of those that were read.
_JUDGED = ("excess", "peak_excess", "range")


def judge_case(case: Mapping[str, Any], table: RangeTable | None) -> dict[str, Any]:
    """A case with verdicts, counts, sources and range verdicts from its measured rows.

    Args:
        case: name, mode, dtype, graph and ``checkpoints`` (rows as measured).
        table: ranges of its component; none are checked without it.

    Raises:
        UsageError: the case has no graph, or rows that are not those of its graph.
    """
    try:
        graph = build_graph(case["graph"])
        rows = verdict.judge(case["checkpoints"], graph, isolated=case["mode"] == "isolated")
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"case {shown(str(case.get('name')))} cannot be judged: {shown(str(error))}") from error
    last = last_block(graph.parents)
    for row in rows:
        row["range"] = range_of(row, table, last) if table and row["candidate"] else None
        for key in _JUDGED:
            row[key] = as_read(row[key], key)
    counts = verdict.count(rows)
    return {
        **case,
        "verdict": verdict.overall(counts),
        "counts": counts,
        "sources": [row["name"] for row in rows if row["source"]],
        "checkpoints": rows,
    }


def last_block(names: Iterable[str]) -> int:
    """Index of the last ``block.NN`` among some names; -1 where there is none."""
    return max((parse(name).block or 0 for name in names if name.startswith("block.")), default=-1)


_SEVERITY = ("inside", "absent", "outside")


def range_of(row: Mapping[str, Any], table: RangeTable, last_block: int) -> dict[str, Any] | None:
    """The worst of the documented ranges that speak of a row's checkpoint, on the candidate.

    Among equals, a range of the whole checkpoint comes before one of some of its chunks.
    """
    speaking = sorted(table.rows_for(row["name"], last_block=last_block), key=lambda one: bool(one.chunks))
    found = [checked for one in speaking if (checked := table.check(one, row["candidate"])) is not None]
    return max(found, key=lambda one: _SEVERITY.index(one["verdict"]), default=None)


def assemble(cases: Sequence[Mapping[str, Any]], about: Mapping[str, Any], table: RangeTable | None) -> Run:
    """The whole of ``parity.json``.

    Args:
        cases: with measured rows.
        about: weights, environment, suite, command, started, seconds, resources; ``ranges``, the contents of a table
            for all cases, in the place of the documented one.
        table: documented ranges, which speak of the transformer.

    Raises:
        UsageError: a case or a table that a file holds is none.
    """
    # Judged as it will be read back: what is made from it now and later is the same to the byte.
    return _assembled([as_read(case) for case in cases], as_read(about), table)


def _assembled(cases: Sequence[Mapping[str, Any]], about: Mapping[str, Any], table: RangeTable | None) -> Run:
    own = RangeTable.parse(about["ranges"], "range table of the run") if "ranges" in about else None
    judged = [judge_case(case, own or (table if case["graph"]["name"] == "transformer" else None)) for case in cases]
    counts = verdict.add(case["counts"] for case in judged)
    overall = verdict.overall(counts)
    first = next(
        (
            {"case": case["name"], "mode": case["mode"], "dtype": case["dtype"], "checkpoint": case["sources"][0]}
            for case in judged
            if case["sources"]
        ),
        None,
    )
    return {
        "schema": SCHEMA,
        "verdict": overall,
        "sentence": sentence(overall, counts, first, judged),
        "counts": counts,
        "first_divergence": first,
        **about,
        "thresholds": verdict.DEFAULT.as_dict(),
        "cases": judged,
    }


_ABOUT = ("weights", "environment", "suite", "notes", "ranges", "ports", "command", "started", "seconds", "resources")


@uncollected()
def rejudge(run: Mapping[str, Any]) -> Run:
    """The same run, as it was read, judged by this version's rules and constants; nothing is computed again."""
    return _assembled(run["cases"], {key: run[key] for key in _ABOUT if key in run}, RangeTable.load("qwen-image"))


def sentence(
    overall: str, counts: Mapping[str, int], first: Mapping[str, str] | None, cases: Sequence[Mapping[str, Any]]
) -> str:
    """The verdict in one sentence."""
    if overall == "divergence" and first is not None:
        places = len({source for case in cases for source in case["sources"]})
        more = f" and at {places - 1} more checkpoint{'s' if places > 2 else ''}" if places > 1 else ""
        return (
            f"Divergence: {counts['diverged']:,} of {counts['compared']:,} compared checkpoints are off; it starts at "
            f"{first['checkpoint']}{more} (case {first['case']}, {first['dtype']}, {first['mode']})."
        )
    if overall == "incomplete":
        said = [f"{counts[key]:,} {key}" for key in ("uncertain", "missing", "skipped") if counts[key]]
        return (
            f"Incomplete: {counts['compared']:,} of {counts['expected']:,} checkpoints could be compared"
            f" ({', '.join(said) or 'nothing was expected'}); none of those diverged."
        )
    doubtful = f", {counts['suspect']:,} of them suspect" if counts["suspect"] else ""
    worst = max((row["excess"] for case in cases for row in case["checkpoints"]), default=0.0)
    if worst == 0:
        estimated = any(row.get("uncertainty") for case in cases for row in case["checkpoints"])
        how = ", as far as sketches tell" if estimated else ", bit for bit"
        return f"Parity: all {counts['compared']:,} checkpoints equal the reference's{how}."
    return (
        f"Parity: all {counts['compared']:,} checkpoints are within the reference's own rounding noise{doubtful}; "
        f"the worst is at {worst:.2g} times the floor."
    )
