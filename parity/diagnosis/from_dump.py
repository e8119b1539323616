"""Tensors that a port in any language dumped under checkpoint names, held against the recipes. Nothing is run.

Each checkpoint is judged from its own parents, so two or three tensors of one block are enough to say what happened
between them; whatever lacks its parents is said to be undecided. The noise floor is what one unit in the last place of
the parents changes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from parity.components.base import DTYPES
from parity.diagnosis.evidence import Stage, predict
from parity.diagnosis.fault import Fault
from parity.diagnosis.inquiry import Inquiry
from parity.diagnosis.place import Values
from parity.diagnosis.recipes.transformer import TransformerPlace
from parity.diagnosis.result import Diagnosis
from parity.diagnosis.search import LIMITS, Limits
from parity.diagnosis.weights import ModelWeights
from parity.errors import UsageError
from parity.model_folder import ModelFolder
from parity.names import Graph, parse, qwen_image_transformer
from parity.tracefile import fit_shapes

# Inputs of the model that a dump may have beside checkpoints.
INPUTS = ("latents", "prompt_embeds", "prompt_mask", "timestep", "img_shapes", "additional_t_cond")
# Axes of what a dump holds; of tables and shapes nothing is assumed.
_AXES = dict.fromkeys(
    ("img_in", "txt_norm", "txt_in", "normed", "modulated", "attn", "mid", "normed2", "modulated2", "ffn", "out",
     "norm_out", "final", "latents", "prompt_embeds"), 3,
) | dict.fromkeys(("q", "k", "v"), 4) | dict.fromkeys(
    ("time.proj", "time.linear_1", "time.silu", "temb", "mod", "norm_out.mod", "prompt_mask"), 2,
)  # fmt: skip


def diagnose(
    dump: Mapping[str, np.ndarray], model: ModelFolder, catalogue: Sequence[Fault],
    told: Callable[[str], None] = lambda _: None, limits: Limits = LIMITS,
) -> Diagnosis:  # fmt: skip
    """Explain a dump of the transformer.

    Args:
        dump: checkpoint or input -> array.
        model: whose weights the port had.
        catalogue: faults to try.
        told: told which stage is being looked at.
        limits: of the search.

    Raises:
        UsageError: no checkpoint in it can be judged.
    """
    clock = time.monotonic()
    config = model.configs["transformer"]
    graph = qwen_image_transformer(config["num_layers"])
    dump, reshaped = fit_shapes(dump, {name: _batched(name, array) for name, array in dump.items()})
    dtype = _dtype(dump)
    weights = ModelWeights(model.checkpoints["transformer"], dtype)
    inquiry = Inquiry(catalogue, limits)
    judged: list[str] = []
    undecided: list[str] = []
    for name in graph.stages:
        stage = _stage(dump, graph, name, weights, config, dtype)
        if stage is None:
            continue
        told(name)
        for one in stage.local():
            (undecided if one.judged_by == "nothing" else judged).append(one.name)
        inquiry.look(stage)
    if not judged:
        raise UsageError(_nothing_judged(undecided, graph))
    diagnosis = inquiry.diagnosis()
    diagnosis.subject = "trace"
    if diagnosis.sources:
        diagnosis.first = {"case": "dump", "mode": "accumulated", "dtype": dtype, "checkpoint": diagnosis.sources[0]}
    diagnosis.notes.append(
        f"{len(judged)} of {len(dump)} tensors were judged from their own parents; the floor is what one unit in the "
        "last place of these changes"
    )
    diagnosis.notes += reshaped
    if undecided:
        diagnosis.would_decide = _parents(undecided, dump, graph)
        diagnosis.notes.append(f"{len(undecided)} tensors lack the parents they are made of: {undecided[0]}")
    diagnosis.seconds = time.monotonic() - clock
    return diagnosis


def _batched(name: str, array: np.ndarray) -> tuple[int, ...]:
    """The shape of an array with one batch dimension, where ports leave it out or put two."""
    kind = parse(name).kind
    wanted = _AXES.get(kind, _AXES.get(name, array.ndim))
    if array.ndim == wanted - 1:
        return (1, *array.shape)
    return array.shape[1:] if array.ndim == wanted + 1 and array.shape[0] == 1 else array.shape


def _dtype(dump: Mapping[str, np.ndarray]) -> str:
    """What the port computed in: that of most tensors, bfloat16 where float32 holds nothing finer."""
    kinds = Counter(str(array.dtype) for array in dump.values() if str(array.dtype) in DTYPES)
    if not kinds:
        raise UsageError("no tensor of float32, float16 or bfloat16 in it")
    dtype = kinds.most_common(1)[0][0]
    arrays = [array for name, array in dump.items() if str(array.dtype) == "float32" and name not in INPUTS]
    with np.errstate(all="ignore"):
        coarse = all(np.array_equal(a, a.astype(ml_dtypes.bfloat16).astype(np.float32), equal_nan=True) for a in arrays)
    return "bfloat16" if dtype == "float32" and arrays and coarse else dtype


def _stage(
    dump: Mapping[str, np.ndarray], graph: Graph, stage: str, weights: ModelWeights, config: Mapping[str, Any],
    dtype: str,
) -> Stage | None:  # fmt: skip
    """What the dump has of a stage; the state it was fed is made of earlier checkpoints and of inputs."""
    captured = {name: dump[name] for name in graph.names_of(stage) if name in dump}
    if not captured:
        return None
    state = {key: dump[key] for key in INPUTS if key in dump}
    for parent in {p for name in graph.names_of(stage) for p in graph.parents[name] if graph.stage[p] != stage}:
        if parent in dump:
            state[TransformerPlace.state_key(parent)] = dump[parent]
    values = Values(TransformerPlace, graph, stage, captured, state, weights, config)
    for key in ("rope.img", "rope.txt"):
        # Tables follow from the shapes; a dump rarely has them.
        if key not in state and stage != "embed" and "img_shapes" in dump and "prompt_embeds" in dump:
            made = predict(Values(TransformerPlace, graph, "embed", {}, state, weights, config).place(key))
            if made is not None:
                state[key] = made.astype(np.float32)
    return Stage(values, [], {}, DTYPES[dtype], isolated=False)


def _parents(undecided: Sequence[str], dump: Mapping[str, np.ndarray], graph: Graph) -> list[str]:
    """Checkpoints and inputs whose tensors would decide what could not be judged."""
    wanted: dict[str, None] = {}
    for name in undecided:
        for parent in graph.parents[name] or INPUTS[:1]:
            if parent not in dump:
                wanted[parent] = None
    return list(wanted)[:12]


def _nothing_judged(undecided: Sequence[str], graph: Graph) -> str:
    if not undecided:
        return "no tensor of it has the name of a checkpoint of the transformer"
    name = undecided[0]
    needs = ", ".join(graph.parents[name]) or "the model's inputs"
    return f"nothing in it can be judged: {name} is made of {needs}, which it lacks; dump these as well"
