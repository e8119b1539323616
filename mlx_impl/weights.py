"""Checkpoints in any layout: find a component's tensors, read one stage's arrays at a time.

Where a tensor is stored is found by ``parity.layouts``, under the names of diffusers and transformers; reading is
``mx.load``'s. Arrays come lazily, so the peak is one stage in the stored dtype and in the wanted one. O outputs,
I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from parity.layouts import Entry, locate

from .layers import QuantizedLinear, owner_of
from .transformer import QwenImageTransformer2DModel, TransformerConfig

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}

# The modules that a stage outside the blocks owns.
EMBED_PARTS = ("img_in", "txt_norm", "txt_in", "time_text_embed")
HEAD_PARTS = ("norm_out", "proj_out")


class Shards:
    """One component's tensors.

    Args:
        path: the model's folder, the component's, or a single safetensors file.
        component: ``transformer``, ``text_encoder`` or ``vae``.

    Attributes:
        folder: of the files.
        settings: contents of the component's ``config.json``, or what stands for it.
        entries: key -> where it is stored, and how.

    Raises:
        WeightsError: it is not there, or damaged.
    """

    def __init__(self, path: str | Path, component: str) -> None:
        located = locate(Path(path), component)
        self.folder, self.entries = located.folder, located.entries
        self.settings = dict(located.config)
        self._extra = located.extra

    def check_strangers(self, *kinds: str) -> None:
        """Refuse stored tensors that no rule knows.

        Args:
            kinds: words of a stored name that say whose business it is; all names are when there are none.

        Raises:
            ValueError: there are some.
        """
        found = [name for name in self._extra if not kinds or set(kinds) & set(name.split("."))]
        if found:
            raise ValueError(f"{self.folder}: tensors that the model does not have: {', '.join(found[:8])}")

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, those of diffusers or transformers; a packed layer has one, of its weight."""
        return tuple(self.entries)

    def below(self, prefix: str) -> dict[str, Entry]:
        """The entries whose keys start with `prefix`."""
        return {key: entry for key, entry in self.entries.items() if key.startswith(prefix)}

    def read(self, prefix: str) -> dict[str, mx.array]:
        """Arrays below `prefix`, their keys without it, not yet read from disk.

        A packed layer has ``weight`` (O I·bits/32 uint32), ``scales`` and ``biases`` (O I/group), as they are stored.
        """
        opened: dict[str, dict[str, mx.array]] = {}

        def stored(file: str, name: str) -> mx.array:
            if file not in opened:
                opened[file] = mx.load(str(self.folder / file))
            return opened[file][name]

        found: dict[str, mx.array] = {}
        for key, entry in self.below(prefix).items():
            key, array = key.removeprefix(prefix), stored(entry.file, entry.name)
            if entry.packing is not None:
                layer = key.removesuffix("weight")
                found[f"{layer}scales"] = stored(*entry.packing.scales)
                found[f"{layer}biases"] = stored(*entry.packing.biases)
            elif entry.axes is not None:
                array = array.transpose(entry.axes).reshape(entry.true_shape)
            found[key] = array
        return found


class Checkpoint(Shards):
    """The transformer's config and tensors.

    Args:
        path: the model's folder, the transformer's own, or a single safetensors file.

    Raises:
        WeightsError: it is not there, or damaged.
        ValueError: the config has keys that the model does not know, or there are tensors that it does not have.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, "transformer")
        self.check_strangers()
        self.config = TransformerConfig.from_dict(self.settings)


def load_part(module: nn.Module, checkpoint: Shards, prefix: str, dtype: mx.Dtype, hold: mx.Dtype) -> None:
    """Load the arrays below `prefix` into a module, rounded to `hold` and then cast to `dtype`.

    Packed layers within the module are put there; where the module is one itself, `pack_layers` does it before.

    Raises:
        ValueError: missing, extra or misshaped arrays, named with their full keys.
    """
    pack_layers(module, checkpoint, f"{prefix}.", base=f"{prefix}.")
    arrays = dict(_cast(checkpoint, f"{prefix}.", dtype, hold))
    try:
        module.load_weights(list(arrays.items()), strict=True)
    except ValueError as error:
        raise ValueError(f"{checkpoint.folder}: {prefix}: {' '.join(str(error).split())}") from None
    mx.eval(module.parameters())


def load_transformer(path: str | Path, dtype: str = "bfloat16") -> QwenImageTransformer2DModel:
    """The whole transformer with its weights in memory.

    Args:
        path: a model's folder, the transformer's own, or a single safetensors file, in any layout.
        dtype: ``float32``, ``bfloat16`` or ``float16``; packed weights stay packed.

    Raises:
        ValueError: missing, extra or misshaped arrays, an unknown dtype or config key.
        WeightsError: config or shards are not there, or damaged.
    """
    wanted = mlx_dtype(dtype)
    checkpoint = Checkpoint(path)
    model = QwenImageTransformer2DModel(checkpoint.config)
    pack_layers(model, checkpoint)
    model.load_weights(list(_cast(checkpoint, "", wanted, wanted)), strict=True)
    mx.eval(model.parameters())
    return model


def pack_layers(model: nn.Module, checkpoint: Shards, prefix: str = "", *, base: str = "") -> None:
    """Put a `QuantizedLinear`, without its weights yet, wherever the checkpoint's layer is packed.

    Bits and group size are each layer's own.

    Args:
        model: what keys are paths in, once `base` is taken from them.
        checkpoint: whose entries tell.
        prefix: of the keys that are looked at.

    Raises:
        ValueError: a packed layer that is no linear layer of the model.
    """
    for key, entry in checkpoint.below(prefix).items():
        path = key.removeprefix(base).removesuffix("weight").rstrip(".")
        if entry.packing is None or not path:
            continue
        parent, place = owner_of(model, path)
        layer = parent[place]
        if not hasattr(layer, "to_quantized") and not isinstance(layer, QuantizedLinear):
            raise ValueError(f"{checkpoint.folder}: {key} is packed, and this model has no packed layer there")
        # The zeros are never computed: loading puts the arrays of the checkpoint in their place.
        zeros, bias = mx.zeros(entry.true_shape), layer.get("bias")
        bits, group_size = entry.packing.bits, entry.packing.group_size
        parent[place] = QuantizedLinear(zeros, bias, bits=bits, group_size=group_size)


def mlx_dtype(name: str) -> mx.Dtype:
    """The dtype behind a name.

    Raises:
        ValueError: MLX has no such dtype for a model.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is none of {', '.join(DTYPES)}")
    return DTYPES[name]


def _cast(checkpoint: Shards, prefix: str, dtype: mx.Dtype, hold: mx.Dtype) -> Iterator[tuple[str, mx.array]]:
    """Arrays in the wanted dtype; what belongs to packed weights stays as it is stored."""
    packed = {key.removesuffix("weight") for key, entry in checkpoint.below(prefix).items() if entry.packing}
    for key, array in checkpoint.read(prefix).items():
        layer, _, leaf = f"{prefix}{key}".rpartition(".")
        as_stored = f"{layer}." in packed and leaf in ("weight", "scales", "biases")
        yield key, array if as_stored else array.astype(hold).astype(dtype)
