"""``parity synth``: make a synthetic checkpoint, or find the cached one."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from parity.disk import free_on, room_for
from parity.errors import OutputExistsError, ParityError, ResourceError, UsageError

if TYPE_CHECKING:
    from reference.presets import Preset

# Beside the tensors: headers, index, and what a file system rounds up.
SPARE_BYTES = 16 << 20


def synth(
    preset: Annotated[
        str,
        Parameter(
            help="tiny: 60 narrow blocks, 90 MB; small: 6 of them; tiny-edit, small-edit: the same to edit with; "
            "wide: full width, few layers, 3 GB; full: 60 blocks at full width, 43 GB, made in minutes"
        ),
    ],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="folder to make; default a cached one")] = None,
    seed: Annotated[int, Parameter(help="of the weights")] = 0,
    force: Annotated[bool, Parameter(negative=(), help="make it again where it is already")] = False,
) -> int:
    """Make a synthetic model: random weights with the activation ranges of the real one.

    A whole folder as diffusers writes it, with text encoder, tokenizer, VAE and scheduler. Prints
    the documented range that each checkpoint of the transformer was fitted to, the range it has on
    the calibration case, and the folder as the last line. $PARITY_CACHE moves the cache.
    """
    chosen = _preset(preset)
    folder = ensure(preset, seed, force=force) if out is None else make(chosen, seed, out, force=force)
    _print_table(achieved(folder))
    print(folder)
    return 0


def ensure(preset: str, seed: int = 0, *, force: bool = False) -> Path:
    """The cached checkpoint of a preset, made on first use.

    Two processes may call it at once: each makes its own, and the first to finish is kept.

    Args:
        preset: name of a preset.
        seed: of the weights.
        force: make it again.

    Returns:
        a folder with ``transformer`` in it, below ``$PARITY_CACHE`` or ``~/.cache/parity``.

    Raises:
        UsageError: no such preset.
        ResourceError: not enough room on the disk.
    """
    from reference.presets import FORMAT

    chosen = _preset(preset)
    folder = _cache() / "synth" / f"{preset}-s{seed}-v{FORMAT}"
    if _is_synthetic(folder) and not force:
        return folder
    try:
        return make(chosen, seed, folder, force=force)
    except OutputExistsError:
        if not _is_synthetic(folder):
            raise
        return folder


def make(preset: Preset, seed: int, folder: Path, *, force: bool = False) -> Path:
    """Make a checkpoint in `folder`; until it is whole, it is in a temporary folder beside it.

    Raises:
        OutputExistsError: the folder is there and is not empty. With `force` a synthetic
            checkpoint is replaced; anything else is never touched.
        ResourceError: not enough room on the disk.
    """
    from reference.calibration import misses
    from reference.synthetic import write

    folder = folder.absolute()
    _check_absent(folder, force)
    with room_for(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_room(folder.parent, preset)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            with _progress(f"making {preset.name}", preset.num_layers + 4) as tell:
                missed = misses(write(preset, seed, temporary, tell))
            if missed:
                raise ParityError(f"synthetic weights {preset.name!r}, seed {seed}, miss the documented ranges", missed)
            temporary.chmod(0o755)
            _publish(temporary, folder, force)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def achieved(folder: Path) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each documented row, as measured when the checkpoint was made."""
    from reference.presets import SYNTHETIC

    ranges: Mapping[str, list[float]] = json.loads((folder / "transformer" / SYNTHETIC).read_text())["achieved"]
    return {row: (low, high) for row, (low, high) in ranges.items()}


def _preset(name: str) -> Preset:
    from reference.presets import PRESETS

    if name not in PRESETS:
        raise UsageError(f"no synthetic preset {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]


def _cache() -> Path:
    if chosen := os.environ.get("PARITY_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parity"


def _is_synthetic(folder: Path) -> bool:
    from reference.presets import SYNTHETIC

    return (folder / "transformer" / SYNTHETIC).is_file()


def _check_absent(folder: Path, force: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not _is_synthetic(folder):
        raise OutputExistsError(f"{folder} is there and is not a synthetic checkpoint; choose another --out")
    if not force:
        raise OutputExistsError(f"{folder} is already there; give --force to make it again")


def _check_room(parent: Path, preset: Preset) -> None:
    needed, free = preset.nbytes + preset.other_bytes + SPARE_BYTES, free_on(parent)
    if free < needed:
        raise ResourceError(
            f"no room for synthetic weights {preset.name!r} in {parent}: {needed / 1e6:,.0f} MB needed, "
            f"{free / 1e6:,.0f} MB free; free some or choose another --out"
        )


def _publish(temporary: Path, folder: Path, force: bool) -> None:
    """Put the finished folder in its place in one step.

    Raises:
        OutputExistsError: somebody else was first.
    """
    if force and folder.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        folder.rename(aside)
        try:
            temporary.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return
    try:
        temporary.rename(folder)
    except OSError:
        _check_absent(folder, force=False)
        raise


@contextmanager
def _progress(what: str, stages: int) -> Iterator[Callable[[str], None]]:
    """One bar on stderr; the function given is told each stage before it is made."""
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[stage]}"), TimeElapsedColumn()
    begun = itertools.count()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=stages, stage="")
        yield lambda stage: bar.update(task, completed=next(begun), stage=stage)


def _print_table(found: Mapping[str, tuple[float, float]]) -> None:
    from reference.calibration import TARGETS

    print(f"{'checkpoint':<27}{'target':>25}{'synthetic':>26}")
    for row, target in TARGETS.items():
        print(f"{row:<27}{_range(target):>25}{_range(found[row]):>26}")


def _range(ends: tuple[float, float]) -> str:
    low, high = (f"{end:,.0f}" if abs(end) >= 1000 else f"{end:.4g}" for end in ends)
    return f"{low} … {high}"
