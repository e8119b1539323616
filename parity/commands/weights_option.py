"""What ``--weights`` means, the same for every command."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from parity import checkpoint as checkpoints

SYNTHETIC = "synthetic:"


def open_checkpoint(weights: str, err: Console) -> checkpoints.Checkpoint:
    """The checkpoint that was asked for, every tensor of it looked at.

    Args:
        weights: a checkpoint folder, or ``synthetic:PRESET``, made on first use.
        err: where progress and remarks go.

    Raises:
        WeightsError: it is not there, is damaged, or holds values that are not finite.
    """
    if weights.startswith(SYNTHETIC):
        from parity.commands.synth import ensure

        folder = ensure(weights.removeprefix(SYNTHETIC))
    else:
        folder = Path(weights)
    found = checkpoints.inspect(folder)
    with err.status(f"checking {found.nbytes / 2**20:,.0f} MiB of weights"):
        zero = checkpoints.check_finite(found)
    remarks = list(found.warnings)
    if zero:
        remarks.append(f"{len(zero)} tensors are all zero, the first is {zero[0]}")
    for remark in remarks:
        err.print(f"note: {remark}", markup=False)
    return found
