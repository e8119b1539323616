"""Tensors of safetensors files as numpy arrays, mapped and not read: a page comes into memory when it is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from parity.safetensors_header import Tensor

# safetensors' spelling of a dtype -> numpy's, little-endian as the files are.
NUMPY: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"), "U64": np.dtype("<u8"), "I32": np.dtype("<i4"), "U32": np.dtype("<u4"),
    "I16": np.dtype("<i2"), "U16": np.dtype("<u2"), "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}  # fmt: skip


def mapped(path: Path, tensor: Tensor) -> np.ndarray:
    """One tensor of a file, read-only.

    Args:
        path: of the file.
        tensor: as its header has it.

    Raises:
        KeyError: numpy has no such dtype.
    """
    dtype = NUMPY[tensor.dtype]
    if tensor.stop == tensor.start:  # nothing can't be mapped
        return np.empty(tensor.shape, dtype)
    raw = np.memmap(path, np.uint8, "r", tensor.start, (tensor.stop - tensor.start,))
    return np.asarray(raw).view(dtype).reshape(tensor.shape)


def all_mapped(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Many tensors of a file, read-only, in one map: each map of its own would hold a file open.

    Raises:
        KeyError: numpy has no dtype of one of them.
    """
    filled = [tensor for tensor in tensors.values() if tensor.stop > tensor.start]
    whole = np.asarray(np.memmap(path, np.uint8, "r")) if filled else np.empty(0, np.uint8)
    return {
        name: whole[tensor.start : tensor.stop].view(NUMPY[tensor.dtype]).reshape(tensor.shape)
        for name, tensor in tensors.items()
    }
