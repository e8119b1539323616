"""Qwen-Image in MLX, with named checkpoints where the values are made.

A copy of this folder under another name is a port of its own (``parity run --candidate mycopy``).
"""

# First: the BLAS has to be in place before MLX is loaded.
from .blas import Blas, installed
from .transformer import QwenImageTransformer2DModel, Streams, TransformerConfig
from .weights import Checkpoint, load_transformer

__all__ = [
    "Blas",
    "Checkpoint",
    "QwenImageTransformer2DModel",
    "Streams",
    "TransformerConfig",
    "installed",
    "load_transformer",
]
