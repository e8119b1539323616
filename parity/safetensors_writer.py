"""Safetensors files written tensor by tensor: first the header, since all sizes are known, then the values.

Nothing is held but the piece in hand, so that a file may be larger than the memory.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parity.errors import WeightsError
from parity.safetensors_header import DTYPE_BYTES

# Buffers are what memoryview takes: bytes or a contiguous array.
Pieces = Callable[[], Iterable[bytes | memoryview]]


@dataclass(frozen=True)
class OutTensor:
    """A tensor to be written.

    Attributes:
        name: key in the file.
        dtype: safetensors' spelling.
        shape: as stored.
        pieces: gives the bytes, in order, in as many pieces as are convenient; called once.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Pieces

    @property
    def nbytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def split(tensors: Iterable[OutTensor], largest: int) -> list[list[OutTensor]]:
    """Tensors in order, in files of at most `largest` bytes of values each; a larger tensor gets one of its own."""
    files: list[list[OutTensor]] = []
    size = 0
    for tensor in tensors:
        if not files or size + tensor.nbytes > largest:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.nbytes
    return files


def write_file(
    path: Path, tensors: Sequence[OutTensor], metadata: Mapping[str, str], progress: Callable[[int], None] | None = None
) -> None:
    """Write one file and have it on the disk when this returns.

    Args:
        path: must not exist.
        tensors: in the order of the file.
        metadata: strings for the header.
        progress: called with the size of every piece when it is written.

    Raises:
        ValueError: a tensor's pieces are not of the size that its shape has.
        OSError: the disk is full or the file cannot be made.
    """
    with path.open("xb") as file:
        file.write(_header(tensors, metadata))
        for tensor in tensors:
            written = 0
            for piece in tensor.pieces():
                view = memoryview(piece).cast("B")
                file.write(view)
                written += view.nbytes
                if progress is not None:
                    progress(view.nbytes)
            if written != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {written} bytes, expected {tensor.nbytes} for {tensor.shape}")
        file.flush()
        os.fsync(file.fileno())


def file_pieces(path: Path, start: int, stop: int, piece: int = 4 << 20) -> Iterator[memoryview]:
    """Bytes of a part of a file, in pieces of which only one is held: each is overwritten by the next.

    Raises:
        WeightsError: the file has become shorter.
    """
    buffer = memoryview(bytearray(min(piece, stop - start)))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        left = stop - start
        while left:
            got = file.readinto(buffer[: min(len(buffer), left)])
            if not got:
                raise WeightsError(f"{path} ends {left} bytes early: it has changed since it was inspected")
            left -= got
            yield buffer[:got]


def _header(tensors: Sequence[OutTensor], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # values begin at a multiple of eight, as in safetensors' own files
    return struct.pack("<Q", len(raw)) + raw
