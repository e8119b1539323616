"""The components that come with the toolkit: each has a class of cases and a function that builds its graph.

A component is found by its name and loaded when it is asked for. Those from outside (`parity.outside`) write their
graphs out, and are found by nobody: what a run keeps is judged without them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from parity import listed
from parity.components.base import Case
from parity.names import Graph

# Component -> its cases, its graph.
_PLACES = {
    "transformer": ("parity.components.transformer:TransformerCase", "parity.names:qwen_image_transformer"),
    "text": ("parity.components.text:TextCase", "parity.components.text:text_graph"),
    "vision": ("parity.components.vision:VisionCase", "parity.components.vision:vision_graph"),
    "vae": ("parity.components.vae:VaeCase", "parity.components.vae:vae_graph"),
    "scheduler": ("parity.components.scheduler:SchedulerCase", "parity.components.scheduler:scheduler_graph"),
    "pipeline": ("parity.components.pipeline:PipelineCase", "parity.components.pipeline:pipeline_graph"),
}
COMPONENTS = tuple(_PLACES)
# No layers, steps or channels of a model are more; a file from elsewhere may claim anything.
LARGEST = 1000


def case_class(component: str) -> type[Case]:
    """The class of a component's cases.

    Raises:
        KeyError: there is no such component.
    """
    return _find(_PLACES[component][0])


@lru_cache(maxsize=32)
def _build(name: str, arguments: tuple[tuple[str, Any], ...]) -> Graph:
    return _find(_PLACES[name][1])(**dict(arguments))


def build_graph(described: Mapping[str, Any]) -> Graph:
    """The graph that `Case.graph` described, as a run wrote it down: a component's numbers, or one that is listed.

    Raises:
        KeyError, TypeError, ValueError: it describes none.
    """
    if described["name"] == listed.NAME:
        return listed.build(described)
    if described["name"] not in COMPONENTS:
        raise ValueError(f"no component {described['name']!r} builds graphs; known: {', '.join(COMPONENTS)}")
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in described.items()}
    numbers = [one for value in arguments.values() for one in (value if isinstance(value, tuple) else (value,))]
    if len(numbers) > LARGEST or any(isinstance(one, int) and abs(one) > LARGEST for one in numbers):
        raise ValueError(f"a graph with a number above {LARGEST}")
    return _build(arguments.pop("name"), tuple(sorted(arguments.items())))


def _find(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
