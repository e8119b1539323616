"""Classes of the transformer's linear layers: what a rule for quantization speaks of, and what an error is told by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

# Class -> pattern of canonical layer names, as `parity weights quantize --rule` takes it; the first match counts.
CLASSES: dict[str, str] = {
    "img_in": "img_in",
    "txt_in": "txt_in",
    "time_text_embed": "time_text_embed.*",
    "img_mod": "*.img_mod.1",
    "txt_mod": "*.txt_mod.1",
    "img_qkv": "*.attn.to_[qkv]",
    "txt_qkv": "*.attn.add_[qkv]_proj",
    "img_attn_out": "*.attn.to_out.0",
    "txt_attn_out": "*.attn.to_add_out",
    "img_mlp_in": "*.img_mlp.net.0.proj",
    "img_mlp_out": "*.img_mlp.net.2",
    "txt_mlp_in": "*.txt_mlp.net.0.proj",
    "txt_mlp_out": "*.txt_mlp.net.2",
    "norm_out": "norm_out.linear",
    "proj_out": "proj_out",
}


def class_of(layer: str) -> str | None:
    """The class of a layer by its canonical name, without ``.weight``; None for layers of another model."""
    return next((name for name, pattern in CLASSES.items() if fnmatchcase(layer, pattern)), None)


def linear_layers(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Layers that can be packed: a matrix with a bias beside it. Tables of embeddings have none.

    Args:
        shapes: canonical name -> shape of the unpacked tensor.
    """
    layers = (name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2)
    return [layer for layer in layers if f"{layer}.bias" in shapes]


def in_general(layers: Iterable[str]) -> list[str]:
    """Layer names with ``*`` for the block's number, each once."""
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.(?:attn|img|txt))", "*", layer) for layer in layers))
