"""Named checkpoints in model code: ``x = tap("attn", x)``.

``tap`` is the identity. While a recorder is active it also hands the value over, under the
name made of the open scopes and its own: inside ``with scope("block.07.img")`` the call
``tap("attn", x)`` records ``block.07.img.attn``. Nothing here knows a framework, and nothing
else of the toolkit is needed in model code.

An experiment may put another value in the place of a tapped one (`changing`): that is how a
known error is planted at a known checkpoint. Recording alone never changes a value.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")


class Recorder:
    """Collects tapped values by full name, in the order they are made.

    Args:
        want: names to keep; everything when None.
        keep: applied to a value when it is tapped, and its result stored. It must not change
            the value. Statistics that stay lazy on the device go here; the default keeps the
            value itself.
    """

    def __init__(self, want: Container[str] | None = None, keep: Callable[[Any], Any] | None = None) -> None:
        self.values: dict[str, Any] = {}
        self._want = want
        self._keep = keep

    def record(self, name: str, value: Any) -> None:
        """Store one value.

        Raises:
            ValueError: a second value under a name, which would hide the first.
        """
        if self._want is not None and name not in self._want:
            return
        if name in self.values:
            raise ValueError(f"checkpoint {name!r} was tapped twice in one recording")
        self.values[name] = value if self._keep is None else self._keep(value)


# One pair per thread and task: (recorder, open prefix). None when nobody records.
_active: ContextVar[tuple[Recorder, str] | None] = ContextVar("parity_tap", default=None)
_changes: ContextVar[Mapping[str, Callable[[Any], Any]] | None] = ContextVar("parity_changes", default=None)


def tap(name: str, value: T) -> T:
    """Return `value` unchanged; hand it to the active recorder, if there is one."""
    active = _active.get()
    if active is None:
        return value
    recorder, prefix = active
    changes = _changes.get()
    if changes is not None and prefix + name in changes:
        value = changes[prefix + name](value)
    recorder.record(prefix + name, value)
    return value


def current() -> str:
    """The open scopes as they stand before a name tapped here, ``block.07.img.``; empty while nobody records."""
    active = _active.get()
    return "" if active is None else active[1]


def recorder() -> Recorder | None:
    """The active recorder, None while nobody records."""
    active = _active.get()
    return None if active is None else active[0]


class scope:
    """Context manager that puts ``prefix.`` before the names tapped inside it. Scopes nest."""

    __slots__ = ("_prefix", "_token")

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._token = None

    def __enter__(self) -> None:
        active = _active.get()
        if active is not None:
            self._token = _active.set((active[0], f"{active[1]}{self._prefix}."))

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _active.reset(self._token)
            self._token = None


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Make `recorder` the active one; scopes opened outside do not reach inside."""
    token = _active.set((recorder, ""))
    try:
        yield recorder
    finally:
        _active.reset(token)


@contextmanager
def changing(changes: Mapping[str, Callable[[Any], Any]]) -> Iterator[None]:
    """Put ``changes[name](value)`` in the place of the values tapped under these names.

    Works on models that use what ``tap`` returns, while a recorder is active; the recorder sees
    the changed value. Module hooks cannot be changed this way.
    """
    token = _changes.set(changes)
    try:
        yield
    finally:
        _changes.reset(token)
