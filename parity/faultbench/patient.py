"""Patients: copies of the MLX port with faults in them; see the head of `parity.faultbench`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from parity.faultbench.catalogue import find, injections
from parity.faultbench.injection import STREAMS, Injection, Site, apply

PACKAGE = "mlx_impl"

Planted = Sequence[tuple[Injection, Site]]


def sources() -> dict[str, str]:
    """The port's source, file -> text. The package is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {PACKAGE}: faults are planted in copies of its source")
    folder = Path(next(iter(spec.submodule_search_locations)))
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.py"))}


def write(folder: Path, name: str, planted: Planted) -> Path:
    """Write a copy of the port, with faults in it, as a package.

    Args:
        folder: that the package is put into.
        name: of the package; a module of that name must not have been imported.
        planted: faults and where they act; an unchanged copy without any.

    Returns:
        the package's folder.

    Raises:
        EditError: a fault does not fit the present source.
        FileExistsError: there is such a package already.
    """
    found = sources()
    package = folder / name
    if package.exists():
        raise FileExistsError(f"{package} is there already; choose another name or folder")
    for file, text in (found | (apply(found, planted) if planted else {})).items():
        path = package / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


@contextmanager
def importable(folder: Path, name: str) -> Iterator[str]:
    """A package of a folder can be imported by name; afterwards it is forgotten."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield name
    finally:
        sys.path.remove(str(folder))
        for module in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
            del sys.modules[module]


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m parity.faultbench.patient``."""
    parser = argparse.ArgumentParser(prog="python -m parity.faultbench.patient", description=__doc__)
    parser.add_argument("fault", nargs="*", help="CODE or CODE:VARIANT, then the folder to write into")
    parser.add_argument("--blocks", help="numbers with commas between; default all", default=None)
    parser.add_argument("--stream", choices=STREAMS, help="default both")
    parser.add_argument("--name", default="port_patient", help="of the package")
    parser.add_argument("--layers", type=int, default=60, help="blocks of the model, for what is printed")
    parser.add_argument("--list", action="store_true", help="show all faults")
    given = parser.parse_intermixed_args(argv)
    if given.list:
        for one in injections():
            print(f"{one.name:48} {', '.join(one.cases):24} {', '.join(one.shows)}")
        return 0
    if len(given.fault) < 2:
        parser.error("expected at least one fault, and the folder to write into")
    *faults, folder = given.fault
    blocks = None if given.blocks is None else tuple(map(int, given.blocks.split(",")))
    site = Site(blocks, (given.stream,) if given.stream else None)
    planted = [(find(fault), _fitting(find(fault), site)) for fault in faults]
    package = write(Path(folder), given.name, planted)
    print(f"{package}\nPYTHONPATH={folder} parity run --candidate {given.name} …")
    for injection, where in planted:
        shown = injection.expected(where, given.layers)
        more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
        print(f"{injection.name}, cases {', '.join(injection.cases)}: {', '.join(shown[:6])}{more}")
    return 0


def _fitting(injection: Injection, site: Site) -> Site:
    """The site without what the fault cannot be restricted to."""
    streams = site.streams if site.streams and set(site.streams) <= set(injection.streams) else None
    return Site(site.blocks if injection.in_blocks else None, streams or own_streams(injection))


def own_streams(injection: Injection) -> tuple[str, ...] | None:
    """The streams of a fault that is of one stream only."""
    return injection.streams if len(injection.streams) == 1 else None


if __name__ == "__main__":
    sys.exit(main())
