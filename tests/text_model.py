"""A text encoder of two narrow layers with its tokenizer, written in a second."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from reference import synthetic_text

SHAPE: dict[str, Any] = {
    "width": 128, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate": 192, "mrope_section": (4, 6, 6),
    "vision": synthetic_text.TINY["vision"] | {"depth": 2, "fullatt_block_indexes": [1], "hidden_size": 32},
    "shard_bytes": 400_000,
}  # fmt: skip


def write_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """``text_encoder``, ``tokenizer`` and ``processor``; the text encoder in several shards."""
    synthetic_text.write(folder, **SHAPE | changes, seed=seed)
    return folder


def rewritten(folder: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """The text encoder and tokenizer in another place, in one file, with `change` made to the tensors."""
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(folder / name, target / name)
    path, tensors = target / "text_encoder", {}
    for shard in sorted(path.glob("*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    (path / "model.safetensors.index.json").unlink()
    save_file(change(tensors), path / "model.safetensors")
    return target
