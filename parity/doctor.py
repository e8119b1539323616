"""What this machine has and lacks: packages, both ports, BLAS, precision switches, known bugs, room.

Nothing here may fail for want of what it looks for: an import that fails is a finding.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, Literal

from parity import known_bugs
from parity.errors import MissingPackageError
from parity.ports import INSTALL, open_port
from parity.workers import usable_cores

DISTRIBUTION = "mlx-parity"
Status = Literal["ok", "warn", "missing"]
# One checkpoint comparison on the embedded weights needs less; the published checkpoint is streamed.
MEMORY_GIB, DISK_GIB = 2, 2
PUBLISHED_GB = 41
# An unoptimised BLAS is 30 times slower than torch's; a busy machine is not four times slower.
SLOW = 4
SIDES = {"candidate": "mlx_impl", "reference": "reference"}
MEND_MLX = 'pip install "mlx-parity[cpu]" (or [cuda])' if sys.platform == "linux" else "pip install mlx"
MEND_BLAS = 'apt-get install libopenblas0-pthread, or pip install "mlx-parity[cpu]"'


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        section: ``packages``, ``candidate``, ``reference``, ``known bugs``, ``speed`` or ``host``.
        status: ``missing`` is needed and not there (or of a wrong version); ``warn`` is usable
            with a drawback.
        found: what is there.
        required: what is asked for, where something is.
        fix: what mends it; empty where nothing has to be done.
    """

    section: str
    name: str
    status: Status
    found: str
    required: str = ""
    fix: str = ""


def examine() -> list[Finding]:
    """All findings; takes some seconds, most of them for importing the reference's packages."""
    findings = [*_packages(), *_optional()]
    # The candidate first: its BLAS has to be in place before MLX is loaded.
    environments = {}
    for side, spec in SIDES.items():
        environments[side], lines = _port(side, spec)
        findings += lines
    findings += _known_bugs({side: found for side, found in environments.items() if found is not None})
    findings += _speed({side for side, found in environments.items() if found is not None})
    findings += _host(environments["candidate"])
    return findings


def _packages() -> Iterator[Finding]:
    """Every dependency of the distribution, found against required."""
    try:
        from packaging.requirements import Requirement

        texts = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Finding("packages", DISTRIBUTION, "missing", "not installed", fix="pip install -e . in the repository")
        return
    except ImportError:
        yield Finding("packages", "packaging", "missing", "not installed", fix="pip install packaging")
        return
    needed = {}
    for requirement in map(Requirement, texts):
        # MLX on Linux comes with an extra, CPU or CUDA: the version asked for is the same.
        extras = ("", "cpu") if requirement.name == "mlx" else ("",)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            needed[requirement.name] = requirement
    for name, requirement in sorted(needed.items()):
        required = str(requirement.specifier)
        mend = MEND_MLX if name == "mlx" else f'pip install "{name}{required}"'
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding("packages", name, "missing", "not installed", required, mend)
            continue
        right = requirement.specifier.contains(found, prereleases=True)
        yield Finding("packages", name, "ok" if right else "missing", found, required, "" if right else mend)


def _optional() -> Iterator[Finding]:
    """Packages that only one port needs, each of the version that its command installs."""
    for name, mend in INSTALL.items():
        required = mend.rpartition("==")[2]
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding("packages", name, "warn", f"not installed; only --candidate {name} needs it", fix=mend)
            continue
        right = found == required
        yield Finding("packages", name, "ok" if right else "warn", found, f"=={required}", "" if right else mend)


def _port(side: str, spec: str) -> tuple[dict[str, Any] | None, list[Finding]]:
    """A port's environment, and what it says."""
    try:
        environment = open_port(spec).environment()
    except Exception as error:  # a broken install raises anything, and each kind is a finding
        reason = " ".join(str(error.__cause__ or error).split())
        mend = MEND_MLX if side == "candidate" else f"pip install {DISTRIBUTION}"
        if not isinstance(error, MissingPackageError | ImportError):
            mend = ""  # the reason itself says what is wrong
        return None, [Finding(side, spec, "missing", f"cannot be opened: {reason}", fix=mend)]
    notes = dict(environment)
    findings = []
    if "blas" in notes:
        findings.append(_blas(side, notes))
    tf32 = bool(notes.pop("tf32", False))
    mend = "MLX_ENABLE_TF32=0" if side == "candidate" else "torch.backends.cuda.matmul.allow_tf32 = False"
    findings.append(
        Finding(side, "TF32", "warn" if tf32 else "ok", "on" if tf32 else "off", "off", mend if tf32 else "")
    )
    findings += [Finding(side, key, "ok", str(value)) for key, value in notes.items() if value not in ("", None)]
    return environment, findings


