"""What a user names from outside: components and ports as ``package.module:attribute``.

Imported is only what the command line, or a suite file given there, says; never what a run folder says. What code
from outside raises becomes one line for the user, with the place in that code.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from parity.components import COMPONENTS, build_graph
from parity.components.base import DTYPES, Case, Configs, State
from parity.errors import ParityError, UsageError
from parity.names import Graph
from parity.rounding import CONSTANT
from parity.runfolder import to_json

_SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)
_COMPONENT = re.compile(r"[a-z][a-z0-9_\-]{0,49}", re.ASCII)
_HERE = str(Path(__file__).parent)


def look_in(folder: Path) -> None:
    """Find modules of this folder from now on, behind those that are installed; worker processes do so too."""
    if str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))


def load(spec: str, what: str) -> Any:
    """The object that ``package.module:attribute`` names; the working directory is looked in as well.

    Args:
        spec: what to import.
        what: for messages: ``suite mine.toml, component``.

    Raises:
        UsageError: no such module or attribute, or the module raised.
    """
    if not _SPEC.fullmatch(spec):
        raise UsageError(f"{what} {spec!r}: expected package.module:attribute")
    look_in(Path.cwd())
    module, _, attribute = spec.partition(":")
    try:
        found = importlib.import_module(module)
    except ParityError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{what} {spec!r}: importing {module} raised {spell(error)}") from error
    if not hasattr(found, attribute):
        raise UsageError(f"{what} {spec!r}: module {module} has no {attribute}")
    return getattr(found, attribute)


def spell(error: BaseException) -> str:
    """An exception in one line: type, message, and the last place outside of the toolkit and of installed packages."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith((_HERE, "<")) and "site-packages" not in f.filename]
    place = f" at {Path(theirs[-1].filename).name}:{theirs[-1].lineno}" if theirs else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" at {Path(error.filename).name}:{error.lineno}"
    message = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    return f"{type(error).__name__}: {message[:300]}{place}"


def case_class(spec: str, where: str) -> type[Case]:
    """The class of a component from outside.

    Args:
        spec: ``package.module:CaseClass``.
        where: which suite and case say so.

    Raises:
        UsageError: it cannot be imported, or is no class of cases.
    """
    kind = load(spec, f"{where}: component")
    if not (inspect.isclass(kind) and issubclass(kind, Case)):
        raise UsageError(f"{where}: component {spec!r} is no subclass of parity.components.base.Case")
    left = sorted(getattr(kind, "__abstractmethods__", ()))
    if left:
        raise UsageError(f"{where}: component {spec!r} lacks {', '.join(left)}")
    name, folders = getattr(kind, "component", None), getattr(kind, "folders", None)
    if not isinstance(name, str) or not _COMPONENT.fullmatch(name) or name in COMPONENTS:
        raise UsageError(
            f"{where}: component {spec!r} calls itself {name!r}; expected a word of its own, not one of "
            f"{', '.join(COMPONENTS)}"
        )
    if not isinstance(folders, tuple) or not all(map(_is_inside, (*folders, *kind.files))):
        raise UsageError(f"{where}: component {spec!r}: folders and files are tuples of relative paths")
    return kind


def _is_inside(path: Any) -> bool:
    """Whether a relative path stays where it begins."""
    return isinstance(path, str) and path != "" and not path.startswith("/") and ".." not in PurePosixPath(path).parts


def _ask(case: Case, method: str, *arguments: Any) -> Any:
    try:
        return getattr(case, method)(*arguments)
    except ParityError:
        raise
    except Exception as error:
        if type(case).__module__.startswith("parity."):
            raise
        raise UsageError(f"case {case.name!r}: {type(case).__name__}.{method} raised {spell(error)}") from error


def describe(case: Case) -> dict[str, Any]:
    """`Case.describe`, checked.

    Raises:
        UsageError: it raised, or gave nothing that JSON can hold.
    """
    described = to_json(_ask(case, "describe"))
    if not isinstance(described, dict) or not _is_json(described):
        raise UsageError(f"case {case.name!r}: {type(case).__name__}.describe gave no dictionary of JSON values")
    return described


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | int | float)


def graph(case: Case, configs: Configs, level: str) -> tuple[dict[str, Any], Graph]:
    """`Case.graph`, as described and built.

    Raises:
        UsageError: it raised, or describes none.
    """
    described = _ask(case, "graph", configs, level)
    if type(case).__module__.startswith("parity."):
        return described, build_graph(described)
    try:
        return described, build_graph(described)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"case {case.name!r}: {type(case).__name__}.graph describes no graph: {error}") from None


def inputs(case: Case, configs: Configs, dtype: str) -> State:
    """`Case.inputs`, checked.

    Raises:
        UsageError: it raised, or gave something that is no array a state can hold.
    """
    state = _ask(case, "inputs", configs, dtype)
    if not isinstance(state, Mapping) or not state:
        raise UsageError(f"case {case.name!r}: {type(case).__name__}.inputs gave no arrays by name")
    for key, array in state.items():
        # Tables and noise levels are constants of a model, in a dtype of their own.
        free = key.startswith(CONSTANT)
        right = isinstance(array, np.ndarray) and (free or array.dtype == DTYPES[dtype] or array.dtype.kind in "iub")
        if not right:
            found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise UsageError(
                f"case {case.name!r}: input {key!r} is {found}, expected a numpy array of {dtype}, integers or bool"
            )
    return dict(state)
