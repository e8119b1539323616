"""An optimised BLAS for MLX's CPU build on Linux, put in place before MLX is loaded.

The CPU wheel links the unoptimised reference BLAS: 5 GFLOP/s where torch has 160. A library
loaded into the process's global scope before ``mlx.core`` answers its ``cblas_sgemm`` calls
instead, 34 times faster and equal to rounding. Importing this module does it, so the package
imports it before everything else. Nothing happens on macOS, where MLX uses Accelerate.

Environment variables:
    PARITY_BLAS: ``auto`` (default; OpenBLAS, else the ``mkl`` wheel), ``none``, ``openblas``,
        ``mkl``, or the path of a library that exports ``cblas_sgemm``.
    MLX_ENABLE_TF32: set to 0 unless it is set already; TF32 is not float32 parity.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

KINDS = ("auto", "none", "openblas", "mkl")

# Debian keeps each build's libblas.so.3 in a folder of its own; Fedora and conda have one file.
_OPENBLAS = (
    "/usr/lib/*/openblas-pthread/libblas.so.3",
    "/usr/lib/*/openblas-openmp/libblas.so.3",
    "/usr/lib/*/openblas*/libblas.so.3",
    "/usr/lib64/libopenblasp.so.0",
    "/usr/lib*/libopenblas.so.0",
    "/usr/lib/*/libopenblas.so.0",
    "/usr/local/lib/libopenblas.so.0",
)
_MARKS = {"openblas": "openblas", "libmkl_rt": "mkl"}


@dataclass(frozen=True)
class Blas:
    """The BLAS behind MLX's float32 matrix products on the CPU.

    Attributes:
        kind: ``openblas``, ``mkl``, ``other`` (a path), ``accelerate`` or ``none`` (what MLX came with).
        path: the library put in place, if one was.
        note: why it is this one, where that is not obvious.
    """

    kind: str
    path: str | None = None
    note: str = ""


def installed() -> Blas:
    """The BLAS found when the package was imported."""
    return _INSTALLED


def install(wanted: str = "auto") -> Blas:
    """Load the BLAS named by `wanted` into the process's global scope.

    Args:
        wanted: a value of PARITY_BLAS.

    Raises:
        ValueError: `wanted` is neither a known kind nor a path.
        OSError: what it names is not on this machine, or is not a BLAS.
    """
    if wanted not in KINDS and os.sep not in wanted:
        raise ValueError(f"PARITY_BLAS={wanted}: expected one of {', '.join(KINDS)} or the path of a library")
    if sys.platform != "linux":
        return Blas("accelerate", note=f"PARITY_BLAS={wanted} has no effect on {sys.platform}")
    if "mlx.core" in sys.modules:
        return _in_place()
    if wanted == "none":
        return Blas("none", note="PARITY_BLAS=none")
    if wanted not in KINDS:
        return _load("other", Path(wanted), f"PARITY_BLAS={wanted}")
    for kind, found in _candidates(wanted):
        return _load(kind, found, f"PARITY_BLAS={wanted}")
    if wanted == "auto":
        return Blas("none", note="neither OpenBLAS nor the mkl wheel is installed: products are ~30 times slower")
    raise OSError(f"PARITY_BLAS={wanted}: no such library on this machine; install it, or use PARITY_BLAS=none")


def _candidates(wanted: str) -> Iterator[tuple[str, Path]]:
    """(kind, library) pairs that exist, best first."""
    if wanted in ("auto", "openblas"):
        yield from (("openblas", path) for path in _openblas())
    if wanted in ("auto", "mkl"):
        yield from (("mkl", path) for path in _mkl())


def _openblas() -> Iterator[Path]:
    for pattern in _OPENBLAS:
        yield from sorted(Path("/").glob(pattern.lstrip("/")))
    yield from sorted(Path(sys.prefix, "lib").glob("libopenblas.so*"))
    named = ctypes.util.find_library("openblas")
    if named:
        yield Path(named)


def _mkl() -> Iterator[Path]:
    yield from _newest(Path(sys.prefix, "lib").glob("libmkl_rt.so*"))
    try:
        files = metadata.files("mkl") or ()
    except metadata.PackageNotFoundError:
        return
    yield from _newest(path for f in files if f.name.startswith("libmkl_rt.so") and (path := Path(f.locate())).exists())


def _newest(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, reverse=True)


def _load(kind: str, path: Path, asked: str) -> Blas:
    """Put one library into the global scope; only libraries loaded later see it."""
    if "mkl" in path.name:
        # torch brings GNU OpenMP; MKL's default layer would bring a second OpenMP runtime.
        os.environ.setdefault("MKL_THREADING_LAYER", "GNU")
    try:
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise OSError(f"{asked}: {path} could not be loaded ({error}); name another, or use PARITY_BLAS=none") from None
    if not hasattr(library, "cblas_sgemm"):
        raise OSError(f"{asked}: {path} has no cblas_sgemm; name a BLAS with the C interface, or use PARITY_BLAS=none")
    return Blas(kind, str(path))


def _in_place() -> Blas:
    """What is there when MLX was loaded first: somebody's optimised BLAS, or too late for one."""
    if hasattr(ctypes.CDLL(None), "cblas_sgemm"):
        for line in Path("/proc/self/maps").read_text().splitlines():
            path = line.rpartition(" ")[2]
            for mark, kind in _MARKS.items():
                if mark in path and "scipy_openblas" not in path:
                    return Blas(kind, path, "put in place before this package was imported")
    return Blas("none", note="mlx.core was imported before this package: too late to put an optimised BLAS in place")


os.environ.setdefault("MLX_ENABLE_TF32", "0")
_INSTALLED = install(os.environ.get("PARITY_BLAS", "auto"))
