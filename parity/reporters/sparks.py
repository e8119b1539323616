"""What plots in a terminal are made of: names, sparklines, the columns of an axis; and all of it in ASCII."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from rich.text import Text

from parity.plotstyle import cut, short

WIDTH = 80
NAME, FIGURES = 16, 17
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
PLAIN = dict(zip("·…×÷≤–−“”↑↓┌", ".~x/<--''+-.", strict=True))

Lines = Iterator[Text]


def plain(line: Text) -> Text:
    """A line in ASCII, with a letter for each of its letters; powers of ten as ``2.1e-3``, without colours then."""
    told = re.sub(r"(?:(?<=[\d.])·)?10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", _power, line.plain)
    table = str.maketrans({**dict(zip(BARS, PLAIN_BARS, strict=True)), **PLAIN})
    text = told.translate(table).encode("ascii", "replace").decode()
    if len(text) != len(line.plain):
        return Text(text)
    found = line.copy()
    found.plain = text
    return found


def _power(found: re.Match[str]) -> str:
    exponent = found[1].translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    return f"e{exponent}" if found[0].startswith("·") else f"1e{exponent}"


def columns_of(span: range, room: int) -> list[list[int]]:
    """Indices by column: one each, or several where there are more of them than columns."""
    step = max(1, math.ceil(len(span) / room))
    return [list(span[i : i + step]) for i in range(0, len(span), step)]


def wide(bins: Sequence[Sequence[int]]) -> int:
    """Letters of a cell: three where there are few columns."""
    return 3 if 3 * len(bins) <= WIDTH - NAME - 1 else 1


def axis(bins: Sequence[Sequence[int]]) -> Text:
    """Indices above their columns: every ten columns, or all of them where those are wide."""
    line, letters = "", wide(bins)
    for column in range(0, len(bins), 10 if letters == 1 else 1):
        longer = line.ljust(NAME + 1 + letters * column) + str(bins[column][0])
        # A number cut off would be another number.
        line = longer if len(longer) <= WIDTH else line
    return Text(line, "dim")


def spark(values: Sequence[float | None], low: float, high: float) -> str:
    """A letter a value: the height on a logarithmic scale from `low` to `high`, ``x`` not finite, a gap for None."""
    depth = math.log(high / low) if 0 < low < high else 0.0

    def letter(value: float | None) -> str:
        if value is None:
            return " "
        if not math.isfinite(value):
            return "x"
        if value <= low or not depth:
            return BARS[0]
        return BARS[min(len(BARS) - 1, int(len(BARS) * math.log(value / low) / depth))]

    return "".join(map(letter, values))


def scale_of(lines: Collection[Mapping[int, float]]) -> tuple[float, float]:
    """Smallest and largest figure above zero, at least a decade apart, so that noise looks flat."""
    usable = [v for line in lines for v in line.values() if math.isfinite(v) and v > 0] or [1.0]
    low, high = min(usable), max(usable)
    if high < 10 * low:
        middle = math.sqrt(low * high)
        # Around the middle of a bar, not the border between two of them.
        low, high = middle * 10 ** (-7 / 16), middle * 10 ** (9 / 16)
    return low, high


def spark_line(
    name: str, points: Mapping[int, float], span: range, scale: tuple[float, float], style: str = ""
) -> Text:
    """Name, sparkline (of several indices the largest), smallest and largest figure."""
    values = [
        max((points[i] for i in indices if i in points), default=None, key=lambda v: math.inf if math.isnan(v) else v)
        for indices in columns_of(span, WIDTH - NAME - FIGURES - 2)
    ]
    finite = [value for value in points.values() if math.isfinite(value)]
    ends = f"{short(two(min(finite)))} … {short(two(max(finite)))}" if finite else "none"
    line = first_column(name)
    line.append(spark(values, *scale), style)
    line.append(f" {ends}", "dim")
    return line


def two(value: float) -> float:
    """Rounded to two digits."""
    return float(f"{value:.2g}")


def first_column(name: str) -> Text:
    """A name in the first column."""
    return Text(cut(name, NAME).ljust(NAME) + " ")


def titled(title: str, lines: Mapping[str, tuple[Mapping[int, float], str]], span: range) -> Lines:
    """Sparklines on one scale below a title; the style of each beside its points."""
    scale = scale_of([points for points, _ in lines.values()])
    yield Text(f"{title}; log scale, {short(two(scale[0]))} to {short(two(scale[1]))}", "bold")
    for name, (points, style) in lines.items():
        yield spark_line(name, points, span, scale, style)
