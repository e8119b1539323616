"""The files of one component: its folder, its shards, their index, and that none of them lies somewhere else."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from parity.errors import WeightsError
from parity.layouts.entries import Problem
from parity.safetensors_header import Shard, Tensor, json_file, printable, read_header, shown

CONFIG = "config.json"
# What the names of a component's files begin with: diffusers' own models, and those of transformers.
STEM = {"transformer": "diffusion_pytorch_model", "text_encoder": "model", "vae": "diffusion_pytorch_model"}
# Parts of names that only one component has.
_OWN_NAMES = {
    "transformer": re.compile(r"(^|\.)transformer_blocks\.\d"),
    "text_encoder": re.compile(r"(^|\.)(self_attn|embed_tokens)\."),
    "vae": re.compile(r"(^|\.)(conv_in|mid_block)\."),
}
_INDEX_END = ".safetensors.index.json"


@dataclass
class Files:
    """What the files of a component hold.

    Attributes:
        folder: of the files.
        single: the one file that was named, instead of a folder.
        shards: headers, of those that could be read.
        tensors: stored name -> tensor; of duplicates the first.
        absent: names of tensors in shards that are missing or unread.
        unread: whether there are such shards.
        problems, warnings: what is wrong, and what is odd but harmless.
    """

    folder: Path
    single: Path | None = None
    shards: list[Shard] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    unread: bool = False
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of all headers."""
        return {key: value for shard in self.shards for key, value in shard.metadata.items()}


def find(path: Path, component: str) -> Files:
    """The folder of a component, or the single file that was named, without anything read yet.

    Args:
        path: a model's folder, a component's, or a safetensors file.
        component: name of the component's folder in a model's.

    Raises:
        WeightsError: there is none, or it is a link out of the model's folder.
    """
    try:
        if path.is_file():
            return Files(path.parent, path)
        for folder in (path / component, path):
            if folder.is_dir() and _holds_weights(folder):
                check_inside(folder, path)
                return Files(folder)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None
    raise WeightsError(_nothing_found(path, component))


def read_files(path: Path, component: str) -> Files:
    """Find a component's files and read the index and all headers; no tensor is touched.

    Args:
        path: a model's folder, a component's, or a safetensors file.
        component: name of the component's folder in a model's.

    Raises:
        WeightsError: no weights there, or no readable index; what is wrong with single files is in the result.
    """
    files = find(path, component)
    if files.single is not None:
        names, placed = [_not_a_part(files.single)], None
    else:
        names, placed = _shard_names(files, component)
    unread = set()
    for name in names:
        file = files.folder / name
        try:
            if files.single is None:
                check_inside(file, path)
            files.shards.append(read_header(file))
        except WeightsError as error:
            unread.add(name)
            files.problems += [Problem("file", text) for text in error.details or [error.message]]
    files.unread = bool(unread)
    _merge(files)
    if placed is not None:
        files.problems += _index_problems(files, placed)
        files.absent = {name for name, file in placed.items() if file not in names or file in unread}
    return files


def check_inside(file: Path, root: Path) -> None:
    """Refuse a file that is a link to somewhere outside a model's folder.

    A snapshot in the hub's cache consists of links to the blobs of the same repository, which are let through.

    Args:
        file: in the folder or below.
        root: the folder that the user named.

    Raises:
        WeightsError: it leads out.
    """
    real, inside = Path(os.path.realpath(file)), Path(os.path.realpath(root))
    allowed = [inside, inside.parent] if (inside.parent / "model_index.json").is_file() else [inside]
    for folder in (inside, *inside.parents):
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
            allowed.append(folder.parent.parent / "blobs")
    if not any(real.is_relative_to(folder) for folder in allowed):
        raise WeightsError(
            f"{printable(str(file))} is a link to {shown(str(real))}, outside the model's folder {root}; "
            "copy the file there, or name the folder that holds it"
        )


def _holds_weights(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or any(
        entry.name.endswith((".safetensors", _INDEX_END)) for entry in folder.iterdir()
    )


def _nothing_found(path: Path, component: str) -> str:
    looked = f"looked for {path}/{component} and {path} with a config.json or safetensors files"
    if not path.exists():
        return f"{path}: there is no such folder; {looked}"
    folder = path / component if (path / component).is_dir() else path
    there = sorted(shown(entry.name) for entry in folder.iterdir())
    found = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "") or "nothing"
    return f"{path} holds no weights of a {component}: {looked}, found {found}{format_hint(folder)}"


def format_hint(folder: Path) -> str:
    """A sentence on weights in a format that is not read, or nothing."""
    names = [entry.name for entry in folder.iterdir()]
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        return "; pickled weights are not read, save them as safetensors"
    if any(name.endswith(".gguf") for name in names):
        return "; GGUF files are not read, save them as safetensors"
    return ""


