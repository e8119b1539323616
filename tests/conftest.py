"""Shared set-up. Warnings are errors (pyproject.toml)."""

import os
import tempfile

# An optimised BLAS only takes effect when it is in place before MLX is loaded, whichever test does that first.
import mlx_impl  # noqa: F401

# Synthetic checkpoints of the tests do not touch the user's cache; a cache given from outside is used.
os.environ.setdefault("PARITY_CACHE", os.path.join(tempfile.gettempdir(), f"parity-tests-{os.getuid()}"))
