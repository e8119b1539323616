"""Units in processes of their own: small models leave most cores idle otherwise.

Each worker takes units from a queue and journals them as the parent would; the parent only
listens. A worker whose parent is gone stops after the stage in hand, so that a killed run can
be taken up again.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from typing import Any

from parity.errors import ParityError

# Read when a numerics library is loaded. OpenBLAS, MKL and torch's OpenMP each have their own.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
POLL_SECONDS = 2.0

# A task: yields what its worker tells the parent.
Task = Callable[[], Iterator[Any]]


def usable_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(tasks: list[Task], jobs: int, told: Callable[[Any], None]) -> None:
    """Run picklable tasks in `jobs` processes, and hand on what they yield.

    Raises:
        ParityError: one a task raised, or that a worker died.
    """
    context = get_context("spawn")
    waiting, heard = context.SimpleQueue(), context.Queue()
    for index in [*range(len(tasks)), *[None] * jobs]:  # indices only: a pipe that nobody reads yet holds 64 KiB
        waiting.put(index)
    with _threads(max(1, usable_cores() // jobs)):
        arguments = (tasks, waiting, heard, os.getpid())
        workers = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(jobs)]
        for worker in workers:
            worker.start()
    try:
        left = len(tasks)
        while left:
            kind, value = _hear(heard, workers)
            if kind == "raised":
                raise value
            if kind == "done":
                left -= 1
            else:
                told(value)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _hear(heard: Any, workers: list[Any]) -> tuple[str, Any]:
    """The next message; a worker that ended without one is an error, even where others go on."""
    while True:
        codes = [worker.exitcode for worker in workers]
        dead = [code for code in codes if code]
        with suppress(queue.Empty):
            if not dead:
                return pickle.loads(heard.get(timeout=POLL_SECONDS))
        if dead or None not in codes:
            raise ParityError(
                f"a worker process died (exit code {max(dead, key=abs, default=0)}; -9 is mostly a lack of memory); "
                "the same command resumes the run, --jobs 1 needs less memory"
            )


def _work(tasks: list[Task], waiting: Any, heard: Any, parent: int) -> None:
    """Body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, which gets it as well, ends its workers

    def tell(kind: str, value: Any = None) -> None:
        heard.put(pickle.dumps((kind, value)))

    while (index := waiting.get()) is not None:
        try:
            for value in tasks[index]():
                if os.getppid() != parent:
                    return
                tell("told", value)
            tell("done")
        except ParityError as error:
            tell("raised", error)
        except (Exception, SystemExit):
            tell("raised", ParityError("a worker failed:", traceback.format_exc().splitlines()))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Numerics libraries of processes started in the body use that many threads, unless the user said."""
    ours = [name for name in THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(ours, str(count)))
    try:
        yield
    finally:
        for name in ours:
            with suppress(KeyError):
                del os.environ[name]
