"""The folder of one run: its plan, a journal that survives a kill, traces, ``parity.json``.

    parity.json            the only truth of a finished run
    diagnosis.json         what `parity diagnose` found
    trace/<unit>/<side>/   manifest.json and stats.parquet of each side of each unit
    trace/<unit>/          profiles.safetensors and histograms.safetensors, where any of its checkpoints is no match
    pictures/<unit>/       what pipelines made, PNG
    plots/, report.html    made from parity.json
    comparison.html        what changed since another run
    work/                  plan.json, and per unit <unit>.jsonl (one line a stage) and
                           <unit>.state.safetensors (the chains after the last stage); removed
                           when the run is finished

A stage is on disk when the state file names it: journal lines behind that are of a stage that
was cut off, and are dropped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (gives safetensors its bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from parity.disk import room_for
from parity.errors import OutputExistsError, UsageError
from parity.memory import uncollected

Chains = dict[str, dict[str, np.ndarray]]
SCHEMA = 2
OURS = ("parity.json", "diagnosis.json", "report.html", "comparison.html", "trace", "plots", "pictures", "work")


# What is the same in JSON. A run has millions of figures: these are not asked about one by one.
_PLAIN = frozenset((str, int, bool, type(None)))


def to_json(value: Any) -> Any:
    """Make a value JSON can hold: NaN and infinities become strings, floats keep 7 digits."""
    kind = type(value)
    if kind is float:
        return float(f"{value:.7g}") if isfinite(value) else str(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, dict):
        return {
            key: item if type(item) in _PLAIN
            else float(f"{item:.7g}") if type(item) is float and isfinite(item)
            else to_json(item)
            for key, item in value.items()
        }  # fmt: skip
    if isinstance(value, list | tuple):
        return [item if type(item) in _PLAIN else to_json(item) for item in value]
    if isinstance(value, np.generic):
        return to_json(value.item())
    return value


_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_TEXTS = frozenset(("name", "reason", "sentence", "sources", "prompts", "negative", "prompt"))
_SAME = frozenset((int, bool, type(None)))
_READ = _SAME | {float}


def from_json(value: Any, key: str = "") -> Any:
    """The reverse of `to_json`. Names and sentences are never taken for numbers."""
    if isinstance(value, dict):
        return {name: item if type(item) in _READ else from_json(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [item if type(item) in _READ else from_json(item, key) for item in value]
    if isinstance(value, str) and key not in _TEXTS:
        return _NUMBERS.get(value, value)
    return value


def as_read(value: Any, key: str = "") -> Any:
    """``from_json(to_json(value))`` in one go: `value` as a file will give it back."""
    if isinstance(value, dict):
        return {
            name: item if type(item) in _SAME
            else float(f"{item:.7g}") if type(item) is float and isfinite(item)
            else as_read(item, name)
            for name, item in value.items()
        }  # fmt: skip
    if isinstance(value, list | tuple):
        return [item if type(item) in _SAME else as_read(item, key) for item in value]
    return from_json(to_json(value), key)


def write_json(path: Path, value: Any) -> str:
    """Write JSON in one step: the file is there whole or not at all. Returns its `digest`."""
    with room_for(path):
        partial, text = path.with_name(path.name + ".part"), _json_text(value)
        partial.write_bytes(text)
        os.replace(partial, path)
        return hashlib.sha256(text).hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of the file that `write_json` writes."""
    return hashlib.sha256(_json_text(value)).hexdigest()


@uncollected()
def _json_text(value: Any) -> bytes:
    return (json.dumps(to_json(value), indent=None, separators=(",", ":"), allow_nan=False) + "\n").encode()


@uncollected()
def read_run(folder: Path) -> dict[str, Any]:
    """``parity.json`` of a finished run.

    Raises:
        UsageError: there is none, it is not JSON, or of a schema this version does not read.
    """
    path = folder / "parity.json" if folder.is_dir() else folder
    if not path.is_file():
        unfinished = (folder / "work" / "plan.json").is_file()
        hint = "the run is not finished; the same `parity run` resumes it" if unfinished else "expected a run folder"
        raise UsageError(f"{path}: no parity.json here; {hint}")
    try:
        run = from_json(json.loads(path.read_text()))
    except (ValueError, RecursionError) as error:
        hint = "" if path.name == "parity.json" else "; expected a run folder or its parity.json"
        raise UsageError(f"{path}: not JSON ({error}){hint}") from None
    if not isinstance(run, dict) or run.get("schema") != SCHEMA:
        found = run.get("schema") if isinstance(run, dict) else None
        raise UsageError(f"{path}: schema {found!r}, this version reads {SCHEMA}")
    return run


