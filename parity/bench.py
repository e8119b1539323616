"""Measuring the toolkit itself: do clean runs stay clean, and is a small error found where it is?"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from parity import verdict
from parity.components.base import Configs
from parity.components.transformer import TransformerCase
from parity.lockstep import Lockstep, StageResult, Unit
from parity.names import Graph
from parity.ports import Port
from parity.tap import changing

# Inputs of the clean runs: picture sizes, prompt lengths, timesteps; each meets every dtype.
SIZES: tuple[tuple[tuple[int, int], ...], ...] = (
    ((256, 256),), ((128, 128),), ((192, 112),), ((64, 320),), ((128, 128), (64, 64)), ((16, 16),),
)  # fmt: skip
PROMPTS = ((32,), (7,), (24, 9), (1,), (40, 40))
TIMESTEPS = (0.9, 0.5, 0.1, 1.0, 0.02)


@dataclass(frozen=True)
class CleanRun:
    """What one clean run reached, over both modes.

    Attributes:
        median, worst: excess.
        worst_peak: peak excess.
        alarms: checkpoints that did not match, or were not compared.
        floors: mode -> (median, largest) floor.
        quiet: share of checkpoints whose isolated floor is at most 1e-6.
    """

    case: str
    dtype: str
    checkpoints: int
    median: float
    worst: float
    worst_at: str
    worst_peak: float
    worst_peak_at: str
    alarms: tuple[str, ...]
    floors: dict[str, tuple[float, float]]
    quiet: float


def clean_cases(runs: int, dtypes: Sequence[str]) -> list[tuple[TransformerCase, str]]:
    """`runs` pairs of case and dtype; all differ in seed, and go through sizes, prompts and timesteps."""
    combinations = itertools.cycle(itertools.product(TIMESTEPS, PROMPTS, SIZES))
    # Steps of a prime number, so that few runs already see every value.
    spread = list(itertools.islice(combinations, 0, runs * 37, 37))
    return [
        (
            TransformerCase(name=f"seed-{seed:03d}", seed=seed, images=images, text_tokens=prompts, timestep=timestep),
            # A turn further after each round of the sizes: their number may be a multiple of the dtypes'.
            dtypes[(seed + seed // len(SIZES)) % len(dtypes)],
        )
        for seed, (timestep, prompts, images) in enumerate(spread)
    ]


def clean_run(
    case: TransformerCase, dtype: str, graph: Graph, ports: tuple[Port, Port], weights: Path, configs: Configs
) -> CleanRun:
    """Compare a port that is believed to be right with the reference, both modes, all checkpoints of the graph."""
    unit = Unit(case, dtype, ("isolated", "accumulated"), graph, draws=3)
    lockstep = Lockstep(unit, *ports, weights)
    chains = lockstep.start(case.inputs(configs, dtype))
    measured: dict[str, list[dict[str, Any]]] = {mode: [] for mode in unit.modes}
    for stage in lockstep.stages:
        chains, found = lockstep.run(stage, chains)
        for mode in unit.modes:
            measured[mode] += found.rows[mode]
    judged = {mode: verdict.judge(rows, graph, isolated=mode == "isolated") for mode, rows in measured.items()}
    return _summary(case, dtype, judged)


def _summary(case: TransformerCase, dtype: str, judged: dict[str, list[dict[str, Any]]]) -> CleanRun:
    every = [(mode, row) for mode, rows in judged.items() for row in rows]
    compared = [(mode, row) for mode, row in every if row["excess"] is not None]
    nothing = ("", {"name": "nothing compared", "excess": math.nan, "peak_excess": math.nan})
    worst = max(compared, key=lambda pair: pair[1]["excess"], default=nothing)
    peak = max(compared, key=lambda pair: pair[1]["peak_excess"], default=nothing)
    floors = {mode: [row["floor"] for row in rows] for mode, rows in judged.items()}
    return CleanRun(
        case=_spell(case),
        dtype=dtype,
        checkpoints=len(every),
        median=median(row["excess"] for _, row in compared or [nothing]),
        worst=worst[1]["excess"],
        worst_at=f"{worst[1]['name']} ({worst[0]})",
        worst_peak=peak[1]["peak_excess"],
        worst_peak_at=f"{peak[1]['name']} ({peak[0]})",
        alarms=tuple(f"{row['name']} ({mode}): {row['verdict']}" for mode, row in every if row["verdict"] != "match"),
        floors={mode: (median(values), max(values)) for mode, values in floors.items()},
        quiet=sum(floor <= 1e-6 for floor in floors["isolated"]) / len(floors["isolated"]),
    )


def _spell(case: TransformerCase) -> str:
    images = "+".join(f"{height}x{width}" for height, width in case.images)
    return f"{case.name} {images} prompts {','.join(map(str, case.text_tokens))} t {case.timestep}"


@dataclass(frozen=True)
class Planted:
    """One error planted at one checkpoint, and what came out."""

    name: str
    floor: float
    found: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether the checkpoint itself, and nothing else, is named as the source."""
        return self.found == (self.name,)


def sensitivity(
    case: TransformerCase, dtype: str, graph: Graph, ports: tuple[Port, Port], weights: Path, configs: Configs,
    *, size: float = 1e-5, floor: float = 1e-6, stages: Sequence[str] | None = None,
    told: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Iterator[Planted]:  # fmt: skip
    """Plant noise of `size` times the rms at each checkpoint in turn, in isolated mode.

    The noise goes on into the rest of the candidate's stage. Only checkpoints whose own floor is
    at most `floor` are tried: an error below ten floors is not promised to be found.

    Args:
        stages: only these.
        told: called after each checkpoint with the stage, and how many are done of how many.
    """
    lockstep = Lockstep(Unit(case, dtype, ("isolated",), graph, draws=3), *ports, weights)
    chains = lockstep.start(case.inputs(configs, dtype))
    done = 0
    for stage in lockstep.stages:
        prepared = lockstep.prepare(stage, chains)
        clean = lockstep.measure(stage, chains, prepared)
        for row in clean.rows["isolated"]:
            done += 1
            told(stage, done, len(graph.expected))
            if row["floor"] <= floor and (stages is None or stage in stages):
                with changing({row["name"]: _noise(row, size)}):
                    found = lockstep.measure(stage, chains, prepared)
                yield Planted(row["name"], row["floor"], _sources(found, stage, graph))
        chains = prepared.after


def _noise(row: dict[str, Any], size: float) -> Callable[[Any], Any]:
    """A change of a tapped value: noise of the given size, relative to the reference's rms."""
    draw = np.random.default_rng(zlib.crc32(row["name"].encode()))
    noise = draw.standard_normal(row["expected_shape"]).astype(np.float32)
    noise *= np.float32(size * row["reference"]["rms"])
    # type(value) is the framework's array: mx.array takes a numpy array, and so does whatever is planted elsewhere.
    return lambda value: value + type(value)(noise)


def _sources(found: StageResult, stage: str, graph: Graph) -> tuple[str, ...]:
    """Sources within one stage, all others being left out."""
    alone = Graph(
        {name: tuple(p for p in graph.parents[name] if graph.stage[p] == stage) for name in graph.names_of(stage)},
        dict.fromkeys(graph.names_of(stage), stage),
        graph.names_of(stage),
    )
    judged = verdict.judge(found.rows["isolated"], alone, isolated=True)
    return tuple(row["name"] for row in judged if row["source"])
