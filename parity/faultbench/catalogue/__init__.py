"""All faults that can be planted, by subject. Each module has a tuple `INJECTIONS`; see `parity.faultbench.injection`.

They are written from what porters did and could do, without looking at how faults are explained.
"""

from __future__ import annotations

import importlib
from functools import lru_cache

from parity.errors import UsageError
from parity.faultbench.injection import Injection

MODULES = ("modulation", "attention", "weights", "pipeline", "unlisted", "clean")


@lru_cache(maxsize=1)
def injections() -> tuple[Injection, ...]:
    """Every fault and every other implementation, in the order of the modules."""
    found = [one for name in MODULES for one in importlib.import_module(f"{__name__}.{name}").INJECTIONS]
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"injections of the same name: {', '.join(twice)}")
    return tuple(found)


def find(name: str) -> Injection:
    """An injection by ``code:variant``; by its code alone the first of that code.

    Raises:
        UsageError: there is none.
    """
    for one in injections():
        if name in (one.name, one.code):
            return one
    known = sorted({one.code for one in injections() if one.code})
    raise UsageError(f"no fault {name!r} to plant; codes: {', '.join(known)}")
