"""How the reference makes each checkpoint from its parents, one module a component; see `parity.diagnosis.place`."""

from __future__ import annotations

from importlib import import_module

from parity.diagnosis.place import Place

_CLASSES = {
    "transformer": "transformer:TransformerPlace",
    "scheduler": "scheduler:SchedulerPlace",
    "text": "text:TextPlace",
    "vae": "vae:VaePlace",
    "pipeline": "pipeline:PipelinePlace",
}


def place_class(component: str) -> type[Place] | None:
    """The component's `Place`; None where no recipes are written for it."""
    if component not in _CLASSES:
        return None
    module, _, name = _CLASSES[component].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), name)
