"""Stages of a small transformer, as a diagnosis sees them, with values changed at will."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from parity import checkpoint
from parity.components.base import DTYPES
from parity.components.transformer import TransformerCase
from parity.diagnosis.evidence import Stage
from parity.diagnosis.place import Values
from parity.diagnosis.recipes.transformer import TransformerPlace
from parity.diagnosis.weights import ModelWeights
from parity.names import qwen_image_transformer
from parity.ports import open_port
from parity.rounding import round_state

CASE = TransformerCase(name="one", seed=0, images=((64, 96),), text_tokens=(5, 3), timestep=0.9)
Change = Callable[[Values], np.ndarray]


def stage_of(
    folder: Path, name: str, changes: Mapping[str, Change] | None = None, *, dtype: str = "float32",
    case: TransformerCase = CASE,
) -> Stage:  # fmt: skip
    """One stage in which the candidate is the reference, but for some checkpoints.

    Args:
        folder: of the checkpoint.
        name: of the stage.
        changes: checkpoint -> what the candidate has there, from its other values. What follows from it is not
            computed again, so that only these checkpoints are wrong, and those made of them.
    """
    config = json.loads((folder / "config.json").read_text())
    graph = qwen_image_transformer(config["num_layers"])
    port = open_port("reference")
    sessions = [port.open(folder, dtype=dtype), port.open(folder, dtype="float64", hold=dtype)]
    chain = case.inputs({"transformer": config}, dtype)
    for stage in graph.stages[: graph.stages.index(name) + 1]:
        state = chain
        sessions[0].load(stage)
        chain, captured = sessions[0].run(stage, state, graph.names_of(stage))
    sessions[1].load(name)
    _, truth = sessions[1].run(name, round_state(state, np.dtype(np.float64)), graph.names_of(name))
    weights = ModelWeights(checkpoint.inspect(folder), dtype)

    def values(found: Mapping[str, np.ndarray]) -> Values:
        return Values(TransformerPlace, graph, name, found, state, weights, config, truth=truth)

    reference = values(captured)
    found = dict(captured)
    for place, change in (changes or {}).items():
        found[place] = change(reference).astype(captured[place].dtype)
    return Stage(values(found), [reference], truth, DTYPES[dtype])
