"""One checkpoint as recipes and faults see it: values of its parents, weights, config, and the arithmetic in between.

A recipe is written with methods of its `Place` (``rotate``, ``layer_norm``, ``weight``, …), and a fault is
a `Place` in which some of them are exchanged: ``place.changed(rotate=…)``. What is exchanged is computed
with the place it was made from, so changes can be put on top of one another.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from parity.diagnosis.weights import LowRank
from parity.names import Graph, parse

Array = np.ndarray
# A canonical key -> the tensor as the run's dtype holds it. KeyError where the model has none.
Weights = Callable[[str], Array]


def widened(array: Array) -> Array:
    """Floating values in float64, all others as they are."""
    return array if array.dtype.kind in "biu" else array.astype(np.float64)


class Values:
    """What is known at one stage: captured checkpoints, the state it was fed, and what follows from them.

    A checkpoint that was not captured is computed by its recipe from those that were.

    Args:
        domain: the component's `Place` class.
        graph: names, parents and stages.
        stage: of all names asked for.
        captured: checkpoint -> array, in any dtype.
        state: the arrays the stage was fed.
        weights: of the model.
        config: of the component.
        truth: the truth's own arrays of the stage, for what is compared and not computed (token ids).
    """

    def __init__(
        self, domain: type[Place], graph: Graph, stage: str, captured: Mapping[str, Array],
        state: Mapping[str, Array], weights: Weights, config: Mapping[str, Any], *,
        truth: Mapping[str, Array] | None = None,
    ) -> None:  # fmt: skip
        self.domain, self.graph, self.stage = domain, graph, stage
        self.captured, self.state, self.weights, self.config = captured, state, weights, config
        self.truth: Mapping[str, Array] = truth or {}
        self._wide: dict[str, Array] = {}
        # The candidate's own, which estimates are read off, also where `captured` is moved by noise.
        self.candidate = captured
        # The run's dtype where recipes shall round what a port rounds on its way, which shows how noisy that is.
        self.noisy: np.dtype | None = None
        # What plain places have computed for one another.
        self.shared: dict[str, Array] = {}
        # What was made of components that run inside this stage, by a name that the domain gives it.
        self.inner: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.captured

    def __getitem__(self, name: str) -> Array:
        """A checkpoint in float64.

        Raises:
            KeyError: nothing is known of it.
        """
        if name not in self._wide:
            self._wide[name] = self._find(name)
        return self._wide[name]

    def _find(self, name: str) -> Array:
        if name in self.captured:
            return widened(self.captured[name])
        if self.graph.stage.get(name) == self.stage:
            return self.place(name).recipe()
        return self.fed(self.domain.state_key(name))

    def fed(self, key: str) -> Array:
        """An array of the state in float64.

        Raises:
            KeyError: the stage was fed no such array.
        """
        return widened(self.state[key])

    def place(self, name: str) -> Place:
        """Where a checkpoint is made."""
        return self.domain.at(self, name)

    def own_parents(self, name: str) -> tuple[str, ...]:
        """Parents that the same stage makes, whether they were captured or not."""
        return tuple(parent for parent in self.graph.parents[name] if self.graph.stage[parent] == self.stage)


class Place(ABC):
    """One checkpoint of one stage. A subclass has the component's arithmetic and recipes.

    Attributes:
        component: of `parity.components`.
        name: of the checkpoint.
        kind, block, stream: see `parity.names.Parts`.
        values: what is known at the stage.
        plain: nothing of it is exchanged, so that what it computes may be kept for others.
    """

    component: ClassVar[str]

    def __init__(self, values: Values, name: str) -> None:
        self.values, self.name = values, name
        self.plain = True
        parts = parse(name)
        self.kind, self.block, self.stream = parts.kind, parts.block, parts.stream

    @classmethod
    def at(cls, values: Values, name: str) -> Place:
        """The place of a checkpoint; of another component where that one made it."""
        return cls(values, name)

    @staticmethod
    @abstractmethod
    def state_key(name: str) -> str:
        """Key in a stage's state of a checkpoint that an earlier stage made."""

    @abstractmethod
    def recipe(self) -> Array:
        """What the reference makes of the parents.

        Raises:
            KeyError: there is no recipe for this kind, or a parent, weight or input is not known.
        """

    def layers(self) -> tuple[str, ...]:
        """Canonical prefixes of the linear layers and convolutions that the recipe uses, in order."""
        return ()

    def changed(self, **arithmetic: Callable[..., Any]) -> Self:
        """The same place with some of its methods exchanged."""
        other = copy.copy(self)
        other.plain = False
        for name, function in arithmetic.items():
            if not hasattr(self, name):
                raise AttributeError(f"{type(self).__name__} has no {name} to exchange")
            setattr(other, name, function)
        return other

    def weight(self, key: str) -> Array:
        """A tensor of the model, float64, by its canonical key."""
        return widened(self.values.weights(key))

    def held(self, x: Array) -> Array:
        """What a port holds in the run's dtype: rounded to that where noise is asked for."""
        return x if self.values.noisy is None else x.astype(self.values.noisy).astype(np.float64)

    def single(self, x: Array) -> Array:
        """What a port has in float32 at best: rounded to that where noise is asked for."""
        return x if self.values.noisy is None else x.astype(np.float32).astype(np.float64)

    def linear(self, x: Array, layer: str) -> Array:
        """x·weightᵀ + bias of a layer by its canonical prefix."""
        weight = self.weight(f"{layer}.weight")
        if self.values.noisy is None:
            y = x @ weight.T
        else:
            y = self.single(x.astype(np.float32) @ weight.T.astype(np.float32))
        for one in self.low_rank(layer):
            y = y + one.scale * ((x @ one.down.T) @ one.up.T)
        bias = self.bias(layer)
        return self.held(y if bias is None else y + bias)

    def bias(self, layer: str) -> Array | None:
        """Bias of a layer; None where it has none."""
        try:
            return self.weight(f"{layer}.bias")
        except KeyError:
            return None

    def low_rank(self, layer: str) -> list[LowRank]:
        """LoRAs on a layer."""
        lora = getattr(self.values.weights, "lora", None)
        return lora(layer) if lora else []

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the component."""
        return self.values.config

    def fed(self, key: str) -> Array:
        """An array of the state that the stage was fed."""
        return self.values.fed(key)

    def optional(self, key: str) -> Array | None:
        """The same, None where there is none."""
        return self.values.fed(key) if key in self.values.state else None


# (what exactly, the place with the fault in it)
Variants = Iterator[tuple[str, Place]]
