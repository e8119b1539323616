"""``parity weights convert``: the same weights in another layout, tensor by tensor, bit for bit where it can hold them.

Nothing is held but the piece in hand, and the result has its name only when it is whole.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from parity import checkpoint as checkpoints
from parity.checkpoint import SYNTHETIC_FILE, SYNTHETIC_KEY, Checkpoint
from parity.dequantize import dequantized_rows
from parity.disk import room_for
from parity.errors import UsageError, WeightsError
from parity.layouts import Entry, Place, rules
from parity.layouts.folder import CONFIG, check_inside, components_of
from parity.layouts.infer import infer_transformer
from parity.safetensors_header import Tensor
from parity.safetensors_writer import OutTensor, file_pieces, split, write_file
from parity.staging import check_room, staged
from parity.tensors import NUMPY, mapped
from parity.transformer_shape import CLASS_NAME

# The release of mflux whose files have this form; its loader wants the key, whatever it says.
MFLUX_VERSION = "0.18.0"
LARGEST = {rules.DIFFUSERS: 5 * 10**9, rules.MFLUX: 2 << 30, rules.MLX_RS: 2 << 30}
_COPIED = ("tokenizer", "scheduler", "processor")
_STEM = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@dataclass
class Plan:
    """One file to be written, below the result's folder."""

    file: str
    tensors: list[OutTensor]
    metadata: dict[str, str]


@dataclass
class Conversion:
    """What a conversion is going to write.

    Attributes:
        source, to: as the user named them.
        plans: the safetensors files.
        texts: small files, name -> contents.
        copies: files taken over as they are, name -> where from.
        notes: what the result cannot hold or what was added.
    """

    source: Path
    to: str
    plans: list[Plan] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)
    copies: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """About what it takes on the disk."""
        values = sum(tensor.nbytes for plan in self.plans for tensor in plan.tensors)
        headers = sum(200 * len(plan.tensors) for plan in self.plans)
        return values + headers + sum(path.stat().st_size for path in self.copies.values())

    @property
    def tensors(self) -> int:
        """Number of tensors to be written."""
        return sum(len(plan.tensors) for plan in self.plans)


class Packing(Protocol):
    """How a layer is packed while it is written."""

    bits: int

    def tensors(self, layer: str, entry: Entry, read: Callable[[], np.ndarray]) -> list[OutTensor]:
        """What is written of the layer `layer`, whose weight `read` gives."""


def plan(
    source: Path, to: str, final: Path, dtype: str | None = None, packs: Mapping[str, Packing] | None = None
) -> Conversion:
    """Inspect the source and say what is to be written.

    Args:
        source: a model's folder, a component's, or a single file.
        to: layout of the result.
        final: name of the result.
        dtype: write packed layers out in this dtype (``BF16``, ``F16``, ``F32``); None keeps them packed.
        packs: canonical name of a weight of the transformer -> how it is packed.

    Raises:
        WeightsError: the source is not sound, or the layout cannot hold what it has.
        UsageError: the names do not go together.
    """
    _check_names(source, to, final)
    found = components_of(source)
    if to == rules.SINGLE and "transformer" not in found:
        raise WeightsError(f"{source} has no transformer, which is all that a single file holds")
    conversion = Conversion(source, to)
    names = ["transformer"] if to == rules.SINGLE else list(found)
    for component in names:
        checkpoint = checkpoints.inspect(source, component)
        if checkpoint.bits and dtype is None and to in (rules.DIFFUSERS, rules.SINGLE):
            count = sum(checkpoint.bits.values())
            raise WeightsError(
                f"{checkpoint.root}: {count} layers are packed, which the layout {to} cannot hold; "
                "--dequantize writes them out (with --dtype, bfloat16 otherwise)"
            )
        conversion.notes += [f"{component}: {note}" for note in checkpoint.located.notes]
        mine = packs or {} if component == "transformer" else {}
        _add_component(conversion, component, checkpoint, final, dtype, mine, below=(source / component).is_dir())
    left = sorted(set(found) - set(names))
    if left:
        conversion.notes.append(f"a single file holds the transformer alone: {', '.join(left)} left out")
    if to != rules.SINGLE:
        _add_copies(conversion)
    return conversion


def write(
    conversion: Conversion, final: Path, force: bool, progress: Callable[[int], None], say: Callable[[str], None]
) -> None:
    """Do what was planned.

    Args:
        conversion: as `plan` gave it.
        final: name of the result.
        force: replace weights that are there.
        progress: called with bytes, as they are written.
        say: is told of what an earlier process has left.

    Raises:
        OutputExistsError, UsageError: as `parity.staging.staged`.
        ResourceError: the disk cannot hold it.
        WeightsError: the source changed meanwhile, or a value does not fit the dtype.
    """
    with room_for(final), staged(final, force, say) as folder:
        check_room(folder.parent, conversion.nbytes)
        for one in conversion.plans:
            path = folder / one.file
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, one.tensors, one.metadata, progress)
        for name, text in conversion.texts.items():
            _write_small(folder / name, text)
        for name, origin in conversion.copies.items():
            _write_small(folder / name, origin.read_bytes())


