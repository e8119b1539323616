"""A model's folder: which components it has, and their configs, inspected before a run.

    model_index.json
    transformer/  vae/  text_encoder/   weights in any layout, and config.json where the layout has one
    scheduler/                          scheduler_config.json
    tokenizer/  processor/              files of the tokenizer and of the picture processor

Only what a suite needs is looked at. The transformer's folder alone is a model for suites that need nothing else.
Of a component from outside, folders are plain ones (`parity.plain_weights`): nothing is known of their tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parity import checkpoint as checkpoints
from parity import plain_weights
from parity.checkpoint import Checkpoint
from parity.errors import WeightsError
from parity.safetensors_header import json_file, shown

MODEL_INDEX = "model_index.json"
CONFIG_FILE = {
    "transformer": "config.json", "vae": "config.json", "text_encoder": "config.json",
    "scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json", "processor": "preprocessor_config.json",
}  # fmt: skip
WITH_SHARDS = ("transformer", "vae", "text_encoder")


@dataclass(frozen=True)
class ModelFolder:
    """The components of a model that a suite needs.

    Attributes:
        root: the folder that ports are given.
        configs: folder -> contents of its config file.
        checkpoints: folder -> its inspected weights.
        files: folder -> hash of its small files, for folders without weights.
        pipeline: name of the pipeline's class; None without a ``model_index.json``.
        synthetic: preset of generated weights; None for real ones.
        origin: what `describe` says of a model from a hub or a package; empty for others.
        plain: folder -> files that were asked for, of those that are looked at as plain ones.
    """

    root: Path
    configs: Mapping[str, Mapping[str, Any]]
    checkpoints: Mapping[str, Checkpoint]
    files: Mapping[str, str]
    pipeline: str | None
    synthetic: str | None
    origin: Mapping[str, str] = field(default_factory=dict)
    plain: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Size of all tensors."""
        return sum(one.nbytes for one in self.checkpoints.values())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd but harmless."""
        return tuple(_within(name, said) for name, one in self.checkpoints.items() for said in one.warnings)

    @property
    def layout(self) -> str:
        """Layout of the weights; where components differ, each with its name."""
        layouts = {name: one.layout for name, one in self.checkpoints.items()}
        if len(set(layouts.values())) > 1:
            return ", ".join(f"{name}: {layout}" for name, layout in layouts.items())
        return next(iter(layouts.values()), "diffusers")

    @property
    def bits(self) -> dict[str, dict[str, int]]:
        """Folder -> number of quantized layers by how they are packed; without folders that have none."""
        return {name: one.bits for name, one in self.checkpoints.items() if one.bits}

    def check_finite(self, progress: Callable[[int, int], None] | None = None) -> tuple[str, ...]:
        """Stream all values once; see `parity.checkpoint.check_finite`."""
        return tuple(
            _within(folder, name)
            for folder, one in self.checkpoints.items()
            for name in checkpoints.check_finite(one, progress)
        )

    def fingerprint(self) -> str:
        """A hash that tells models apart cheaply, wherever the folder lies."""
        digest = hashlib.sha256()
        for folder, one in sorted(self.checkpoints.items()):
            digest.update(f"{folder} {checkpoints.fingerprint(one)}\n".encode())
        for folder, found in sorted(self.files.items()):
            digest.update(f"{folder} {found}\n".encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """The key ``weights`` of ``parity.json``."""
        of_all = self.checkpoints.values()
        return {
            # A synthetic checkpoint lies in a cache, whose place says nothing to whoever reads the report.
            "path": f"synthetic:{self.synthetic}" if self.synthetic else str(self.root),
            "synthetic": self.synthetic is not None,
            "preset": self.synthetic,
            "layout": self.layout,
            "bits": self.bits,
            "pipeline": self.pipeline,
            "tensors": sum(len(one.tensors) for one in of_all),
            "parameters": sum(one.parameters for one in of_all),
            "configs": dict(self.configs),
            **self.origin,
        }


def inspect(
    path: Path, folders: Iterable[str] = ("transformer",), plain: Mapping[str, tuple[str, ...]] | None = None
) -> ModelFolder:
    """Find the components a suite needs and check all of them but the values of the tensors.

    Args:
        path: a model's folder, or that of a transformer alone.
        folders: names of the folders that are needed.
        plain: those of them that are plain: folder -> files that must be there.

    Raises:
        WeightsError: something is missing, damaged or of another kind; the message says which.
    """
    folders, plain = tuple(folders), dict(plain or {})
    ours = tuple(folder for folder in folders if folder not in plain)
    if ours or not folders:
        _check_there(path, ours)
    configs: dict[str, Mapping[str, Any]] = {}
    found: dict[str, Checkpoint] = {}
    files: dict[str, str] = {}
    for folder in folders:
        if folder in plain:
            one = plain_weights.inspect(path, folder, plain[folder])
            found[folder], configs[folder] = one.checkpoint, one.checkpoint.config
            if one.files:
                files[folder] = one.files
        elif folder in WITH_SHARDS:
            found[folder] = checkpoints.inspect(path, folder)
            configs[folder] = found[folder].config
        else:
            configs[folder] = _read_config(path / folder / CONFIG_FILE[folder])
            files[folder] = _hash_of_files(path / folder)
    alone = folders == ours == ("transformer",)
    root = found["transformer"].root if alone else path
    presets = [checkpoints.synthetic_preset(path), *(one.synthetic for one in found.values())]
    preset = next(filter(None, presets), None)
    return ModelFolder(root, configs, found, files, _pipeline_class(path), preset, plain=plain)


def _within(folder: str, said: str) -> str:
    """What is said of a folder, with its name where it is not the model's own."""
    return said if folder == "." else f"{folder}: {said}"


