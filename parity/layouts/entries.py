"""Where a tensor lies and how it is to be read: the result of `parity.layouts.locate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from parity.safetensors_header import Shard


class Place(NamedTuple):
    """A stored tensor: name of the file in the component's folder, and key in it."""

    file: str
    name: str


@dataclass(frozen=True)
class Packing:
    """How a layer is quantized: w = scales · codes + biases for every group of columns.

    Attributes:
        bits: of a code; codes follow each other in a row as a little-endian stream of bits in uint32 words.
        group_size: columns that share a scale and a bias.
        scales: [..., rows, columns / group_size].
        biases: as `scales`.
    """

    bits: int
    group_size: int
    scales: Place
    biases: Place


@dataclass(frozen=True)
class Entry:
    """One tensor of the model.

    Attributes:
        file: name of the file in the component's folder.
        name: key in it; of a packed layer that of the uint32 words.
        dtype: as stored, in safetensors' spelling.
        shape: as stored.
        true_shape: canonical and unpacked.
        axes: canonical = stored.transpose(axes).reshape(true_shape); None where it is stored as it is.
        packing: of a quantized layer.
    """

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    true_shape: tuple[int, ...]
    axes: tuple[int, ...] | None = None
    packing: Packing | None = None


@dataclass(frozen=True)
class Located:
    """One component's tensors.

    Attributes:
        folder: of the files.
        layout: ``diffusers``, ``mflux``, ``mlx-rs`` or ``single``.
        config: contents of ``config.json``, or inferred from shapes where the layout has none.
        entries: canonical name -> where; a packed layer has one, for its weight.
        extra: stored names that no rule knows.
        missing: canonical names that the config asks for and nothing holds.
        notes: what was inferred or resolved, in sentences.
        shards: headers of the files.
    """

    folder: Path
    layout: str
    config: Mapping[str, Any]
    entries: Mapping[str, Entry]
    extra: tuple[str, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...] = ()
    shards: tuple[Shard, ...] = ()


class Problem(NamedTuple):
    """Something wrong with a checkpoint.

    Attributes:
        kind: ``missing``, ``extra``, ``shape``, ``dtype``, ``duplicate``, ``index``, ``packing``, ``config``,
            ``file``, ``non-finite`` or ``zero``.
        text: what and where, in one line.
    """

    kind: str
    text: str

    def __str__(self) -> str:
        return self.text if self.kind in ("file", "config") else f"{self.kind}: {self.text}"
