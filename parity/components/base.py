"""A component of the model as the toolkit sees it: its cases, and the graph of its checkpoints.

Each module of this package has one component: a subclass of `Case` with what a suite can say about
it, and a function that builds its `parity.names.Graph` from plain numbers (which a run writes down,
so that it can be judged again). Only numpy is imported here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

State = dict[str, np.ndarray]
# Folder of a pipeline -> contents of its config file.
Configs = Mapping[str, Mapping[str, Any]]

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


@dataclass(frozen=True)
class Work:
    """What one pass of a case through its model takes, whatever the dtype.

    Attributes:
        flops: floating-point operations of the whole pass, two a multiply-add.
        state: elements that go from stage to stage.
        captured: elements of the checkpoints of the largest stage.
        inside: elements that a stage holds at once while it computes.
    """

    flops: float
    state: int
    captured: int
    inside: int


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """What a suite says about one set of inputs; fields are the keys of a ``[[case]]`` table.

    Attributes:
        component: which session a port is asked for.
        folders: folders of the checkpoint that it is made of.
        streamed: whether a stage owns the tensors that have its number in their names, so that they
            can be read ahead of it.
        plain: whether its folders hold ``*.safetensors`` and `files` as they are, ``.`` being the model's own
            folder; else they are in one of the layouts of Qwen-Image (`parity.layouts`).
        files: of a plain folder: what must be there besides the weights. The first is its config, in JSON.
        name: unique within its suite; becomes part of file names.
        seed: of the random inputs.
    """

    component: ClassVar[str]
    folders: ClassVar[tuple[str, ...]]
    streamed: ClassVar[bool] = False
    plain: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ("config.json",)

    name: str
    seed: int

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """For ``parity.json``: what the inputs are, as JSON."""

    @abstractmethod
    def inputs(self, configs: Configs, dtype: str) -> State:
        """The arrays that go into the first stage, floating ones rounded to `dtype`."""

    @abstractmethod
    def graph(self, configs: Configs, level: str) -> dict[str, Any]:
        """What builds the graph again: its ``name`` in `parity.components`, and the arguments of its function; of a
        component from outside, what `parity.listed.Listing.listed` gives.
        """

    def work(self, configs: Configs, level: str) -> Work | None:
        """What one pass takes, for estimates; None where nobody has worked it out.

        Args:
            configs: of the model.
            level: which checkpoints are compared.
        """
        return None

    def draw(self) -> np.random.Generator:
        """The generator of this case's inputs: numpy's counter-based Philox, the same everywhere."""
        return np.random.Generator(np.random.Philox(key=self.seed))
