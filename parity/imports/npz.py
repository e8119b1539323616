"""Arrays of an ``.npz`` file: a zip whose members are ``.npy`` files. Nothing is ever unpickled.

Members that were stored as they are (`numpy.savez`, `mx.savez`) are mapped; compressed ones are unpacked when
they are read, one at a time, and no further than their header says.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from parity.errors import UsageError
from parity.imports.tensors import Tensors
from parity.safetensors_header import shown
from parity.trace import CASE_KEY
from parity.tracefile import ROWS

# Bounds on what a file from elsewhere can cost: the zip's directory, and one unpacked array.
DIRECTORY_BYTES, UNPACKED_BYTES = 64 << 20, 1 << 30
# No deflated byte becomes more than this many.
_MOST_DEFLATED = 1032
_LOCAL_HEADER = 30
_NPY_HEADER = 10_000
_SHAPE = re.compile(r"""["']shape["']\s*:\s*\(([\d,L ]*)\)""")
_SIZE = re.compile(r"\d{1,19}L?")  # the L is of Python 2
_FORTRAN = re.compile(r"""["']fortran_order["']\s*:\s*(True|False)\b""")
_DESCR = re.compile(r"""["']descr["']\s*:\s*["']([<>|=]?[?A-Za-z]\d{0,9})["']""")
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_TEXT_BYTES = 4096
# The record at the end of a zip, with a comment of at most 64 KiB behind it; its directory's size stands at byte 12.
_END, _END_BYTES = b"PK\5\6", 22 + 0xFFFF
# What zipfile raises for garbled files, and for ways of packing that it does not have.
_GARBLED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True)
class _Member:
    """An array in the file: where its values begin in the unpacked member, and what they are."""

    info: zipfile.ZipInfo
    start: int
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def read_npz(path: Path) -> Tensors:
    """Open an ``.npz`` file; headers are checked, values are read later.

    Raises:
        UsageError: no zip, garbled, compressed in a way that numpy does not write, or an array is too large, of
            objects, or of another size than its header says.
    """
    label = shown(path.name)
    try:
        _check_directory(path, label)
        with zipfile.ZipFile(path) as file:
            infos = file.infolist()
            if len(infos) > ROWS:
                raise UsageError(f"{label}: {len(infos)} members, against a limit of {ROWS}")
            members: dict[str, _Member] = {}
            case = ""
            for info in infos:
                name = info.filename.removesuffix(".npy")
                if name in members:
                    raise UsageError(f"{label}: {shown(name)} comes twice")
                member = _member(file, info, f"{label}: {shown(name)}")
                if name == CASE_KEY and member.dtype.kind == "U":
                    case = _text(file, member)
                else:
                    members[name] = _checked(member, f"{label}: {shown(name)}")
    except OSError as error:
        raise UsageError(f"{label}: cannot be read: {error.strerror or shown(str(error))}") from None
    except _GARBLED as error:
        raise UsageError(f"{label}: no .npz that can be read ({shown(str(error))})") from None
    if not members:
        raise UsageError(f"{label}: holds no arrays")
    short = [name for name, member in members.items() if member.dtype == _BFLOAT16]
    notes = ()
    if short:
        notes = (
            f"{len(short)} arrays of untyped 2-byte values in {label} are taken for bfloat16, {shown(short[0])} first",
        )
    whole = np.asarray(np.memmap(path, np.uint8, "r"))
    arrays = {name: _opener(path, whole, member, f"{label}: {shown(name)}") for name, member in members.items()}
    return Tensors(label=label, kind="tensors", names=tuple(arrays), case=case, notes=notes, arrays=arrays)


