"""What ``--weights`` means, the same for every command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from parity import hub, lora, model_folder, plain_weights
from parity.errors import UsageError, WeightsError
from parity.safetensors_header import shown
from parity.suite import Suite

SYNTHETIC = "synthetic:"
# Keys of a config that say how weights are stored and who wrote them: a quantized model's differ from its original's.
_OF_WRITER = ("_", "quantization", "dtype", "torch_dtype", "transformers_version")


@dataclass(frozen=True)
class Found:
    """What ``--weights`` means.

    Attributes:
        path: of the model.
        origin: what ``weights`` of ``parity.json`` says of a model from a hub or a package; empty for others.
    """

    path: Path
    origin: Mapping[str, str] = field(default_factory=dict)


def find(weights: str, folders: Iterable[str] | None = None) -> Found:
    """Where the model lies that ``--weights`` means; one of a hub is downloaded if need be.

    Args:
        weights: a model's folder, ``org/name[@revision]`` on a hub, ``package:NAME/FOLDER`` of an installed package,
            or ``synthetic:PRESET``, made on first use.
        folders: the components that are needed; None for those that there are.

    Raises:
        WeightsError: the hub does not have it, or can't be reached.
        ResourceError: no room to download it.
    """
    if weights.startswith(SYNTHETIC):
        from parity.commands.synth import ensure

        return Found(ensure(weights.removeprefix(SYNTHETIC)))
    if weights.startswith(plain_weights.PACKAGE):
        return Found(plain_weights.in_package(weights), {"path": weights})
    hub_id = hub.parse(weights)
    if hub_id is None:
        return Found(Path(weights))
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    snapshot = hub.snapshot(hub_id, folders, lambda line: err.print(line, markup=False))
    return Found(snapshot.path, snapshot.describe())


def asked(weights: str | None, suite: Suite) -> str:
    """What ``--weights`` says, else the suite.

    Raises:
        UsageError: neither says anything.
    """
    if not (weights or suite.weights):
        raise UsageError(f"suite {suite.name!r} names no weights: give --weights DIR")
    return weights or suite.weights


def find_model(weights: str, folders: Iterable[str] | None = None) -> Path:
    """The path of the model that ``--weights`` means; see `find`."""
    return find(weights, folders).path


def open_model(
    weights: str,
    folders: Iterable[str],
    err: Console,
    *,
    later: Callable[[model_folder.ModelFolder], bool] | None = None,
    plain: Mapping[str, tuple[str, ...]] | None = None,
) -> model_folder.ModelFolder:
    """The model that was asked for, every tensor of it looked at.

    Args:
        weights: as for `find_model`.
        folders: the components that are needed.
        err: where progress and remarks go.
        later: whether the values of an inspected model will be looked at by whoever reads them.
        plain: see `parity.model_folder.inspect`.

    Raises:
        WeightsError: it is not there, is damaged, or holds values that are not finite.
    """
    folders = tuple(folders)
    where = find(weights, folders)
    found = replace(model_folder.inspect(where.path, folders, plain), origin=where.origin)
    if later is not None and later(found):
        zero: tuple[str, ...] = ()
    else:
        with err.status(f"checking {found.nbytes / 2**20:,.0f} MiB of weights"):
            zero = found.check_finite()
    remarks = list(found.warnings)
    if zero:
        remarks.append(f"{len(zero)} tensors are all zero, the first is {zero[0]}")
    for remark in remarks:
        err.print(f"note: {remark}", markup=False)
    return found


def open_original(original: str, model: model_folder.ModelFolder, err: Console) -> model_folder.ModelFolder:
    """The weights that a model was quantized from.

    Args:
        original: as for `find_model`.
        model: the quantized one.
        err: where progress and remarks go.

    Raises:
        WeightsError: it is not there, is damaged, or quantized itself.
        UsageError: it is of another shape than the model, or configured otherwise.
    """
    found = open_model(original, tuple(model.configs), err, plain=model.plain)
    if found.bits:
        raise WeightsError(f"--original {original}: packed as well; name the weights before quantization")
    for folder, one in found.checkpoints.items():
        shapes, expected = (
            {name: entry.true_shape for name, entry in x.located.entries.items()}
            for x in (one, model.checkpoints[folder])
        )
        differ = sorted(name for name in expected if shapes.get(name) != expected[name])
        if differ:
            name = differ[0]
            raise UsageError(
                f"--original {original}: another model: {folder}: {name} is {list(shapes.get(name, ()))}, "
                f"expected {list(expected[name])} as in --weights"
            )
    for folder, config in found.configs.items():
        _check_config(original, folder, config, model.configs[folder])
    return found


def _check_config(original: str, folder: str, config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse an original that computes otherwise. A key that one layout leaves out, or of its writer, says nothing."""
    for key in sorted(config.keys() & expected.keys()):
        if key.startswith(_OF_WRITER):
            continue
        if json.loads(json.dumps(config[key])) != json.loads(json.dumps(expected[key])):  # tuples are lists
            raise UsageError(
                f"--original {original}: another model: {folder}: {shown(key)} is {shown(json.dumps(config[key]))}, "
                f"expected {shown(json.dumps(expected[key]))} as in --weights"
            )


def open_loras(
    files: Sequence[str], model: model_folder.ModelFolder, err: Console, *, reference: bool = True
) -> tuple[lora.LoraFile, ...]:
    """The LoRAs that were asked for, with what was bound of each on stderr.

    Args:
        files: ``FILE[@SCALE]`` each.
        model: whose transformer they are for.
        err: where remarks go.
        reference: diffusers loads them as well.

    Raises:
        LoraError: a file is damaged, not finite, or of another model.
        MissingPackageError: the reference needs PEFT.
    """
    if files and reference:
        lora.check_reference_can()
    found = lora.inspect(files, model.configs.get("transformer"))
    for one in found:
        err.print(one.line, markup=False, soft_wrap=True)
        for remark in one.remarks:
            err.print(f"note: {remark}", markup=False, soft_wrap=True)
    return found