def check_free(path: Path, what: str, *, force: bool) -> None:
    """Refuse a folder that holds something.

    Args:
        path: of the folder.
        what: a run is in it, in words.
        force: a run may be overwritten. Files that are not of a run are never touched.

    Raises:
        OutputExistsError: something is there.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    strangers = sorted(p.name for p in path.iterdir() if p.name not in OURS) if path.is_dir() else []
    if not path.is_dir() or strangers:
        holds = f"holds {', '.join(strangers[:3])}" if strangers else "is a file"
        raise OutputExistsError(f"{path} {holds}, which no run wrote; choose another --out")
    if not force:
        raise OutputExistsError(f"{path} holds {what}; --force overwrites it, another --out keeps it")


def clear(path: Path) -> None:
    """Remove what a run wrote."""
    for name in OURS:
        target = path / name
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


class RunFolder:
    """An open run folder; see the head of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._work = path / "work"

    @classmethod
    def open(cls, path: Path, plan: Mapping[str, Any], *, force: bool = False) -> RunFolder:
        """Start a run in `path`, or take up the one with the same plan that was cut off there.

        Raises:
            OutputExistsError: something else is there, and `force` is not given (files that are
                not of a run are never touched).
        """
        folder, plan = cls(path), to_json(plan)
        if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
            found = folder._plan()
            if found == plan and not force:
                return folder
            unfinished = found is not None
            check_free(path, "an unfinished run of another plan" if unfinished else "a finished run", force=force)
            clear(path)
        with room_for(folder._work / "plan.json"):
            folder._work.mkdir(parents=True, exist_ok=True)
        write_json(folder._work / "plan.json", plan)
        return folder

    def _plan(self) -> dict[str, Any] | None:
        try:
            return json.loads((self._work / "plan.json").read_text())
        except (OSError, json.JSONDecodeError):
            return None

    def holds(self, plan: Mapping[str, Any]) -> bool:
        """Whether an unfinished run of this plan is here."""
        return self._plan() == to_json(plan)

    def resume(self, unit: str) -> tuple[list[dict[str, Any]], Chains | None]:
        """Journal lines of the stages of a unit that are done, and the chains after the last.

        Raises:
            UsageError: garbled by something else than a kill.
        """
        journal, saved = self._work / f"{unit}.jsonl", self._work / f"{unit}.state.safetensors"
        try:
            lines = journal.read_text().splitlines() if journal.is_file() else []
            chains, done = _load_chains(saved) if saved.is_file() else (None, 0)
        except (UnicodeDecodeError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise self.unreadable(journal if isinstance(error, UnicodeDecodeError) else saved, "garbled") from None
        if not saved.is_file() and (self._work / f"{unit}.done").is_file():
            done = len(lines)
        kept = lines[:done]
        if len(kept) < len(lines):
            journal.write_text("".join(line + "\n" for line in kept))
        try:
            return [from_json(json.loads(line)) for line in kept], chains
        except json.JSONDecodeError:
            raise self.unreadable(journal, "garbled") from None

    def unreadable(self, file: Path, what: str) -> UsageError:
        """What to raise where an unfinished run cannot be taken up."""
        return UsageError(f"{file}: {what}, the run cannot go on; --force begins it again, another --out keeps it")

    def is_done(self, unit: str) -> bool:
        """Whether all stages of a unit are in the journal."""
        return (self._work / f"{unit}.done").is_file()

    def stage_done(self, unit: str, entry: Mapping[str, Any], chains: Chains, done: int) -> None:
        """Put one stage on disk; once this returns, a kill does not lose it."""
        with room_for(self._work / unit):
            with (self._work / f"{unit}.jsonl").open("a") as journal:
                journal.write(json.dumps(to_json(entry), separators=(",", ":"), allow_nan=False) + "\n")
            _save_chains(self._work / f"{unit}.state.safetensors", chains, done)

    def unit_done(self, unit: str) -> None:
        """All stages of a unit are in the journal: its chains are not needed any more."""
        (self._work / f"{unit}.done").touch()
        (self._work / f"{unit}.state.safetensors").unlink(missing_ok=True)

    def finish(self, run: Mapping[str, Any]) -> Path:
        """Write ``parity.json`` and remove what was only there to survive a kill."""
        path = self.path / "parity.json"
        write_json(path, run)
        shutil.rmtree(self._work)
        return path


def _save_chains(path: Path, chains: Chains, done: int) -> None:
    flat = {f"{chain}/{key}": np.ascontiguousarray(x) for chain, state in chains.items() for key, x in state.items()}
    partial = path.with_name(path.name + ".part")
    save_file(flat, partial, {"done": str(done)})
    os.replace(partial, path)


def _load_chains(path: Path) -> tuple[Chains, int]:
    chains: Chains = {}
    with safe_open(path, framework="np") as file:
        done = int(file.metadata()["done"])
        for key in file.keys():  # noqa: SIM118  (not a mapping)
            chain, _, name = key.partition("/")
            chains.setdefault(chain, {})[name] = file.get_tensor(key)
    return chains, done
