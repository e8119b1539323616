"""The error budget on the page: the table in short, and a chart over blocks that needs no script."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from parity import budget
from parity.plotstyle import short
from parity.sections import role_of, stream_title

_SIZE, _LEFT, _RIGHT, _TOP, _BOTTOM = (900, 260), 56, 890, 12, 222
# Part -> class of its line; quantization is drawn in full.
_CLASSES = {"quantization": "", "precision": " floor", "implementation": " beyond"}


def section(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page says of the budget; None for a run that has none.

    Returns:
        ``about`` and ``lines`` of the table, ``chart`` as SVG, ``streams`` (class, title), ``known``: whether
        quantization was measured.
    """
    lines = budget.table(run)
    if not lines:
        return None
    blocks = budget.by_block(budget.first(run)[0])
    return {
        "about": budget.about(run),
        "lines": lines,
        "chart": _chart(blocks),
        "streams": [(role_of(stream), stream_title(stream)) for stream in blocks],
        "known": any(one.quantization is not None for of in blocks.values() for one in of.values()),
    }


def _chart(blocks: Mapping[str, Mapping[int, budget.Parts]]) -> Markup:
    """Lines over blocks on a logarithmic scale; nothing at all lies on the lower edge. Numbers only, no names."""
    parts = [one for of in blocks.values() for one in of.values()]
    values = [value for one in parts for part in _CLASSES if (value := getattr(one, part))]
    if not values:
        return Markup("")
    low, high = (math.log10(bound) for bound in (min(values) / 2, max(values) * 2))
    last = max(block for of in blocks.values() for block in of)

    def x(block: float) -> float:
        return _LEFT + (block + 0.5) / (last + 1) * (_RIGHT - _LEFT)

    def y(value: float) -> float:
        at = low if value <= 0 else max(low, math.log10(value))
        return _BOTTOM - (at - low) / (high - low) * (_BOTTOM - _TOP)

    drawn = []
    for power in range(math.ceil(low), math.floor(high) + 1):
        at, text = f"{y(10.0**power):.1f}", short(10.0**power)
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{at}" y2="{at}"/>')
        drawn.append(f'<text x="{_LEFT - 6}" y="{at}" dy="4" text-anchor="end">{text}</text>')
    step = max(1, math.ceil((last + 1) / 12))
    for block in range(0, last + 1, step):
        drawn.append(f'<text x="{x(block):.1f}" y="{_BOTTOM + 15}" text-anchor="middle">{block}</text>')
    drawn.append(f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM}" y2="{_BOTTOM}"/>')
    drawn.append(f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_BOTTOM + 32}" text-anchor="middle">block</text>')
    for stream, of in blocks.items():
        for part, line in _CLASSES.items():
            points = [(x(block), y(value)) for block, one in of.items() if (value := getattr(one, part)) is not None]
            path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points) + "h0"
            drawn += [f'<path class="{role_of(stream)}{line}" d="{path}"/>'] * bool(points)
    label = "Error budget of each block's output; the table has the medians"
    return Markup(f'<svg viewBox="0 0 {_SIZE[0]} {_SIZE[1]}" role="img" aria-label="{label}">{"".join(drawn)}</svg>')
