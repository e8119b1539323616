"""Checkpoints in somebody else's modules, from outside: ``parity.instrument(model, {path pattern: names})``.

Works on any tree with the interface of ``mlx.nn.Module`` (``named_modules()``); nothing is imported of it and
nothing in it is edited. An instrumented module is the same object with the same contents, of a subclass that
hands values to `parity.tap` while somebody records; otherwise it only asks whether anybody does.
"""

from __future__ import annotations

import difflib
import inspect
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from parity.errors import UsageError
from parity.tap import Recorder, current, recorder, tap

# None (not named) | a template | a tuple, list or mapping of these | a function of the value that gives a mapping
# from template to value.
Names = Any

_MARK = "_parity_instrumented"
_METHOD = re.compile(r"(?:(?P<path>.*)\.)?(?P<method>\w+)\(\)")
_FIELD = re.compile(r"\{(\w+)\}")
_CALL = "call"


@dataclass(frozen=True)
class Call:
    """What is named of a call, where it is more than what it returns.

    Attributes:
        returns: names of what it returns.
        takes: names of its arguments, by parameter.
    """

    returns: Names = None
    takes: Mapping[str, Names] = field(default_factory=dict)


class Instrumented:
    """What `instrument` gives: undo it with `remove`, or use it as a context manager.

    Attributes:
        names: names that are known beforehand, in no particular order; not those with ``{call}`` nor those that
            a function gives.
    """

    def __init__(self, hooks: list[_Hook]) -> None:
        self._hooks = hooks
        self.names = tuple(name for hook in hooks for name in hook.names())
        for hook in hooks:
            hook.attach()

    def missing(self, record: Recorder) -> tuple[str, ...]:
        """Those of `names` that a recording lacks: their modules were not called, or under ``mx.compile``.

        Args:
            record: of everything, without scopes.
        """
        return tuple(name for name in self.names if name not in record.values)

    def remove(self) -> None:
        """Make the modules what they were. A second time does nothing."""
        while self._hooks:
            self._hooks.pop().detach()

    def __enter__(self) -> Instrumented:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def instrument(module: Any, names: Mapping[str, Names | Call], prefix: str = "") -> Instrumented:
    """Tap calls of the modules of a tree.

    A pattern is a module's path as ``named_modules()`` gives it, with a field for each part that varies:
    ``transformer_blocks.{n}.attn``. The empty path is the tree itself; ``….attn.project()`` is another method
    than the call. A name is a template with the pattern's fields, ``block.{n:02}.img.attn``, where ``{call}``
    counts the calls of one module within a recording and scope. A returned tuple or dictionary takes a tuple or
    mapping of names; None leaves a part out; a function takes the value and gives {template: value}, for what has
    to be sliced or reshaped first. `Call` names arguments.

    Args:
        module: the tree.
        names: pattern -> names.
        prefix: scope of all names; with ``block.07`` the name ``attn`` becomes ``block.07.attn``.

    Raises:
        UsageError: a pattern matches nothing or what another matches too, a template has unknown fields, two
            paths have one name, a method or parameter does not exist, a module is instrumented already. While
            recording: a second call without ``{call}``, a value that has another form than its names, or a call
            inside ``mx.compile``, which has no values.
    """
    listing = getattr(module, "named_modules", None)
    if listing is None or isinstance(module, type):
        raise UsageError(
            f"instrument: {type(module).__name__} has no named_modules(); expected an object like mlx.nn.Module "
            "(of a function made by mx.compile, the module itself, called without compile)"
        )
    tree = dict(listing())
    hooks: dict[tuple[int, str], _Hook] = {}
    for pattern, wanted in names.items():
        call = wanted if isinstance(wanted, Call) else Call(wanted)
        for hook in _matches(tree, pattern, call, f"{prefix}." if prefix else ""):
            other = hooks.setdefault((id(hook.module), hook.method), hook)
            if other is not hook:
                raise UsageError(f"instrument: {other.path!r} and {hook.path!r} ({pattern!r}) are one module")
    _check_names(hooks.values())
    return Instrumented(list(hooks.values()))


