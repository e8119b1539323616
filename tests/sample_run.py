"""Seeded `parity.json` dicts for the tests of what renders one (docs/parity-json.md).

The figures have the shape of real runs: a residual that grows from ±2 M to ±46 M, a float32
error of 1e-7, a bfloat16 error of 1e-2 that grows in accumulated mode and from step to step.
"""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path

import numpy as np
from PIL import Image

from parity.components.pipeline import pipeline_graph
from parity.components.scheduler import scheduler_graph
from parity.components.text import text_graph
from parity.components.vae import vae_graph
from parity.components.vision import vision_graph
from parity.listed import listed
from parity.names import Graph, Parts, parse, qwen_image_transformer

VERDICTS = ("match", "suspect", "diverged", "uncertain", "missing", "skipped")
HOSTILE = "</script><img src=x onerror=alert(1)>\"'`&amp;\u202egnp.exe\u2066$x^{2$\x00"
THRESHOLDS = {"match": 3.0, "suspect": 10.0, "peak_match": 12.0, "peak_suspect": 40.0, "uncertain": 0.3}

BEFORE_ATTENTION = ("mod", "normed", "modulated", "q", "k", "v")
# Component -> the kind at which `diverged` starts.
WRONG = {"pipeline": "noise_pred", "scheduler": "sample"}
INPUTS = {
    "transformer": {"batch": 1, "image_tokens": 256, "text_tokens": 32, "img_shapes": [[1, 16, 16]], "timestep": [0.9]},
    "text": {"batch": 2, "prompts": ["a red panda reading a newspaper", ""], "template": "image", "pictures": [],
             "max_sequence_length": 1024, "positions": "sequence"},
    "vision": {"images": [[140, 196], [84, 84]]},
    "vae": {"image": [64, 96], "batch": 1, "start": "picture"},
    "scheduler": {"batch": 2, "image_tokens": 256, "steps": 8, "settings": "checkpoint", "strength": None},
    "pipeline": {"kind": "text_to_image", "prompts": ["a red panda reading a newspaper"], "negative": [" "], "batch": 1,
                 "image": [96, 128], "image_tokens": 48, "steps": 8, "guidance": 4.0, "pictures": [], "strength": None,
                 "inside": []},
}  # fmt: skip
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


def graph_of(component: str, blocks: int, level: str, steps: int, inside: tuple[int, ...]) -> Graph:
    """The graph of a component whose repetitions are `blocks`, or `steps`."""
    if component == "pipeline":
        return pipeline_graph("text_to_image", blocks, steps, True, 0, level, inside)
    return {
        "transformer": lambda: qwen_image_transformer(blocks, level),
        "text": lambda: text_graph(blocks, level),
        "vision": lambda: vision_graph(blocks, (blocks - 1,), level),
        "vae": lambda: vae_graph(8, (1, 2, 4, 4), 2, "picture", level),
        "scheduler": lambda: scheduler_graph(0, steps, False, level),
    }[component]()


