"""A transformer checkpoint in the diffusers layout, inspected before anything is run.

D width, H heads, d head width, J text-encoder width, C patch channels.

`inspect` reads ``config.json`` and the safetensors headers, never a tensor, and finds all that
is wrong at once. Files are data from elsewhere: every size is checked before it is allocated,
and names are escaped where they are shown. `check_finite` streams the values, `fingerprint`
samples them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import WeightsError

CLASS_NAME = "QwenImageTransformer2DModel"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
SINGLE = "diffusion_pytorch_model.safetensors"
SYNTHETIC_FILE = "parity-synthetic.json"
SYNTHETIC_KEY = "parity_synthetic"
# Written by early diffusers (the published Qwen-Image has it), without effect, dropped in diffusers#12057.
RETIRED_KEYS = frozenset({"pooled_projection_dim"})

HEADER_LIMIT = 16 << 20
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2,
               "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip
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
class TransformerShape:
    """The keys of ``config.json``, with the defaults of diffusers' QwenImageTransformer2DModel."""

    patch_size: int = 2
    in_channels: int = 64
    out_channels: int | None = 16
    num_layers: int = 60
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 3584
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    zero_cond_t: bool = False
    use_additional_t_cond: bool = False
    use_layer3d_rope: bool = False

    @property
    def width(self) -> int:
        """D."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> TransformerShape:
        """Check and complete a configuration.

        Args:
            raw: contents of ``config.json``; keys beginning with ``_`` carry no shape.

        Raises:
            WeightsError: keys that are unknown, values of a wrong type or out of range; all of
                them in the details.
        """
        problems: list[str] = []
        if raw.get("_class_name", CLASS_NAME) != CLASS_NAME:
            problems.append(f"_class_name is {_shown(raw['_class_name'])}, expected {CLASS_NAME}")
        given = {k: v for k, v in raw.items() if not k.startswith("_") and k not in RETIRED_KEYS}
        known = {field.name: field.default for field in fields(cls)}
        problems += [f"unknown key {_shown(key)}" for key in given if key not in known]
        values = known | {key: value for key, value in given.items() if key in known}
        wrong = {key: why for key, value in values.items() if (why := _value_problem(key, value, known[key]))}
        problems += [f"{key} is {_shown(values[key])}, expected {why}" for key, why in wrong.items()]
        if not {"axes_dims_rope", "attention_head_dim"} & wrong.keys():
            total = sum(values["axes_dims_rope"])
            if total != values["attention_head_dim"]:
                problems.append(f"axes_dims_rope sums to {total}, expected attention_head_dim = "
                                f"{values['attention_head_dim']}")  # fmt: skip
        if problems:
            raise WeightsError(f"config of the transformer: {problems[0]}{_and_more(problems)}", problems)
        return cls(**values | {"axes_dims_rope": tuple(values["axes_dims_rope"])})


def _value_problem(key: str, value: object, default: object) -> str | None:
    """What was expected of a value, or None where it is right. JSON's true is no number here."""

    def positive(x: object) -> bool:
        return type(x) is int and 0 < x < 1 << 31

    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if key == "axes_dims_rope":
        right = isinstance(value, list | tuple) and len(value) == 3 and all(positive(x) and x % 2 == 0 for x in value)
        return None if right else "three even positive integers"
    if positive(value) or (key == "out_channels" and value is None):
        return None
    return "a positive integer"


