"""Seeded `parity.json` dicts for the tests of what renders one (docs/parity-json.md).

The figures have the shape of real runs: a residual that grows from ±2 M to ±46 M, a float32
error of 1e-7, a bfloat16 error of 1e-2 that grows in accumulated mode.
"""

from __future__ import annotations

import copy
import math
import random

from parity.names import Parts, parse, qwen_image_transformer

VERDICTS = ("match", "suspect", "diverged", "uncertain", "missing", "skipped")
HOSTILE = "</script><img src=x onerror=alert(1)>\"'`&amp;\u202egnp.exe\u2066$x^{2$\x00"
THRESHOLDS = {"match": 3.0, "suspect": 10.0, "peak_match": 12.0, "peak_suspect": 40.0, "uncertain": 0.3}

BEFORE_ATTENTION = ("mod", "normed", "modulated", "q", "k", "v")
EPSILON = {"float32": 6e-8, "bfloat16": 4e-3, "float16": 5e-4}
LARGEST = {"float32": 3.4e38, "bfloat16": 3.39e38, "float16": 65504.0}
# Half-widths of the activations, and the documented rows of the guide.
SCALE = {
    "img_in": 15, "txt_in": 24, "normed": 9, "mod": 118, "modulated": 62, "q": 14, "k": 16, "v": 21,
    "attn": 96, "mid": 900, "normed2": 12, "modulated2": 75, "ffn": 24500, "final": 4.3, "norm_out": 18,
}  # fmt: skip
DOCUMENTED = {
    "img_in": ("After img_in", -15, 16), "normed": ("img_normed", -9, 9), "mod": ("scale/shift", -132, 112),
    "modulated": ("img_modulated", -70, 55), "attn": ("img_attn_out", -90, 120), "ffn": ("img_mlp_out", -25e3, 26e3),
    "norm_out": ("After norm_out", -21, 13), "final": ("Final output", -4.5, 4.5),
}  # fmt: skip


def clean(*, blocks=60, level="full", cases=("square",), dtypes=("float32", "bfloat16"), seed=0) -> dict:
    """A run at parity: every case in every dtype, isolated and accumulated."""
    draw = random.Random(seed)
    names = qwen_image_transformer(blocks, level)
    entries = [
        {
            "name": case, "mode": mode, "dtype": dtype, "verdict": "parity", "counts": {}, "sources": [],
            "inputs": {"batch": 1, "image_tokens": 256, "text_tokens": 32, "img_shapes": [[1, 16, 16]],
                       "timestep": [0.9], "seed": seed},
            "amplification": {s: draw.uniform(0.8, 1.3) for s in names.stages} if mode == "accumulated" else None,
            "checkpoints": [_row(draw, n, names.stage[n], blocks, dtype, mode) for n in names.expected],
        }
        for case in cases for dtype in dtypes for mode in ("isolated", "accumulated")
    ]  # fmt: skip
    run = {
        "schema": 2, "verdict": "parity", "sentence": "", "counts": {}, "first_divergence": None, "cases": entries,
        "weights": {"path": "synth/tiny", "synthetic": True, "preset": "tiny", "layout": "diffusers",
                    "tensors": 1933, "parameters": 4_718_592, "configs": {"transformer": {"num_layers": blocks}}},
        "environment": {
            "reference": {"torch": "2.13.0", "diffusers": "0.42.1", "device": "cpu"},
            "candidate": {"mlx": "0.32.4", "device": "gpu", "tf32": False},
            "host": {"platform": "macOS-15.5-arm64", "memory_gb": 64},
        },
        "thresholds": dict(THRESHOLDS), "command": "parity run transformer --dtype float32 --dtype bfloat16",
        "suite": "transformer", "started": "2026-01-02T03:04:05Z", "seconds": 81.4,
    }  # fmt: skip
    return settle(run)


