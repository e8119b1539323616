"""Headers of safetensors files, read and checked before any tensor is touched.

Files are data from elsewhere: every size is checked before it is allocated, and names are
escaped where they are shown.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.errors import WeightsError

HEADER_LIMIT = 16 << 20
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2,
               "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `start` and `stop` are byte offsets in the shard's file."""

    shard: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Shard:
    """One safetensors file's header."""

    name: str
    size: int
    header_hash: str
    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]


def read_header(path: Path) -> Shard:
    """Read and check the header of one safetensors file; no tensor is touched.

    Raises:
        WeightsError: unreadable, truncated or garbled; the details list everything wrong.
    """
    name = shown(path.name)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if size < 8 or length > min(size - 8, HEADER_LIMIT):
                raise ValueError(_header_problem(size, length, start))
            raw = file.read(length)
        header = json_object(raw)
    except OSError as error:
        raise WeightsError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise WeightsError(f"{name}: {error}") from None
    metadata = header.pop("__metadata__", None) or {}  # MLX writes null where there are none
    problems = [f"{name}: {text}" for text in _entry_problems(header, metadata, size - 8 - length)]
    if problems:
        raise WeightsError(f"{problems[0]}{and_more(problems)}", problems)
    base = 8 + length
    tensors = {
        key: Tensor(path.name, entry["dtype"], tuple(entry["shape"]), *(base + x for x in entry["data_offsets"]))
        for key, entry in header.items()
    }
    return Shard(path.name, size, hashlib.sha256(raw).hexdigest(), metadata, tensors)


def _header_problem(size: int, length: int, start: bytes) -> str:
    if size == 0:
        return "empty file; download it again"
    if start.startswith(b"version "):
        return "a git-lfs pointer, not the weights; fetch them with `git lfs pull`"
    if size < 8:
        return f"no safetensors file: {size} bytes, expected at least 8"
    where = f"{size} bytes in the file" if length <= HEADER_LIMIT else f"a limit of {HEADER_LIMIT}"
    return f"truncated or no safetensors file: a header of {length} bytes is announced, against {where}"


def json_file(path: Path) -> dict[str, Any]:
    """`json_object` of a file, which must be no larger than a header may be.

    Raises:
        OSError: it cannot be read.
        ValueError: too large, or no such object.
    """
    size = path.stat().st_size
    if size > HEADER_LIMIT:
        raise ValueError(f"{size} bytes, against a limit of {HEADER_LIMIT}")
    return json_object(path.read_bytes())


def json_object(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object in which no key comes twice, at any depth."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        if twice:
            raise ValueError(f"key {shown(twice[0])} comes twice")
        return dict(pairs)

    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"garbled: no JSON ({error.msg} at byte {error.pos})") from None
    except UnicodeDecodeError:
        raise ValueError("garbled: no UTF-8 text where JSON is expected") from None
    except RecursionError:
        raise ValueError("garbled: JSON nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("garbled: JSON, but no object")
    return found


def _entry_problems(header: Mapping[str, Any], metadata: object, available: int) -> list[str]:
    """Everything wrong with a header's entries; `available` is the size of the data in bytes."""
    problems = []
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        problems.append("__metadata__ is no mapping of strings")
    if not header:
        problems.append("holds no tensors")
    spans = []
    for key, entry in header.items():
        problem = _entry_problem(entry)
        if problem:
            problems.append(f"{shown(key)}: {problem}")
        else:
            spans.append((*entry["data_offsets"], key))
    if problems:
        return problems
    cursor = 0
    for begin, end, key in sorted(spans):
        if begin != cursor:
            kind = "overlaps the tensor before it" if begin < cursor else "leaves a gap before it"
            problems.append(f"{shown(key)}: {kind}: begins at {begin}, expected {cursor}")
        cursor = max(cursor, end)
    if cursor > available:
        problems.append(f"truncated: the header describes {cursor} bytes of data, the file has {available}")
    elif cursor < available:
        problems.append(f"{available - cursor} bytes follow the last tensor")
    return problems


def _entry_problem(entry: object) -> str | None:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return "its entry is not {dtype, shape, data_offsets}"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        return f"unknown dtype {shown(dtype)}"
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        right = isinstance(numbers, list) and len(numbers) <= 8
        if not right or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            return f"{what} is {shown(numbers)}"
    if len(offsets) != 2:
        return f"data_offsets is {shown(offsets)}"
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        return f"{dtype} {shape} takes {expected} bytes, its offsets span {offsets[1] - offsets[0]}"
    return None


def printable(text: str) -> str:
    """A line of any length, without what a terminal would obey."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def shown(value: object) -> str:
    """A value from a file, safe on a terminal and of bounded length."""
    text = value if isinstance(value, str) and value.isprintable() else ascii(value)
    return text if len(text) <= 100 else text[:97] + "…"


def and_more(problems: list[str]) -> str:
    """`` (and 3 more)`` after the first of several problems; nothing after a single one."""
    return f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
