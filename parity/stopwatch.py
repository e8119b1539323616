"""Timing forward passes of both sides in processes of their own.

``python -m parity.stopwatch SIDE FOLDER REPEATS PASS…`` times passes in turn and prints JSON:
pass -> list of seconds. A process of its own, because a BLAS is chosen before MLX is loaded
and the two frameworks' thread pools get in each other's way.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from parity.components.transformer import TransformerCase
from parity.errors import ParityError
from parity.names import qwen_image_transformer

CASE = TransformerCase(name="bench", seed=0, images=((256, 256),), text_tokens=(32,), timestep=0.9)
CONFIG = {
    "num_layers": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 128,
    "joint_attention_dim": 512,
    "in_channels": 64,
    "out_channels": 16,
    "axes_dims_rope": (16, 56, 56),
}
SIDES = {"torch": "reference.workload", "mlx": "mlx_impl.workload", "mflux": "mlx_impl.mflux_workload"}


def measure(
    side: str, folder: Path, passes: Sequence[str], *, repeats: int, dtype: str = "float32",
    environment: Mapping[str, str] | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of each pass, in a fresh process, passes in turn.

    Args:
        side: ``torch``, ``mlx`` or ``mflux``.
        folder: checkpoint of `CONFIG`.
        passes: of those that the side's ``workload.passes`` gives.
        repeats: timed rounds, after one that is not.
        environment: variables to set.
    """
    command = [sys.executable, "-m", "parity.stopwatch", side, str(folder), str(repeats), dtype, *passes]
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ParityError(f"timing {side} failed: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def fastest(seconds: Sequence[float]) -> float:
    """The smallest time: the one least disturbed by whatever else the machine does."""
    return min(seconds)


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Median of a over b, round by round, so that a change of the machine's speed cancels."""
    return median(x / y for x, y in zip(a, b, strict=True))


def _main(side: str, folder: str, repeats: str, dtype: str, *names: str) -> None:
    graph = qwen_image_transformer(CONFIG["num_layers"], "block")
    inputs = CASE.inputs({"transformer": CONFIG}, "float32")
    passes = importlib.import_module(SIDES[side]).passes(Path(folder), inputs, graph.expected, dtype)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(int(repeats) + 1):
        for name in names:
            start = time.perf_counter()
            passes[name]()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    print(json.dumps(seconds))


if __name__ == "__main__":
    _main(*sys.argv[1:])