def diverged(**options) -> dict:
    """Attention is wrong in every block from 07 on: a source in each, the rest propagated."""
    run = clean(**options)
    start = min(7, max(parse(row["name"]).block or 0 for row in run["cases"][0]["checkpoints"]) // 2)
    for case in run["cases"]:
        for row in case["checkpoints"]:
            parts = parse(row["name"])
            if parts.block is None or parts.block < start or parts.kind in BEFORE_ATTENTION:
                continue
            source = parts.kind == "attn"
            if not source and case["mode"] == "isolated" and parts.stream == "txt":
                continue
            factor = 240.0 if source else 45.0 / (1 + 0.1 * (parts.block - start))
            _judge(row, row["floor"] * factor, source=source)
        case["sources"] = [row["name"] for row in case["checkpoints"] if row["source"]]
    return settle(run)


def incomplete(**options) -> dict:
    """Block 1 was not produced on the text side, one floor is too high, one checkpoint was skipped."""
    run = clean(**options)
    for case in run["cases"]:
        for row in case["checkpoints"]:
            parts = parse(row["name"])
            if (parts.block, parts.stream) == (1, "txt"):
                _blank(row, "missing", "the candidate did not produce it")
            elif parts == Parts("ffn", 0, "img"):
                row.update(verdict="uncertain", floor=0.41, floor_by="precision:tf32", excess=None,
                           reason="floor 0.41 is over 0.3")  # fmt: skip
            elif row["name"] == "norm_out":
                _blank(row, "skipped", "left out with --skip norm_out")
            elif parts.kind == "v" or row["name"] == "temb":
                _judge(row, row["floor"] * 4.2)
    return settle(run)


def nonfinite(**options) -> dict:
    """The candidate overflows in the last block; the floor itself is infinite at one checkpoint."""
    run = clean(**options)
    for case in run["cases"]:
        last = max(parse(row["name"]).block or 0 for row in case["checkpoints"])
        for row in case["checkpoints"]:
            parts = parse(row["name"])
            if parts.block == last and parts.kind in ("ffn", "out"):
                row.update(rel_rmse="nan", excess=None, peak_excess=None, rmse="nan", max_abs="inf", cosine="nan",
                           psnr="-inf", verdict="diverged", source=parts.kind == "ffn",
                           propagated=parts.kind == "out",
                           reason="12 values are not finite where the reference's are")  # fmt: skip
                row["candidate"].update(min="-inf", max="inf", mean="nan", std="nan", rms="nan", absmax="inf", nan=12)
                if row["range"]:
                    row["range"].update(verdict="outside", factor="inf")
            elif parts.kind == "mid" and parts.block == 0:
                row.update(floor="inf", excess=None, verdict="uncertain", reason="the reference is not finite")
        case["sources"] = [row["name"] for row in case["checkpoints"] if row["source"]]
    return settle(run)


def hostile(**options) -> dict:
    """Text from elsewhere in every place that holds text: markup, quotes, right-to-left marks, mathtext."""
    run = diverged(**options)
    for key in ("suite", "command", "started"):
        run[key] = f"{key} {HOSTILE}"
    run["weights"] |= {"path": HOSTILE, "preset": HOSTILE, "layout": HOSTILE, "configs": {HOSTILE: {HOSTILE: HOSTILE}}}
    run["environment"]["host"][HOSTILE] = {HOSTILE: [HOSTILE, 1]}
    for case in run["cases"]:
        case["name"] += HOSTILE
        for row in case["checkpoints"][:3] + case["checkpoints"][-2:]:
            row.update(name=row["name"] + HOSTILE, stage=HOSTILE, reason=HOSTILE, floor_by=HOSTILE)
            _judge(row, row["floor"] * 99, source=True)
        case["sources"] = [row["name"] for row in case["checkpoints"] if row["source"]]
    run = settle(run)
    run["sentence"] += HOSTILE
    return run


def settle(run: dict) -> dict:
    """Counts, verdicts, the first divergence and the sentence, from the rows."""
    run = copy.deepcopy(run)
    for case in run["cases"]:
        verdicts = [row["verdict"] for row in case["checkpoints"]]
        counts = {v: verdicts.count(v) for v in VERDICTS}
        absent = counts["missing"] + counts["skipped"] + counts["uncertain"]
        case["counts"] = {"expected": len(verdicts), "compared": len(verdicts) - absent, **counts}
        case["verdict"] = "divergence" if counts["diverged"] else "incomplete" if absent else "parity"
    keys = run["cases"][0]["counts"]
    run["counts"] = {key: sum(case["counts"][key] for case in run["cases"]) for key in keys}
    order = ("divergence", "incomplete", "parity")
    run["verdict"] = min((case["verdict"] for case in run["cases"]), key=order.index)
    run["first_divergence"] = next(
        ({k: case[k2] for k, k2 in (("case", "name"), ("mode", "mode"), ("dtype", "dtype"))}
         | {"checkpoint": case["sources"][0]} for case in run["cases"] if case["sources"]), None,
    )  # fmt: skip
    first = run["first_divergence"]
    run["sentence"] = {
        "parity": f"All {run['counts']['compared']:,} checkpoints agree with the reference to its own rounding.",
        "divergence": f"The port first departs from the reference at {first and first['checkpoint']}.",
        "incomplete": f"{run['counts']['expected'] - run['counts']['compared']} checkpoints were not compared.",
    }[run["verdict"]]
    return run


def _row(draw: random.Random, name: str, stage: str, blocks: int, dtype: str, mode: str) -> dict:
    parts = parse(name)
    along = (parts.block or 0) / max(blocks - 1, 1)
    width = SCALE.get(parts.kind, 3.0) * draw.uniform(0.9, 1.0)
    if parts.kind == "out":
        width = 1.9e6 * (24 ** (along**0.6)) * draw.uniform(0.93, 1.0) * (1 if parts.stream == "img" else 0.4)
    elif parts.kind == "mid" and parts.block:
        width = 1.9e6 * (24 ** (along**0.6)) * 0.8
    floor = EPSILON[dtype] * draw.uniform(0.6, 2.0) * (1 + 4 * along if mode == "accumulated" else 1)
    error = floor * math.exp(draw.gauss(-0.2, 0.25))
    low, high = -width * draw.uniform(0.75, 1.0), width
    stats = _stats(draw, low, high, dtype)
    near = 1 + error * draw.uniform(-1, 1)
    rmse = error * stats["rms"] * 1.2
    shape = [1, 32 if parts.stream == "txt" else 256, 64] if parts.kind != "mod" else [1, 384]
    return {
        "name": name, "stage": stage, "shape": shape, "dtype": dtype, "verdict": "match", "source": False,
        "propagated": False, "reason": "", "rel_rmse": error, "floor": floor,
        "floor_by": draw.choice(("rounding", "jitter", "precision:math")), "excess": error / floor,
        "peak_excess": error / floor * draw.uniform(0.8, 1.6), "rmse": rmse, "max_abs": rmse * draw.uniform(4, 9),
        "max_at": [draw.randrange(n) for n in shape], "cosine": 1 - error**2 / 2,
        "psnr": -20 * math.log10(error), "reference": stats,
        "candidate": {k: v if k in ("nan", "inf") else v * near for k, v in stats.items()},
        "range": _range(parts, blocks, width, low, high),
    }  # fmt: skip


def _stats(draw: random.Random, low: float, high: float, dtype: str) -> dict:
    std = high * draw.uniform(0.1, 0.2)
    mean = high * draw.gauss(0, 0.01)
    absmax = max(abs(low), abs(high))
    return {"min": low, "max": high, "mean": mean, "std": std, "rms": math.hypot(mean, std), "absmax": absmax,
            "nan": 0, "inf": 0, "headroom": LARGEST[dtype] / absmax}  # fmt: skip


def _range(parts: Parts, blocks: int, width: float, low: float, high: float) -> dict | None:
    documented = None
    if parts.kind == "out" and parts.stream == "img":
        documented = {0: ("After block 0", -2e6, 2e6), blocks - 1: ("After block 59", -45e6, 46e6)}.get(parts.block)
    elif parts.stream != "txt":
        documented = DOCUMENTED.get(parts.kind)
    if documented is None:
        return None
    row, least, most = documented
    factor = max(low / least, high / most)
    return {"row": row, "low": least, "high": most, "verdict": "inside" if factor <= 1 else "outside", "factor": factor}


def _judge(row: dict, rel_rmse: float, *, source: bool = False) -> None:
    excess = rel_rmse / row["floor"]
    verdict = "match" if excess <= 3 else "suspect" if excess <= 10 else "diverged"
    row.update(rel_rmse=rel_rmse, excess=excess, peak_excess=excess * 1.3, verdict=verdict, source=source,
               propagated=verdict == "diverged" and not source, cosine=1 - min(rel_rmse, 1) ** 2 / 2,
               rmse=rel_rmse * row["reference"]["rms"], psnr=-20 * math.log10(rel_rmse))  # fmt: skip
    for key in ("min", "max", "absmax"):
        row["candidate"][key] = row["reference"][key] * (1 + min(rel_rmse, 0.6))


def _blank(row: dict, verdict: str, reason: str) -> None:
    kept = {key: row[key] for key in ("name", "stage")}
    row.update(dict.fromkeys(row), **kept, verdict=verdict, reason=reason, source=False, propagated=False)
