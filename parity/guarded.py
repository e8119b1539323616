"""A user's own reference, watched: what it raises or leaves out becomes one line, with the place in its code.

A candidate that raises is a finding about it, and the run goes on. Without a reference there is nothing to compare
with, so here the run ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from parity import outside
from parity.errors import ParityError, PreconditionError
from parity.ports import Port, Session, State


class GuardedPort:
    """A port, as `parity.ports.Port`, whose mistakes are the user's."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self.name = getattr(port, "name", type(port).__name__)

    def open(self, weights: Path, *, dtype: str, **options: Any) -> GuardedSession:
        """See `parity.ports.Port.open`.

        Raises:
            PreconditionError: the port raised.
        """
        with _said(f"reference {self.name} does not open {weights} in {dtype}"):
            return GuardedSession(self._port.open(weights, dtype=dtype, **options), f"reference {self.name}, {dtype}")

    def precisions(self, dtype: str) -> tuple[str, ...]:
        """See `parity.ports.Port.precisions`."""
        with _said(f"reference {self.name}: precisions of {dtype}"):
            return tuple(self._port.precisions(dtype))

    def environment(self) -> dict[str, Any]:
        """See `parity.ports.Port.environment`."""
        with _said(f"reference {self.name}: environment"):
            return dict(self._port.environment())


class GuardedSession:
    """A session of it.

    Args:
        session: what is watched.
        name: for messages.
    """

    def __init__(self, session: Session, name: str) -> None:
        self._session, self._name = session, name
        self.stages: tuple[str, ...] = tuple(session.stages)

    def load(self, stage: str) -> None:
        """See `parity.ports.Session.load`.

        Raises:
            PreconditionError: it has no such stage, or raised.
        """
        if stage not in self.stages:
            raise PreconditionError(
                f"{self._name} has no stage {stage}, which the case's graph names; it has {', '.join(self.stages[:8])}"
            )
        with _said(f"{self._name}, loading {stage}"):
            self._session.load(stage)

    def free(self, stage: str) -> None:
        """See `parity.ports.Session.free`."""
        with _said(f"{self._name}, freeing {stage}"):
            self._session.free(stage)

    def run(
        self, stage: str, state: Mapping[str, np.ndarray], want: Collection[str], *, precision: str = "default"
    ) -> tuple[State, State]:
        """See `parity.ports.Session.run`.

        Raises:
            PreconditionError: it raised, or did not give what the graph expects.
        """
        with _said(f"{self._name}, stage {stage}"):
            after, values = self._session.run(stage, state, want, precision=precision)
        missing = [name for name in want if name not in values]
        if missing:
            raise PreconditionError(
                f"{self._name}, stage {stage}: {len(missing)} of the graph's {len(want)} checkpoints are not given, "
                f"the first is {missing[0]}; tap it in the reference, or take it out of the graph"
            )
        for name, array in (*after.items(), *values.items()):
            if not isinstance(array, np.ndarray):
                raise PreconditionError(
                    f"{self._name}, stage {stage}: {name} is {type(array).__name__}, expected a numpy array"
                )
        return after, values


@contextmanager
def _said(what: str) -> Iterator[None]:
    try:
        yield
    except ParityError:
        raise
    except Exception as error:
        raise PreconditionError(f"{what}: {outside.spell(error)}") from error
