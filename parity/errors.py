"""The error tree. Every error a user can cause has an exit code and a message of one line.

    ParityError                 3   something the toolkit should have handled
    ├── UsageError              2   the command line, a suite or a case file is wrong
    │   └── OutputExistsError   2   the output is already there and --force was not given
    └── PreconditionError       4   something the run needs is not there
        ├── WeightsError        4   a checkpoint is missing, damaged or not the right one
        ├── MissingPackageError 4   a package is not installed
        └── ResourceError       4   disk or memory is not enough

A message says what, where, expected against found, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_PARITY = 0
EXIT_DIVERGENCE = 1
EXIT_USAGE = 2
EXIT_INTERNAL = 3
EXIT_PRECONDITION = 4
EXIT_INCOMPLETE = 5


class ParityError(Exception):
    """Base of all errors the toolkit raises on purpose.

    Args:
        message: one line: what is wrong, where, expected against found, what to do.
        details: further lines (all missing tensors, say), printed below the message.
    """

    exit_code = EXIT_INTERNAL

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message, tuple(details))  # both, so that a pickled error is whole
        self.message = message
        self.details = tuple(details)

    def __str__(self) -> str:
        return self.message


class UsageError(ParityError):
    """The command line, a suite or a case file is wrong."""

    exit_code = EXIT_USAGE


class OutputExistsError(UsageError):
    """The output is already there and ``--force`` was not given."""


class PreconditionError(ParityError):
    """Something the run needs is not there."""

    exit_code = EXIT_PRECONDITION


class WeightsError(PreconditionError):
    """A checkpoint is missing, damaged or not the right one."""


class MissingPackageError(PreconditionError):
    """A package that the command needs is not installed."""


class ResourceError(PreconditionError):
    """Disk or memory is not enough."""
