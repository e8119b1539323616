"""One component's checkpoint in the diffusers layout, inspected before anything is run.

`inspect` reads the transformer's ``config.json`` and safetensors headers, never a tensor, and finds
all that is wrong at once; `inspect_shards` does it for components whose loaders check the names.
Files are data from elsewhere: every size is checked before it is allocated, and names are escaped
where they are shown. `check_finite` streams the values, `fingerprint` samples them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import WeightsError
from parity.safetensors_header import HEADER_LIMIT, Shard, Tensor, and_more, json_object, read_header, shown
from parity.transformer_shape import TransformerShape, expected_tensors

# Files of a component begin with it: diffusers' own models, and those of transformers.
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
SYNTHETIC_FILE = "parity-synthetic.json"
SYNTHETIC_KEY = "parity_synthetic"

SUPPORTED_DTYPES = ("BF16", "F16", "F32", "F64")
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
        root: folder of ``config.json`` and the shards.
        config: all keys of `TransformerShape`, completed with defaults.
        synthetic: preset of a generated checkpoint; None for a real one.
        warnings: what is odd but harmless.
    """

    root: Path
    config: Mapping[str, Any]
    shards: tuple[Shard, ...]
    tensors: Mapping[str, Tensor]
    synthetic: str | None
    warnings: tuple[str, ...]
    layout: str = "diffusers"

    @cached_property
    def config_hash(self) -> str:
        """SHA-256 of the completed configuration."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    @cached_property
    def parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @cached_property
    def dtypes(self) -> dict[str, int]:
        """Number of tensors by dtype, in safetensors' spelling."""
        return dict(Counter(tensor.dtype for tensor in self.tensors.values()))

    @cached_property
    def nbytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.stop - tensor.start for tensor in self.tensors.values())


def inspect(path: Path | str) -> Checkpoint:
    """Find a transformer checkpoint and check all of it but the values.

    Args:
        path: folder with ``config.json`` and shards, or the pipeline folder above it.

    Raises:
        WeightsError: not there, another layout, damaged, or not the tensors its configuration
            asks for; the details list everything wrong, not only the first.
    """
    try:
        root = _root(Path(path))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None
    problems: list[str] = []
    warnings: list[str] = []
    config: dict[str, Any] | None = None
    try:
        config = read_config(root)
    except WeightsError as error:
        problems += error.details or [error.message]
    held = _read_shards(root, DIFFUSERS, problems, warnings)
    if config is not None and (held.shards or not held.unread):
        problems += _tensor_problems(held.tensors, expected_tensors(config), held.absent)
    return _whole(root, config, held, problems, warnings)


def inspect_shards(folder: Path, config: Mapping[str, Any], stem: str) -> Checkpoint:
    """Check the shards of any component: files, headers and index, not which tensors there must be.

    Args:
        folder: of the shards.
        config: contents of its config file.
        stem: what the names of its files begin with, `DIFFUSERS` or `TRANSFORMERS`.

    Raises:
        WeightsError: not there or damaged; the details list everything wrong.
    """
    problems: list[str] = []
    warnings: list[str] = []
    return _whole(folder, config, _read_shards(folder, stem, problems, warnings), problems, warnings)


@dataclass(frozen=True)
class _Held:
    """What the shards of a folder hold. `unread` names shards, `absent` tensors of shards that are missing."""

    shards: list[Shard]
    tensors: dict[str, Tensor]
    unread: set[str]
    absent: set[str]


def _read_shards(root: Path, stem: str, problems: list[str], warnings: list[str]) -> _Held:
    names, placed = _shard_names(root, stem, problems, warnings)
    shards = []
    unread = set()
    for name in names:
        try:
            shards.append(read_header(root / name))
        except WeightsError as error:
            unread.add(name)
            problems += error.details or [error.message]
    tensors = _merge(shards, problems)
    if placed is not None:
        problems += _index_problems(shards, tensors, placed)
    absent = {name for name, file in placed.items() if file not in names or file in unread} if placed else set()
    return _Held(shards, tensors, unread, absent)


