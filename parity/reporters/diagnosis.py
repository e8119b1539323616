"""Diagnoses as text, and the catalogue of faults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.diagnosis.fault import Fault
from parity.names import parse
from parity.safetensors_header import printable

STYLE = {"proven": "bold green", "likely": "bold yellow", "possible": "bold"}
SHOWN = 8


def print_diagnosis(found: Mapping[str, Any]) -> None:
    """Print a diagnosis to stdout, within 80 columns in a narrow terminal."""
    out = Console(highlight=False)
    out.print(Text(printable(found.get("sentence") or ""), "bold"))
    for cause in found["causes"]:
        out.print()
        out.print(Text.assemble((cause["code"], "bold"), "  ", (cause["confidence"], STYLE[cause["confidence"]])))
        _print_lines(out, cause_lines(cause))
    left = grouped(found["unexplained"])
    for names, one in left[:SHOWN]:
        out.print()
        out.print(Text.assemble(("unexplained", "bold red"), "  ", printable(where(names))))
        _print_lines(out, unexplained_lines(one))
    if (more := len(left) - SHOWN) > 0:
        out.print(f"and {more} more unexplained")
    said = [f"note: {line}" for line in found["notes"]]
    if decide := found.get("would_decide"):
        said.append(f"would decide: {', '.join(decide)}")
    for line in said:
        out.print()
        out.print(Text(printable(line)))


def _print_lines(out: Console, lines: Iterator[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=6)
    table.add_column(overflow="fold")
    for title, text in lines:
        table.add_row(Text(f"  {title}", "dim"), Text(printable(text)))
    out.print(table)


def cause_lines(cause: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(heading, text) of one cause."""
    detail = cause.get("detail") or ""
    yield "what", cause["title"] + (f": {detail}" if detail and detail != cause["title"] else "")
    yield "where", where(cause["where"])
    if text := proof(cause):
        yield "proof", text
    yield "fix", cause["fix"]
    if cause.get("confirm"):
        yield "confirm", cause["confirm"]
    if cause.get("ties"):
        yield "tie", f"explained as well by {', '.join(cause['ties'])}"
    if cause["source"]:
        yield "seen in", cause["source"]


def unexplained_lines(one: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(heading, text) of something that no fault explains."""
    if isinstance(one.get("excess"), float | int):
        yield "excess", f"{one['excess']:.3g} times the floor"
    if one.get("reason"):
        yield "why", one["reason"]
    for mark in (one.get("fingerprint") or [])[:3]:
        yield "looks like", f"{mark['relation']} (leaves {mark['residual']:.2g})"


def grouped(unexplained: Sequence[Mapping[str, Any]]) -> list[tuple[list[str], Mapping[str, Any]]]:
    """Names that differ in their block alone, each group with its first entry."""
    found: dict[tuple[str | None, str], list[Mapping[str, Any]]] = {}
    for one in unexplained:
        parts = parse(one["where"])
        found.setdefault((parts.stream, parts.kind), []).append(one)
    return [([one["where"] for one in ones], ones[0]) for ones in found.values()]


def proof(cause: Mapping[str, Any]) -> str:
    """The experiment in one sentence."""
    figures = cause["evidence"]
    if "excess_with" in figures:
        places = figures["checkpoints"]
        return (
            f"the reference with this fault meets the port to {figures['excess_with']:.2g} times the rounding noise "
            f"at {places} checkpoint{'s' if places > 1 else ''}; without it, it is off by "
            f"{figures['excess_without']:.2g} times"
        )
    return "; ".join(f"{name.replace('_', ' ')} {_figure(value)}" for name, value in figures.items())


def _figure(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def where(names: Sequence[str]) -> str:
    """Places in few words: ``block.00 to block.59 (60): img.modulated``."""
    series: dict[tuple[str, str], list[int]] = {}
    single = []
    for name in names:
        parts = parse(name)
        if parts.block is None:
            single.append(name)
        else:
            series.setdefault((parts.stream or "", parts.kind), []).append(parts.block)
    said = list(single)
    for (stream, kind), blocks in series.items():
        what = f"{stream}.{kind}" if stream in ("img", "txt") else kind
        unit = next(name for name in names if name.endswith(kind)).rsplit(".", 1)[0]
        unit = "block" if ".block." in f".{unit}." else stream
        said.append(f"{what} in {_numbers(sorted(set(blocks)), unit)}")
    return "; ".join(said)


def _numbers(blocks: Sequence[int], unit: str) -> str:
    """``block 7``, ``blocks 0 to 59``, ``blocks 0, 3 and 59``."""
    if len(blocks) == 1:
        return f"{unit} {blocks[0]}"
    if len(blocks) == blocks[-1] - blocks[0] + 1:
        return f"{unit}s {blocks[0]} to {blocks[-1]}"
    shown = ", ".join(map(str, blocks[:6]))
    return f"{unit}s {shown}" + (f" and {len(blocks) - 6} more" if len(blocks) > 6 else "")


def markdown(found: Mapping[str, Any]) -> str:
    """A diagnosis for a comment or a step summary."""
    lines = [f"**{_escape(found.get('sentence') or '')}**"]
    for cause in found["causes"]:
        lines += ["", f"### `{cause['code']}` ({cause['confidence']})", ""]
        lines += [f"- {title}: {_escape(text)}" for title, text in cause_lines(cause)]
    for names, one in grouped(found["unexplained"])[:SHOWN]:
        lines += ["", f"### unexplained: {_escape(where(names))}", ""]
        lines += [f"- {title}: {_escape(text)}" for title, text in unexplained_lines(one)]
    lines += [f"\n{title}: {_escape(line)}" for title in ("notes", "would_decide") for line in found.get(title) or []]
    return "\n".join(lines)


def _escape(text: str) -> str:
    return printable(text).replace("<", "&lt;").replace("|", "\\|")


def print_catalogue(entries: Sequence[Fault], *, markdown: bool) -> None:
    """Codes with their titles.

    Args:
        entries: one a code, in the order to show them.
        markdown: as a table with the fixes too.
    """
    if markdown:
        print("| code | what is wrong | fix | seen in |\n|---|---|---|---|")
        for one in entries:
            print(f"| `{one.code}` | {_escape(one.title)} | {_escape(one.fix)} | {_escape(one.seen)} |")
        return
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("code", no_wrap=True)
    table.add_column("what is wrong")
    table.add_column("seen in")
    for one in entries:
        table.add_row(one.code, one.title, one.seen)
    out = Console(highlight=False)
    out.print(table)
    out.print(f"{len(entries)} codes")
