"""What Qwen2.5-VL's language model and vision tower share. D width."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from . import ops


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, rounded to the dtype before the weights multiply. weight: D."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = mx.ones((width,))
        self._eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return ops.rms_norm(x, mx.ones((x.shape[-1],), x.dtype), self._eps) * self.weight
