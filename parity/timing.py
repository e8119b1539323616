"""Where a run's time goes: each side's loading and computing, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from parity.ports import Session, State


class Clock:
    """Seconds by what they were spent on, since the last `take`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Add the body's duration to `what`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[what] = self._seconds.get(what, 0.0) + time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The seconds so far; begins anew."""
        taken, self._seconds = self._seconds, {}
        return taken


class Timed:
    """A session whose loading and computing are clocked as ``SIDE.load`` and ``SIDE.run``."""

    def __init__(self, session: Session, side: str, clock: Clock) -> None:
        self._session, self._side, self._clock = session, side, clock
        self.stages = session.stages

    def load(self, stage: str) -> None:
        """See `parity.ports.Session.load`."""
        with self._clock.on(f"{self._side}.load"):
            self._session.load(stage)

    def free(self, stage: str) -> None:
        """See `parity.ports.Session.free`."""
        with self._clock.on(f"{self._side}.load"):
            self._session.free(stage)

    def run(
        self, stage: str, state: Mapping[str, np.ndarray], want: Collection[str], *, precision: str = "default"
    ) -> tuple[State, State]:
        """See `parity.ports.Session.run`."""
        with self._clock.on(f"{self._side}.run"):
            return self._session.run(stage, state, want, precision=precision)
