"""Run folders of any size for measuring the page: seeded rows and traces with the look of real ones, without a model.

In the second half of an entry what comes behind each attention is off: the page then has all that it can show of
checkpoints that are no match.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity import profiles, trace
from parity.components import build_graph
from parity.names import Graph, parse
from parity.rangetable import RangeTable
from parity.result import assemble
from parity.runfolder import write_json
from parity.stats import describe

MODES = ("isolated", "accumulated")
HOSTILE = "</script><img src=x onerror=alert(1)>\"'`&amp;\u202egnp.exe\u2066$x^{2$"
# Half-widths of what a block makes; the residual grows from the one to the other.
_WIDTHS = {"mod": 118.0, "normed": 9.0, "modulated": 62.0, "attn": 96.0, "ffn": 24500.0}
_RESIDUAL = (1.9e6, 46e6)
_TOKENS, _CHANNELS = 96, 160
_NOISE, _FLOAT32_MAX = 6e-8, 3.4028234663852886e38
# Checkpoints of a trace whose arrays are drawn; the page shows no more of an entry.
_PROFILED = 640


def write_run(folder: Path, graph: Mapping[str, Any], modes: Sequence[str] = MODES, *, case: str = "square") -> None:
    """Write the run folder of one case in float32: ``parity.json`` and both traces with histograms and profiles.

    Args:
        folder: where to; its parent is there.
        graph: as a case describes it.
        modes: an entry each.
        case: its name, and the unit's.
    """
    built, draw = build_graph(graph), random.Random(0)
    component = "pipeline" if graph["name"] == "pipeline" else "transformer"
    cases = [
        {
            "name": case, "component": component, "mode": mode, "dtype": "float32", "graph": dict(graph),
            "inputs": {"batch": 1, "image_tokens": 1024, "text_tokens": 64, "seed": 0},
            "amplification": dict.fromkeys(built.stages, 1.0) if mode == "accumulated" else None,
            "checkpoints": list(_rows(built, draw, grown=mode == "accumulated")),
        }
        for mode in modes
    ]  # fmt: skip
    about = {
        "weights": {"path": "", "synthetic": True, "preset": "rows", "layout": "diffusers", "pipeline": "",
                    "tensors": 0, "parameters": 0, "configs": {}},
        "environment": {"reference": {}, "candidate": {}, "host": {}},
        "suite": "rows", "command": "parity bench report", "started": "2026-01-01T00:00:00Z", "seconds": 0.0,
        "resources": {"peak_bytes": 0, "spent": {}},
    }  # fmt: skip
    folder.mkdir()
    write_json(folder / "parity.json", assemble(cases, about, RangeTable.load("qwen-image")))
    _write_traces(folder / "trace" / f"{case}.float32", built, modes)


def write_hostile(folder: Path, count: int) -> None:
    """Write a run of `count` rows whose names are markup, quotes and marks of direction; it has no graph."""
    draw = random.Random(0)
    rows = [_row(f"{HOSTILE}.{i}", HOSTILE, draw, 1.0, off=i % 100 == 0) for i in range(count)]
    for i, row in enumerate(rows):
        verdict = "diverged" if i % 100 == 0 else "match"
        row |= {"verdict": verdict, "excess": row["rel_rmse"] / row["floor"], "peak_excess": 1.0, "reason": HOSTILE,
                "source": verdict == "diverged", "propagated": False, "range": None}  # fmt: skip
    off = sum(row["source"] for row in rows)
    counts = {"expected": count, "compared": count, "match": count - off, "suspect": 0, "diverged": off,
              "uncertain": 0, "missing": 0, "skipped": 0}  # fmt: skip
    entry = {
        "name": HOSTILE, "component": HOSTILE, "mode": "isolated", "dtype": "float32", "graph": {"name": HOSTILE},
        "verdict": "divergence", "counts": counts, "inputs": {}, "amplification": None, "checkpoints": rows,
        "sources": [row["name"] for row in rows if row["source"]],
    }  # fmt: skip
    run = {
        "schema": 2, "verdict": "divergence", "sentence": HOSTILE, "counts": counts,
        "first_divergence": {"case": HOSTILE, "mode": "isolated", "dtype": "float32", "checkpoint": rows[0]["name"]},
        "weights": {"path": HOSTILE, "synthetic": True, "preset": HOSTILE, "layout": HOSTILE, "pipeline": HOSTILE,
                    "tensors": 0, "parameters": 0, "configs": {HOSTILE: {HOSTILE: HOSTILE}}},
        "environment": {"reference": {HOSTILE: HOSTILE}, "candidate": {}, "host": {}},
        "thresholds": {"match": 3.0, "suspect": 10.0}, "cases": [entry],
        "suite": HOSTILE, "command": HOSTILE, "started": HOSTILE, "seconds": 0.0, "resources": None,
    }  # fmt: skip
    folder.mkdir()
    write_json(folder / "parity.json", run)


def _rows(graph: Graph, draw: random.Random, *, grown: bool) -> Iterator[dict[str, Any]]:
    """Rows as a run measures them."""
    half = len(graph.expected) // 2
    last = max((parse(name).block or 0 for name in graph.expected), default=0) or 1
    for place, name in enumerate(graph.expected):
        parts = parse(name)
        along = (parts.block or 0) / last
        width = _WIDTHS.get(parts.kind, 20.0)
        if parts.kind in ("mid", "out"):
            width = _RESIDUAL[0] * (_RESIDUAL[1] / _RESIDUAL[0]) ** along
        off = place > half and parts.kind in ("attn", "mid", "ffn", "out", "noise_pred", "latents")
        row = _row(name, graph.stage[name], draw, width, off=off, worse=1 + 4 * along * grown)
        if name in graph.exact:
            row |= {"floor": 0.0, "floor_by": "exact", "rel_rmse": 0.0, "peak": 0.0, "peak_floor": 0.0,
                    "mismatches": 0, "worst": None}  # fmt: skip
        yield row


def _row(name: str, stage: str, draw: random.Random, width: float, *, off: bool, worse: float = 1.0) -> dict[str, Any]:
    floor = _NOISE * worse * draw.uniform(0.6, 2.0)
    error = floor * (draw.uniform(20, 300) if off else math.exp(draw.gauss(-0.2, 0.25)))
    low, high = -width * draw.uniform(0.75, 1.0), width * draw.uniform(0.9, 1.0)
    std, mean = width * draw.uniform(0.1, 0.2), width * draw.gauss(0, 0.01)
    rms, absmax = math.hypot(mean, std), max(-low, high)
    stats = {"min": low, "max": high, "mean": mean, "std": std, "rms": rms, "absmax": absmax, "nan": 0,
             "headroom": _FLOAT32_MAX / absmax, "inf": 0}  # fmt: skip
    shape = [1, _TOKENS, _CHANNELS]
    peak = error * rms * draw.uniform(4, 9)
    element = [0, draw.randrange(_TOKENS), draw.randrange(_CHANNELS)]
    return {
        "name": name, "stage": stage, "status": "measured", "shape": shape, "expected_shape": shape,
        "dtype": "float32", "mismatches": None, "rel_rmse": error, "floor": floor,
        "floor_by": draw.choice(("rounding", "jitter", "precision:math")), "precision": floor, "peak": peak,
        "peak_floor": floor * rms * 6, "rmse": error * rms * 1.2, "max_abs": peak * 1.1, "max_at": element,
        "cosine": 1 - error**2 / 2, "psnr": -20 * math.log10(error), "reference": stats,
        "candidate": {key: value if key in ("nan", "inf") else value * (1 + error * draw.uniform(-9, 9))
                      for key, value in stats.items()},
        "worst": [[element, low * draw.random(), high * draw.random()] for _ in range(5)] if off else None,
    }  # fmt: skip


def _write_traces(place: Path, graph: Graph, modes: Sequence[str]) -> None:
    draw, half = np.random.default_rng(0), len(graph.expected) // 2
    names = graph.expected[half : half + _PROFILED]
    stats: dict[str, dict[str, Any]] = {}
    axes: dict[str, list[profiles.Packed]] = {}
    for name in names:
        x = draw.standard_normal((1, _TOKENS, _CHANNELS)) * draw.lognormal(0, 1, _CHANNELS)
        stats[name] = vars(describe(x.astype(np.float32), distribution=True))
        axes[name] = [one.packed() for one in profiles.measure(x * (1 + 1e-5 * draw.standard_normal(x.shape)), x)]
    for side in ("reference", "candidate"):
        trace.write(place / side, stats, {"side": side, "mode": modes[-1]})
    profiles.write(place, [dict.fromkeys(modes, axes)])
