"""Operations replayed by another Python interpreter, with another version of MLX.

    check(op, arrays, [MlxReplay(), Elsewhere(Path("~/mlx-0.31/bin/python").expanduser())])

The other interpreter needs numpy and MLX, and nothing of parity: it runs ``mlx_impl/replay.py`` as a file, in a
temporary folder, and calls and results pass as .npz files without pickles. Whatever interpreter is named is run, as
any program that a user names.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from parity.errors import UsageError
from parity.safetensors_header import printable

SCRIPT = Path(__file__).resolve().parents[2] / "mlx_impl" / "replay.py"
SECONDS = 900
# Runs a file without putting its folder on the path, where modules of mlx_impl would hide others of their names.
_START = "import runpy, sys; path = sys.argv.pop(1); runpy.run_path(path, run_name='__main__')"


class Elsewhere:
    """A backend in another interpreter.

    Args:
        python: the interpreter.
        script: what it runs; answers as ``mlx_impl.replay.main`` does.

    Raises:
        UsageError: there is no such program, or it cannot replay: no numpy, no MLX, other answers.
    """

    package = "mlx"

    def __init__(self, python: Path, script: Path = SCRIPT) -> None:
        self.python, self.script = python, script
        about, _ = self._ask([])
        self.version, self._devices = str(about["version"]), tuple(map(str, about["devices"]))

    def devices(self) -> tuple[str, ...]:
        """Its devices, the default one first."""
        return self._devices

    def run(self, calls: Sequence[Mapping[str, Any]]) -> list[np.ndarray | str]:
        """See ``mlx_impl.replay.MlxReplay.run``; all calls are computed by one process."""
        about, arrays = self._ask(calls)
        failed = about.get("failed", {})
        return [arrays[str(i)] if str(i) in arrays else str(failed.get(str(i), "no answer")) for i in range(len(calls))]

    def _ask(self, calls: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        with tempfile.TemporaryDirectory(prefix="parity-replay-") as folder:
            request, answer = Path(folder) / "request.npz", Path(folder) / "answer.npz"
            np.savez(request, **_packed(calls))
            command = [str(self.python), "-c", _START, str(self.script), str(request), str(answer)]
            try:
                done = subprocess.run(
                    command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
                )
            except OSError as error:
                raise UsageError(f"--python {self.python}: cannot be run: {error.strerror}") from None
            except subprocess.TimeoutExpired:
                raise UsageError(f"--python {self.python}: no answer within {SECONDS} s") from None
            if done.returncode != 0 or not answer.is_file():
                last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                raise UsageError(
                    f"--python {self.python}: cannot replay: {printable(last)[:200]}; it needs numpy and mlx"
                )
            try:
                with np.load(answer, allow_pickle=False) as file:
                    about = json.loads(bytes(file["about"]).decode())
                    return about, {name: file[name] for name in file.files if name != "about"}
            except (OSError, ValueError, KeyError) as error:
                raise UsageError(f"--python {self.python}: garbled answer ({error})") from None


def _packed(calls: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Calls as arrays of a file; an array that several calls share is written once."""
    stored: dict[str, np.ndarray] = {}
    names: dict[int, str] = {}
    described = []
    for call in calls:
        entries = {}
        for name, array in call["arrays"].items():
            if id(array) not in names:
                names[id(array)] = f"a{len(names)}"
                stored[names[id(array)]] = _plain(array)
            entries[name] = names[id(array)]
        described.append({**call, "arrays": entries})
    return {"calls": np.frombuffer(json.dumps(described).encode(), np.uint8), **stored}


def _plain(array: np.ndarray) -> np.ndarray:
    """An array that any numpy reads: bfloat16 and float64 as float32."""
    wide = array.dtype == ml_dtypes.bfloat16 or array.dtype == np.float64
    return np.ascontiguousarray(array, np.float32 if wide else None)
