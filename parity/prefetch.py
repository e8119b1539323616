"""The next stage's weights, brought from the disk into the system's cache while this stage computes.

The bytes are read into one small buffer and dropped: what stays is the system's cache, from which
all ports map or read them. On the way every value is looked at once, so that a model larger than
memory is not read a second time only to find that its weights are finite.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from parity.checkpoint import Checkpoint, Values, count_non_finite
from parity.errors import WeightsError
from parity.layouts.survey import FLOATS
from parity.safetensors_header import Tensor, and_more, shown

CHUNK = 8 << 20
_NUMBER = re.compile(r"\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class _Piece:
    """One tensor to read."""

    path: Path
    name: str
    tensor: Tensor


class Prefetcher:
    """Reads the tensors of stages ahead, in a thread of its own. A context manager.

    A tensor belongs to the stage with its block's number (``transformer_blocks.7.…`` to ``block.07``);
    those without a number belong to all other stages, and are read once.

    Args:
        checkpoints: inspected weights by folder.
        stages: names of the stages in the order in which they run.

    Raises:
        WeightsError: from `wait`: a tensor holds NaN or infinity, or its file has become shorter.
    """

    def __init__(self, checkpoints: Mapping[str, Checkpoint], stages: tuple[str, ...]) -> None:
        self._of_stage = _by_stage(checkpoints, stages)
        self._begun: dict[str, Future[None]] = {}
        self._pool = ThreadPoolExecutor(1, "prefetch")
        self._buffer = np.empty(CHUNK, np.uint8)
        self._stopped = False

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, stage: str | None) -> None:
        """Start reading a stage's tensors, if nobody has. None is the stage after the last."""
        if stage is not None and stage not in self._begun:
            self._begun[stage] = self._pool.submit(self._read, stage)

    def wait(self, stage: str) -> None:
        """Return when a stage's tensors have been read and looked at."""
        self.begin(stage)
        self._begun[stage].result()

    def _read(self, stage: str) -> None:
        problems = [problem for piece in self._of_stage.get(stage, ()) if (problem := self._problem(piece))]
        if problems:
            raise WeightsError(
                f"{self._of_stage[stage][0].path.parent}: weights of {stage} cannot be used: "
                f"{problems[0]}{and_more(problems)}",
                problems,
            )

    def _problem(self, piece: _Piece) -> str | None:
        """Read one tensor; what is wrong with it, or None."""
        nan = inf = 0
        tensor = piece.tensor
        try:
            with piece.path.open("rb", buffering=0) as file:
                file.seek(tensor.start)
                for start in range(tensor.start, tensor.stop, CHUNK):
                    if self._stopped:
                        return None
                    part = self._buffer[: min(CHUNK, tensor.stop - start)]
                    if not _fill(file, part):
                        return f"{shown(piece.name)}: {shown(piece.path.name)} ends before it"
                    if tensor.dtype in FLOATS:
                        found = count_non_finite(part, tensor.dtype)
                        nan, inf = nan + found[0], inf + found[1]
        except OSError as error:
            return f"{shown(piece.path.name)}: cannot be read: {error.strerror}"
        wrong = Values(piece.name, math.prod(tensor.shape), nan, inf, zero=False).non_finite
        return f"non-finite: {wrong}" if wrong else None


def _fill(file: FileIO, part: np.ndarray) -> bool:
    """Fill a buffer; a read may give less than was asked for."""
    view = memoryview(part)
    while view:
        got = file.readinto(view)
        if not got:
            return False
        view = view[got:]
    return True


def _by_stage(checkpoints: Mapping[str, Checkpoint], stages: tuple[str, ...]) -> dict[str, list[_Piece]]:
    numbered = {number: stage for stage in stages if (number := number_in(stage)) is not None}
    first = next((stage for stage in stages if number_in(stage) is None), stages[0])
    found: dict[str, list[_Piece]] = {}
    for name, piece in _pieces(checkpoints):
        found.setdefault(numbered.get(number_in(name), first), []).append(piece)
    for pieces in found.values():
        pieces.sort(key=lambda piece: (piece.path, piece.tensor.start))
    return found


def _pieces(checkpoints: Mapping[str, Checkpoint]) -> Iterator[tuple[str, _Piece]]:
    for one in checkpoints.values():
        for name, tensor in one.tensors.items():
            yield name, _Piece(one.located.folder / tensor.shard, name, tensor)


def number_in(name: str) -> int | None:
    """The first number among the parts of a name, ``transformer_blocks.7.attn``: its block's."""
    found = _NUMBER.search(name)
    return int(found[1]) if found else None
