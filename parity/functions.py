"""Two functions on arrays held against each other, as a model of one stage.

A function takes a dictionary of numpy arrays and gives one, or one array, which is then called
``output``. The reference is called on the inputs in float64 (the truth), in the run's dtype, and on inputs
moved by one unit in the last place (the floor); the candidate once.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from parity import listed, result
from parity.components.base import DTYPES, Case, Configs, State
from parity.errors import UsageError
from parity.lockstep import Lockstep, Unit
from parity.ports import environment
from parity.rounding import round_state
from parity.safetensors_header import shown

Function = Callable[[dict[str, np.ndarray]], Any]
STAGE, COMPONENT, ALONE = "call", "functions", "output"


@dataclass(frozen=True, kw_only=True)
class FunctionCase(Case):
    """What two functions are called on.

    Attributes:
        arrays: the inputs in the run's dtype.
        described: of the graph.
    """

    component: ClassVar[str] = COMPONENT
    folders: ClassVar[tuple[str, ...]] = ()

    arrays: Mapping[str, np.ndarray]
    described: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """Names, dtypes and shapes of the inputs."""
        return {key: f"{x.dtype.name} {list(x.shape)}" for key, x in self.arrays.items()} | {"seed": self.seed}

    def inputs(self, configs: Configs, dtype: str) -> State:
        """The arrays themselves."""
        return dict(self.arrays)

    def graph(self, configs: Configs, level: str) -> dict[str, Any]:
        """What the reference gave, in its order."""
        return dict(self.described)


class FunctionPort:
    """A function as a port of one stage, ``call``.

    Attributes:
        given: names of what the last call gave.

    Args:
        function: see the head of the file.
        name: ``reference`` or ``candidate``.
        expected: of the reference: name -> the truth, which is not computed a second time; what the function
            gives in the other dtypes must have the same names and shapes.
    """

    def __init__(self, function: Function, name: str, expected: State | None = None) -> None:
        self.function, self.name, self.expected = function, name, expected
        self.given: tuple[str, ...] = ()

    def open(
        self, weights: Path, *, dtype: str, hold: str | None = None, component: str = COMPONENT
    ) -> FunctionSession:
        """A session; there are no weights."""
        return FunctionSession(self, dtype, truth=hold is not None)

    def precisions(self, dtype: str) -> tuple[str, ...]:
        """One: nothing is known of the others."""
        return ("default",)

    def environment(self) -> dict[str, Any]:
        """Which function it is."""
        return {"function": spell(self.function)}


class FunctionSession:
    """A function in one dtype; see `parity.ports.Session`."""

    stages = (STAGE,)

    def __init__(self, port: FunctionPort, dtype: str, *, truth: bool) -> None:
        self._port, self._dtype, self._truth = port, dtype, truth

    def load(self, stage: str) -> None:
        """There are no weights."""

    def free(self, stage: str) -> None:
        """There are no weights."""

    def run(
        self, stage: str, state: Mapping[str, np.ndarray], want: Collection[str], *, precision: str = "default"
    ) -> tuple[State, State]:
        """Call the function.

        Raises:
            UsageError: a reference that gives other names or shapes than in the truth's dtype.
        """
        expected = self._port.expected
        if self._truth and expected is not None:
            return {}, expected
        found = call(self._port.function, state, self._port.name)
        self._port.given = tuple(found)
        if expected is not None:
            _check_same(found, expected, self._dtype)
        return {}, {name: found[name] for name in want if name in found}


def spell(function: Any) -> str:
    """``package.module.function``, as reports name it."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', type(function).__module__)}.{name}"


def call(function: Function, state: Mapping[str, np.ndarray], who: str) -> State:
    """What a function gives on copies of the arrays, by name, in copies of its own.

    Raises:
        UsageError: it gives nothing that is an array by name.
    """
    given = function({key: x.copy() for key, x in state.items()})
    return named(given if isinstance(given, Mapping) else {ALONE: given}, f"{who} {spell(function)}")


def named(values: Mapping[str, Any], who: str) -> State:
    """Arrays by name, copied.

    Raises:
        UsageError: one of them is none.
    """
    return {str(name): _array(value, f"{who}: {shown(str(name))}") for name, value in values.items()}


def _array(value: Any, where: str) -> np.ndarray:
    try:
        array = np.array(value)
    except Exception as error:
        raise UsageError(
            f"{where} is a {type(value).__name__} that numpy does not read ({type(error).__name__}); expected a numpy "
            "array, bfloat16 as ml_dtypes.bfloat16 or widened to float32"
        ) from error
    if array.dtype != ml_dtypes.bfloat16 and array.dtype.kind not in "fiub":
        raise UsageError(f"{where} is an array of {array.dtype}; expected real numbers")
    return array


