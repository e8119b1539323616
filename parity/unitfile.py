"""Files beside the two sides of a unit's traces: a list of rows in the metadata, their figures in tensors.

Run folders come from elsewhere: what is read of them is checked before it is used, and a file that is not what it
should be is one line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from parity.errors import UsageError, WeightsError
from parity.safetensors_header import Shard, json_object, read_header, shown

T = TypeVar("T")


def unit_file(folder: Path, unit: str, name: str) -> Path | None:
    """A file beside the two sides of a unit of a run folder; None where it is not there.

    Raises:
        UsageError: it is outside of the folder.
    """
    # A case may be called anything; one from elsewhere must not lead out of the folder.
    leads_out = unit in ("", ".", "..") or any(one in unit for one in "/\\\0")
    if leads_out or len(unit.encode("utf-8", "replace")) > 240:
        return None
    path = folder / "trace" / unit / name
    if not path.is_file():
        return None
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"trace/{shown(unit)}/{name}: leads out of the run folder")
    return path


def read_unit(folder: Path, unit: str, name: str, read: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    """What `read` makes of a file of a unit; empty where the run has none.

    Raises:
        UsageError: it cannot be read, or `read` raised `ValueError` or `WeightsError`.
    """
    path = unit_file(folder, unit, name)
    if path is None:
        return {}
    label = f"trace/{shown(unit)}/{name}"
    try:
        return read(path)
    except OSError as error:
        raise UsageError(f"{label}: cannot be read: {error.strerror}") from None
    except WeightsError as error:
        raise UsageError(f"trace/{shown(unit)}/{error}", error.details) from None
    except ValueError as error:
        raise UsageError(f"{label}: {error}") from None


def listed_rows(
    path: Path, key: str, problem: Callable[[Any], str | None], *, most: int, most_bytes: int
) -> tuple[Shard, list[Any]]:  # fmt: skip
    """Header of a file, and the rows that its metadata list.

    Args:
        path: of the safetensors file.
        key: of the metadata: JSON, ``{"rows": […]}``.
        problem: what is wrong with a row, None or empty where nothing is.
        most: so many rows at most.
        most_bytes: so large a file at most.

    Raises:
        ValueError: too large, no such list, or a row that is not right.
        WeightsError: no safetensors file.
    """
    size = path.stat().st_size
    if size > most_bytes:
        raise ValueError(f"{size} bytes, against a limit of {most_bytes}")
    shard = read_header(path)
    if key not in shard.metadata:
        raise ValueError(f"its metadata have no {key}")
    rows = json_object(shard.metadata[key].encode("utf-8", "replace")).get("rows")
    if not isinstance(rows, list) or len(rows) > most:
        raise ValueError(f"{key} has no list of at most {most} rows")
    for row in rows:
        if wrong := problem(row):
            raise ValueError(f"a row {shown(row)}: {wrong}")
    return shard, rows
