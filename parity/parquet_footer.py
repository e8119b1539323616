"""The footer of a Parquet file, read without the library that reads the rest.

Sizes are checked before anything is allocated, and for that they must be known. pyarrow tells them, but what is
wrong in the metadata of a column ends the process there instead of raising, so the footer of a file from elsewhere
is read here first. It is a struct in Thrift's compact protocol; a field that comes twice is refused, since readers
differ in which one they take.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOOTER_BYTES = 4 << 20
_MAGIC = b"PAR1"
_DEPTH = 16
# Thrift's compact types.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = *range(1, 11), 12

Struct = dict[int, Any]


@dataclass(frozen=True)
class Footer:
    """What a file says of its own size.

    Attributes:
        rows: of all row groups.
        unpacked: bytes of all columns before compression.
        values: column's path, ``chunks.list.element``, -> values of it in all row groups.
    """

    rows: int
    unpacked: int
    values: Mapping[str, int]


def read_footer(path: Path) -> Footer:
    """Read and check the footer of a Parquet file; no data are touched.

    Raises:
        OSError: it cannot be read.
        ValueError: no Parquet file, encrypted, cut off or garbled.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        end = file.read(8)
        if size < 12 or end[4:] != _MAGIC:
            raise ValueError("no Parquet file, or cut off: the mark at its end is missing")
        length = int.from_bytes(end[:4], "little")
        if length > min(size - 12, FOOTER_BYTES):
            raise ValueError(f"a footer of {length} bytes, against {min(size - 12, FOOTER_BYTES)}")
        file.seek(size - 8 - length)
        raw = file.read(length)
    try:
        reader = _Compact(raw)
        found = _footer(reader.struct(0))
    except (IndexError, KeyError, TypeError, AttributeError):
        raise ValueError("garbled footer") from None
    if reader.at != length:
        raise ValueError(f"garbled footer: {length - reader.at} bytes behind its end")
    return found


def _footer(meta: Struct) -> Footer:
    groups: list[Struct] = meta[4]
    values: dict[str, int] = {}
    for group in groups:
        for chunk in group[1]:
            about = chunk[3]
            path = b".".join(about[3]).decode("utf-8", "replace")
            values[path] = values.get(path, 0) + _count(about[5])
    return Footer(_count(meta[3]), sum(_count(group[2]) for group in groups), values)


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("garbled footer: a size below zero")
    return value


class _Compact:
    """A reader of Thrift's compact protocol; what it gives is no larger than what it reads."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self.at = raw, 0

    def struct(self, depth: int) -> Struct:
        """Field's number -> value."""
        if depth > _DEPTH:
            raise ValueError("garbled footer: nested too deeply")
        fields: Struct = {}
        number = 0
        while kind := self._byte():
            step, kind = kind >> 4, kind & 15
            number = number + step if step else self._signed()
            if number in fields:
                raise ValueError(f"garbled footer: field {number} comes twice")
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_I16, _I32, _I64):
            return self._signed()
        if kind == _BINARY:
            return self._take(self._varint())
        if kind in (_LIST, _SET):
            return self._list(depth + 1)
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_BYTE, _TRUE, _FALSE):  # in a list, a truth value is a byte
            return self._byte()
        if kind == _DOUBLE:
            return self._take(8)
        raise ValueError(f"garbled footer: type {kind}")

    def _list(self, depth: int) -> list[Any]:
        if depth > _DEPTH:
            raise ValueError("garbled footer: nested too deeply")
        head = self._byte()
        count = self._varint() if head >> 4 == 15 else head >> 4
        # Every item takes a byte or more.
        if count > len(self._raw) - self.at:
            raise ValueError(f"garbled footer: a list of {count}")
        return [self._value(head & 15, depth) for _ in range(count)]

    def _byte(self) -> int:
        self.at += 1
        return self._raw[self.at - 1]

    def _take(self, count: int) -> bytes:
        if count > len(self._raw) - self.at:
            raise ValueError(f"garbled footer: a text of {count} bytes")
        self.at += count
        return self._raw[self.at - count : self.at]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("garbled footer: a number of more than 64 bits")

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
