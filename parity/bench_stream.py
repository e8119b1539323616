"""Measuring comparisons of models that do not fit into memory: peak, time, and how far from the machine's limits."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity import estimate
from parity import suite as suites
from parity.components import build_graph
from parity.errors import (
    EXIT_DIVERGENCE,
    EXIT_INCOMPLETE,
    EXIT_PARITY,
    EXIT_PRECONDITION,
    EXIT_USAGE,
    ParityError,
    PreconditionError,
    UsageError,
)
from parity.lockstep import Unit
from parity.model_folder import ModelFolder

_SUITE = """\
title = "One picture of {size} × {size}, block by block"
weights = "synthetic:full"
detail = "block"
draws = {draws}

[[case]]
name = "square-{size}"
images = [[{size}, {size}]]
text_tokens = [64]
timestep = 0.9
seed = 0
dtypes = ["{dtype}"]
modes = ["isolated", "accumulated"]
"""


@dataclass(frozen=True)
class Setting:
    """What one streamed run compares.

    Attributes:
        size: of the picture, pixels each way.
        dtype: of the run.
        truth: dtype of the truth.
        draws: jittered runs of the floor.
    """

    size: int
    dtype: str
    truth: str
    draws: int


@dataclass(frozen=True)
class Streamed:
    """One streamed run.

    Attributes:
        verdict, worst: of the run; largest excess of both modes.
        compared, expected: checkpoints.
        peak_bytes, expected_bytes: largest resident size, measured and estimated.
        seconds: of the whole command, from start to exit.
        expected_seconds: estimated before it.
        spent: seconds by what they were spent on, as ``resources.spent`` of ``parity.json``.
        arithmetic: seconds that bare matrix products of the same size would take on this machine.
        reading: seconds that reading the weights once would take.
    """

    setting: Setting
    verdict: str
    worst: float
    compared: int
    expected: int
    peak_bytes: int
    expected_bytes: int
    seconds: float
    expected_seconds: float | None
    spent: Mapping[str, float]
    arithmetic: float
    reading: float


def run(setting: Setting, weights: Path, model: ModelFolder, candidate: str) -> Streamed:
    """Run ``parity run`` in a process of its own and read what it wrote.

    Args:
        setting: what to compare.
        weights: the model's folder.
        model: the same, inspected.
        candidate: the port under test.

    Raises:
        UsageError: no picture has that size.
        ParityError: the command failed, with the exit code of its error; a divergence is no failure.
    """
    with tempfile.TemporaryDirectory(prefix="parity-bench-") as folder:
        suite = Path(folder) / "stream.toml"
        suite.write_text(_SUITE.format(size=setting.size, dtype=setting.dtype, draws=setting.draws))
        unit, level = _unit(suite, model, setting.truth)
        rates = estimate.measure_rates(model)
        out = Path(folder) / "run"
        command = [sys.executable, "-c", "from parity.cli import main; main()", "run", str(suite)]
        command += ["--weights", str(weights), "--candidate", candidate, "--truth", setting.truth, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode not in (EXIT_PARITY, EXIT_DIVERGENCE, EXIT_INCOMPLETE):
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            kind = {EXIT_USAGE: UsageError, EXIT_PRECONDITION: PreconditionError}.get(done.returncode, ParityError)
            raise kind(f"the streamed run failed: {said[-1].removeprefix('error: ')}", said[-10:-1])
        found = json.loads((out / "parity.json").read_text())
    return _streamed(setting, found, unit, level, model, rates)


def _unit(suite: Path, model: ModelFolder, truth: str) -> tuple[Unit, str]:
    planned = suites.load(str(suite)).cases[0]
    graph = build_graph(planned.case.graph(model.configs, planned.detail))
    return Unit(planned.case, planned.dtypes[0], planned.modes, graph, planned.draws, truth), planned.detail


def _streamed(
    setting: Setting, found: Mapping[str, Any], unit: Unit, level: str, model: ModelFolder, rates: estimate.Rates
) -> Streamed:
    before = estimate.estimate(unit, model, level, rates)
    excess = [row["excess"] for case in found["cases"] for row in case["checkpoints"] if row["excess"] is not None]
    return Streamed(
        setting=setting,
        verdict=found["verdict"],
        worst=max(excess, default=float("nan")),
        compared=found["counts"]["compared"],
        expected=found["counts"]["expected"],
        peak_bytes=found["resources"]["peak_bytes"],
        expected_bytes=before.peak_bytes,
        seconds=found["seconds"],
        expected_seconds=before.seconds,
        spent=found["resources"]["spent"],
        arithmetic=estimate.arithmetic(unit, model, level, rates),
        reading=model.nbytes / rates.read,
    )