def expected_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a transformer, in the order of the model.

    Args:
        config: contents of ``config.json``, complete or not.

    Raises:
        WeightsError: the configuration is wrong.
    """
    shape = TransformerShape.of(config)
    d, j = shape.width, shape.joint_attention_dim
    out = shape.patch_size**2 * (shape.out_channels or shape.in_channels)
    tensors: dict[str, tuple[int, ...]] = {}

    def linear(name: str, wide: int, narrow: int) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = (wide, narrow), (wide,)

    linear("time_text_embed.timestep_embedder.linear_1", d, 256)
    linear("time_text_embed.timestep_embedder.linear_2", d, d)
    if shape.use_additional_t_cond:
        tensors["time_text_embed.addition_t_embedding.weight"] = (2, d)
    tensors["txt_norm.weight"] = (j,)
    linear("img_in", d, shape.in_channels)
    linear("txt_in", d, j)
    for block in (f"transformer_blocks.{i}" for i in range(shape.num_layers)):
        for stream in ("img", "txt"):
            linear(f"{block}.{stream}_mod.1", 6 * d, d)
            linear(f"{block}.{stream}_mlp.net.0.proj", 4 * d, d)
            linear(f"{block}.{stream}_mlp.net.2", d, 4 * d)
        for projection in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"):
            linear(f"{block}.attn.{projection}", d, d)
        for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            tensors[f"{block}.attn.{norm}.weight"] = (shape.attention_head_dim,)
    linear("norm_out.linear", 2 * d, d)
    linear("proj_out", out, d)
    return tensors


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


def read_header(path: Path) -> Shard:
    """Read and check the header of one safetensors file; no tensor is touched.

    Raises:
        WeightsError: unreadable, truncated or garbled; the details list everything wrong.
    """
    name = _shown(path.name)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if size < 8 or length > min(size - 8, HEADER_LIMIT):
                raise ValueError(_header_problem(size, length, start))
            raw = file.read(length)
        header = _json_object(raw)
    except OSError as error:
        raise WeightsError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise WeightsError(f"{name}: {error}") from None
    metadata = header.pop("__metadata__", {})
    problems = [f"{name}: {text}" for text in _entry_problems(header, metadata, size - 8 - length)]
    if problems:
        raise WeightsError(f"{problems[0]}{_and_more(problems)}", problems)
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


def _json_object(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object in which no key comes twice, at any depth."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        if twice:
            raise ValueError(f"key {_shown(twice[0])} comes twice")
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
            problems.append(f"{_shown(key)}: {problem}")
        else:
            spans.append((*entry["data_offsets"], key))
    if problems:
        return problems
    cursor = 0
    for begin, end, key in sorted(spans):
        if begin != cursor:
            kind = "overlaps the tensor before it" if begin < cursor else "leaves a gap before it"
            problems.append(f"{_shown(key)}: {kind}: begins at {begin}, expected {cursor}")
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
        return f"unknown dtype {_shown(dtype)}"
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        right = isinstance(numbers, list) and len(numbers) <= 8
        if not right or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            return f"{what} is {_shown(numbers)}"
    if len(offsets) != 2:
        return f"data_offsets is {_shown(offsets)}"
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        return f"{dtype} {shape} takes {expected} bytes, its offsets span {offsets[1] - offsets[0]}"
    return None


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
    names, placed = _shard_names(root, problems, warnings)
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
    if config is not None and (shards or not unread):
        problems += _tensor_problems(tensors, expected_tensors(config), absent)
    if problems:
        summary = f"{problems[0]}{_and_more(problems)}{_layout_hint(root, shards)}"
        raise WeightsError(f"{root}: this checkpoint cannot be used: {summary}", problems)
    return Checkpoint(root, config, tuple(shards), tensors, _synthetic(root, shards), tuple(warnings))


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
        shape = TransformerShape.of(_json_object(file.read_bytes()))
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
    there = sorted(_shown(entry.name) for entry in folder.iterdir())
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


def _shard_names(root: Path, problems: list[str], warnings: list[str]) -> tuple[list[str], dict[str, str] | None]:
    """Names of the shards that are there, and the index's map from tensor to shard, if it has one."""
    there = {entry.name for entry in root.glob("*.safetensors") if entry.is_file()}
    if not (root / INDEX).is_file():
        if SINGLE in there:
            warnings += [f"{_shown(name)} is not part of the checkpoint" for name in sorted(there - {SINGLE})]
            return [SINGLE], None
        numbered = sorted(name for name in there if re.fullmatch(r".+-\d{5}-of-\d{5}\.safetensors", name))
        what = f"{len(numbered)} shards without their index {INDEX}" if numbered else f"neither {INDEX} nor {SINGLE}"
        others = ", ".join(_shown(name) for name in sorted(there)[:4]) or "no safetensors file"
        raise WeightsError(f"{root}: {what}; found {others}{_layout_hint(root, [])}")
    try:
        if (root / INDEX).stat().st_size > HEADER_LIMIT:
            raise ValueError(f"larger than {HEADER_LIMIT} bytes")
        placed = _json_object((root / INDEX).read_bytes()).get("weight_map")
        if not isinstance(placed, dict) or not placed or not all(map(_is_plain_name, placed.values())):
            raise ValueError("weight_map does not map tensors to names of safetensors files in this folder")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{root / INDEX}: {error}") from None
    count = Counter(placed.values())
    absent = sorted(set(count) - there)
    problems += [f"{INDEX} names {_shown(name)}, which is not there ({count[name]} tensors)" for name in absent]
    warnings += [f"{_shown(name)} is not named by {INDEX}" for name in sorted(there - set(count))]
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
                problems.append(f"duplicate: {_shown(name)} is in {first.shard} and in {shard.name}")
            if tensor.dtype not in SUPPORTED_DTYPES:
                problems.append(f"dtype: {_shown(name)} is {tensor.dtype}, expected {', '.join(SUPPORTED_DTYPES)}")
    return tensors


def _index_problems(shards: list[Shard], tensors: Mapping[str, Tensor], placed: Mapping[str, str]) -> list[str]:
    """Where index and shards disagree, each tensor once."""
    held = {shard.name: shard.tensors for shard in shards}
    problems = []
    for name, file in placed.items():
        if file in held and name not in held[file]:
            where = f"in {tensors[name].shard}" if name in tensors else "nowhere"
            problems.append(f"index: {_shown(name)} should be in {file}, it is {where}")
    unlisted = [name for name in tensors if name not in placed]
    return problems + [f"index: does not list {_shown(name)} of {tensors[name].shard}" for name in unlisted]


def _tensor_problems(
    found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], absent: set[str]
) -> list[str]:
    """Tensors missing, extra and wrongly shaped; `absent` are those of shards already reported."""
    missing = [name for name in expected if name not in found and name not in absent]
    extra = [name for name in found if name not in expected]
    return [
        *(f"missing: {name} {list(expected[name])}" for name in missing),
        *(f"extra: {_shown(name)} {list(found[name].shape)} in {found[name].shard}" for name in extra),
        *(
            f"shape: {name} is {list(found[name].shape)}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name].shape != shape
        ),
    ]


def _synthetic(root: Path, shards: list[Shard]) -> str | None:
    """Preset of a generated checkpoint, ``unknown`` where it is marked but not named."""
    for shard in shards:
        if SYNTHETIC_KEY in shard.metadata:
            return shard.metadata[SYNTHETIC_KEY] or "unknown"
    file = root / SYNTHETIC_FILE
    if not file.exists():
        return None
    try:
        preset = _json_object(file.read_bytes()[:HEADER_LIMIT]).get("preset")
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
        raise WeightsError(f"{checkpoint.root}: non-finite weights: {problems[0]}{_and_more(problems)}", problems)
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


def _shown(value: object) -> str:
    """A value from a file, safe on a terminal and of bounded length."""
    text = value if isinstance(value, str) and value.isprintable() else ascii(value)
    return text if len(text) <= 100 else text[:97] + "…"


def _and_more(problems: list[str]) -> str:
    return f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
