"""The page over a folder of runs: a pure function of what `runindex.index` found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from markupsafe import Markup, escape

from parity.pages import address, render, sort_key
from parity.reporters.rundiff import excess
from parity.reporters.runindex import made_with, varying
from parity.runindex import latest

Index = Mapping[str, Any]

# Lines of the table of trends; what is beyond stands in the JSON.
TRENDS = 1000
# Runs of one trend that are drawn, and runs on the line of all of them; the last ones.
POINTS = 200
STRIP = 400
_WIDTH, _HEIGHT, _EDGE = 220, 36, 5
# Up to so many runs of a trend have a mark each, as a line through them alone does not say how many they are.
_FEW = 16
# One axis for all trends, so that they can be held against each other: the verdicts' limits have their place on it,
# and how far beyond them a divergence is, is said in figures.
_LOW, _HIGH = 0.3, 30.0
_MATCH, _SUSPECT = 3.0, 10.0
_RANKS = {"parity": 0, "incomplete": 1, "divergence": 2}
# Heights of the bars of runs, so that a verdict shows without its colour; what is not finished is an outline.
_BARS = {"parity": 12, "incomplete": 22, "divergence": 36, "unfinished": 12, "unreadable": 22}
_BAR = 5
# Letters of a folder's name in the table of trends; the table of runs has it whole.
_LETTERS = 40


def index_html(found: Index, base: str = ".") -> str:
    """The page, the same for the same runs.

    Args:
        base: the way from the page to the folder of runs, for links.
    """
    runs = [_run(run, place, base) for place, run in enumerate(found["runs"])]
    lines = latest(found["trends"])
    last = [trend["points"][-1]["verdict"] for trend in lines]
    vary = varying(lines)
    held = Counter(run["state"] for run in runs)
    return render(
        "index.html.j2", found=found, several=bool(vary), more=max(0, len(lines) - TRENDS),
        trends=[_trend(trend, runs, vary) for trend in lines[:TRENDS]], verdicts=list(dict.fromkeys(last)),
        last=max(last, key=_RANKS.__getitem__, default=""), runs=runs[::-1], strip=strip(runs),
        bars={state: _bar(state, 0) for state in _BARS},
        states={state: count for state in _BARS if (count := held[state])}, left_out=max(0, len(runs) - STRIP),
        tiles=_tiles(lines, last), dates=_dates(runs[-STRIP:]),
    )  # fmt: skip


def _tiles(lines: Sequence[Mapping[str, Any]], last: Sequence[str]) -> list[tuple[str, int, str]]:
    """(class, count, words) of the last run of each case."""
    moved = Counter(trend["change"] for trend in lines)
    words = {
        "divergence": ("diverged", "diverged"),
        "incomplete": ("suspect", "incomplete"),
        "parity": ("match", "at parity"),
    }
    return [
        *((name, n, f"case{'s' * (n != 1)} {said}") for one, (name, said) in words.items() for n in [last.count(one)]),
        *((one, moved[one], f"{one} than the run before") for one in ("worse", "better")),
    ]  # fmt: skip


def _dates(runs: Sequence[Mapping[str, Any]]) -> str:
    days = [run["started"][:10] for run in runs if run["started"]]
    return f": {days[0]} to {days[-1]}" if days else ""


def _trend(trend: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], vary: Sequence[str]) -> dict[str, Any]:
    last, since = trend["points"][-1], trend["since"]
    kept = ("component", "case", "dtype", "mode", "size", "change")
    page = runs[last["run"]]["link"]
    return {key: trend[key] for key in kept} | {
        "made_with": made_with(trend, vary), "verdict": last["verdict"], "rank": _RANKS[last["verdict"]],
        "last": excess(last["worst"], last["differ"]), "value": _value(last), "many": len(trend["points"]),
        "link": page and page + address(trend["case"], trend["dtype"], trend["mode"]),
        "always": since == trend["points"][0]["run"], "place": since, "since": _name(runs[since]["folder"]),
        "chart": sparkline(trend["points"]),
    }  # fmt: skip


def _value(point: Mapping[str, Any]) -> str:
    """What a script sorts by; infinite where values that must be equal are not."""
    return sort_key(math.inf if point["differ"] else point["worst"])


def _name(folder: str) -> str:
    return folder if len(folder) <= _LETTERS else f"{folder[: _LETTERS - 1]}…"


def _run(run: Mapping[str, Any], place: int, base: str) -> dict[str, Any]:
    ended = run["state"] == "finished"
    counts = run.get("counts") or {}
    return {
        "place": place, "folder": run["folder"], "link": _link(run["folder"], base, "report") if run["report"] else "",
        "comparison": _link(run["folder"], base, "comparison") if run["comparison"] else "",
        "started": (run["started"] or "")[:16].replace("T", " "), "state": run.get("verdict") or run["state"],
        "suite": run.get("suite") or "", "weights": run.get("weights") or "",
        "compared": f"{counts['compared']:,} of {counts['expected']:,}" if ended else "",
        "many": counts.get("compared", ""), "worst": excess(run["worst"]) if ended else "",
        "where": run.get("where") or "",
        "value": _value({"differ": 0, "worst": run["worst"]}) if ended else "",
        "said": run.get("sentence") or run["reason"],
    }  # fmt: skip


def _link(folder: str, base: str, page: str) -> str:
    """The way to a page of a run, which nothing in a name turns into another one."""
    return f"{base}/{quote(folder.encode('utf-8', 'surrogateescape'))}/{page}.html"


def strip(runs: Sequence[Mapping[str, Any]]) -> Markup:
    """A bar a run, the last `STRIP` ones, the oldest on the left; its height and its filling say the verdict."""
    shown = runs[-STRIP:]
    bars = "".join(f'<rect class="{run["state"]}" {_bar(run["state"], place)}/>' for place, run in enumerate(shown))
    counts = Counter(run["state"] for run in shown)
    said = ", ".join(f"{count:,} {state}" for state, count in counts.items())
    points = " ".join(f"{run['place']}:" for run in shown)
    # A few runs are no wider bars than many.
    width = max(len(shown), 60) * _BAR
    return Markup(
        f'<svg class="strip" viewBox="0 0 {width} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(f"{len(shown):,} runs: {said}")}" data-points="{points}" '
        f'data-first="{_BAR / 2 / width:.5g}" data-step="{_BAR / width:.5g}">{bars}</svg>'
    )


def _bar(state: str, place: int) -> Markup:
    """Where the bar of a run is; its outline lies within."""
    height = _BARS[state]
    return Markup(f'x="{place * _BAR + 0.75:g}" y="{_HEIGHT - height + 0.75:g}" width="{_BAR - 1.5:g}" '
                  f'height="{height - 1.5:g}"')  # fmt: skip


def sparkline(points: Sequence[Mapping[str, Any]]) -> Markup:
    """The largest excess over the last `POINTS` runs, logarithmic; a shape where a run was no parity.

    What is beyond the axis, and values that must be equal and are not, stand at the upper edge; what has no excess
    leaves a gap. A single run stands at the right, where the last one of many does.

    Args:
        points: of a trend.
    """
    shown = points[-POINTS:]
    step = (_WIDTH - 2 * _EDGE) / max(len(shown) - 1, 1)
    first = _EDGE if len(shown) > 1 else _WIDTH - _EDGE
    line, marks, pen = [], [], "M"
    for place, point in enumerate(shown):
        value = math.inf if point["differ"] else point["worst"]
        x, y = first + place * step, _height(value)
        if value is None:
            pen, y = "M", _HEIGHT / 2
        else:
            line.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
        if point["verdict"] == "divergence":
            marks.append(f'<path class="divergence" d="M{x:.1f} {y - 4:.1f}l4 7h-8z"/>')
        elif point["verdict"] == "incomplete":
            marks.append(f'<circle class="incomplete" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>')
        elif value is not None and (place == len(shown) - 1 or len(shown) <= _FEW):
            size = 2.6 if place == len(shown) - 1 else 1.7
            marks.append(f'<circle class="last" cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>')
    match, suspect = _height(_MATCH), _height(_SUSPECT)
    listed = " ".join(f"{point['run']}:{excess(point['worst'], point['differ']).replace(' ', '_')}" for point in shown)
    return Markup(
        f'<svg class="spark" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(_words(shown))}" data-points="{listed}" data-first="{first / _WIDTH:.5g}" '
        f'data-step="{step / _WIDTH:.5g}"><path class="within" d="M0 {match:.1f}H{_WIDTH}V{_HEIGHT}H0z"/>'
        f'<path class="floor" d="M0 {match:.1f}H{_WIDTH}"/><path class="floor far" d="M0 {suspect:.1f}H{_WIDTH}"/>'
        f'<path d="{"".join(line)}"/>{"".join(marks)}</svg>'
    )


def _height(value: float | None) -> float:
    along = math.log(min(max(value or 0.0, _LOW), _HIGH) / _LOW) / math.log(_HIGH / _LOW)
    return _HEIGHT - _EDGE - along * (_HEIGHT - 2 * _EDGE)


def _words(points: Sequence[Mapping[str, Any]]) -> str:
    """A trend for those who don't see it."""
    verdicts = [point["verdict"] for point in points]
    counts = ", ".join(f"{verdicts.count(one)} {one}" for one in _RANKS if one in verdicts)
    first, last = (excess(point["worst"], point["differ"]) for point in (points[0], points[-1]))
    return f"largest excess over {len(points)} run{'s' * (len(points) > 1)}: first {first}, last {last}; {counts}"
