"""A golden trace of random values and what ports dump of it, without a model."""

import json

import numpy as np
from safetensors.numpy import save_file

from parity import trace
from parity.lockstep import chunks_of
from parity.names import parse, qwen_image_transformer
from parity.sketch import sketch
from parity.stats import describe
from parity.trace import Floor

LAYERS, WIDTH, HEADS = 3, 32, 2
TOKENS = {"img": 24, "txt": 10}
GRAPH = qwen_image_transformer(LAYERS, "full")
CASE = "ca5e" * 16
FLOOR = 1e-6


def shape_of(name):
    kind, stream = parse(name).kind, parse(name).stream or ("txt" if "txt" in name else "img")
    if kind in ("temb", "norm_out.mod") or kind.startswith("time."):
        return (1, WIDTH)
    if kind == "mod":
        return (1, 6 * WIDTH)
    if name.startswith("rope."):
        return (TOKENS[stream], WIDTH // HEADS // 2, 2)
    if kind in ("q", "k", "v"):
        return (1, TOKENS[stream], HEADS, WIDTH // HEADS)
    return (1, TOKENS[stream], WIDTH)


def arrays(seed=0):
    """What the reference computes, float32."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(shape_of(name)) * (1 + i)).astype(np.float32)
        for i, name in enumerate(GRAPH.expected)
    }


def write_golden(folder, made=None, **about):
    """A golden trace in `folder`."""
    made = arrays() if made is None else made
    stats = {name: vars(describe(x, chunks=chunks_of(name))) for name, x in made.items()}
    floors = {
        name: Floor(
            FLOOR, "rounding", FLOOR * float(np.abs(x).max()), FLOOR, float(np.sqrt(np.mean(x.astype(float) ** 2)))
        )
        for name, x in made.items()
    }
    manifest = {
        "side": "golden", "case": {"name": "square"}, "case_hash": CASE, "request": {}, "dtype": "float32",
        "mode": "accumulated", "component": "transformer", "truth": "float64",
        "graph": {"name": "transformer", "num_layers": LAYERS, "level": "full"},
        "configs": {"transformer": {"num_layers": LAYERS, "num_attention_heads": HEADS}},
        "weights": {"synthetic": True, "preset": "tiny", "path": "synthetic:tiny"}, "environment": {},
    }  # fmt: skip
    sketches = {name: sketch(x) for name, x in made.items()}
    trace.write(folder, stats, manifest | about, floors=floors, sketches=sketches)
    return folder


def dump(path, made, case=CASE):
    """A port's dump."""
    save_file(
        {name: np.ascontiguousarray(x) for name, x in made.items()}, path, {trace.CASE_KEY: case} if case else None
    )
    return path


def log(path, made, blocks=range(LAYERS), **changes):
    """A log with the guide's lines, blocks numbered."""
    lines = []
    for name in (
        "img_in",
        *(f"block.{i:02d}.img.{kind}" for i in blocks for kind in ("normed", "attn", "ffn")),
        "final",
    ):
        low, high = changes.get(name, (made[name].min(), made[name].max()))
        block = parse(name).block
        where = "" if block is None else f"[BLOCK {block:02d}] "
        lines.append(f"{where}[{parse(name).kind.upper()}] [{low:.2f}, {high:.2f}]")
    path.write_text("\n".join(lines) + "\n")
    return path


def printed(capsys):
    """What a command said on stdout as JSON."""
    return json.loads(capsys.readouterr().out)
