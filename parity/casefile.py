"""Case files: the inputs of a case as one safetensors file, for ports in any language.

    NAME.safetensors     tensors: the state that goes into the first stage (`parity.ports` lists its keys)
    stages/STAGE.safetensors    where asked for: the reference's state before each stage, for isolated mode

Metadata (texts): ``parity.case`` is the hash of the inputs, which a dump repeats in its own metadata so that it
can't be held against a trace of another case; ``parity.request`` has the case, dtype and component as JSON;
in a stage's file, ``parity.stage``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (gives safetensors its bfloat16)
import numpy as np
from safetensors.numpy import save_file

from parity.components.base import Case
from parity.disk import room_for
from parity.runfolder import to_json
from parity.trace import CASE_KEY

REQUEST_KEY, STAGE_KEY = "parity.request", "parity.stage"


def case_hash(inputs: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the inputs in the order of their keys: key, dtype, shape and bytes of each, as hex."""
    digest = hashlib.sha256()
    for key, array in sorted(inputs.items()):
        digest.update(f"{key}\0{array.dtype.name}\0{list(array.shape)}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def request(case: Case, dtype: str) -> dict[str, Any]:
    """What a case file says of its case: all that makes the same inputs again."""
    return {"component": case.component, "dtype": dtype, "case": asdict(case)}


def write_inputs(path: Path, inputs: Mapping[str, np.ndarray], case: Case, dtype: str, stage: str = "") -> int:
    """Write a state as a case file.

    Args:
        path: to write; its folder is made.
        inputs: the state; before the first stage these are the case's inputs.
        case: that it is of.
        dtype: of its floating values.
        stage: that it goes into, where it is not the whole case.

    Returns:
        bytes written.
    """
    metadata = {REQUEST_KEY: json.dumps(to_json(request(case, dtype)))}
    metadata |= {STAGE_KEY: stage} if stage else {CASE_KEY: case_hash(inputs)}
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: np.ascontiguousarray(array) for key, array in inputs.items()}, path, metadata)
    return path.stat().st_size


def spell(array: np.ndarray) -> str:
    """``[1, 256, 64] bfloat16``, and how many values where the shape does not say it at once."""
    shape = ", ".join(map(str, array.shape))
    return f"[{shape}] {array.dtype.name}" + (f", {math.prod(array.shape):,} values" if array.ndim > 1 else "")
