"""Measuring golden traces: how well errors are told from sketches, and what judging a full-size dump takes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from parity import trace
from parity.errors import PreconditionError
from parity.golden import Golden, read_golden
from parity.golden_rows import row_of
from parity.imports import Imported, open_candidate
from parity.listed import listed
from parity.lockstep import Unit, chunks_of
from parity.model_folder import ModelFolder
from parity.names import Graph
from parity.ports import open_port
from parity.recording import Wanted, record_golden, record_port
from parity.sketch import sketch
from parity.stats import describe
from parity.trace import Floor
from parity.verdict import judge_row

# A change of this share of the root mean square is to be seen.
CHANGE = 1e-3


@dataclass(frozen=True)
class Accuracy:
    """What sketches tell of a port's error at every checkpoint of a case.

    Attributes:
        checkpoints: compared by sketch.
        near: at how many the RMSE is within 5 % of that of the whole values.
        furthest: largest relative difference of the two.
        seen: change -> at how many checkpoints it is no match, of those where it changes anything.
        nbytes: of the golden trace.
    """

    checkpoints: int
    near: int
    furthest: float
    seen: dict[str, tuple[int, int]]
    nbytes: int


def _rolled(axis: int) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    return lambda x, draw: np.roll(x, 1, axis)


def _single(x: np.ndarray, draw: np.random.Generator, size: float) -> np.ndarray:
    y = x.copy()
    y.reshape(-1)[draw.integers(x.size)] += size * math.sqrt(np.mean(np.square(x)))
    return y


CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "channels exchanged": _rolled(-1),
    "tokens exchanged": _rolled(-2),
    "one element, relative RMSE 10⁻³": lambda x, draw: _single(x, draw, CHANGE * math.sqrt(x.size)),
    "one element by 10⁻³ of the rms": lambda x, draw: _single(x, draw, CHANGE),
}


def accuracy(unit: Unit, model: ModelFolder, candidate: str) -> Accuracy:
    """Record a case of both sides with whole values, and hold what sketches tell against them.

    Changes are made to the port's own values, one checkpoint at a time.

    Args:
        unit: case and dtype, accumulated.
        model: its weights.
        candidate: the port.
    """
    told = lambda *_: None  # noqa: E731
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / side for side in ("golden", "port")]
        reference, wanted = open_port("reference"), Wanted(keep=("*",))
        record_golden(unit, reference, model, folders[0], wanted, told)
        record_port(unit, open_port(candidate), reference, model, folders[1], wanted, told)
        golden, port = read_golden(folders[0]), open_candidate([folders[1] / trace.TENSORS])
        found = [_told(golden, name, port) for name in golden.graph.expected if name not in golden.graph.exact]
        nbytes = sum((folders[0] / one).stat().st_size for one in (trace.MANIFEST, trace.STATS, trace.SKETCHES))
    ratios = [one for one, _ in found if one is not None]
    seen = {
        change: (sum(bool(one[change]) for one in each), len(each))
        for change in CHANGES
        for each in [[changes for _, changes in found if changes[change] is not None]]
    }
    near = sum(abs(one) <= 0.05 for one in ratios)
    return Accuracy(len(ratios), near, max(map(abs, ratios), default=0.0), seen, nbytes)


def _told(golden: Golden, name: str, port: Imported) -> tuple[float | None, dict[str, bool | None]]:
    """Relative difference of the estimated RMSE from the measured one, and which changes are no match."""
    reading = port.read(name)
    estimated, measured = row_of(golden, name, replace(reading, array=None)), row_of(golden, name, reading)
    ratio = estimated["rel_rmse"] / measured["rel_rmse"] - 1 if measured["rel_rmse"] else None
    x, changes = np.asarray(reading.array, np.float64), {}
    draw = np.random.default_rng(len(name))
    for change, made in CHANGES.items():
        y = made(x, draw) if x.ndim > 1 else x
        if np.array_equal(x, y):
            changes[change] = None
            continue
        row = row_of(golden, name, replace(reading, array=None, sketch=sketch(y, golden.spec)))
        changes[change] = judge_row(row)["verdict"] != "match"
    return ratio, changes


@dataclass(frozen=True)
class Size:
    """Of a dump that is judged.

    Attributes:
        checkpoints: how many.
        tokens, width: shape of each.
    """

    checkpoints: int = 1500
    tokens: int = 256
    width: int = 3072

    @property
    def nbytes(self) -> int:
        """Of the dump in bfloat16."""
        return 2 * self.checkpoints * self.tokens * self.width


@dataclass(frozen=True)
class Judged:
    """What one `parity compare` took, in a process of its own.

    Attributes:
        seconds: from start to exit.
        peak_bytes: largest resident size, pages of mapped files included.
        verdict: it came to.
    """

    seconds: float
    peak_bytes: int
    verdict: str


_CHILD = """\
import json, sys, time
start = time.perf_counter()
from parity import memory
from parity.cli import call
code = call(["compare", *sys.argv[1:], "--format", "json"])
print(json.dumps({"seconds": time.perf_counter() - start, "peak_bytes": memory.peak()}), file=sys.stderr)
"""


def judged(size: Size, *, right: bool) -> Judged:
    """Time `parity compare` of a bfloat16 dump against a golden trace, from random values written for it.

    Args:
        size: of the dump; so much is written to the folder for temporary files, and removed.
        right: the dump has the trace's values; else others, so that everything diverges.
    """
    with tempfile.TemporaryDirectory() as scratch:
        golden, dump = _written(size, Path(scratch), right=right)
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(golden), str(dump)],
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        lines = done.stderr.splitlines()
        if done.returncode or not lines or not lines[-1].startswith("{"):
            raise PreconditionError(f"parity compare did not finish: {lines[-1] if lines else 'it said nothing'}")
        told = json.loads(lines[-1])
        return Judged(told["seconds"], told["peak_bytes"], json.loads(done.stdout)["verdict"])


def _written(size: Size, scratch: Path, *, right: bool) -> tuple[Path, Path]:
    """A golden trace of a chain of checkpoints, and a dump."""
    names = [f"block.{i // 20:02d}.img.value{i % 20:02d}" for i in range(size.checkpoints)]
    graph = Graph(
        dict(zip(names, [(), *((name,) for name in names)], strict=False)), dict.fromkeys(names, "all"), tuple(names)
    )
    draw, made, stats, sketches, floors = np.random.default_rng(0), {}, {}, {}, {}
    for name in names:
        x = draw.standard_normal((1, size.tokens, size.width), dtype=np.float32).astype(ml_dtypes.bfloat16)
        stats[name] = vars(describe(x, chunks=chunks_of(name), distribution=False))
        sketches[name] = sketch(x)
        floors[name] = Floor(1e-3, "rounding", 1e-2, 1e-3, stats[name]["rms"])
        made[name] = x if right else x[:, ::-1]
    about = {
        "side": "golden", "case": {"name": "random"}, "case_hash": "0" * 64, "request": {}, "dtype": "bfloat16",
        "mode": "accumulated", "component": "random", "graph": listed(graph), "configs": {}, "truth": "float64",
        "weights": {"synthetic": True, "preset": "random", "path": ""}, "environment": {},
    }  # fmt: skip
    trace.write(scratch / "golden", stats, about, floors=floors, sketches=sketches)
    save_file({name: np.ascontiguousarray(x) for name, x in made.items()}, scratch / "dump.safetensors")
    return scratch / "golden", scratch / "dump.safetensors"