def _whole(
    root: Path, config: Mapping[str, Any] | None, held: _Held, problems: list[str], warnings: list[str]
) -> Checkpoint:
    """The checkpoint, if nothing was found wrong with it."""
    if problems:
        summary = f"{problems[0]}{and_more(problems)}{_layout_hint(root, held.shards)}"
        raise WeightsError(f"{root}: this checkpoint cannot be used: {summary}", problems)
    synthetic = synthetic_preset(root, held.shards)
    return Checkpoint(root, config, tuple(held.shards), held.tensors, synthetic, tuple(warnings))


def read_config(path: Path | str) -> dict[str, Any]:
    """Read, check and complete a transformer's ``config.json``.

    Args:
        path: its folder, or the pipeline folder above it.

    Returns:
        all keys of `TransformerShape`, in JSON's types.
    """
    file = _root(Path(path)) / "config.json"
    try:
        if file.stat().st_size > HEADER_LIMIT:
            raise ValueError(f"{file.stat().st_size} bytes, against a limit of {HEADER_LIMIT}")
        shape = TransformerShape.of(json_object(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file}: {error}") from None
    return asdict(shape) | {"axes_dims_rope": list(shape.axes_dims_rope)}


def _root(path: Path) -> Path:
    """The folder that holds ``config.json``: the one below a pipeline's root first."""
    for folder in (path / "transformer", path):
        if (folder / "config.json").is_file():
            return folder
    looked = f"looked for {path}/config.json and {path}/transformer/config.json"
    if path.is_file():
        raise WeightsError(f"{path} is a single file; a checkpoint in the diffusers layout is a folder; {looked}")
    if not path.exists():
        raise WeightsError(f"{path}: there is no such folder; {looked}")
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    there = sorted(shown(entry.name) for entry in folder.iterdir())
    found = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "") or "nothing"
    hint = _layout_hint(folder, [])
    raise WeightsError(f"{path} is no checkpoint in the diffusers layout: {looked}, found {found}{hint}")


def _layout_hint(folder: Path, shards: list[Shard]) -> str:
    """A sentence on what the folder looks like instead, or nothing."""
    names = {entry.name for entry in folder.iterdir()}
    keys = [key for shard in shards for key in shard.tensors]
    if {"0.safetensors", "model.safetensors.index.json"} & names or any(key.endswith(".scales") for key in keys):
        return "; this looks like an MLX layout (mflux or quantized): `parity weights convert` reads it"
    if any(key.startswith("model.diffusion_model.") for key in keys) or any(n.endswith(".gguf") for n in names):
        return "; this looks like a ComfyUI or GGUF single file, which has other names for the same tensors"
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        return "; pickled weights are not read, save them as safetensors"
    return ""


def _shard_names(
    root: Path, stem: str, problems: list[str], warnings: list[str]
) -> tuple[list[str], dict[str, str] | None]:
    """Names of the shards that are there, and the index's map from tensor to shard, if it has one."""
    single = f"{stem}.safetensors"
    index = f"{single}.index.json"
    there = {entry.name for entry in root.glob("*.safetensors") if entry.is_file()}
    if not (root / index).is_file():
        if single in there:
            warnings += [f"{shown(name)} is not part of the checkpoint" for name in sorted(there - {single})]
            return [single], None
        numbered = sorted(name for name in there if re.fullmatch(r".+-\d{5}-of-\d{5}\.safetensors", name))
        what = f"{len(numbered)} shards without their index {index}" if numbered else f"neither {index} nor {single}"
        others = ", ".join(shown(name) for name in sorted(there)[:4]) or "no safetensors file"
        raise WeightsError(f"{root}: {what}; found {others}{_layout_hint(root, [])}")
    try:
        if (root / index).stat().st_size > HEADER_LIMIT:
            raise ValueError(f"larger than {HEADER_LIMIT} bytes")
        placed = json_object((root / index).read_bytes()).get("weight_map")
        if not isinstance(placed, dict) or not placed or not all(map(_is_plain_name, placed.values())):
            raise ValueError("weight_map does not map tensors to names of safetensors files in this folder")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{root / index}: {error}") from None
    count = Counter(placed.values())
    absent = sorted(set(count) - there)
    problems += [f"{index} names {shown(name)}, which is not there ({count[name]} tensors)" for name in absent]
    warnings += [f"{shown(name)} is not named by {index}" for name in sorted(there - set(count))]
    return sorted(set(count) & there), placed


def _is_plain_name(name: object) -> bool:
    """Whether a shard's name stays in its folder."""
    return isinstance(name, str) and re.fullmatch(r"[\w][\w.\-]*\.safetensors", name) is not None


