"""A finished run opened again: the same case on the same weights, stage by stage, with every checkpoint kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from parity.components import build_graph, case_class
from parity.components.base import DTYPES, Case
from parity.diagnosis.evidence import Stage
from parity.diagnosis.place import Values
from parity.diagnosis.recipes import place_class
from parity.diagnosis.ways import Backend
from parity.diagnosis.weights import ModelWeights
from parity.errors import ParityError, UsageError
from parity.known_bugs import Bug
from parity.lockstep import loaded
from parity.lora import LoraFile
from parity.model_folder import ModelFolder
from parity.names import Graph
from parity.ports import Port, Session, State
from parity.rounding import round_state
from parity.safetensors_header import shown

# Pixels of a side, tokens, steps; pixels of an area: files are data from elsewhere, and a case is drawn as they say.
_LARGEST, _LARGEST_AREA = 8192, 1 << 22


@dataclass(frozen=True)
class Reopened:
    """What is needed to run a unit of a run once more.

    Attributes:
        model: the run's weights.
        reference, candidate: the ports.
        loras: that both wear.
        backends: the candidate's library, to make single operations again.
        bugs: known ones of the run's versions.
    """

    model: ModelFolder
    reference: Port
    candidate: Port
    loras: tuple[LoraFile, ...] = ()
    backends: tuple[Backend, ...] = ()
    bugs: tuple[Bug, ...] = ()

    def stages(
        self, case: Case, dtype: str, wanted: Collection[str], *, isolated: bool = True
    ) -> Iterator[tuple[Stage | None, str, str]]:
        """Run the stages up to the last wanted one.

        Args:
            case: of the run.
            dtype: of the run.
            wanted: stages to keep everything of.
            isolated: feed the candidate the reference's state; else its own.

        Yields:
            for each wanted stage: what it shows (None where the candidate raised), its name, what was raised.
        """
        graph = build_graph(case.graph(self.model.configs, "full"))
        last = max((graph.stages.index(stage) for stage in wanted), default=-1)
        options = {"component": case.component}
        if self.loras and case.component in ("transformer", "pipeline"):
            options["adapters"] = tuple(one.adapter for one in self.loras)
        reference = self.reference.open(self.model.root, dtype=dtype, **options)
        truth = self.reference.open(self.model.root, dtype="float64", hold=dtype, **options)
        candidate = self.candidate.open(self.model.root, dtype=dtype, **options)
        precisions = self.reference.precisions(dtype)
        chain = own = case.inputs(self.model.configs, dtype)
        for stage in graph.stages[: last + 1]:
            keep = graph.names_of(stage) if stage in wanted else ()
            runs = []
            with loaded(reference, stage):
                after, captured = reference.run(stage, chain, keep)
                if keep:
                    runs = [captured]
                    runs += [reference.run(stage, chain, keep, precision=one)[1] for one in precisions[1:]]
            if keep or not isolated:
                fed = chain if isolated else own
                moved, found, raised = _try(candidate, stage, fed, keep)
                own = moved if moved is not None else own
                if keep:
                    exact = _truth(truth, stage, chain, keep)
                    shown = self._stage(graph, stage, case, dtype, fed, found, (chain, runs), exact, isolated)
                    if shown is not None:
                        shown.again = partial(_again, candidate, stage, keep)
                    yield shown, stage, raised
                if moved is None and not isolated:
                    return
            chain = after

    def _stage(
        self, graph: Graph, stage: str, case: Case, dtype: str, fed: State, found: State | None,
        runs: tuple[State, list[State]], exact: State, isolated: bool,
    ) -> Stage | None:  # fmt: skip
        domain = place_class(case.component)
        if found is None or domain is None:
            return None
        config, weights = self._of(case, dtype)
        state, captured = runs

        def values(captured: State, state: State) -> Values:
            return Values(domain, graph, stage, captured, state, weights, config, truth=exact)

        references = [values(one, state) for one in captured]
        return Stage(values(found, fed), references, exact, DTYPES[dtype], isolated)

    def _of(self, case: Case, dtype: str) -> tuple[Mapping[str, Any], Any]:
        """Config and weights of a case's component; of a pipeline all of them, by folder."""
        checkpoints = self.model.checkpoints
        if case.component == "pipeline":
            weights = {name: ModelWeights(one, dtype, self.loras) for name, one in checkpoints.items()}
            return self.model.configs, weights
        folder = next((one for one in case.folders if one in checkpoints), case.folders[0])
        found = checkpoints.get(folder)
        return self.model.configs[folder], _no_weights if found is None else ModelWeights(found, dtype, self.loras)


def _no_weights(key: str) -> np.ndarray:
    raise KeyError(key)


def case_of(row: Mapping[str, Any]) -> Case:
    """The case of an entry of ``cases`` in ``parity.json``.

    Raises:
        UsageError: the run was written by a version that did not keep it, it is damaged, or too large.
    """
    if "request" not in row:
        raise UsageError("this run was written by an older version, which did not keep its cases: run it again")
    try:
        case = case_class(row["component"])(**{key: _tuples(value) for key, value in row["request"].items()})
        sizes = [value for key, value in row["request"].items() if key not in ("seed", "areas")]
        largest = max(
            *_numbers(sizes), *(n / _LARGEST_AREA * _LARGEST for n in _numbers(row["request"].get("areas"))), 0
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"the run's case {shown(str(row.get('name')))} cannot be made again: {shown(str(error))}"
        ) from None
    if largest > _LARGEST:
        raise UsageError(
            f"the run's case {shown(str(row.get('name')))} has a size of {largest:g}, expected at most {_LARGEST}"
        )
    return case


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a request; what it draws has their sizes."""
    if isinstance(value, list | tuple):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def _truth(session: Session, stage: str, chain: State, keep: Collection[str]) -> State:
    with loaded(session, stage):
        return session.run(stage, round_state(chain, np.dtype(np.float64)), keep)[1]


def _try(session: Session, stage: str, fed: State, keep: Collection[str]) -> tuple[State | None, State | None, str]:
    """A stage of the candidate: state, checkpoints, and what it raised."""
    try:
        with loaded(session, stage):
            after, found = session.run(stage, fed, keep)
        return after, found, ""
    except ParityError:
        raise
    except Exception as error:
        return None, None, f"{type(error).__name__}: {error}"[:300]


def _again(session: Session, stage: str, keep: Collection[str], state: Mapping[str, np.ndarray]) -> State:
    with loaded(session, stage):
        return session.run(stage, state, keep)[1]
