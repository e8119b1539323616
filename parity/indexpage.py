"""The page over a folder of runs: a pure function of what `runindex.index` found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from markupsafe import Markup, escape

from parity.pages import render
from parity.reporters.rundiff import excess
from parity.reporters.runindex import are_several, made_with
from parity.runindex import latest

Index = Mapping[str, Any]

# Lines of the table of trends; what is beyond stands in the JSON.
TRENDS = 1000
# Runs of one trend that are drawn, the last ones.
POINTS = 200
_WIDTH, _HEIGHT, _EDGE = 220, 40, 4
# One axis for all trends, so that they can be held against each other: from here to the largest excess of them,
# and at least to the other one.
_LOW, _HIGH = 0.3, 100.0
_MATCH = 3.0
_RANKS = {"parity": 0, "incomplete": 1, "divergence": 2}


def index_html(found: Index, base: str = ".") -> str:
    """The page, the same for the same runs.

    Args:
        base: the way from the page to the folder of runs, for links.
    """
    lines = latest(found["trends"])
    values = [point["worst"] for trend in lines for point in trend["points"]]
    top = max((value for value in values if value is not None and math.isfinite(value)), default=_HIGH)
    return render(
        "index.html.j2", found=found, several=are_several(lines), more=max(0, len(lines) - TRENDS),
        trends=[_trend(trend, found["runs"], max(top, _HIGH)) for trend in lines[:TRENDS]],
        last=max((trend["points"][-1]["verdict"] for trend in lines), key=_RANKS.__getitem__, default=""),
        runs=[_run(run, base) for run in reversed(found["runs"])],
        states=dict.fromkeys(run.get("verdict") or run["state"] for run in found["runs"]),
    )  # fmt: skip


def _trend(trend: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], top: float) -> dict[str, Any]:
    last = trend["points"][-1]
    kept = ("component", "case", "dtype", "mode", "size", "change")
    return {key: trend[key] for key in kept} | {
        "made_with": made_with(trend), "verdict": last["verdict"], "rank": _RANKS[last["verdict"]],
        "last": excess(last["worst"], last["differ"]), "value": _value(last), "many": len(trend["points"]),
        "since": runs[trend["since"]]["folder"], "chart": sparkline(trend["points"], top),
    }  # fmt: skip


def _value(point: Mapping[str, Any]) -> str:
    """What a script sorts by; infinite where values that must be equal are not."""
    value = math.inf if point["differ"] else point["worst"]
    return "" if value is None else "1e999" if math.isinf(value) else f"{value:.6g}"


def _run(run: Mapping[str, Any], base: str) -> dict[str, Any]:
    ended = run["state"] == "finished"
    counts = run.get("counts") or {}
    return {
        "folder": run["folder"], "link": _link(run["folder"], base) if run["report"] else "",
        "started": (run["started"] or "")[:16].replace("T", " "), "state": run.get("verdict") or run["state"],
        "suite": run.get("suite") or "", "weights": run.get("weights") or "",
        "compared": f"{counts['compared']:,} of {counts['expected']:,}" if ended else "",
        "many": counts.get("compared", ""), "worst": excess(run["worst"]) if ended else "",
        "where": run.get("where") or "",
        "value": _value({"differ": 0, "worst": run["worst"]}) if ended else "",
        "said": run.get("sentence") or run["reason"],
    }  # fmt: skip


def _link(folder: str, base: str) -> str:
    """The way to a run's page, which nothing in a name turns into another one."""
    return f"{base}/{quote(folder.encode('utf-8', 'surrogateescape'))}/report.html"


def sparkline(points: Sequence[Mapping[str, Any]], top: float) -> Markup:
    """The largest excess over the last `POINTS` runs, logarithmic; a shape where a run was no parity.

    Values that must be equal and are not stand at the upper edge; what has no excess leaves a gap.

    Args:
        points: of a trend.
        top: excess at the upper edge.
    """
    shown = points[-POINTS:]
    step = (_WIDTH - 2 * _EDGE) / max(len(shown) - 1, 1)
    line, marks, pen = [], [], "M"
    for place, point in enumerate(shown):
        value = math.inf if point["differ"] else point["worst"]
        x, y = _EDGE + place * step, _height(value, top)
        if value is None:
            pen, y = "M", _HEIGHT / 2
        else:
            line.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
        if point["verdict"] == "divergence":
            marks.append(f'<path class="divergence" d="M{x:.1f} {y - 3:.1f}l3 5.5h-6z"/>')
        elif point["verdict"] == "incomplete":
            marks.append(f'<circle class="incomplete" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>')
        elif place == len(shown) - 1:
            marks.append(f'<circle class="last" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>')
    limit = _height(_MATCH, top)
    return Markup(
        f'<svg class="spark" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(_words(shown))}"><path class="floor" d="M0 {limit:.1f}H{_WIDTH}"/>'
        f'<path d="{"".join(line)}"/>{"".join(marks)}</svg>'
    )


def _height(value: float | None, top: float) -> float:
    along = math.log(min(max(value or 0.0, _LOW), top) / _LOW) / math.log(top / _LOW)
    return _HEIGHT - _EDGE - along * (_HEIGHT - 2 * _EDGE)


def _words(points: Sequence[Mapping[str, Any]]) -> str:
    """A trend for those who don't see it."""
    verdicts = [point["verdict"] for point in points]
    counts = ", ".join(f"{verdicts.count(one)} {one}" for one in _RANKS if one in verdicts)
    first, last = (excess(point["worst"], point["differ"]) for point in (points[0], points[-1]))
    return f"largest excess over {len(points)} run{'s' * (len(points) > 1)}: first {first}, last {last}; {counts}"
