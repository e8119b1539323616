"""The page of two runs held against each other: a pure function of what `rundiff.diff` found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from parity.changemap import KEY, change_maps
from parity.pages import address, render, sort_key
from parity.plotstyle import cut, short
from parity.report import plain
from parity.reporters.rundiff import TITLES, entry_figures, line_figures, sections_of, sources
from parity.rundiff import BEYOND, ORDER

Found = Mapping[str, Any]

# Lines of changed checkpoints and of settings; what is beyond stands in the JSON.
LINES = 400
SOURCES = 60
# Letters of a setting.
VALUE = 200
# Marks of a chart; those within one step of each other are one.
MARKS = 3000
_SIZE, _LEFT, _BOTTOM, _STEP = 420, 63, 44, 3.0
_LOWEST, _HIGHEST = 1e-3, 1e12
_SHAPES = {
    "worse": "M0 -4.4L4.4 3.4L-4.4 3.4Z", "better": "M0 4.4L4.4 -3.4L-4.4 -3.4Z", "other": "M-3 -3H3V3H-3Z",
    "same": "M-1.5 -1.5H1.5V1.5H-1.5Z",
}  # fmt: skip


def comparison_html(found: Found, links: tuple[str, str] = ("", "")) -> str:
    """The page, the same for the same comparison.

    Args:
        links: addresses of the pages of the run before and the run after; empty where there is none.
    """
    parts, more = sections_of(found, LINES)
    known = sources(found)
    maps, more_maps = change_maps(found)
    return render(
        "comparison.html.j2", found=found, titles=TITLES, order=ORDER, beyond=BEYOND, map_key=KEY,
        entries=[entry_figures(entry) | {"state": _state(entry), "link": _link(links, not entry["after"], _key(entry))}
                 for entry in found["entries"]],
        parts=[(title, lines[0]["change"], [_line(line, links) for line in lines]) for title, lines in parts],
        more=more, links=links,
        settings=[{"what": one["what"]} | {side: cut(plain(one[side]), VALUE) for side in ("before", "after")}
                  for one in found["settings"]],
        sources=[one | {"link": _link(links, one["kind"] == "went", one["entry"], one["first"])}
                 for one in known[:SOURCES]],
        more_sources=max(0, len(known) - SOURCES), chart=scatter(found["points"]),
        maps=maps, more_maps=more_maps,
    )  # fmt: skip


def _key(entry: Found) -> tuple[str, str, str]:
    return entry["case"], entry["dtype"], entry["mode"]


def _link(links: tuple[str, str], before: bool, key: tuple[str, str, str], name: str = "") -> str:
    """Where an entry or a checkpoint of it is on the page of one of the runs; empty where there is no such page."""
    page = links[not before]
    return page and page + address(*key, name)


def _line(line: Found, links: tuple[str, str]) -> dict[str, Any]:
    """A line of the tables of changes, with what a script sorts by."""
    after, factor = line["excess"][1], line["factor"]
    return line_figures(line) | {
        "link": _link(links, line["change"] == "gone", line["entry"], line["name"]), "count": line["count"],
        "after": sort_key(after), "moved": sort_key(factor),
    }  # fmt: skip


def _state(entry: Found) -> str:
    counts = entry["counts"]
    return next((change for change in ORDER if counts[change]), "same")


def scatter(points: Sequence[tuple[float, float, str]]) -> Markup:
    """Excess before against excess after, a mark a checkpoint, both axes logarithmic; empty without points.

    What is on the diagonal did not change; the band around it is noise. Worse lies above, with a tip upwards.
    """
    usable = [v for a, b, _ in points for v in (a, b) if _LOWEST <= v <= _HIGHEST]
    if not usable:
        return Markup("")
    low, high = min(*usable, 0.1), max(*usable, 30.0)
    axis = _Axis(math.log10(low) - 0.15, math.log10(high) + 0.15)
    marks: dict[tuple[str, int, int], None] = {}
    for change in ("same", "other", "better", "worse"):
        for a, b, what in points:
            if what == change:
                marks[change, axis.x(a), axis.y(b)] = None
    drawn = "".join(
        f'<path class="{change}" transform="translate({x * _STEP:g} {y * _STEP:g})" d="{_SHAPES[change]}"/>'
        for change, x, y in list(marks)[-MARKS:]
    )
    counts = {change: sum(what == change for _, _, what in points) for change in _SHAPES}
    said = ", ".join(f"{count:,} {TITLES.get(change, change)}" for change, count in counts.items() if count)
    side = _LEFT + _SIZE + 14
    return Markup(
        f'<svg viewBox="0 0 {side} {_SIZE + _BOTTOM + 10}" role="img" aria-label="{escape(said)}">'
        f"{_ground(axis)}{drawn}</svg>"
    )


class _Axis:
    """Both axes are one: from 10^low to 10^high over `_SIZE` units, in whole `_STEP`s."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def at(self, value: float) -> float:
        """Units from the origin; what is beyond the axis lies on its end."""
        if value <= 0:
            return 0.0
        along = self.high if math.isinf(value) else math.log10(value)
        return _SIZE * (min(max(along, self.low), self.high) - self.low) / (self.high - self.low)

    def x(self, value: float) -> int:
        return round((_LEFT + self.at(value)) / _STEP)

    def y(self, value: float) -> int:
        return round((5 + _SIZE - self.at(value)) / _STEP)


def _ground(axis: _Axis) -> str:
    """Noise band, diagonal, ticks, the lines of the verdicts and the titles of the axes."""
    left, bottom = _LEFT, 5 + _SIZE
    shift = _SIZE * math.log10(BEYOND) / (axis.high - axis.low)
    band = (f"M{left} {bottom}V{bottom - shift:.1f}L{left + _SIZE - shift:.1f} 5H{left + _SIZE}V{5 + shift:.1f}"
            f"L{left + shift:.1f} {bottom}Z")  # fmt: skip
    parts = [f'<path class="noise" d="{band}"/><path class="even" d="M{left} {bottom}L{left + _SIZE} 5"/>']
    exponents = range(math.ceil(axis.low), math.floor(axis.high) + 1)
    for exponent in exponents[:: max(1, math.ceil(len(exponents) / 6))]:
        at, text = axis.at(10.0**exponent), short(10.0**exponent)
        parts.append(f'<path class="grid" d="M{left + at:.1f} 5V{bottom}M{left} {bottom - at:.1f}H{left + _SIZE}"/>')
        parts.append(f'<text x="{left + at:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
        parts.append(f'<text x="{left - 7}" y="{bottom - at + 4:.1f}" text-anchor="end">{text}</text>')
    for limit in (3.0, 10.0):
        at = axis.at(limit)
        parts.append(f'<path class="limit" d="M{left + at:.1f} 5V{bottom}M{left} {bottom - at:.1f}H{left + _SIZE}"/>')
    parts.append(
        f'<text class="strong" x="{left + _SIZE / 2}" y="{bottom + 36}" text-anchor="middle">excess before</text>'
    )
    middle = 5 + _SIZE / 2
    parts.append(f'<text class="strong" transform="rotate(-90 13 {middle})" x="13" y="{middle}" text-anchor="middle">'
                 "excess after</text>")  # fmt: skip
    return "".join(parts)
