"""Weights of any model: a folder with a config and safetensors files, of whose layout nothing is known.

The files are looked at as those of Qwen-Image are (headers, sizes, index, values), but no tensor is expected: which
there must be is known to the ports, whose loaders are strict. A folder may come with an installed package
(``package:NAME/FOLDER``); the package is found, not imported.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parity.checkpoint import Checkpoint, synthetic_preset
from parity.errors import MissingPackageError, UsageError, WeightsError
from parity.layouts import Entry, Located
from parity.layouts.folder import check_inside, format_hint, read_files
from parity.safetensors_header import and_more, json_file, shown

LAYOUT = "plain"
PACKAGE = "package:"
_PLACE = re.compile(r"(?P<package>[A-Za-z_]\w*)(?:/(?P<folder>[\w.\-/]+))?", re.ASCII)
# A file beside the weights is hashed whole: a tokenizer takes megabytes.
_LARGEST_FILE = 256 << 20


@dataclass(frozen=True)
class PlainFolder:
    """A plain folder.

    Attributes:
        checkpoint: its weights, with the contents of its config.
        files: hash of the other files that were asked for; empty where there are none.
    """

    checkpoint: Checkpoint
    files: str


def inspect(root: Path, folder: str, files: tuple[str, ...] = ("config.json",)) -> PlainFolder:
    """Look at a folder's files and check all of them but the values of the tensors.

    Args:
        root: that the user named.
        folder: of the component below it; ``.`` is `root` itself.
        files: that must be there besides ``*.safetensors``; the first is the config.

    Raises:
        WeightsError: something is missing or damaged; the message says what.
    """
    where = root / folder
    _check_there(root, where, files)
    found = read_files(where, LAYOUT)
    problems = [str(problem) for problem in found.problems]
    if problems:
        raise WeightsError(f"{where}: these weights cannot be used: {problems[0]}{and_more(problems)}", problems)
    config = _config(where / files[0]) if files else {}
    entries = {
        name: Entry(tensor.shard, name, tensor.dtype, tensor.shape, tensor.shape)
        for name, tensor in found.tensors.items()
    }
    shards = tuple(found.shards)
    located = Located(where, LAYOUT, config, entries, (), (), (), shards)
    preset, warnings = synthetic_preset(where, shards), tuple(found.warnings)
    checkpoint = Checkpoint(where, config, shards, found.tensors, preset, warnings, located)
    return PlainFolder(checkpoint, _hash(where, files[1:]))


def _check_there(root: Path, where: Path, files: tuple[str, ...]) -> None:
    if root.is_file():
        raise WeightsError(f"{root} is a file; name the folder that holds it, with {', '.join(files) or 'nothing'}")
    if not where.is_dir():
        raise WeightsError(f"{where}: there is no such folder; expected *.safetensors{_and(files)} in it")
    missing = [name for name in files if not (where / name).is_file()]
    names = sorted(entry.name for entry in where.iterdir())
    if not any(name.endswith(".safetensors") for name in names):
        missing.insert(0, "*.safetensors")
    if missing:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        there = ", ".join(map(shown, names[:8])) + more or "nothing"
        raise WeightsError(f"{where}: the model lacks {', '.join(missing)}; found {there}{format_hint(where)}")
    for name in files:
        check_inside(where / name, root)
        size = (where / name).stat().st_size
        if size > _LARGEST_FILE:
            raise WeightsError(f"{where / name}: {size} bytes, against a limit of {_LARGEST_FILE}")


def _and(files: tuple[str, ...]) -> str:
    return f" and {', '.join(files)}" if files else ""


def _config(file: Path) -> Mapping[str, Any]:
    try:
        return json_file(file)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file}: {error}") from None


def _hash(where: Path, files: tuple[str, ...]) -> str:
    if not files:
        return ""
    digest = hashlib.sha256()
    for name in files:
        digest.update(f"{name} {(where / name).stat().st_size}\n".encode())
        digest.update((where / name).read_bytes())
    return digest.hexdigest()


def in_package(text: str) -> Path:
    """The folder that ``package:NAME/FOLDER`` means; the package is not imported.

    Raises:
        UsageError: it is not written so.
        MissingPackageError: the package is not installed.
        WeightsError: it has no such folder.
    """
    match = _PLACE.fullmatch(text.removeprefix(PACKAGE))
    if match is None or ".." in text:
        raise UsageError(f"weights {text!r}: expected package:NAME/FOLDER, a folder within an installed package")
    name, folder = match["package"], match["folder"] or "."
    spec = find_spec(name)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise MissingPackageError(f"weights {text}: the package {name!r} that has them is not installed")
    for place in map(Path, places):
        if (place / folder).is_dir():
            check_inside(place / folder, place)
            return place / folder
    raise WeightsError(f"weights {text}: the package {name!r} has no folder {folder!r}; looked in {places[0]}")
