"""Faults of a component that also show at what a pipeline makes with it, where that has no checkpoints of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from parity.diagnosis.fault import fault
from parity.diagnosis.place import Place, Variants
from parity.diagnosis.recipes.pipeline import PipelinePlace
from parity.diagnosis.recipes.whole import Change, Whole

Generator = Callable[[Place], Variants]
# What a pipeline makes with the text encoder.
_EMBEDS = ("pipeline.prompt_embeds", "pipeline.negative_embeds")


def component_fault(
    code: str, component: str, at: tuple[str, ...], title: str, fix: str, seen: str = ""
) -> Callable[[Generator], Generator]:
    """`parity.diagnosis.fault.fault` for the text encoder or the VAE, and for the pipelines that have it inside."""

    def enter(function: Generator) -> Generator:
        fault(code, at=at, title=title, fix=fix, seen=seen, component=component)(function)
        kinds = _EMBEDS if component == "text" else ("pipeline.image",)
        fault(code, at=kinds, title=title, fix=fix, seen=seen, component="pipeline")(_within(function, component, at))
        return function

    return enter


def _within(function: Generator, component: str, at: tuple[str, ...]) -> Generator:
    """The same fault, made everywhere in the component as the pipeline runs it."""

    def twin(p: PipelinePlace) -> Variants:
        inside = _component(p, component)
        for detail in dict.fromkeys(_details(function, at, inside)):
            change = Change(_putting(function, detail), at, inside)
            if component == "text":
                yield detail, p.changed(encoded=lambda c=change: p.encoded(c))
            else:
                yield detail, p.changed(pictures=lambda c=change: p.decoded(c))

    return twin


def _component(p: PipelinePlace, component: str) -> Whole:
    if component == "text":
        return p.text_encoder(p.kind.removeprefix("pipeline.").removesuffix("_embeds"))
    return p.vae_decoder()


def _details(function: Generator, at: tuple[str, ...], inside: Whole) -> Iterator[str]:
    """What variants there are, at one checkpoint of each kind."""
    seen: set[str] = set()
    for name in inside.graph.parents:
        place = inside.place(name)
        if place.kind in at and place.kind not in seen:
            seen.add(place.kind)
            yield from (detail for detail, _ in function(place))


def _putting(function: Generator, detail: str) -> Callable[[Place], Place]:
    """What makes one variant of a fault at a place."""
    return lambda place: next((changed for found, changed in function(place) if found == detail), place)