def _check_there(path: Path, folders: tuple[str, ...]) -> None:
    """One error for all components that are missing."""
    if folders == ("transformer",):
        return  # may be the folder itself or a file; inspecting it says what is wrong
    if path.is_file():
        raise WeightsError(f"{path} is a single file; components {', '.join(folders)} are in a model's folder: name it")
    if not path.is_dir():
        raise WeightsError(f"{path}: there is no such folder; expected a model's folder")
    missing = [folder for folder in folders if not _is_there(path, folder)]
    if missing:
        names = ", ".join(f"{folder}/{CONFIG_FILE[folder]}" for folder in missing)
        there = ", ".join(sorted(shown(entry.name) for entry in path.iterdir())[:12]) or "nothing"
        raise WeightsError(f"{path}: the model lacks {names}; found {there}{_lack_hint(path, missing)}")


def _is_there(path: Path, folder: str) -> bool:
    """Whether a component has what its layout asks for: MLX's have weights, and need not have a config."""
    if (path / folder / CONFIG_FILE[folder]).is_file():
        return True
    numbered = (path / folder / name for name in ("0.safetensors", "model.safetensors"))
    return folder in WITH_SHARDS and any(file.is_file() for file in numbered)


def _lack_hint(path: Path, missing: list[str]) -> str:
    if (path / "config.json").is_file():
        return "; this is one component's folder: name the one above it"
    if missing == ["processor"]:
        return "; only the editing models (Qwen-Image-Edit) have one"
    if (path / "transformer" / "0.safetensors").is_file():
        return "; MLX layouts leave it out: copy it from the model's repository"
    return ""


def _read_config(file: Path) -> dict[str, Any]:
    try:
        return json_file(file)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file}: {error}") from None


def _hash_of_files(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file():
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _pipeline_class(path: Path) -> str | None:
    """``_class_name`` of ``model_index.json``, beside the components or above one."""
    for folder in (path, path.parent):
        file = folder / MODEL_INDEX
        if file.is_file():
            try:
                name = json_file(file).get("_class_name")
            except (OSError, ValueError):
                return None
            return name if isinstance(name, str) else None
    return None
