"""A result that is there whole or not at all: made in a folder beside the final name, then renamed.

.<name>.parity-partial/   what is being made; locked while its process lives
.<name>.parity-old/       what was there before, for the moment between the two renames of --force
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from parity.disk import free_on
from parity.errors import OutputExistsError, ResourceError, UsageError

# What a folder of weights may hold at its top; --force replaces nothing else.
_WEIGHTS = frozenset({"transformer", "text_encoder", "vae", "tokenizer", "scheduler", "processor", "config.json"})
_ENDS = (".safetensors", ".index.json", ".md", "model_index.json", "parity-synthetic.json")


@contextmanager
def staged(final: Path, force: bool, say: Callable[[str], None]) -> Iterator[Path]:
    """A folder to work in, which takes the final name when the block ends well and is removed when it does not.

    Args:
        final: name of the result. A block that is to make a single file puts it in the folder under that name.
        force: replace what is there, if it is weights.
        say: is told what an earlier process that was killed has left, and that it is removed.

    Raises:
        OutputExistsError: the result is there and `force` is not given.
        UsageError: what is there is not weights, or another process is making the same.
    """
    final = Path(os.path.abspath(final))
    _check_free(final, force)
    if not final.parent.is_dir():
        raise UsageError(f"{final}: there is no folder {final.parent}; make it first")
    partial, old = (final.with_name(f".{final.name}.parity-{what}") for what in ("partial", "old"))
    lock = _take(partial)
    try:
        if any(partial.iterdir()):
            say(f"removing {partial}, which a conversion that was cut off has left")
            _empty(partial)
        if old.exists():
            _restore(old, final, say)
            _check_free(final, force)
        yield partial
        _put_in_place(partial, final, old)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def check_room(parent: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        parent: folder on that disk.
        needed: bytes.

    Raises:
        ResourceError: less is free.
    """
    free = free_on(parent)
    if free < needed:
        raise ResourceError(
            f"{parent}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; "
            "free some or choose another disk"
        )


def _check_free(final: Path, force: bool) -> None:
    if not final.exists() and not final.is_symlink():
        return
    if not force:
        raise OutputExistsError(f"{final} exists; --force replaces it")
    names = [final.name] if final.is_file() else sorted(entry.name for entry in final.iterdir())
    strange = [name for name in names if name not in _WEIGHTS and not name.endswith(_ENDS)]
    if strange or final.is_symlink():
        what = "is a link" if final.is_symlink() else f"holds {strange[0]!a}, which no conversion wrote"
        raise UsageError(f"{final} {what}; --force replaces weights only")


def _take(partial: Path) -> int:
    """Make the folder and lock it; gives the lock's descriptor, which the system frees when a process dies."""
    while True:
        partial.mkdir(exist_ok=True)
        lock = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise UsageError(f"another process is writing {partial}; wait for it or choose another name") from None
        if partial.exists() and os.path.samestat(os.fstat(lock), partial.stat()):
            return lock
        os.close(lock)  # it was renamed or removed by its owner in between


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _restore(old: Path, final: Path, say: Callable[[str], None]) -> None:
    """After a kill between the two renames: what was there before goes back, unless its successor is in place."""
    if final.exists():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    else:
        say(f"putting back {final}, which a conversion that was cut off had moved to {old.name}")
        os.rename(old, final)


def _put_in_place(partial: Path, final: Path, old: Path) -> None:
    single = partial / final.name
    source = single if single.is_file() else partial
    for folder in sorted({partial, *(file.parent for file in partial.rglob("*"))}):
        _sync(folder)
    if final.exists():
        os.rename(final, old)
    os.rename(source, final)
    _sync(final.parent)
    for leftover in (old, partial) if source is single else (old,):
        if leftover.exists():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _sync(folder: Path) -> None:
    """Have a folder's names on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
