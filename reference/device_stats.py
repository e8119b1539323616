"""Statistics of a torch tensor on the device it lives on, lazily: nothing waits for the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def lazy(x: torch.Tensor) -> torch.Tensor:
    """min, max, mean and rms of a tensor, as four float32 numbers on its device.

    A NaN anywhere makes all four NaN.
    """
    flat = x.detach().reshape(-1)
    low, high = torch.aminmax(flat)
    wide = flat.float()
    rms = torch.linalg.vector_norm(wide) / flat.numel() ** 0.5
    return torch.stack([low.float(), high.float(), wide.mean(), rms])


def collect(values: Mapping[str, torch.Tensor]) -> dict[str, tuple[float, ...]]:
    """Bring what `lazy` gave to the host, in one transfer."""
    table = torch.stack(list(values.values())).cpu().tolist()
    return {name: tuple(row) for name, row in zip(values, table, strict=True)}