def _merge(shards: list[Shard], problems: list[str]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        for name, tensor in shard.tensors.items():
            first = tensors.setdefault(name, tensor)
            if first is not tensor:
                problems.append(f"duplicate: {shown(name)} is in {first.shard} and in {shard.name}")
            if tensor.dtype not in SUPPORTED_DTYPES:
                problems.append(f"dtype: {shown(name)} is {tensor.dtype}, expected {', '.join(SUPPORTED_DTYPES)}")
    return tensors


def _index_problems(shards: list[Shard], tensors: Mapping[str, Tensor], placed: Mapping[str, str]) -> list[str]:
    """Where index and shards disagree, each tensor once."""
    held = {shard.name: shard.tensors for shard in shards}
    problems = []
    for name, file in placed.items():
        if file in held and name not in held[file]:
            where = f"in {tensors[name].shard}" if name in tensors else "nowhere"
            problems.append(f"index: {shown(name)} should be in {file}, it is {where}")
    unlisted = [name for name in tensors if name not in placed]
    return problems + [f"index: does not list {shown(name)} of {tensors[name].shard}" for name in unlisted]


def _tensor_problems(
    found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], absent: set[str]
) -> list[str]:
    """Tensors missing, extra and wrongly shaped; `absent` are those of shards already reported."""
    missing = [name for name in expected if name not in found and name not in absent]
    extra = [name for name in found if name not in expected]
    return [
        *(f"missing: {name} {list(expected[name])}" for name in missing),
        *(f"extra: {shown(name)} {list(found[name].shape)} in {found[name].shard}" for name in extra),
        *(
            f"shape: {name} is {list(found[name].shape)}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name].shape != shape
        ),
    ]


def synthetic_preset(root: Path, shards: Iterable[Shard] = ()) -> str | None:
    """Preset of a generated checkpoint or model, ``unknown`` where it is marked but not named; None for a real one."""
    for shard in shards:
        if SYNTHETIC_KEY in shard.metadata:
            return shard.metadata[SYNTHETIC_KEY] or "unknown"
    file = root / SYNTHETIC_FILE
    if not file.exists():
        return None
    try:
        preset = json_object(file.read_bytes()[:HEADER_LIMIT]).get("preset")
    except (OSError, ValueError):
        return "unknown"
    return preset if isinstance(preset, str) and preset else "unknown"


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
    for shard in checkpoint.shards:
        data = np.memmap(_unchanged(checkpoint.root, shard), np.uint8, mode="r")
        for name, tensor in sorted(shard.tensors.items(), key=lambda item: item[1].start):
            nan, inf, peak = _count_non_finite(data[tensor.start : tensor.stop], tensor.dtype)
            if nan or inf:
                counts = " and ".join(f"{n} {what}" for n, what in ((nan, "NaN"), (inf, "infinite")) if n)
                problems.append(f"{name}: {counts} of {math.prod(tensor.shape)} values")
            elif not peak:
                zero.append(name)
            done += tensor.stop - tensor.start
            if progress is not None:
                progress(done, checkpoint.nbytes)
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


def _count_non_finite(data: np.ndarray, dtype: str) -> tuple[int, int, int]:
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


def fingerprint(checkpoint: Checkpoint) -> str:
    """A hash that tells checkpoints apart cheaply, wherever the folder lies.

    Made of the configuration, the headers, the sizes, and 256 bytes at the start, middle and
    end of every tensor: a change of single values elsewhere is not seen.
    """
    digest = hashlib.sha256(checkpoint.config_hash.encode())
    for shard in checkpoint.shards:
        digest.update(f"\n{shard.name} {shard.size} {shard.header_hash}\n".encode())
        # Unbuffered: mapping or buffering would read ahead some hundred kilobytes for every sample.
        with _unchanged(checkpoint.root, shard).open("rb", buffering=0) as file:
            for tensor in sorted(shard.tensors.values(), key=lambda tensor: tensor.start):
                middle = (tensor.start + tensor.stop - _SAMPLE) // 2
                for begin in (tensor.start, middle, tensor.stop - _SAMPLE):
                    begin = max(begin, tensor.start)
                    file.seek(begin)
                    digest.update(file.read(min(_SAMPLE, tensor.stop - begin)))
    return digest.hexdigest()
