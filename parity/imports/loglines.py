"""Lines with ranges of activations in a log, as the Qwen-Image MLX implementation guide prints them.

    [IMG_IN] [-14.20, 15.31]          [MOD] scale=[-12.00, 9.50]        [STEP 3] [BLOCK 07] [ATTN] [-88.00, 118.00]
    block.07.img.attn [-88, 118]      step.03.cond.block.07.img.ffn [-25000, 26000]

The seven tags of the guide, or names of checkpoints; block and step numbers are optional, as is anything around.
Where blocks have no numbers, the n-th line of a kind within a pass is of block n; a pass starts at IMG_IN.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from parity.errors import UsageError
from parity.names import BLOCK_KINDS, block_stage
from parity.safetensors_header import shown

# Bounds on what a file from elsewhere can cost.
LINE_BYTES, FILE_BYTES, READINGS = 8192, 1 << 30, 200_000

Range = tuple[float, float]

_NUMBER = r"(?i:[-+]?(?:\d+(?:\.\d*)?(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|inf(?:inity)?|nan))"
# As it is, or as MLX prints an array of one value: `array(15.31, dtype=float32)`.
_END = rf"(?:array\(\s*)?({_NUMBER})(?:\s*,\s*dtype=\w+)?\)?"
_RANGE = rf"\[\s*{_END}\s*,\s*{_END}\s*\]"
_TAG = re.compile(rf"\[(IMG_IN|NORMED|MODULATED|MOD|ATTN|FFN|FINAL)\]\s*(?:scale\s*=\s*)?(?:{_RANGE})?", re.IGNORECASE)
_NAME = re.compile(
    r"(?<![\w.])(?:step\.(\d+)\.(?:cond|uncond)\.)?(?:block\.(\d+)\.(img|txt)\.([a-z0-9_]+)|"
    r"(img_in|txt_in|txt_norm|temb|time\.proj|time\.linear_1|time\.silu|norm_out\.mod|norm_out|final))(?![\w.])"
    rf"\s*[:=]?\s*(?:{_RANGE})?"
)
_BLOCK = re.compile(r"\b(?:block|blk|layer)[\s_:#.=-]{0,3}(\d{1,4})", re.IGNORECASE)
_STEP = re.compile(r"\bstep[\s_:#.=-]{0,3}(\d{1,5})", re.IGNORECASE)
# A line of its own that says where one is: `--- block 7 ---`, `step 3/20`.
_HEADING = re.compile(r"\W*(block|blk|layer|step)\W{0,3}(\d{1,5})(?:\s*/\s*\d+)?\W*", re.IGNORECASE)
_TXT = re.compile(r"\btxt\b", re.IGNORECASE)
_BLOCKLESS = ("img_in", "final")


@dataclass
class Pass:
    """One forward pass as a log shows it.

    Attributes:
        label: which one: a step's number, or how many there were before.
        ranges: checkpoint -> its smallest and largest value, in the order of the log.
        resolutions: checkpoint -> half a unit of the last digit printed: how far its ends may be off.
        scales: checkpoints of modulation parameters whose range is that of the scales only.
    """

    label: str
    ranges: dict[str, Range] = field(default_factory=dict)
    resolutions: dict[str, float] = field(default_factory=dict)
    scales: set[str] = field(default_factory=set)


@dataclass
class Log:
    """What a log says.

    Attributes:
        passes: in order.
        lines: read.
        readings: lines with a range.
        truncated: lines with a tag or a name and no whole range.
        numbered: whether the log itself numbers its blocks.
        cut: why reading stopped before the end; empty where it did not.
    """

    passes: list[Pass] = field(default_factory=list)
    lines: int = 0
    readings: int = 0
    truncated: int = 0
    numbered: bool = False
    cut: str = ""

    @property
    def cut_lines(self) -> str:
        """How many lines were cut off, as a note."""
        one = self.truncated == 1
        return (
            f"{self.truncated:,} {'line was' if one else 'lines were'} cut off and {'is' if one else 'are'} not counted"
        )


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a file, of bounded length, whatever bytes it holds; at most `FILE_BYTES`.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            read, whole = 0, True
            while read < FILE_BYTES and (raw := file.readline(LINE_BYTES)):
                read += len(raw)
                if whole:
                    yield raw.decode("utf-8", "replace")
                whole = raw.endswith(b"\n")
    except OSError as error:
        raise UsageError(f"{shown(path.name)}: cannot be read: {error.strerror}") from None


def parse(lines: Iterable[str]) -> Log:
    """Collect the ranges of a log's lines; every other line is passed over."""
    log, state = Log(), _State()
    for line in lines:
        log.lines += 1
        if log.readings >= READINGS:
            log.cut = f"reading stopped after {READINGS} ranges"
            break
        found, cut_off = _reading(line[:LINE_BYTES], state)
        log.truncated += cut_off
        if found is None:
            continue
        log.readings += 1
        log.numbered |= found.block is not None
        state.put(log, found)
    return log


