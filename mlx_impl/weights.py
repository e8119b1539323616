"""Checkpoints in the diffusers layout: find the shards, read one stage's arrays at a time.

Arrays come lazily from ``mx.load``, so the peak is one stage in the stored dtype and in the
wanted one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from .transformer import QwenImageTransformer2DModel, TransformerConfig

# An unsharded model's file, as diffusers and as transformers call it.
SINGLES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}

# The modules that a stage outside the blocks owns.
EMBED_PARTS = ("img_in", "txt_norm", "txt_in", "time_text_embed")
HEAD_PARTS = ("norm_out", "proj_out")


class Shards:
    """The safetensors shards of one folder, as diffusers or transformers wrote them.

    Args:
        folder: the folder of one component.

    Raises:
        FileNotFoundError: no weights, or a shard that the index names is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of = self._index()
        missing = sorted({file for file in self._file_of.values() if not (folder / file).exists()})
        if missing:
            raise FileNotFoundError(f"{folder}: no {', '.join(missing)}, which the index names; download it again")

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, as the index or the single file names them."""
        return tuple(self._file_of)

    def read(self, prefix: str) -> dict[str, mx.array]:
        """Arrays below `prefix`, their keys without it, not yet read from disk.

        Raises:
            KeyError: the index names a tensor that its shard does not hold.
        """
        by_file: dict[str, list[str]] = {}
        for key, file in self._file_of.items():
            if key.startswith(prefix):
                by_file.setdefault(file, []).append(key)
        found: dict[str, mx.array] = {}
        for file, keys in by_file.items():
            shard = mx.load(str(self.folder / file))
            for key in keys:
                if key not in shard:
                    raise KeyError(f"{self.folder / file} does not hold {key}, which the index says it does")
                found[key.removeprefix(prefix)] = shard[key]
        return found

    def _index(self) -> Mapping[str, str]:
        indices = sorted(self.folder.glob("*.safetensors.index.json"))
        if indices:
            return json.loads(indices[0].read_text())["weight_map"]
        for name in SINGLES:
            if (self.folder / name).exists():
                return dict.fromkeys(mx.load(str(self.folder / name)), name)
        raise FileNotFoundError(f"{self.folder} holds neither {' nor '.join(SINGLES)} nor a *.safetensors.index.json")


class Checkpoint(Shards):
    """The transformer's config and shards in one folder.

    Args:
        folder: the ``transformer`` folder of a pipeline, or the folder above it.

    Raises:
        FileNotFoundError: no config, no weights, or a shard that the index names is not there.
        ValueError: the config has keys that the model does not know.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        inner = folder / "transformer" if (folder / "transformer" / "config.json").exists() else folder
        path = inner / "config.json"
        if not path.exists():
            raise FileNotFoundError(f"{folder} has no config.json, nor a transformer folder with one")
        self.config = TransformerConfig.from_dict(json.loads(path.read_text()))
        super().__init__(inner)


def load_part(module: nn.Module, checkpoint: Shards, prefix: str, dtype: mx.Dtype, hold: mx.Dtype) -> None:
    """Load the arrays below `prefix` into a module, rounded to `hold` and then cast to `dtype`.

    Raises:
        ValueError: missing, extra or misshaped arrays, named with their full keys.
    """
    arrays = {key: _cast(array, dtype, hold) for key, array in checkpoint.read(f"{prefix}.").items()}
    try:
        module.load_weights(list(arrays.items()), strict=True)
    except ValueError as error:
        raise ValueError(f"{checkpoint.folder}: {prefix}: {' '.join(str(error).split())}") from None
    mx.eval(module.parameters())


def load_transformer(folder: str | Path, dtype: str = "bfloat16") -> QwenImageTransformer2DModel:
    """The whole transformer with its weights in memory.

    Args:
        folder: a checkpoint folder in the diffusers layout.
        dtype: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        ValueError: missing, extra or misshaped arrays, an unknown dtype or config key.
        FileNotFoundError: config or shards are not there.
    """
    wanted = mlx_dtype(dtype)
    checkpoint = Checkpoint(folder)
    model = QwenImageTransformer2DModel(checkpoint.config)
    arrays = [(key, array.astype(wanted)) for key, array in checkpoint.read("").items()]
    model.load_weights(arrays, strict=True)
    mx.eval(model.parameters())
    return model


def mlx_dtype(name: str) -> mx.Dtype:
    """The dtype behind a name.

    Raises:
        ValueError: MLX has no such dtype for a model.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is none of {', '.join(DTYPES)}")
    return DTYPES[name]


def _cast(array: mx.array, dtype: mx.Dtype, hold: mx.Dtype) -> mx.array:
    return array.astype(hold).astype(dtype)
