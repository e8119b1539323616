"""Opening whatever a port wrote."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from parity.errors import UsageError
from parity.imports.base import Imported
from parity.imports.npz import read_npz
from parity.imports.ranges import read_log
from parity.imports.tensors import joined, must_know, read_safetensors
from parity.imports.traces import is_traced, read_traced
from parity.safetensors_header import shown

TENSORS, ARRAYS, LOGS = (".safetensors",), (".npz",), (".log", ".txt")
# A folder with a file a checkpoint is a dump too.
FILES = 10_000
ACCEPTED = (
    ".safetensors files with checkpoint names as keys (or a folder of them), .npz, a trace folder, "
    "or a log (.log, .txt)"
)


def open_candidate(paths: Sequence[Path], known: Collection[str] = (), passage: str = "") -> Imported:
    """Open what a port wrote.

    Args:
        paths: one or several ``.safetensors`` or ``.npz`` files, or one of: a folder of them, a trace, a log.
        known: names that checkpoints have; where given, a file with none of them is an error that suggests some.
        passage: of a log with several passes, which one; the first where empty.

    Raises:
        UsageError: not there, of no kind that is read, garbled, or files that do not belong together.
    """
    if not paths:
        raise UsageError(f"nothing to read; name {ACCEPTED}")
    for path in paths:
        if not path.exists():
            raise UsageError(f"{shown(str(path))}: there is no such file or folder")
    found = _open(paths, passage)
    must_know(found, known)
    return found


def _open(paths: Sequence[Path], passage: str) -> Imported:
    path, label = paths[0], shown(paths[0].name)
    if passage and not (len(paths) == 1 and _is_log(path)):
        raise UsageError(f"--pass {shown(passage)} chooses a pass of a log; {label} is none")
    if len(paths) == 1 and path.is_dir():
        if is_traced(path):
            return read_traced(path)
        files = sorted(one for one in path.iterdir() if one.suffix.lower() in (*TENSORS, *ARRAYS))
        if not files:
            raise UsageError(f"{label}: neither a trace nor a dump is in this folder; expected {ACCEPTED}")
        if len(files) > FILES:
            raise UsageError(f"{label}: {len(files)} files, against a limit of {FILES}")
        return _dumps(files, label)
    kinds = {one.suffix.lower() for one in paths}
    if kinds <= {*TENSORS, *ARRAYS}:
        return _dumps(paths, label if len(paths) == 1 else f"{label} and {len(paths) - 1} more")
    if len(paths) == 1 and kinds <= set(LOGS):
        return read_log(path, passage)
    odd = next((one for one in paths if one.is_dir() or one.suffix.lower() not in (*TENSORS, *ARRAYS)), path)
    many = "; only tensors can lie in several files" if len(paths) > 1 and (odd.is_dir() or _is_log(odd)) else ""
    raise UsageError(f"{shown(odd.name)}: cannot be read as a dump{many}; expected {ACCEPTED}")


def _is_log(path: Path) -> bool:
    return path.suffix.lower() in LOGS


def _dumps(files: Sequence[Path], label: str) -> Imported:
    plain = [one for one in files if one.suffix.lower() in TENSORS]
    packed = [one for one in files if one.suffix.lower() in ARRAYS]
    parts = ([read_safetensors(plain, label)] if plain else []) + [read_npz(one) for one in packed]
    if len({part.kind for part in parts}) > 1:
        raise UsageError(f"{label}: sketches beside whole arrays; give the one or the other")
    return joined(parts, [part.label for part in parts], label)
