"""Single operations on MLX's own kernels, to find out whether a library is at fault or the port that uses it.

The kernels are called as a port would call them, on the inputs given. Another interpreter, with another version
of MLX, runs this file by itself, so it imports nothing but numpy and MLX:

    python replay.py REQUEST.npz ANSWER.npz

M rows, K inputs, O outputs, B batch, H heads, N queries, S keys, d head width.

    linear            x: M K, weight: O K, bias: O (optional)
    quantized_linear  x: M K, weight: O K·bits/32 uint32, scales, biases: O K/group_size, bias: O (optional);
                      options group_size, bits
    layer_norm        x: M K; option eps
    rms_norm          x: M K, weight: K; option eps
    sdpa              q: B H N d, k, v: B H S d, mask: B or 1, 1 or H, N or 1, S bool (optional); option scale
    gelu              x: M K, the tanh approximation
    conv              x: B H W C, weight: O kH kW C, bias: O (optional); options stride, padding
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
Arrays = Mapping[str, mx.array]
Options = Mapping[str, Any]


def _linear(a: Arrays, _: Options) -> mx.array:
    return a["x"] @ a["weight"].T if "bias" not in a else mx.addmm(a["bias"], a["x"], a["weight"].T)


def _quantized_linear(a: Arrays, o: Options) -> mx.array:
    y = mx.quantized_matmul(
        a["x"], a["weight"], a["scales"], a["biases"], transpose=True, group_size=o["group_size"], bits=o["bits"]
    )
    return y + a["bias"] if "bias" in a else y


def _layer_norm(a: Arrays, o: Options) -> mx.array:
    return mx.fast.layer_norm(a["x"], None, None, o["eps"])


def _rms_norm(a: Arrays, o: Options) -> mx.array:
    return mx.fast.rms_norm(a["x"], a["weight"], o["eps"])


def _sdpa(a: Arrays, o: Options) -> mx.array:
    return mx.fast.scaled_dot_product_attention(a["q"], a["k"], a["v"], scale=o["scale"], mask=a.get("mask"))


def _gelu(a: Arrays, _: Options) -> mx.array:
    x = a["x"]
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _conv(a: Arrays, o: Options) -> mx.array:
    y = mx.conv2d(a["x"], a["weight"], stride=o["stride"], padding=o["padding"])
    return y + a["bias"] if "bias" in a else y


OPS: dict[str, Callable[[Arrays, Options], mx.array]] = {
    "linear": _linear, "quantized_linear": _quantized_linear, "layer_norm": _layer_norm, "rms_norm": _rms_norm,
    "sdpa": _sdpa, "gelu": _gelu, "conv": _conv,
}  # fmt: skip


class MlxReplay:
    """MLX as a backend of `parity.diagnosis.backend`."""

    package = "mlx"
    version = mx.__version__

    def devices(self) -> tuple[str, ...]:
        """``gpu`` where there is one, and ``cpu``."""
        return ("gpu", "cpu") if mx.is_available(mx.gpu) else ("cpu",)

    def run(self, calls: Sequence[Mapping[str, Any]]) -> list[np.ndarray | str]:
        """Compute calls one after the other, each evaluated before the next.

        Args:
            calls: ``{op, arrays, options, device, dtype, alone}``; floating arrays are rounded to the dtype,
                within the graph of the operation, or evaluated before it where `alone` is true.

        Returns:
            for each call its result in float32, or what went wrong.
        """
        return [_attempt(call) for call in calls]


def _attempt(call: Mapping[str, Any]) -> np.ndarray | str:
    try:
        with mx.stream(mx.Device(mx.gpu if call["device"] == "gpu" else mx.cpu)):
            arrays = {name: _taken(array, DTYPES[call["dtype"]]) for name, array in call["arrays"].items()}
            if call["alone"]:
                mx.eval(arrays)
            made = OPS[call["op"]](arrays, call["options"]).astype(mx.float32)
            mx.eval(made)
            return np.array(made)
    except Exception as error:  # a kernel that refuses is a result like any other
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _taken(array: np.ndarray, dtype: mx.Dtype) -> mx.array:
    if array.dtype.kind in "biu":
        return mx.array(np.ascontiguousarray(array))
    return mx.array(np.ascontiguousarray(array, dtype=np.float32)).astype(dtype)


def main(request: str, answer: str) -> None:
    """Answer a file of calls: ``calls`` is their JSON, in which an array is the name of an entry of the file."""
    with np.load(request, allow_pickle=False) as file:
        calls = json.loads(bytes(file["calls"]).decode())
        stored = {name: file[name] for name in file.files if name != "calls"}
    for call in calls:
        call["arrays"] = {name: stored[entry] for name, entry in call["arrays"].items()}
    replay = MlxReplay()
    made = replay.run(calls)
    about = {
        "version": replay.version,
        "devices": replay.devices(),
        "failed": {str(i): one for i, one in enumerate(made) if isinstance(one, str)},
    }
    arrays = {str(i): one for i, one in enumerate(made) if not isinstance(one, str)}
    np.savez(answer, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
