"""A three-stage model in numpy, as a port: what the engine's tests run instead of a transformer."""

from dataclasses import dataclass, field

import numpy as np

from parity.names import Graph

GRAPH = Graph(
    {"img_in": (), "mid": ("img_in",), "out": ("img_in", "mid"), "final": ("out",)},
    {"img_in": "embed", "mid": "block.00", "out": "block.00", "final": "head"},
    ("img_in", "mid", "out", "final"),
)


@dataclass
class ToyPort:
    """`faults`: checkpoint name -> function of the value; `silent`: names it does not give."""

    faults: dict = field(default_factory=dict)
    silent: tuple = ()
    name: str = "toy"
    log: list = field(default_factory=list)

    def open(self, weights, *, dtype, hold=None, component="transformer"):
        return ToySession(self, np.dtype(dtype), np.dtype(hold or dtype))

    def precisions(self, dtype):
        return ("default", "backwards")

    def environment(self):
        return {"device": "numpy"}


class ToySession:
    stages = ("embed", "block.00", "head")

    def __init__(self, port, dtype, hold):
        self.port, self.dtype, self.loaded = port, dtype, set()
        draw = np.random.default_rng(5)
        self.weights = {s: draw.standard_normal((16, 16)).astype(hold).astype(dtype) / 4 for s in self.stages}

    def load(self, stage):
        self.port.log.append(("load", stage, self.dtype.name))
        self.loaded.add(stage)

    def free(self, stage):
        self.loaded.remove(stage)

    def run(self, stage, state, want, *, precision="default"):
        assert self.loaded == {stage}, "one stage of a session in memory at a time"
        self.port.log.append(("run", stage, self.dtype.name))
        w = self.weights[stage]
        values = {}

        def tap(name, x):
            assert x.dtype == self.dtype
            x = self.port.faults.get(name, lambda y: y)(x)
            values[name] = x
            return x

        def times(x):
            with np.errstate(invalid="ignore"):  # overflow is something the engine must live with
                return x @ w if precision == "default" else (x[..., ::-1] @ w[::-1])

        if stage == "embed":
            after = {"img": tap("img_in", times(state["latents"]))}
        elif stage == "block.00":
            mid = tap("mid", np.tanh(times(state["img"])))
            after = {"img": tap("out", state["img"] + mid)}
        else:
            after = {"sample": tap("final", times(state["img"]))}
        return after, {name: values[name] for name in want if name in values and name not in self.port.silent}
