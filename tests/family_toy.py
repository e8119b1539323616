"""A model of another family in numpy, as an author would bring it: modules, weights, a suite, in a folder."""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CASE = """
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from parity.components.base import DTYPES, Case
from parity.listed import Listing


@dataclass(frozen=True, kw_only=True)
class ToyCase(Case):
    component: ClassVar[str] = "toy"
    folders: ClassVar[tuple[str, ...]] = (".",)

    rows: int

    def describe(self) -> dict[str, Any]:
        return {"batch": self.rows, "seed": self.seed}

    def inputs(self, configs, dtype):
        ids = self.draw().integers(0, 9, (self.rows,))
        x = self.draw().standard_normal((self.rows, 16), dtype=np.float32).astype(DTYPES[dtype])
        return {"ids": ids, "x": x}

    def graph(self, configs, level):
        graph = Listing()
        graph.stage("embed")
        graph.add("ids", exact=True)
        hidden = graph.add("embedded", "ids", level="kinds")
        for i in range(configs["."]["layers"]):
            with graph.scope(f"layer.{i:02d}"):
                graph.add("up", hidden, level="full")
                graph.add("act", "up")
                hidden = graph.add("out", "act", hidden)
        return graph.listed(level)
"""

PORT = """
import json
import sys

import numpy as np
from safetensors.numpy import load_file

from parity.components.base import DTYPES


class Port:
    name = "toy-numpy"

    def open(self, weights, *, dtype, hold=None, component="", **_):
        return Session(weights, dtype, hold or dtype)

    def precisions(self, dtype):
        return ("default", "backwards")

    def environment(self):
        return {"device": "cpu"}


class Session:
    def __init__(self, weights, dtype, hold):
        kinds = DTYPES | {"float64": np.dtype(np.float64)}
        self.dtype, hold = kinds[dtype], kinds[hold]
        stored = load_file(weights / "model.safetensors")
        self.w = {key: x.astype(hold).astype(self.dtype) for key, x in stored.items()}
        layers = json.loads((weights / "config.json").read_text())["layers"]
        self.stages = ("embed", *(f"layer.{i:02d}" for i in range(layers)))

    def load(self, stage):
        pass

    def free(self, stage):
        pass

    def run(self, stage, state, want, *, precision="default"):
        def times(x, w):
            return (x @ w if precision == "default" else x[..., ::-1] @ w[::-1]).astype(self.dtype)

        if stage == "embed":
            values = {"ids": state["ids"], "embedded": self.w["embed"][state["ids"]] + state["x"]}
            after = {"hidden": values["embedded"]}
        else:
            x = state["hidden"]
            up = times(x, self.w[stage])
            act = np.tanh(up)
            out = act + x
            values = {f"{stage}.up": up, f"{stage}.act": act, f"{stage}.out": out}
            after = {"hidden": out}
        return after, {name: value for name, value in values.items() if name in want}
"""

SUITE = """
title = "toy"
detail = "full"
draws = 2
[[case]]
component = "toy_case:ToyCase"
name = "one"
rows = 12
seed = 3
dtypes = ["float32"]
modes = ["isolated", "accumulated"]
"""

OPTIONS = ("--candidate", "toy_mine:Port", "--reference", "toy_theirs:Port")


def write(folder: Path, *, case: str = CASE, mine: str = PORT, theirs: str = PORT, suite: str = SUITE) -> Path:
    """The author's folder; gives the suite's path. Its weights are in ``weights``."""
    folder.mkdir(exist_ok=True)
    for name, text in (("toy_case", case), ("toy_mine", mine), ("toy_theirs", theirs)):
        (folder / f"{name}.py").write_text(text)
    (folder / "toy.toml").write_text(suite)
    write_weights(folder / "weights")
    return folder / "toy.toml"


def forget() -> None:
    """Another test's author has modules of the same names."""
    for name in [name for name in sys.modules if name.startswith("toy_")]:
        del sys.modules[name]


def write_weights(folder: Path, seed: int = 0) -> Path:
    """Two layers of 16 × 16."""
    draw = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    tensors = {"embed": (9, 16), "layer.00": (16, 16), "layer.01": (16, 16)}
    found = {key: draw.standard_normal(shape).astype(np.float32) / 4 for key, shape in tensors.items()}
    save_file(found, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"layers": 2}))
    return folder
