"""One component's checkpoint, in any layout, inspected before anything is run.

`inspect` reads the configuration and the safetensors headers, never a tensor, and finds all that is wrong at once.
Files are data from elsewhere: every size is checked before it is allocated, and names are escaped where they are
shown. `scan` and `check_finite` stream the values, `fingerprint` samples them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parity.errors import WeightsError
from parity.layouts import Located
from parity.layouts.survey import survey
from parity.safetensors_header import Shard, Tensor, and_more, json_file, shown
from parity.safetensors_writer import file_pieces

SYNTHETIC_FILE = "parity-synthetic.json"
SYNTHETIC_KEY = "parity_synthetic"

# Unsigned type of the same width, mask without the sign, and the exponent's bits: all ones means NaN or inf.
_FLOAT_BITS = {
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "F32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
    "F64": (np.uint64, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}
_CHUNK = 1 << 18  # elements; chunk and scratch buffer stay in the second-level cache
_SAMPLE = 256  # bytes read at the start, middle and end of every tensor by `fingerprint`


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers are known to be right.

    Attributes:
        root: folder of the files, or the single file that was named.
        config: the configuration; a transformer's has all keys of `TransformerShape`.
        tensors: stored name -> tensor.
        synthetic: preset of a generated checkpoint; None for a real one.
        warnings: what is odd but harmless, and what was inferred.
        located: canonical name -> where.
    """

    root: Path
    config: Mapping[str, Any]
    shards: tuple[Shard, ...]
    tensors: Mapping[str, Tensor]
    synthetic: str | None
    warnings: tuple[str, ...]
    located: Located

    @property
    def layout(self) -> str:
        """``diffusers``, ``mflux``, ``mlx-rs`` or ``single``."""
        return self.located.layout

    @cached_property
    def parameters(self) -> int:
        """Number of elements of all tensors, unpacked."""
        return sum(math.prod(entry.true_shape) for entry in self.located.entries.values())

    @cached_property
    def dtypes(self) -> dict[str, int]:
        """Number of stored tensors by dtype, in safetensors' spelling."""
        return dict(Counter(tensor.dtype for tensor in self.tensors.values()))

    @cached_property
    def bits(self) -> dict[str, int]:
        """Number of quantized layers by how they are packed, as ``4-bit group 64``."""
        packings = (entry.packing for entry in self.located.entries.values())
        return dict(Counter(f"{p.bits}-bit group {p.group_size}" for p in packings if p))

    @cached_property
    def nbytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.stop - tensor.start for tensor in self.tensors.values())


def inspect(path: Path | str, component: str = "transformer") -> Checkpoint:
    """Find a component's checkpoint and check all of it but the values.

    Args:
        path: folder of the weights, the model's folder above it, or a single file.
        component: ``transformer``, ``text_encoder`` or ``vae``.

    Raises:
        WeightsError: not there, damaged, or not the tensors its configuration asks for; the details list everything
            wrong, not only the first.
    """
    found = survey(Path(path), component)
    root = found.files.single or found.files.folder
    if found.problems or found.located is None:
        problems = [str(problem) for problem in found.problems]
        raise WeightsError(f"{root}: this checkpoint cannot be used: {problems[0]}{and_more(problems)}", problems)
    shards = found.located.shards
    return Checkpoint(
        root, found.located.config, shards, found.files.tensors, synthetic_preset(found.files.folder, shards),
        (*found.warnings, *found.located.notes), found.located,
    )  # fmt: skip


def synthetic_preset(root: Path, shards: Iterable[Shard] = ()) -> str | None:
    """Preset of a generated checkpoint or model, ``unknown`` where it is marked but not named; None for a real one."""
    for shard in shards:
        if SYNTHETIC_KEY in shard.metadata:
            return shard.metadata[SYNTHETIC_KEY] or "unknown"
    file = root / SYNTHETIC_FILE
    if not file.exists():
        return None
    try:
        preset = json_file(file).get("preset")
    except (OSError, ValueError):
        return "unknown"
    return preset if isinstance(preset, str) and preset else "unknown"


class Values(NamedTuple):
    """What is odd about the values of a tensor: counts of NaN and infinities, and whether there is nothing but zeros.

    Integers, which hold packed codes, are looked at for zeros only.
    """

    name: str
    count: int
    nan: int
    inf: int
    zero: bool

    @property
    def non_finite(self) -> str | None:
        """A sentence on values that are not finite, or None."""
        if not self.nan + self.inf:
            return None
        counts = " and ".join(f"{n} {what}" for n, what in ((self.nan, "NaN"), (self.inf, "infinite")) if n)
        return f"{shown(self.name)}: {counts} of {self.count} values"