def _check_names(source: Path, to: str, final: Path) -> None:
    if not source.exists():
        raise WeightsError(f"{source}: there is no such file or folder")
    real, target = Path(os.path.realpath(source)), Path(os.path.realpath(final))
    if target == real or real in target.parents or target in real.parents:
        raise UsageError(f"{final} and {source} lie in each other; choose another name for the result")
    if (to == rules.SINGLE) != (final.suffix == ".safetensors"):
        ends = "must end in .safetensors" if to == rules.SINGLE else "is to be a folder, without .safetensors"
        raise UsageError(f"{final}: the name of a result in the layout {to} {ends}")


def _add_component(
    conversion: Conversion, component: str, checkpoint: Checkpoint, final: Path, dtype: str | None,
    packs: Mapping[str, Packing], *, below: bool,
) -> None:  # fmt: skip
    to, located = conversion.to, checkpoint.located
    residuals = checkpoint.config.get("num_res_blocks", 2) if component == "vae" else 2
    groups = rules.rules_of(to, component, residuals)
    sources = {shard.name: shard.tensors for shard in located.shards}
    out: list[OutTensor] = []
    kept: Counter[int] = Counter()
    for name, entry in located.entries.items():
        tensors = _Source(located.folder, sources, entry)
        if name in packs:
            stored = rules.to_stored(name, groups).removesuffix(".weight")
            out += packs[name].tensors(stored, entry, tensors.canonical)
            kept[packs[name].bits] += 1
        elif entry.packing is not None and dtype is None:
            layer = name.removesuffix(".weight")
            inner = rules.to_stored(name, groups, packed=to == rules.MLX_RS)
            out.append(tensors.copied(inner, Place(entry.file, entry.name)))
            outer = rules.to_stored(name, groups).removesuffix(".weight")
            out.append(tensors.copied(f"{outer}.scales", entry.packing.scales))
            out.append(tensors.copied(f"{outer}.biases", entry.packing.biases))
            kept[entry.packing.bits] += 1
        elif entry.packing is not None:
            out.append(tensors.written_out(rules.to_stored(name, groups), dtype or "BF16"))
        else:
            layer = name.removesuffix(".bias")
            beside = located.entries.get(f"{layer}.weight")
            packed = to == rules.MLX_RS and dtype is None and beside is not None and beside.packing is not None
            stored = rules.to_stored(name, groups, packed=packed and name.endswith(".bias"))
            out.append(tensors.laid_out(stored, to, component, name))
    prefix = f"{component}/" if below else ""
    if to == rules.SINGLE:
        _add_single(conversion, checkpoint, out, final)
        return
    _add_files(conversion, component, prefix, out, _metadata(to, kept, checkpoint) | _mark(checkpoint))
    conversion.texts[f"{prefix}{CONFIG}"] = _config_text(component, checkpoint)
    for name in ("generation_config.json", SYNTHETIC_FILE):
        file = located.folder / name
        if file.is_file() and not checkpoint.root.is_file():
            check_inside(file, conversion.source)
            conversion.copies[f"{prefix}{name}"] = file


def _add_single(conversion: Conversion, checkpoint: Checkpoint, out: list[OutTensor], final: Path) -> None:
    prefix = rules.PREFIXES[0]
    named = [OutTensor(prefix + one.name, one.dtype, one.shape, one.pieces) for one in out]
    marked = bool(checkpoint.config["zero_cond_t"])
    if marked:
        named.append(OutTensor(prefix + rules.ZERO_COND_MARK, "F32", (0,), lambda: ()))
    conversion.plans.append(Plan(final.name, named, {"format": "pt"} | _mark(checkpoint)))
    shapes = {one.name: Tensor(final.name, one.dtype, one.shape, 0, 0) for one in out}
    try:
        inferred, _ = infer_transformer(shapes, {}, marked)
    except WeightsError:
        inferred = {}
    lost = sorted(key for key, value in checkpoint.config.items() if inferred.get(key, False) != value)
    if lost:
        conversion.notes.append(
            f"a single file has no config.json, and {', '.join(lost)} will not follow from its shapes: "
            f"copy {checkpoint.located.folder / CONFIG} beside it"
        )


