"""Room on a disk: how much there is, and what is said where there is none."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parity.errors import ResourceError, UsageError

# A file where a folder is needed, and the other way round, among them.
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)


def free_on(path: Path) -> int:
    """Free bytes on the disk that a path will lie on; it need not be there yet."""
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into one line that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no room on the disk of {path.parent}; free some or choose another --out") from None
        if error.errno in _FORBIDDEN:
            raise UsageError(f"cannot write {path}: {error.strerror}; choose another --out") from None
        raise