@dataclass(eq=False)
class _Hook:
    """One method of one module, tapped."""

    module: Any
    path: str
    method: str
    call: Call
    fields: Mapping[str, Any]
    prefix: str
    seen: bool = False
    calls: WeakKeyDictionary[Recorder, Counter[str]] = field(default_factory=WeakKeyDictionary)

    def __post_init__(self) -> None:
        self.where = f"{self.path or 'the module'}{'' if self.method == '__call__' else f'.{self.method}()'}"
        plain = inspect.getattr_static(type(self.module), self.method, None)
        if plain is None or isinstance(plain, staticmethod | classmethod | property):
            raise UsageError(f"instrument: {self.where}: {type(self.module).__name__} has no such method of instances")
        self.signature = inspect.signature(getattr(type(self.module), self.method))
        known = list(self.signature.parameters)[1:]
        if strangers := [name for name in self.call.takes if name not in known]:
            raise UsageError(f"instrument: {self.where} has no parameter {strangers[0]!r}; it has {', '.join(known)}")
        for template in (self.call.returns, *self.call.takes.values()):
            self._format(template)

    def names(self) -> Iterator[str]:
        """The names that are known before a call."""
        for wanted in (*self.call.takes.values(), self.call.returns):
            yield from self._format(wanted)

    def attach(self) -> None:
        """Give the module a subclass of its class, or add to the one it has from another method's hook."""
        cls, hook = type(self.module), self

        def tapped(module: Any, *args: Any, **kwargs: Any) -> Any:
            record = recorder()
            if record is None:
                return getattr(hook.original, hook.method)(module, *args, **kwargs)
            return hook.recorded(record, module, args, kwargs)

        if _MARK not in vars(cls):
            body = {_MARK: cls, "__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
            cls = type(cls)(cls.__name__, (cls,), body)
            self.module.__class__ = cls
        self.original = getattr(cls, _MARK)
        setattr(cls, self.method, tapped)

    def detach(self) -> None:
        """Give the module its class back, unless somebody gave it another one since."""
        if _MARK in vars(type(self.module)):
            self.module.__class__ = self.original

    def recorded(self, record: Recorder, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call, with everything tapped that has a name."""
        counts = self.calls.setdefault(record, Counter())
        index = counts[current()]
        counts[current()] += 1
        keep = partial(self._keep, record, index)
        if self.call.takes:
            bound = self.signature.bind(module, *args, **kwargs)
            for parameter, wanted in self.call.takes.items():
                if parameter in bound.arguments:
                    given = bound.arguments[parameter]
                    bound.arguments[parameter] = _visit(given, wanted, keep, f"{parameter} of {self.where}")
            _, *args = bound.args
            kwargs = bound.kwargs
        result = getattr(self.original, self.method)(module, *args, **kwargs)
        result = _visit(result, self.call.returns, keep, f"what {self.where} returns")
        self.seen = True
        return result

    def _keep(self, record: Recorder, index: int, template: str, value: Any) -> Any:
        name = self.prefix + template.format_map({**self.fields, _CALL: index})
        if current() + name in record.values:
            raise UsageError(
                f"instrument: {self.where} gives checkpoint {name!r} a second time in one recording "
                f"(call {index + 1}): put {{call}} into its name, or open a scope for each pass"
            )
        if not self.seen:
            _check_untraced(value, self.where)
        return tap(name, value)

    def _format(self, wanted: Names) -> Iterator[str]:
        found = []
        for template in _templates(wanted):
            fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
            try:
                name = template.format_map({**self.fields, _CALL: 0})
            except (KeyError, ValueError, IndexError, AttributeError):
                known = ", ".join(f"{{{name}}}" for name in (*self.fields, _CALL))
                raise UsageError(
                    f"instrument: name {template!r} of {self.where} cannot be filled in; its pattern gives {known}"
                ) from None
            if _CALL not in fields:
                found.append(self.prefix + name)
        return iter(found)


def _matches(tree: Mapping[str, Any], pattern: str, call: Call, prefix: str) -> Iterator[_Hook]:
    """Hooks of the modules whose paths a pattern matches.

    Raises:
        UsageError: there are none.
    """
    as_method = _METHOD.fullmatch(pattern)
    path, method = (as_method["path"] or "", as_method["method"]) if as_method else (pattern, "__call__")
    matcher, found = _compiled(path), False
    for name, module in sorted(tree.items()):
        if match := matcher.fullmatch(name):
            found = True
            fields = {key: int(text) if text.isdecimal() else text for key, text in match.groupdict().items()}
            yield _Hook(module, name, method, call, fields, prefix)
    if not found:
        general = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "{n}", name) for name in tree if name)
        near = difflib.get_close_matches(re.sub(r"\{\w+\}", "{n}", path), general, n=3, cutoff=0.4) or list(general)[:3]
        raise UsageError(f"instrument: no module matches {pattern!r}; nearest paths: {', '.join(near) or 'none'}")


def _compiled(path: str) -> re.Pattern[str]:
    """A pattern's regular expression; a field that comes twice stands for the same text."""
    seen: set[str] = set()

    def of_field(name: str) -> str:
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return rf"(?P<{name}>[^.]+)"

    # Texts and names of fields in turn.
    parts = _FIELD.split(path)
    texts = [of_field(part) if i % 2 else re.escape(part) for i, part in enumerate(parts)]
    try:
        return re.compile("".join(texts))
    except re.error as error:
        raise UsageError(f"instrument: pattern {path!r}: {error}") from None


def _check_names(hooks: Any) -> None:
    """Refuse one name for two paths, and modules that are instrumented already."""
    of: dict[str, str] = {}
    for hook in hooks:
        if _MARK in vars(type(hook.module)):
            raise UsageError(f"instrument: {hook.where} is instrumented already; remove() that first")
        for name in hook.names():
            if of.setdefault(name, hook.where) != hook.where or list(hook.names()).count(name) > 1:
                raise UsageError(f"instrument: {of[name]} and {hook.where} both give checkpoint {name!r}")


def _templates(wanted: Names) -> Iterator[str]:
    """All templates of a value's names; a function's are not known before it is called."""
    if isinstance(wanted, str):
        yield wanted
    elif isinstance(wanted, Mapping | tuple | list):
        for one in wanted.values() if isinstance(wanted, Mapping) else wanted:
            yield from _templates(one)
    elif wanted is not None and not callable(wanted):
        raise UsageError(f"instrument: {wanted!r} names nothing: expected a string, a tuple, a mapping or a function")


def _visit(value: Any, wanted: Names, keep: Callable[[str, Any], Any], where: str) -> Any:
    """Tap a value, or the parts of it, and give it back; a new one only where an experiment changed a part."""
    if wanted is None or value is None:
        return value
    if isinstance(wanted, str):
        if not (hasattr(value, "shape") and hasattr(value, "dtype")):
            raise UsageError(
                f"instrument: {where} is a {type(value).__name__} and no array: name its parts (one name: {wanted!r})"
            )
        return keep(wanted, value)
    if isinstance(wanted, tuple | list):
        if not isinstance(value, tuple | list) or len(value) != len(wanted):
            found = f"{len(value)} values" if isinstance(value, tuple | list) else f"a {type(value).__name__}"
            raise UsageError(f"instrument: {where}: {len(wanted)} names for {found}")
        parts = [_visit(part, name, keep, where) for part, name in zip(value, wanted, strict=True)]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    if isinstance(wanted, Mapping):
        return _visit_parts(value, wanted, keep, where)
    for template, part in wanted(value).items():
        keep(template, part)
    return value


def _visit_parts(value: Any, wanted: Mapping[str, Names], keep: Callable[[str, Any], Any], where: str) -> Any:
    """Entries of a dictionary, or attributes of an object."""
    is_mapping = isinstance(value, Mapping)
    entries = value if is_mapping else {key: getattr(value, key) for key in wanted if hasattr(value, key)}
    if strangers := [key for key in wanted if key not in entries]:
        raise UsageError(f"instrument: {where}: a {type(value).__name__} without {strangers[0]!r}")
    parts = {key: _visit(entries[key], name, keep, where) for key, name in wanted.items()}
    changed = {key: part for key, part in parts.items() if part is not entries[key]}
    return {**value, **changed} if changed and is_mapping else value


def _check_untraced(value: Any, where: str) -> None:
    """Refuse what stands for a value while MLX traces a function: it never gets one."""
    mlx = sys.modules.get("mlx.core")
    if mlx is None or not isinstance(value, mlx.array):
        return
    try:
        mlx.eval(value)
    except ValueError as error:
        if "transformation" not in str(error):
            raise
        raise UsageError(
            f"instrument: {where} is called inside mx.compile or another function transformation and has no value "
            "there; record with the plain module, or after mx.disable_compile()"
        ) from None
