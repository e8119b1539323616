"""How much memory this process has used at most, how much it may still take, and sizes in words."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_CGROUPS = (
    # Version 2, then version 1: (limit, use), as a container sees them.
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        "total_inactive_file",
    ),
)


def peak() -> int:
    """Largest resident size this process has had, in bytes, with the pages of mapped files."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would hand on what the process that started this one had.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def spell(size: int) -> str:
    """A number of bytes for people: 1.7 GiB."""
    for unit, scale in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << scale:
            return f"{size / (1 << scale):,.1f} {unit}"
    return f"{size} bytes"


def give_back() -> None:
    """Return to the system what the allocator keeps of freed arrays.

    glibc holds on to what it once got for arrays below 32 MB: 30 MB more after every block of the full model.
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's search for cycles, which visits every row again and again while millions of them are made.

    Rows are freed all the same once nobody has them: they hold no cycles.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def available() -> int:
    """Bytes that can be taken without swapping: of the machine, and within the container's limit."""
    # Here, so that `parity doctor` can say that it is not installed.
    import psutil

    return min([psutil.virtual_memory().available, *_of_containers()])


def _of_containers() -> Iterator[int]:
    for limit, used, reclaimable in _CGROUPS:
        try:
            cap, taken = int(limit.read_text()), int(used.read_text())
            stat = dict(line.split() for line in (used.parent / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue  # no such limit, or "max"
        # Cached files count as used, and are given up when memory is wanted.
        yield max(cap - taken + int(stat.get(reclaimable, 0)), 0)
