"""This package's model as a port, one component at a time.

State keys, stages and shapes are those of ``parity.ports``.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from parity.layouts.lora import ADAPTED, Adapter

from .blas import installed
from .session import StagedSession
from .weights import mlx_dtype


class MlxPort:
    """This package's model on MLX's default device."""

    name = "mlx_impl"

    def open(
        self,
        weights: Path,
        *,
        dtype: str,
        hold: str | None = None,
        component: str = "transformer",
        adapters: Sequence[Adapter] = (),
    ) -> StagedSession:
        """See `parity.ports.Port.open`."""
        session = _session(component)
        # The components around the transformer know nothing of LoRA.
        loras = {"adapters": adapters} if adapters and component in ADAPTED else {}
        return session(Path(weights), mlx_dtype(dtype), mlx_dtype(hold or dtype), **loras)

    def precisions(self, dtype: str) -> tuple[str, ...]:
        """See `parity.ports.Port.precisions`."""
        mlx_dtype(dtype)
        return ("default",)

    def environment(self) -> dict[str, Any]:
        """Versions, device, BLAS, TF32 and threads of this process."""
        blas = installed()
        return {
            "mlx": mx.__version__,
            "python": platform.python_version(),
            "device": _device(),
            "blas": blas.kind,
            "blas_path": blas.path,
            "blas_note": blas.note,
            "tf32": os.environ.get("MLX_ENABLE_TF32") != "0",
            "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
        }


def _device() -> str:
    device = mx.default_device()
    if device.type == mx.DeviceType.cpu:
        return "cpu"
    return str(mx.device_info(device).get("device_name", device))


def _session(component: str) -> type[StagedSession]:
    """A component's session. Relative to this package, so that a copy of it finds its own."""
    match component:
        case "transformer":
            from .transformer_port import TransformerSession

            return TransformerSession
        case "text":
            from .text_port import TextSession

            return TextSession
        case "vision":
            from .vision_port import VisionSession

            return VisionSession
        case "vae":
            from .vae_port import VaeSession

            return VaeSession
        case "scheduler":
            from .scheduler_port import SchedulerSession

            return SchedulerSession
        case "pipeline":
            from .pipeline_port import PipelineSession

            return PipelineSession
        case _:
            raise ValueError(f"no component {component!r}")
