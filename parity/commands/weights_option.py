"""What ``--weights`` means, the same for every command."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console

from parity import model_folder

SYNTHETIC = "synthetic:"


def find_model(weights: str) -> Path:
    """The folder that ``--weights`` means.

    Args:
        weights: a model's folder, or ``synthetic:PRESET``, made on first use.
    """
    if not weights.startswith(SYNTHETIC):
        return Path(weights)
    from parity.commands.synth import ensure

    return ensure(weights.removeprefix(SYNTHETIC))


def open_model(
    weights: str,
    folders: Iterable[str],
    err: Console,
    *,
    later: Callable[[model_folder.ModelFolder], bool] | None = None,
) -> model_folder.ModelFolder:
    """The model that was asked for, every tensor of it looked at.

    Args:
        weights: as for `find_model`.
        folders: the components that are needed.
        err: where progress and remarks go.
        later: whether the values of an inspected model will be looked at by whoever reads them.

    Raises:
        WeightsError: it is not there, is damaged, or holds values that are not finite.
    """
    found = model_folder.inspect(find_model(weights), folders)
    if later is not None and later(found):
        zero: tuple[str, ...] = ()
    else:
        with err.status(f"checking {found.nbytes / 2**20:,.0f} MiB of weights"):
            zero = found.check_finite()
    remarks = list(found.warnings)
    if zero:
        remarks.append(f"{len(zero)} tensors are all zero, the first is {zero[0]}")
    for remark in remarks:
        err.print(f"note: {remark}", markup=False)
    return found