def _check_same(found: State, expected: State, dtype: str) -> None:
    """The reference must give in every dtype what it gives in the truth's."""
    for name, truth in expected.items():
        if name not in found:
            raise UsageError(f"the reference gives {shown(name)} in {truth.dtype}, and not in {dtype}")
        if found[name].shape != truth.shape:
            raise UsageError(
                f"the reference's {shown(name)} has shape {truth.shape} in {truth.dtype}, "
                f"and {found[name].shape} in {dtype}"
            )


def compare(
    candidate: Function,
    reference: Function,
    inputs: Mapping[str, Any],
    *,
    dtype: str = "float32",
    truth: str = "float64",
    parents: Mapping[str, Sequence[str]] | None = None,
    draws: int = 3,
    seed: int = 0,
    name: str = "functions",
    command: str = "",
) -> result.Run:
    """Hold a function against another one.

    Args:
        candidate, reference: see the head of the file.
        inputs: arrays by name; floating ones are rounded to `dtype`.
        dtype: ``float32``, ``bfloat16`` or ``float16``: what both are called in.
        truth: what the reference is called in once more, on the same numbers.
        parents: checkpoint -> those it is computed from; each from the one before it where this is None.
        draws: calls of the reference on moved inputs.
        seed: of these.
        name: of the case.
        command: for the report.

    Returns:
        a dictionary of the schema of ``parity.json``.

    Raises:
        UsageError: inputs or results that are no arrays, or a reference that does not compute in `truth`.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    arrays = _inputs(inputs, dtype)
    exact = call(reference, round_state(arrays, np.dtype(truth)), "reference")
    _check_truth(exact, truth)
    described = _described(exact, parents)
    case = FunctionCase(name=name, seed=seed, arrays=arrays, described=described)
    unit = Unit(case, dtype, ("accumulated",), listed.build(described), draws, truth)
    ports = (FunctionPort(reference, "reference", exact), FunctionPort(candidate, "candidate"))
    lockstep = Lockstep(unit, *ports, Path())
    _, found = lockstep.run(STAGE, lockstep.start(arrays))
    entry = {
        "name": name, "mode": "accumulated", "dtype": dtype, "component": COMPONENT, "graph": described,
        "inputs": case.describe(), "request": {}, "amplification": None, "pictures": [],
        "checkpoints": found.rows["accumulated"],
    }  # fmt: skip
    about = {
        "weights": {"path": "", "synthetic": False, "preset": None},
        "environment": {port.name: environment(port) for port in ports},
        "suite": COMPONENT,
        "notes": _notes(ports[1].given, exact),
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 3),
        "resources": {},
    }
    return result.assemble([entry], about, None)


def _notes(given: Collection[str], expected: State) -> list[str]:
    """What the candidate gives and nobody asked for: often a name that is spelled otherwise."""
    strangers = [shown(name) for name in given if name not in expected]
    return [f"the candidate also gives {', '.join(strangers[:6])}"] if strangers else []


def _inputs(inputs: Mapping[str, Any], dtype: str) -> State:
    if dtype not in DTYPES:
        raise UsageError(f"no dtype {shown(str(dtype))}; known: {', '.join(DTYPES)}")
    if not isinstance(inputs, Mapping) or not inputs:
        raise UsageError("inputs: expected a dictionary of arrays by name")
    arrays = {str(key): _array(value, f"input {shown(str(key))}") for key, value in inputs.items()}
    return {key: x if x.dtype.kind in "iub" else x.astype(DTYPES[dtype]) for key, x in arrays.items()}


def _check_truth(exact: State, truth: str) -> None:
    """A reference that computes in less than it is asked to would be its own truth, with no noise at all."""
    for name, x in exact.items():
        if x.size == 0:
            raise UsageError(f"the reference's {shown(name)} has no elements (shape {x.shape}): nothing to compare")
        if x.dtype.kind not in "iub" and x.dtype != truth:
            raise UsageError(
                f"the reference gives {shown(name)} in {x.dtype} where its inputs are {truth}: the truth needs it to "
                "compute in the dtype of its inputs"
            )


def _described(exact: State, parents: Mapping[str, Sequence[str]] | None) -> dict[str, Any]:
    names = list(exact)
    if not names:
        raise UsageError("the reference gives nothing")
    if parents is None:
        parents = {name: [before] for before, name in itertools.pairwise(names)}
    strangers = [name for name in parents if name not in exact]
    if strangers:
        raise UsageError(
            f"parents: {shown(str(strangers[0]))} is nothing that the reference gives ({', '.join(names)})"
        )
    described = {
        "name": listed.NAME,
        "checkpoints": [[name, STAGE, list(parents.get(name, []))] for name in names],
        "expected": names,
        "exact": [name for name, x in exact.items() if x.dtype.kind in "iub"],
        "pictures": [],
    }
    try:
        listed.build(described)
    except ValueError as error:
        raise UsageError(f"what the reference gives, or parents: {error}") from None
    return described