def scan(
    folder: Path, shards: Iterable[Shard], progress: Callable[[int], None] | None = None,
    digests: Mapping[str, Any] | None = None,
) -> Iterator[Values]:  # fmt: skip
    """Stream all values of some files once, in the order of the files.

    Args:
        folder: of the files.
        shards: their headers.
        progress: called with the bytes of every tensor when it is done.
        digests: file -> hash that is fed the whole file in the same pass.

    Raises:
        WeightsError: a file has changed since its header was read.
    """
    for shard in shards:
        data = np.memmap(_unchanged(folder, shard), np.uint8, mode="r")
        digest = None if digests is None else digests[shard.name]
        if digest is not None:
            digest.update(data[: min(tensor.start for tensor in shard.tensors.values())])
        for name, tensor in sorted(shard.tensors.items(), key=lambda item: item[1].start):
            raw, count = data[tensor.start : tensor.stop], math.prod(tensor.shape)
            if digest is not None:  # tensors follow each other without gaps, a header that says otherwise is refused
                digest.update(raw)
            if tensor.dtype in _FLOAT_BITS:
                nan, inf, peak = count_non_finite(raw, tensor.dtype)
                yield Values(name, count, nan, inf, not peak and bool(count))
            else:
                yield Values(name, count, 0, 0, bool(count) and not raw.any())
            if progress is not None:
                progress(raw.size)


def check_finite(checkpoint: Checkpoint, progress: Callable[[int, int], None] | None = None) -> tuple[str, ...]:
    """Stream all values once.

    Args:
        checkpoint: as `inspect` gave it.
        progress: called with bytes done and bytes in all, after every tensor.

    Returns:
        names of tensors that hold nothing but zeros: legal, and worth a warning.

    Raises:
        WeightsError: NaN or infinity; the details name every tensor with its counts.
    """
    problems, zero = [], []
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, checkpoint.nbytes)

    for found in scan(checkpoint.located.folder, checkpoint.shards, count):
        if found.non_finite:
            problems.append(found.non_finite)
        elif found.zero:
            zero.append(found.name)
    if problems:
        raise WeightsError(f"{checkpoint.root}: non-finite weights: {problems[0]}{and_more(problems)}", problems)
    return tuple(zero)


def _unchanged(root: Path, shard: Shard) -> Path:
    """Path of a shard that still has the size that was inspected."""
    path = root / shard.name
    try:
        size = path.stat().st_size
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None
    if size != shard.size:
        raise WeightsError(f"{path} has changed since it was inspected: {size} bytes, expected {shard.size}")
    return path


def count_non_finite(data: np.ndarray, dtype: str) -> tuple[int, int, int]:
    """Number of NaN and of infinities, and the largest magnitude as an integer (0: all zero).

    Magnitudes order as their bits do without the sign, so one maximum settles a clean chunk.
    """
    word, magnitude, exponent = _FLOAT_BITS[dtype]
    bits = data.view(word)
    scratch = np.empty(min(bits.size, _CHUNK), word)
    nan = inf = peak = 0
    for start in range(0, bits.size, _CHUNK):
        chunk = bits[start : start + _CHUNK]
        clean = np.bitwise_and(chunk, word(magnitude), out=scratch[: chunk.size])
        top = int(clean.max())
        peak = max(peak, top)
        if top >= exponent:
            nan += int(np.count_nonzero(clean > exponent))
            inf += int(np.count_nonzero(clean == exponent))
    return nan, inf, peak


def hash_file(folder: Path, shard: Shard, digest: Any, progress: Callable[[int], None] | None = None) -> None:
    """Feed a whole file to a hash.

    Args:
        folder: of the file.
        shard: its header.
        digest: as `hashlib` has them.
        progress: called with the size of every piece when it is done.

    Raises:
        WeightsError: the file has changed since its header was read.
    """
    for piece in file_pieces(_unchanged(folder, shard), 0, shard.size):
        digest.update(piece)
        if progress is not None:
            progress(piece.nbytes)


def fingerprint(checkpoint: Checkpoint) -> str:
    """`fingerprint_of` an inspected checkpoint."""
    return fingerprint_of(checkpoint.located.folder, checkpoint.shards, checkpoint.config)


def fingerprint_of(folder: Path, shards: Iterable[Shard], config: Mapping[str, Any]) -> str:
    """A hash that tells checkpoints apart cheaply, wherever the folder lies.

    Made of the configuration, the headers, the sizes, and 256 bytes at the start, middle and
    end of every tensor: a change of single values elsewhere is not seen.

    Args:
        folder: of the files.
        shards: their headers.
        config: completed configuration.

    Raises:
        WeightsError: a file has changed since its header was read.
    """
    digest = hashlib.sha256(_hash_of(config).encode())
    for shard in shards:
        digest.update(f"\n{shard.name} {shard.size} {shard.header_hash}\n".encode())
        # Unbuffered: mapping or buffering would read ahead some hundred kilobytes for every sample.
        with _unchanged(folder, shard).open("rb", buffering=0) as file:
            for tensor in sorted(shard.tensors.values(), key=lambda tensor: tensor.start):
                middle = (tensor.start + tensor.stop - _SAMPLE) // 2
                for begin in (tensor.start, middle, tensor.stop - _SAMPLE):
                    begin = max(begin, tensor.start)
                    file.seek(begin)
                    digest.update(file.read(min(_SAMPLE, tensor.stop - begin)))
    return digest.hexdigest()


def _hash_of(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