def _not_a_part(file: Path) -> str:
    """The name of a single file, which must not be one of several."""
    part = re.fullmatch(r".+-\d{5}-of-(\d{5})\.safetensors", file.name)
    if (part and int(part[1]) > 1) or (re.fullmatch(r"\d+\.safetensors", file.name) and _indices(file.parent)):
        raise WeightsError(f"{file} is one file of several; name the folder {file.parent}")
    return file.name


def _indices(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(_INDEX_END) and entry.is_file())


def _shard_names(files: Files, component: str) -> tuple[list[str], dict[str, str] | None]:
    """Names of the shards that are there, and the index's map from tensor to shard, if it has one."""
    folder = files.folder
    indices = _indices(folder)
    there = {entry.name for entry in folder.iterdir() if entry.name.endswith(".safetensors") and entry.is_file()}
    if len(indices) > 1:
        raise WeightsError(
            f"{folder}: mixed layouts: it has the indices {shown(indices[0])} and {shown(indices[1])}; "
            "keep one and its files"
        )
    if not indices:
        return _without_index(files, there, STEM.get(component, "model")), None
    index = folder / indices[0]
    check_inside(index, folder)
    placed = _weight_map(index)
    count = Counter(placed.values())
    for name in sorted(set(count) - there):
        text = f"{shown(index.name)} names {shown(name)}, which is not there ({count[name]} tensors)"
        files.problems.append(Problem("file", text))
    files.warnings += [f"{shown(name)} is not named by {shown(index.name)}" for name in sorted(there - set(count))]
    return sorted(set(count) & there, key=_natural), placed


def _without_index(files: Files, there: set[str], stem: str) -> list[str]:
    single, numbered = f"{stem}.safetensors", sorted((n for n in there if n[:-12].isdecimal()), key=_natural)
    if single in there or (not numbered and len(there) == 1):
        chosen = [single] if single in there else sorted(there)
    elif numbered and "0.safetensors" in numbered:
        chosen = numbered
        gaps = sorted({str(i) for i in range(len(numbered))} - {name[:-12] for name in numbered})
        files.problems += [Problem("file", f"{gap}.safetensors is not there, and later ones are") for gap in gaps]
    else:
        parts = sorted(name for name in there if re.fullmatch(r".+-\d{5}-of-\d{5}\.safetensors", name))
        what = f"{len(parts)} shards without their index" if parts else "neither an index nor"
        others = ", ".join(shown(name) for name in sorted(there)[:4]) or "no safetensors file"
        said = f"{what} {single}.index.json" if parts else f"{what} {single}"
        raise WeightsError(f"{files.folder}: {said}; found {others}{format_hint(files.folder)}")
    files.warnings += [f"{shown(name)} is not part of the checkpoint" for name in sorted(there - set(chosen))]
    return chosen


def _natural(name: str) -> tuple[int, str]:
    return (int(name[:-12]) if name[:-12].isdecimal() and len(name) < 30 else -1, name)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        placed = json_file(index).get("weight_map")
        if not isinstance(placed, dict) or not placed or not all(map(_is_plain_name, placed.values())):
            raise ValueError("weight_map does not map tensors to names of safetensors files in this folder")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{printable(str(index))}: {error}") from None
    return placed


def _is_plain_name(name: object) -> bool:
    """Whether a shard's name stays in its folder."""
    return isinstance(name, str) and re.fullmatch(r"[\w][\w.\-]*\.safetensors", name) is not None


def _merge(files: Files) -> None:
    for shard in files.shards:
        for name, tensor in shard.tensors.items():
            first = files.tensors.setdefault(name, tensor)
            if first is not tensor:
                text = f"{shown(name)} is in {shown(first.shard)} and in {shown(shard.name)}"
                files.problems.append(Problem("duplicate", text))


def _index_problems(files: Files, placed: Mapping[str, str]) -> list[Problem]:
    """Where index and shards disagree, each tensor once."""
    held = {shard.name: shard.tensors for shard in files.shards}
    problems = []
    for name, file in placed.items():
        if file in held and name not in held[file]:
            where = f"in {files.tensors[name].shard}" if name in files.tensors else "nowhere"
            problems.append(Problem("index", f"{shown(name)} should be in {file}, it is {where}"))
    unlisted = [name for name in files.tensors if name not in placed]
    return problems + [
        Problem("index", f"does not list {shown(name)} of {files.tensors[name].shard}") for name in unlisted
    ]


def components_of(path: Path) -> tuple[str, ...]:
    """The components with weights at a path: those of a model's folder, or the one that names in the files speak for.

    Raises:
        WeightsError: there are no weights.
    """
    try:
        below = tuple(name for name in STEM if (path / name).is_dir() and _holds_weights(path / name))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None
    if below:
        return below
    names = read_files(path, "transformer").tensors
    for component, mark in _OWN_NAMES.items():
        if any(mark.search(name) for name in names):
            return (component,)
    return ("transformer",)
