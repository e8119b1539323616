"""The diagnosis on the page: a card for each cause, and what remains unexplained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.errors import UsageError
from parity.reporters.diagnosis import cause_lines, grouped, unexplained_lines, where

FILE = "diagnosis.json"
_SHOWN = 12
_MOST_BYTES = 32 << 20


def read(folder: Path | None) -> dict[str, Any] | None:
    """The diagnosis of a run folder; None where there is none.

    Raises:
        UsageError: the file is not one that `parity diagnose` wrote.
    """
    path = None if folder is None else folder / FILE
    if path is None or not path.is_file():
        return None
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes, expected at most {_MOST_BYTES}")
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or found.get("schema") != 1:
            raise ValueError("of another schema")
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: no diagnosis ({error}); `parity diagnose` writes it again") from None
    return found


def of_folder(folder: Path | None) -> dict[str, Any] | None:
    """`section` of a run folder's diagnosis; of a file that is none, a sentence that says so."""
    try:
        return section(read(folder))
    except UsageError as error:
        said = str(error).replace(str(folder and folder / FILE), FILE)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"{FILE}: no diagnosis ({type(error).__name__}: {error}); `parity diagnose` writes it again"
    return {"sentence": said[:300], "cards": [], "left": [], "more": 0, "notes": []}


def section(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the page says of a diagnosis; None without one.

    Returns:
        ``sentence``; ``cards`` of ``code``, ``confidence``, ``lines``; ``left`` of ``where``, ``lines``; ``more``;
        ``notes``.
    """
    if not found:
        return None
    left = grouped(found["unexplained"])
    return {
        "sentence": found["sentence"],
        "cards": [
            {"code": one["code"], "confidence": one["confidence"], "lines": list(cause_lines(one))}
            for one in found["causes"][:_SHOWN]
        ],
        "left": [{"where": where(names), "lines": list(unexplained_lines(first))} for names, first in left[:_SHOWN]],
        "more": max(0, len(found["causes"]) - _SHOWN) + max(0, len(left) - _SHOWN),
        "notes": [*found["notes"], *(f"would decide: {line}" for line in found.get("would_decide") or [])],
    }