def _add_files(
    conversion: Conversion, component: str, prefix: str, out: Iterable[OutTensor], metadata: dict[str, str]
) -> None:
    """Split into files and add their index."""
    to = conversion.to
    parts = split(out, LARGEST[to])
    stem = _STEM[component] if to == rules.DIFFUSERS else "model"
    if to == rules.MFLUX:
        names = [f"{i}.safetensors" for i in range(len(parts))]
    elif len(parts) == 1:
        names = [f"{stem}.safetensors"]
    else:
        names = [f"{stem}-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    placed = {}
    for name, tensors in zip(names, parts, strict=True):
        conversion.plans.append(Plan(prefix + name, tensors, metadata))
        placed |= dict.fromkeys((tensor.name for tensor in tensors), name)
    if to == rules.MFLUX or len(parts) > 1:
        total = sum(tensor.nbytes for tensors in parts for tensor in tensors)
        about = metadata if to == rules.MFLUX else {"total_size": total}
        index = {"metadata": about, "weight_map": placed}
        conversion.texts[f"{prefix}{stem}.safetensors.index.json"] = (json.dumps(index, indent=2) + "\n").encode()


def _metadata(to: str, kept: Mapping[int, int], checkpoint: Checkpoint) -> dict[str, str]:
    if to != rules.MFLUX:
        return {"format": "pt" if to == rules.DIFFUSERS else "mlx"}
    before = {key: value for shard in checkpoint.shards for key, value in shard.metadata.items()}
    level = max(kept, key=lambda bits: kept[bits]) if kept else None
    return {"quantization_level": str(level), "mflux_version": before.get("mflux_version", MFLUX_VERSION)}


def _mark(checkpoint: Checkpoint) -> dict[str, str]:
    """Generated weights stay known as such."""
    return {} if checkpoint.synthetic is None else {SYNTHETIC_KEY: checkpoint.synthetic}


def _config_text(component: str, checkpoint: Checkpoint) -> bytes:
    """The source's own file byte for byte, or what was inferred."""
    file = checkpoint.located.folder / CONFIG
    if file.is_file() and not checkpoint.root.is_file():
        return file.read_bytes()
    named: dict[str, Any] = {"_class_name": CLASS_NAME} if component == "transformer" else {}
    return (json.dumps(named | dict(checkpoint.config), indent=2) + "\n").encode()


def _add_copies(conversion: Conversion) -> None:
    """Tokenizer, scheduler, processor and the files beside them, where there are any."""
    source = conversion.source
    if not source.is_dir():
        return
    files = [source / "model_index.json", source / SYNTHETIC_FILE]
    for folder in _COPIED:
        if (source / folder).is_dir():
            files += sorted((source / folder).iterdir())
    for file in files:
        if file.is_file():
            check_inside(file, source)
            conversion.copies[str(file.relative_to(source))] = file


def _write_small(path: Path, contents: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True)
class _Source:
    """One entry of the source and how its bytes are come by."""

    folder: Path
    tensors: Mapping[str, Mapping[str, Tensor]]
    entry: Entry

    def copied(self, name: str, place: Place) -> OutTensor:
        """A stored tensor as it is."""
        tensor = self.tensors[place.file][place.name]
        pieces = partial(file_pieces, self.folder / place.file, tensor.start, tensor.stop)
        return OutTensor(name, tensor.dtype, tensor.shape, pieces)

    def laid_out(self, name: str, to: str, component: str, canonical: str) -> OutTensor:
        """A tensor in the axes of the layout."""
        place, shape = Place(self.entry.file, self.entry.name), self.entry.shape
        view = self._canonical(np.broadcast_to(np.uint8(0), shape))
        target = to_layout(view, canonical, to, component)
        if target is view and self.entry.axes is None:
            return self.copied(name, place)

        def pieces() -> Iterable[memoryview]:
            whole = to_layout(self._canonical(self._array(place)), canonical, to, component)
            yield np.ascontiguousarray(whole).reshape(-1).view(np.uint8).data

        return OutTensor(name, self.entry.dtype, target.shape, pieces)

    def canonical(self) -> np.ndarray:
        """The values in diffusers' axes."""
        return self._canonical(self._array(Place(self.entry.file, self.entry.name)))

    def written_out(self, name: str, dtype: str) -> OutTensor:
        """A packed layer, unpacked and rounded."""
        return OutTensor(name, dtype, self.entry.true_shape, partial(self._rows, name, dtype))

    def _rows(self, name: str, dtype: str) -> Iterable[memoryview]:
        packing = self.entry.packing
        places = (Place(self.entry.file, self.entry.name), packing.scales, packing.biases)
        flat = [array.reshape(-1, array.shape[-1]) for array in map(self._array, places)]
        for rows in dequantized_rows(*flat, packing.bits, packing.group_size, NUMPY[dtype]):
            if not np.isfinite(rows).all():
                raise WeightsError(f"{name}: dequantized values are not finite in {dtype}; choose another --dtype")
            yield rows.reshape(-1).view(np.uint8).data

    def _canonical(self, stored: np.ndarray) -> np.ndarray:
        axes = self.entry.axes
        return (stored if axes is None else stored.transpose(axes)).reshape(self.entry.true_shape)

    def _array(self, place: Place) -> np.ndarray:
        return mapped(self.folder / place.file, self.tensors[place.file][place.name])


def to_layout(array: np.ndarray, canonical: str, to: str, component: str) -> np.ndarray:
    """A view of a canonical array in the axes of a layout; itself where they are the same.

    MLX has the channels of a convolution last, and mflux makes vectors of the VAE's gammas.

    Args:
        array: in diffusers' axes.
        canonical: its name.
        to: layout.
        component: ``transformer``, ``text_encoder`` or ``vae``.
    """
    if to not in (rules.MFLUX, rules.MLX_RS) or component == "transformer":
        return array
    if array.ndim >= 4 and canonical.endswith(".weight"):
        return np.moveaxis(array, 1, -1)
    return array.reshape(-1) if canonical.endswith(".gamma") else array
