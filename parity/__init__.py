"""parity: numerical parity between a PyTorch model and its MLX port."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

# What users import from here, loaded when it is asked for.
_LAZY = {"instrument": "parity.instrumentation", "Call": "parity.instrumentation"}


def __getattr__(name: str) -> Any:
    """Load one of the public names."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
