"""Shared set-up. Warnings are errors (pyproject.toml)."""

import os
import tempfile

import pytest
from trace_unit import arrays, write

# An optimised BLAS only takes effect when it is in place before MLX is loaded, whichever test does that first.
import mlx_impl  # noqa: F401

# Synthetic checkpoints of the tests do not touch the user's cache; a cache given from outside is used.
os.environ.setdefault("PARITY_CACHE", os.path.join(tempfile.gettempdir(), f"parity-tests-{os.getuid()}"))


@pytest.fixture
def unit(tmp_path):
    """A unit's folder: `change(name, array)` says what the candidate has."""

    def make(change=lambda name, x: x, folder="square.float32", **about):
        right = arrays()
        wrong = {name: y for name, x in right.items() if (y := change(name, x)) is not None}
        write(tmp_path / folder / "reference", right, side="reference")
        write(tmp_path / folder / "candidate", wrong, **about)
        return tmp_path / folder

    return make