@dataclass(frozen=True)
class _Reading:
    kind: str
    low: float
    high: float
    step: int | None
    block: int | None
    stream: str
    tagged: bool = False
    resolution: float = 0.0


@dataclass
class _State:
    """Where in a log one is."""

    step: int | None = None
    block: int | None = None
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    ended: bool = True

    def put(self, log: Log, one: _Reading) -> None:
        """Add a range to the pass that it is of."""
        name = self._name(one)
        current = log.passes[-1] if log.passes else None
        label = str(len(log.passes)) if one.step is None else str(one.step)
        other = one.step is not None and current is not None and current.label != label
        if current is None or other or self.ended or one.kind == "img_in" or name in current.ranges:
            current = Pass(label)
            log.passes.append(current)
            self.counts.clear()
            name = self._name(one)
        if one.block is None and one.kind not in _BLOCKLESS and one.kind in BLOCK_KINDS:
            key = (one.stream, one.kind)
            self.counts[key] = self.counts.get(key, 0) + 1
        current.ranges[name] = (one.low, one.high)
        current.resolutions[name] = one.resolution
        if one.tagged and one.kind == "mod":
            current.scales.add(name)
        self.ended = one.kind == "final"

    def _name(self, one: _Reading) -> str:
        if one.kind not in BLOCK_KINDS:
            return one.kind
        block = self.counts.get((one.stream, one.kind), 0) if one.block is None else one.block
        return f"{block_stage(block)}.{one.stream}.{one.kind}"


def _reading(line: str, state: _State) -> tuple[_Reading | None, bool]:
    """The range of a line, and whether it has a name but no whole range."""
    if heading := _HEADING.fullmatch(line.strip()):
        if heading[1].lower() == "step":
            state.step, state.block = int(heading[2]), None
        else:
            state.block = int(heading[2])
        return None, False
    if tag := _TAG.search(line):
        if tag[2] is None:
            return None, True
        before = line[: tag.start()]
        step, block = _STEP.search(before), _BLOCK.search(before)
        kind = tag[1].lower()
        block_number = None if kind in _BLOCKLESS else int(block[1]) if block else state.block
        stream = "txt" if _TXT.search(before) else "img"
        at = int(step[1]) if step else state.step
        return _Reading(kind, *_ends(tag[2], tag[3]), at, block_number, stream, True, _coarse(tag[2], tag[3])), False
    if name := _NAME.search(line):
        if name[6] is None:
            # A name in other output, `loading norm_out.mod`, is none of a range that was cut off.
            return None, "[" in line[name.end() :]
        if name[4] is not None and name[4] not in BLOCK_KINDS:
            return None, False
        step = int(name[1]) if name[1] else state.step
        block_number = int(name[2]) if name[2] else None
        kind, stream, ends = name[4] or name[5], name[3] or "img", (name[6], name[7])
        return _Reading(kind, *_ends(*ends), step, block_number, stream, resolution=_coarse(*ends)), False
    return None, False


def resolution(number: str) -> float:
    """Half a unit of the last digit of a printed number: 0.005 of ``15.31``, 50 of ``1.2e3``; 0 of inf and nan."""
    mantissa, _, exponent = number.lower().partition("e")
    if not any(digit.isdigit() for digit in mantissa):
        return 0.0
    decimals = len(mantissa.partition(".")[2])
    shift = int(exponent[:8] or 0)  # more digits are infinite or zero all the same
    return float(f"5e{shift - decimals - 1}")


def _coarse(low: str, high: str) -> float:
    return max(resolution(low), resolution(high))


def _ends(low: str, high: str) -> Range:
    return float(low), float(high)
