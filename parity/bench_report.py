"""Measuring the page: its size, the time to make it, and the time until its charts are there in Chromium."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from parity import bench_rows, chromium
from parity.errors import PreconditionError

ROWS = 100_000
_BLOCKS = {"name": "transformer", "num_layers": 60, "level": "full"}
_STEPS = {
    "name": "pipeline", "kind": "text_to_image", "layers": 60, "steps": 50, "guided": True, "pictures": 0,
    "level": "block", "inside": list(range(50)),
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """A run of which the page is made.

    Attributes:
        title: what it is, in a few words.
        write: makes its folder.
        judged: `parity report` judges it again; else the page is made of it as it is.
        most_bytes, most_seconds, most_ready: limits: of the page, of making it, of milliseconds from the load event
            until it can be used; None where there is none.
    """

    title: str
    write: Callable[[Path], None]
    judged: bool = True
    most_bytes: int | None = None
    most_seconds: float | None = None
    most_ready: float | None = None


def _one_entry(folder: Path) -> None:
    names = [f"value.{i:06d}" for i in range(ROWS)]
    rows = [[name, f"stage.{i // 100:04d}", names[max(i - 1, 0) : i]] for i, name in enumerate(names)]
    bench_rows.write_run(folder, {"name": "listed", "checkpoints": rows, "expected": names}, ("isolated",))


SIZES = {
    "blocks": Size("60 blocks", lambda folder: bench_rows.write_run(folder, _BLOCKS),
                   most_bytes=3_000_000, most_seconds=5.0, most_ready=1000.0),
    "steps": Size("50 steps", lambda folder: bench_rows.write_run(folder, _STEPS, ("accumulated",)),
                  most_bytes=12_000_000, most_ready=3000.0),
    "entry": Size("one entry", _one_entry),
    "hostile": Size("hostile names", lambda folder: bench_rows.write_hostile(folder, ROWS), judged=False),
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """What one page took.

    Attributes:
        rows: checkpoints of all entries.
        nbytes: of the page.
        seconds: to make it, in a process of its own from its first line on; imports and judging again included.
        peak_bytes: that process's largest resident size.
        ready: milliseconds from the load event until the charts can be seen, median; None without Chromium.
        opened: the same from the moment at which the page is asked for.
    """

    rows: int
    nbytes: int
    seconds: float
    peak_bytes: int
    ready: float | None
    opened: float | None

    def over(self, size: Size) -> dict[str, float]:
        """What is limited, as ratios to its limit."""
        pairs = {"nbytes": size.most_bytes, "seconds": size.most_seconds, "ready": size.most_ready}
        return {
            key: value / most for key, most in pairs.items() if most and (value := getattr(self, key)) is not None
        }  # fmt: skip


_CHILD = """\
import json, sys, time
start = time.perf_counter()
from pathlib import Path
from parity import memory
from parity.cli import call
from parity.report import render_report
from parity.runfolder import read_run
folder = Path(sys.argv[2])
if sys.argv[1] == "judged":
    call(["report", str(folder), "--format", "md"])
else:
    render_report(read_run(folder), folder / "report.html", force=True)
print(json.dumps({"seconds": time.perf_counter() - start, "peak_bytes": memory.peak()}), file=sys.stderr)
"""


def made(size: Size, *, repeats: int, told: Callable[[str], None]) -> Made:
    """Write a run of this size into a temporary folder, make its page and open it.

    Args:
        size: of the run.
        repeats: how often it is opened, each time in a new Chromium.
        told: is given what is being done.
    """
    with tempfile.TemporaryDirectory(prefix="parity-report-") as scratch:
        folder = Path(scratch) / "run"
        told(f"{size.title}: writing a run")
        size.write(folder)
        told(f"{size.title}: making the page")
        took = _report(folder, "judged" if size.judged else "as it is")
        page = folder / "report.html"
        told(f"{size.title}: opening the page")
        shown = [chromium.show(page) for _ in range(repeats)] if chromium.installed() else []
        counts = json.loads((folder / "parity.json").read_bytes())["counts"]
        return Made(
            counts["expected"], page.stat().st_size, took["seconds"], took["peak_bytes"],
            median(one.painted - one.loaded for one in shown) if shown else None,
            median(one.painted for one in shown) if shown else None,
        )  # fmt: skip


def _report(folder: Path, how: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, how, str(folder)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    lines = done.stderr.splitlines()
    if done.returncode or not lines or not lines[-1].startswith("{") or not (folder / "report.html").is_file():
        raise PreconditionError(f"parity report did not finish: {lines[-1] if lines else 'it said nothing'}")
    return json.loads(lines[-1])