def _member(file: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> _Member:
    """A member with its header read; its sizes are those that its headers say, and they agree."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise UsageError(f"{where}: encrypted or compressed in another way than numpy.savez_compressed does")
    stored = info.compress_type == zipfile.ZIP_STORED
    if stored and info.file_size != info.compress_size:
        raise UsageError(f"{where}: stored in {info.compress_size} bytes, {info.file_size} are announced")
    if info.file_size > max(1, info.compress_size) * _MOST_DEFLATED:
        raise UsageError(f"{where}: {info.file_size} bytes are announced, more than {info.compress_size} can hold")
    with file.open(info) as opened:
        try:
            shape, fortran, dtype = _header(opened)
        except ValueError as error:
            raise UsageError(f"{where}: no .npy array ({shown(str(error))})") from None
        start = opened.tell()
    dtype = _BFLOAT16 if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None else dtype
    return _Member(info, start, shape, fortran, dtype)


def _header(opened: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first axis runs fastest, and dtype of a ``.npy`` file, read up to its values.

    numpy evaluates the header as Python; three patterns are enough for what arrays have, and can't be led astray.
    """
    magic = opened.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError(f"it begins with {magic!r}")
    size = int.from_bytes(opened.read(2 if magic[6] == 1 else 4), "little")
    if size > _NPY_HEADER:
        raise ValueError(f"a header of {size} bytes, against a limit of {_NPY_HEADER}")
    text = opened.read(size).decode("latin-1")
    found = [pattern.search(text) for pattern in (_SHAPE, _FORTRAN, _DESCR)]
    if len(text) != size or None in found:
        raise ValueError("its header tells no shape, order and plain dtype")
    shape, fortran, descr = (match[1] for match in found)
    try:
        dtype = np.dtype(descr)
    except TypeError:
        raise ValueError(f"dtype {descr}") from None
    sizes = [part.strip() for part in shape.removesuffix(",").split(",") if shape.strip()]
    if not all(map(_SIZE.fullmatch, sizes)):
        raise ValueError(f"shape ({shape})")
    return tuple(int(part.removesuffix("L")) for part in sizes), fortran == "True", dtype


def _checked(member: _Member, where: str) -> _Member:
    dtype, info = member.dtype, member.info
    numbers = dtype.kind in "biuf" and dtype.itemsize <= 8 and dtype.subdtype is None
    if not numbers and dtype != _BFLOAT16:
        what = "Python objects, which are never unpickled" if dtype.hasobject else str(dtype)
        raise UsageError(f"{where}: holds {shown(what)}; write it as float32, float16 or bfloat16")
    if any(n < 0 for n in member.shape) or len(member.shape) > 8:
        raise UsageError(f"{where}: its shape is {shown(member.shape)}")
    if member.count == 0:
        raise UsageError(f"{where}: of shape {list(member.shape)} is empty")
    expected = member.start + member.count * dtype.itemsize
    if expected != info.file_size:
        raise UsageError(f"{where}: {dtype.name} {list(member.shape)} takes {expected} bytes, it has {info.file_size}")
    if info.compress_type == zipfile.ZIP_DEFLATED and info.file_size > UNPACKED_BYTES:
        raise UsageError(
            f"{where}: {info.file_size} bytes unpacked, against a limit of {UNPACKED_BYTES}; write it uncompressed"
        )
    return member


def _text(file: zipfile.ZipFile, member: _Member) -> str:
    """A single text, such as the hash of a case."""
    if member.shape or not 0 < member.dtype.itemsize <= _TEXT_BYTES:
        return ""
    with file.open(member.info) as opened:
        opened.read(member.start)
        raw = opened.read(member.dtype.itemsize)
    return str(np.frombuffer(raw, member.dtype)[0]) if len(raw) == member.dtype.itemsize else ""


def _opener(path: Path, whole: np.ndarray, member: _Member, where: str) -> Callable[[], np.ndarray]:
    """What gives a member's array; the file may have changed meanwhile, so that all is checked again."""
    if member.info.compress_type == zipfile.ZIP_STORED:
        return lambda: _shaped(_mapped(whole, member, where), member)
    return lambda: _shaped(_unpacked(path, member, where), member)


def _shaped(raw: np.ndarray, member: _Member) -> np.ndarray:
    flat = raw.view(member.dtype)
    return flat.reshape(member.shape[::-1]).T if member.fortran else flat.reshape(member.shape)


def _mapped(whole: np.ndarray, member: _Member, where: str) -> np.ndarray:
    """Bytes of a member that is stored as it is; its own header says how long that header is."""
    at = member.info.header_offset
    head = bytes(whole[at : at + _LOCAL_HEADER])
    if len(head) != _LOCAL_HEADER or head[:4] != b"PK\3\4":
        raise UsageError(f"{where}: the zip's directory points at no member")
    lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    start = at + _LOCAL_HEADER + lengths
    raw = whole[start + member.start : start + member.info.file_size]
    if raw.size != member.count * member.dtype.itemsize:
        raise UsageError(f"{where}: the file ends before its values do")
    return raw


def _check_directory(path: Path, label: str) -> None:
    """Refuse a directory that would fill the memory: zipfile reads it whole."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _END_BYTES))
        end = file.read()
    at = end.rfind(_END)
    size = int.from_bytes(end[at + 12 : at + 16], "little") if at >= 0 else 0
    if size > DIRECTORY_BYTES:
        raise UsageError(f"{label}: a directory of {size} bytes, against a limit of {DIRECTORY_BYTES}")


def _unpacked(path: Path, member: _Member, where: str) -> np.ndarray:
    raw = np.empty(member.info.file_size, np.uint8)
    view, filled = memoryview(raw), 0
    try:
        with zipfile.ZipFile(path) as file, file.open(member.info) as opened:
            while filled < raw.size and (count := opened.readinto(view[filled:])):
                filled += count
    except OSError as error:
        raise UsageError(f"{where}: cannot be read: {error.strerror or shown(str(error))}") from None
    except _GARBLED as error:
        raise UsageError(f"{where}: garbled ({shown(str(error))})") from None
    if filled != raw.size:
        raise UsageError(f"{where}: the file ends before its values do")
    return raw[member.start :]
