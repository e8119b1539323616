"""A component's configuration: its ``config.json``, or what the shapes say where the layout has none."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from parity.errors import WeightsError
from parity.layouts import rules
from parity.layouts.folder import CONFIG, Files, check_inside
from parity.layouts.infer import infer_transformer
from parity.layouts.naming import Naming, canonical_shape
from parity.layouts.packing import packing_problem
from parity.layouts.published import PUBLISHED
from parity.safetensors_header import json_file
from parity.text_shape import expected_text_tensors, is_optional, is_text_encoder
from parity.transformer_shape import TransformerShape, expected_tensors
from parity.vae_shape import expected_vae_tensors, is_vae

Shapes = Mapping[str, tuple[int, ...]]


def find_config(path: Path, files: Files, names: Naming) -> tuple[dict[str, Any], list[str]]:
    """The configuration of a component, and how it was come by where it is not in a file.

    Args:
        path: what the user named.
        files, names: of the component.

    Raises:
        WeightsError: it is wrong, or there is none and the shapes do not tell.
    """
    file = files.folder / CONFIG
    if file.is_file() and (files.single is None or _is_of(file, names.component)):
        if files.single is None:
            check_inside(file, path)
        return read_config(file, names.component), []
    if names.layout == rules.DIFFUSERS:
        raise WeightsError(f"{file}: there is no such file; copy it from the model's repository")
    if files.absent or files.unread:
        raise WeightsError(f"{file}: there is no such file, and not all weights can be read to do without")
    if names.component != "transformer":
        return _published(file, names)
    return _inferred(names)


def _inferred(names: Naming) -> tuple[dict[str, Any], list[str]]:
    """A transformer's configuration from its shapes."""
    found = {canonical: names.tensor(name) for canonical, name in names.plain.items()}
    scales = {}
    for layer, parts in names.parts.items():
        if packing_problem(layer, {part: names.tensor(name) for part, name in parts.items()}) is None:
            found[f"{layer}.weight"], scales[layer] = names.tensor(parts["weight"]), names.tensor(parts["scales"])
    config, notes = infer_transformer(found, scales, names.marked)
    return completed(config), notes


def read_config(file: Path, component: str) -> dict[str, Any]:
    """Read a component's ``config.json``; the transformer's is checked and completed.

    Raises:
        WeightsError: unreadable, or not a configuration of this model.
    """
    try:
        raw = json_file(file)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file}: {error}") from None
    return completed(raw) if component == "transformer" else raw


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """All keys of `TransformerShape`, in JSON's types.

    Raises:
        WeightsError: keys that are unknown, or wrong values.
    """
    shape = TransformerShape.of(config)
    return asdict(shape) | {"axes_dims_rope": list(shape.axes_dims_rope)}


def expected_shapes(config: Mapping[str, Any], component: str) -> Shapes | None:
    """Canonical names and shapes of a component's tensors; None where the configuration is of another model.

    Raises:
        WeightsError: the configuration is wrong.
    """
    if component == "transformer":
        return expected_tensors(config)
    if component == "vae":
        return expected_vae_tensors(config) if is_vae(config) else None
    return expected_text_tensors(config) if is_text_encoder(config) else None


def _is_of(file: Path, component: str) -> bool:
    """Whether a config that lies beside a single file is one of the component; it may be anything's."""
    try:
        raw = json_file(file)
    except (OSError, ValueError):
        return False
    known = {"transformer": lambda c: c.get("_class_name") == "QwenImageTransformer2DModel", "vae": is_vae,
             "text_encoder": is_text_encoder}  # fmt: skip
    return known[component](raw)


def _published(file: Path, names: Naming) -> tuple[dict[str, Any], list[str]]:
    """The published model's configuration, if every tensor has its shape there."""
    config = PUBLISHED[names.component]
    expected = expected_shapes(config, names.component) or {}
    shapes = {
        canonical: canonical_shape(canonical, names.tensor(name).shape, names.style, expected.get(canonical))[0]
        for canonical, name in names.plain.items()
    }
    packed = {f"{layer}.weight" for layer in names.parts}
    agree = all(expected.get(name) == shape for name, shape in shapes.items()) and packed <= expected.keys()
    missing = [name for name in expected if name not in shapes and name not in packed and not is_optional(name)]
    if not agree or missing:
        what = names.component.replace("_", " ")
        raise WeightsError(
            f"{file}: there is no such file, and the shapes are not those of the published {what}; "
            "put the model's config.json beside the weights"
        )
    return deepcopy(config), [
        "no config.json: every shape is that of the published Qwen-Image, whose configuration is used"
    ]