def clean(
    *, component="transformer", blocks=60, level="full", cases=("square",), dtypes=("float32", "bfloat16"), seed=0,
    steps=8, inside=(),
) -> dict:  # fmt: skip
    """A run at parity: every case in every dtype, isolated and accumulated."""
    draw = random.Random(seed)
    names = graph_of(component, blocks, level, steps, inside)
    written = listed(names)
    entries = [
        {
            "name": case, "mode": mode, "dtype": dtype, "component": component, "verdict": "parity", "counts": {},
            "graph": written, "sources": [], "inputs": INPUTS[component] | {"seed": seed},
            "amplification": {s: draw.uniform(0.8, 1.3) for s in names.stages} if mode == "accumulated" else None,
            "checkpoints": [_row(draw, n, names, blocks, dtype, mode) for n in names.expected],
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
        "resources": {"peak_bytes": 1_200_000_000, "spent": {"truth.run": 30.5, "reference.run": 31.0, "stage": 78.0}},
    }  # fmt: skip
    return settle(run)


def diverged(**options) -> dict:
    """Attention (of a pipeline, guidance) is wrong from block 07 on: a source in each, the rest propagated."""
    run = clean(**options)
    wrong = WRONG.get(run["cases"][0]["component"], "attn")
    start = min(7, max(parse(row["name"]).block or 0 for row in run["cases"][0]["checkpoints"]) // 2)
    for case in run["cases"]:
        for row in case["checkpoints"]:
            parts = parse(row["name"])
            if case["component"] == "vae" and row["name"].startswith("vae.decode.up.01.resnet.00."):
                _judge(row, row["floor"] * 70, source=row["name"].endswith("norm1"))
            if parts.block is None or parts.block < start or parts.kind in BEFORE_ATTENTION:
                continue
            source = parts.kind == wrong
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


def several(**options) -> dict:
    """A run of cases of every component."""
    runs = [clean(component=component, cases=(f"{component}-one",), blocks=2, **options) for component in INPUTS]
    return settle(runs[0] | {"cases": [case for run in runs for case in run["cases"]]})


def pictured(folder: Path, *, off: int = 3, size=(96, 128), **options) -> dict:
    """A run of a pipeline with its pictures as PNG files below `folder`; `off` is the largest difference."""
    run = clean(component="pipeline", **{"blocks": 2, "level": "kinds", "cases": ("pipeline-plain",)} | options)
    for case in run["cases"]:
        if case["mode"] == "accumulated":
            case["pictures"] = [_picture(folder, f"{case['name']}.{case['dtype']}", size, off)]
    return settle(run)


def _picture(folder: Path, unit: str, size: tuple[int, int], off: int) -> dict:
    draw = np.random.default_rng(5)
    y, x = np.mgrid[0 : 1 : size[0] * 1j, 0 : 1 : size[1] * 1j]
    disc = (y - 0.45) ** 2 + (x - 0.55) ** 2 < 0.06
    waves = [np.where(disc, 0.85 - 0.3 * c, 0.5 + 0.4 * np.sin(6 * x + 4 * (c - 1) * y + c)) for c in (0, 1, 2)]
    reference = (np.stack(waves, axis=-1) * 255).round().clip(0, 255).astype(np.uint8)
    moved = draw.integers(-off, off + 1, reference.shape) * (disc[..., None] & (draw.random(reference.shape) < 0.3))
    candidate = (reference.astype(int) + moved).clip(0, 255).astype(np.uint8)
    paths = {}
    for side, picture in (("reference", reference), ("candidate", candidate)):
        paths[side] = f"pictures/{unit}/{side}.00.png"
        (folder / paths[side]).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / paths[side])
    pair = [reference.astype(float), candidate.astype(float)]
    rmse = float(np.sqrt(np.mean((pair[0] - pair[1]) ** 2)))
    metrics = {
        "rmse": rmse, "max_abs": int(np.abs(pair[0] - pair[1]).max()), "max_at": [0, 0, 0],
        "reference": {"mean": float(pair[0].mean()), "std": float(pair[0].std())},
        "candidate": {"mean": float(pair[1].mean()), "std": float(pair[1].std())},
        "psnr": 20 * math.log10(255 / rmse) if rmse else math.inf,
        "ssim": 1 - rmse / 100, "flip": rmse / 300,
    }  # fmt: skip
    return {"checkpoint": "pipeline.image", "index": 0, "size": list(size), "metrics": metrics} | paths


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


def _row(draw: random.Random, name: str, names: Graph, blocks: int, dtype: str, mode: str) -> dict:
    parts, stage = parse(name), names.stage[name]
    along = (parts.block or 0) / max(blocks - 1, 1)
    width = SCALE.get(parts.kind, 3.0) * draw.uniform(0.9, 1.0)
    if parts.kind == "out":
        width = 1.9e6 * (24 ** (along**0.6)) * draw.uniform(0.93, 1.0) * (1 if parts.stream == "img" else 0.4)
    elif parts.kind == "mid" and parts.block:
        width = 1.9e6 * (24 ** (along**0.6)) * 0.8
    floor = EPSILON[dtype] * draw.uniform(0.6, 2.0) * (1 + 4 * along if mode == "accumulated" else 1)
    if parts.stream == "step":
        width = 4.0
        floor = EPSILON[dtype] * draw.uniform(0.9, 1.1) * (1.45**parts.block if mode == "accumulated" else 1)
    error = floor * math.exp(draw.gauss(-0.2, 0.25))
    low, high = -width * draw.uniform(0.75, 1.0), width
    stats = _stats(draw, low, high, dtype)
    near = 1 + error * draw.uniform(-1, 1)
    rmse = error * stats["rms"] * 1.2
    shape = [1, 32 if parts.stream == "txt" else 256, 64] if parts.kind != "mod" else [1, 384]
    row = {
        "name": name, "stage": stage, "shape": shape, "dtype": dtype, "verdict": "match", "source": False,
        "propagated": False, "reason": "", "rel_rmse": error, "floor": floor,
        "floor_by": draw.choice(("rounding", "jitter", "precision:math")), "excess": error / floor,
        "peak_excess": error / floor * draw.uniform(0.8, 1.6), "rmse": rmse, "max_abs": rmse * draw.uniform(4, 9),
        "max_at": [draw.randrange(n) for n in shape], "cosine": 1 - error**2 / 2,
        "psnr": -20 * math.log10(error), "reference": stats,
        "candidate": {k: v if k in ("nan", "inf") else v * near for k, v in stats.items()},
        "mismatches": None, "range": _range(parts, blocks, width, low, high) if "img_in" in names.parents else None,
    }  # fmt: skip
    if name in names.exact:
        row |= {"floor": 0.0, "floor_by": "exact", "rel_rmse": 0.0, "excess": 0.0, "peak_excess": 0.0, "rmse": 0.0,
                "max_abs": 0.0, "cosine": 1.0, "psnr": math.inf, "mismatches": 0, "dtype": "int64",
                "candidate": dict(stats)}  # fmt: skip
    return row


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
    if row["floor_by"] == "exact" or row["floor"] == 0:
        row.update(
            excess=math.inf, peak_excess=math.inf, mismatches=7, rel_rmse=0.02, verdict="diverged", source=source
        )
        return
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