def _blas(side: str, notes: dict[str, Any]) -> Finding:
    """Takes the BLAS out of the notes; one that MLX's CPU build came with is slow on Linux."""
    kind, path, note = (notes.pop(key, None) or "" for key in ("blas", "blas_path", "blas_note"))
    slow = kind == "none" and notes.get("device") == "cpu"
    said = ", ".join(filter(None, ("MLX's own" if kind == "none" else kind, path, note)))
    mend = "unset PARITY_BLAS" if note.startswith("PARITY_BLAS=") else MEND_BLAS
    return Finding(side, "BLAS", "warn" if slow else "ok", said, fix=mend if slow else "")


def _known_bugs(environments: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    """One line for each bug in the table that speaks of these versions on these devices."""
    try:
        bugs = known_bugs.matching(environments)
    except ImportError:  # of packaging, which is a finding already
        return
    yield from (Finding("known bugs", bug.name, "warn", bug.line, fix=bug.fix) for bug in bugs)


def _speed(sides: set[str]) -> Iterator[Finding]:
    """Measured float32 matrix products; a slow BLAS shows against the other side."""
    measured = {}
    for side, module in (("candidate", "mlx.core"), ("reference", "torch")):
        if side not in sides:
            continue
        try:
            measured[side] = _gflops(_product(side, import_module(module)))
        except Exception as error:  # for the reason given in _port
            reason = " ".join(str(error).split())
            yield Finding("speed", side, "warn", f"float32 matmul failed: {type(error).__name__}: {reason}")
    for side, gflops in measured.items():
        slow = gflops * SLOW < max(measured.values())
        mend = MEND_BLAS if side == "candidate" and sys.platform == "linux" else ""
        text = f"float32 matmul {gflops:,.0f} GFLOP/s"
        yield Finding("speed", side, "warn" if slow else "ok", text, fix=mend if slow else "")


def _product(side: str, framework: Any) -> Callable[[int], object]:
    """A function that multiplies two n × n matrices and waits for the result."""

    def of_mlx(n: int) -> None:
        a = framework.ones((n, n), dtype=framework.float32)
        framework.eval(a)
        framework.eval(a @ a)

    def of_torch(n: int) -> float:
        device = "cuda" if framework.cuda.is_available() else "cpu"
        a = framework.ones((n, n), dtype=framework.float32, device=device)
        return (a @ a)[0, 0].item()

    return of_mlx if side == "candidate" else of_torch


def _gflops(product: Callable[[int], object], n: int = 1024, seconds: float = 0.3) -> float:
    """GFLOP/s of the fastest of some products, within about `seconds`."""
    product(128)
    best, start = float("inf"), time.perf_counter()
    for _ in range(8):
        before = time.perf_counter()
        product(n)
        best = min(best, time.perf_counter() - before)
        if time.perf_counter() - start > seconds:
            break
    return 2 * n**3 / best / 1e9


def _host(candidate: dict[str, Any] | None) -> Iterator[Finding]:
    """The machine: processor, memory, disk, compiler."""
    yield Finding("host", "system", "ok", f"{platform.platform()}, Python {platform.python_version()}")
    yield Finding("host", "processors", "ok", f"{usable_cores()} usable of {os.cpu_count()}")
    try:
        memory = import_module("psutil").virtual_memory()
    except ImportError:
        yield Finding("host", "memory", "missing", "unknown: psutil cannot be imported", fix="pip install psutil")
    else:
        text = f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}"
        yield _room("memory", memory.available / 2**30, MEMORY_GIB, text, "close other programs")
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    text = f"{free:.1f} GiB free in {os.getcwd()} (the published checkpoint takes {PUBLISHED_GB} GB)"
    yield _room("disk", free, DISK_GIB, text, "free some, or run in another folder")
    # Only MLX's CPU backend calls a compiler while it runs, for what mx.compile fuses.
    if candidate is not None and candidate.get("device") == "cpu":
        compiler = shutil.which("g++")
        mend = "" if compiler else "apt-get install g++" if sys.platform == "linux" else "xcode-select --install"
        found = compiler or "no g++: a port that uses mx.compile on the CPU fails (mlx_impl does not)"
        yield Finding("host", "compiler", "ok" if compiler else "warn", found, fix=mend)


def _room(name: str, free: float, needed: float, text: str, mend: str) -> Finding:
    enough = free >= needed
    return Finding("host", name, "ok" if enough else "warn", text, f"{needed} GiB", "" if enough else mend)
