"""What relates a candidate's value to what the reference makes of its parents, nearest first."""

from __future__ import annotations

from typing import Any

from parity.diagnosis.evidence import Local, Stage


def fingerprint(one: Local, stage: Stage) -> list[dict[str, Any]]:
    """Relations, each ``relation`` (a sentence) and ``residual`` (relative RMSE that it leaves)."""
    return []
